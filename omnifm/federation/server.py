"""The server's side of a run: describe, seed, training rounds, evaluation, checkpoint, summary.

Both drivers call `Federation.run`.  How payloads reach the sites is the `Transport`'s part, what is accepted is the
`Intake`'s, who takes part is the `Roster`'s, and what is written down is the `Journal`'s.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from omnifm.config import Experiment
from omnifm.federation.intake import AS_DESCRIBED, WEIGHTS, Intake
from omnifm.federation.journal import Journal, aggregate, pictures, site_round, versions
from omnifm.federation.roster import Roster
from omnifm.federation.transport import Transport
from omnifm.method import Partition, ServerView, Tensors
from omnifm.plugins import load_method, load_task
from omnifm.records import DATA_CHANGED, Facts, Json, RoundEntry, Summary
from omnifm.report.data_changes import in_words
from omnifm.report.site_record import site_record
from omnifm.state import History, locked
from omnifm.update import Payload, Stage, Update, digest, under

PATIENCE = 3
"""Number of rounds in a row with fewer than `min_sites` accepted replies after which the run fails."""
LOCK_WAIT_S = 10.0
"""Seconds that a run waits until a killed predecessor has ended."""
logger = logging.getLogger("omnifm.federation")


class FederationError(ValueError):
    """The run cannot go on; the summary gives the reason and the checkpoint is kept."""


class Federation:
    """One run of one job.

    Args:
        experiment: the job.
        state_dir: folder for the checkpoint and the bank; it must outlive the run and lie outside its results.
        results_dir: folder for summary.json, rounds.jsonl, report.html and, if anything was refused, audit.jsonl.
        transport: the way to the sites.
        draw_report: whether report.html is drawn; without a reader it costs half the time of a tiny run.
    """

    def __init__(
        self,
        experiment: Experiment,
        state_dir: Path,
        results_dir: Path,
        transport: Transport,
        *,
        draw_report: bool = True,
    ) -> None:
        self.experiment, self.transport, self.draw_report = experiment, transport, draw_report
        self.method = load_method(experiment)
        self.task = load_task(experiment)
        self.folder = state_dir / experiment.job
        self.checkpoints = History(self.folder, "server", keep=2)
        self.roster = Roster(self.task)
        self.journal = Journal(results_dir, experiment.train.num_rounds, next(iter(self.task.metrics)))
        self.intake = Intake(self.folder / "spool", self.method, self.roster, self.journal)
        self.run_id = ""
        self.round = 0
        self.shared: Tensors = {}
        self.init_hash = ""
        self.backbone_hash = ""
        self.results: dict[str, Update] = {}

    @property
    def view(self) -> ServerView:
        """What the method may know of the federation in the current stage."""
        return self.intake.view

    @property
    def spec(self) -> Json:
        """What the federation agreed on; empty before."""
        return self.roster.spec

    def run(self) -> Summary:
        """Run or resume the job; return the summary, which is also written to summary.json.

        Raises:
            StateError: another run of this job uses the state folder.
            OSError: state or results cannot be written; the last checkpoint is complete.
        """
        with locked(self.folder, LOCK_WAIT_S):
            return self._run()

    def _run(self) -> Summary:
        status, reason = "FAILED", None
        try:
            self._begin()
            while self.round < self.experiment.train.num_rounds:
                self._train(self.round + 1)
            self._require_a_trained_model()
            self._evaluate()
            status = "SUBSET" if self._missing_sites() else "COMPLETE"
        except FederationError as error:
            reason = str(error)
            logger.error("run failed: %s", reason)
        if status == "SUBSET":
            reason = f"sites that should have taken part did not: {', '.join(sorted(self._missing_sites()))}"
        summary = self._summary(status, reason)
        self.journal.finish(summary, pictures(self.results.values()), draw_report=self.draw_report)
        if status != "FAILED":
            self._checkpoint(complete=True)
        return summary

    def add_reference(self, summary: Summary, method: str, other: Summary) -> Summary:
        """Write the scores of another method's run into the summary and the page of this run.

        Args:
            summary: of this run.
            method: name of the other method.
            other: its summary; data, splits, seed and budget must be those of this run.
        """
        scores = {
            site: {metric: score["after"] for metric, score in record["metrics"].items()}
            for site, record in other["sites"].items()
        }
        whole: Summary = {**summary, "reference": {**summary.get("reference", {}), method: scores}}
        self.journal.finish(whole, pictures(self.results.values()), draw_report=self.draw_report)
        return whole

    # Before round 1.
    def _begin(self) -> None:
        """Let every site describe its data, then build the model or restore it from the checkpoint of this run."""
        found = self.checkpoints.load()
        record = found.record if found else {}
        same = (record.get("config"), record.get("seed")) == (self.experiment.hash(), self.experiment.seed)
        resumes = bool(found and same and not record["complete"])
        self.run_id = record["run_id"] if resumes else secrets.token_hex(8)
        if resumes:
            self.roster.facts = dict(record["facts"])
            self.roster.absent = dict(record["absent"])
            self.roster.spec = dict(record["spec"])
            self.roster.lists = dict(record.get("lists", {}))  # an older release did not write it
            self.roster.changes = list(record.get("changes", []))
            self.round = record["history"][-1]["round"] if record["history"] else 0
        missing = self._describe(self.transport.sites())
        if len(self.roster.facts) < self.experiment.train.min_sites:
            described = ", ".join(sorted(self.roster.facts)) or "none"
            rule = f"{self.experiment.train.min_sites} sites must describe their data (train.min_sites)"
            raise FederationError(f"{rule}; got {described}; missing {_in_words(missing)}")
        self.roster.absent.update(missing)
        self._build(record["spec"] if resumes else self._agreed())
        if found and resumes:
            self._restore(found.tensors, record)
            if self.roster.changes != list(record.get("changes", [])):
                self._checkpoint()  # the site will not tell it again
        else:
            self.checkpoints.clear()
            self._seed()
            self._checkpoint()
        self.journal.plan(self.task.planned())
        self.journal.restart(self.journal.history)

    def _describe(self, sites: list[str]) -> dict[str, str]:
        missing = self._ask("describe", 0, sorted(sites))
        for site in self.intake.refused:
            self.roster.forget(site)
        num_known = len(self.roster.changes)
        for update in self.intake.spool:
            if reason := self.roster.add(update, self.round + 1):
                missing[update.site] = reason
                self.journal.audit("describe", 0, update.site, reason)
        for change in self.roster.changes[num_known:]:
            logger.warning("%s", in_words(change))
        return missing

    def _forget_changed(self, missing: Mapping[str, str]) -> list[str]:
        """Let the sites describe their data again whose last reply shows that these are others than described."""
        changed = [site for site, why in missing.items() if DATA_CHANGED in why or AS_DESCRIBED in why]
        for site in changed:
            self.roster.forget(site)
        return changed

    def _agreed(self) -> Json:
        try:
            return self.roster.agree()
        except ValueError as error:
            raise FederationError(str(error)) from None

    def _build(self, spec: Json) -> None:
        """Build the initial model; the experiment's seed gives the same values at every site."""
        self.roster.spec = spec
        self.task.configure(spec)
        torch.manual_seed(self.experiment.seed)
        model = self.method.build(self.task)
        self.partition = self.intake.partition = self.method.partition(model)
        self.shared = self.partition.pick(model, "shared")
        self.init_hash = digest(self.shared)
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        # Equal for methods that share different parts of the backbone, which init_hash does not show.
        self.backbone_hash = digest({name: w for name, w in trained.items() if name.startswith("backbone.")})
        self.method.start(self.shared)
        sizes = {part: self.partition.count(part) for part in Partition.parts()}
        sites = sorted(self.roster.facts)
        logger.info("partition %s: %s values; sites %s", self.partition.hash()[:12], sizes, sites)

    def _seed(self) -> None:
        if self.method.seeds:
            self.roster.absent.update(self._ask("seed", 0, self._present()))
            self.method.receive_seeds(list(self.intake.spool), self.view)

    # One round.
    def _train(self, number: int) -> None:
        if late := self.roster.late(self.transport.sites()):
            self.roster.absent.update(self._describe(late))
        connected = self._present()
        absent = self.roster.missing(connected)
        self.transport.opened(number, self.shared)
        missing = absent | self._ask("train", number, self._sample(number, connected))
        missing |= self.intake.withhold(self.experiment.train.max_norm_ratio)
        # A site that was absent before it described its data may have replied by now.
        missing = {site: reason for site, reason in missing.items() if site not in self.intake.spool}
        if len(self.intake.spool) >= self.experiment.train.min_sites:
            self.shared = self.transport.aggregate(self._combine)
        else:
            replies = len(self.intake.spool)
            logger.warning("round %d: %d replies, fewer than min_sites; the model is unchanged", number, replies)
        self.round = number
        self.journal.add(self._entry(number, missing))
        self._forget_changed(missing)
        self.transport.closed(number, self.shared)
        self._checkpoint()
        self._require_recent_quorum(missing)

    def _combine(self) -> Tensors:
        return self.method.aggregate(self.shared, self.intake.spool, self.view)

    def _entry(self, number: int, missing: dict[str, str]) -> RoundEntry:
        sent, changes = self.intake.sent, self.intake.changes
        rows = {u.site: site_round(u, sent[u.site], changes[u.site][WEIGHTS].norm) for u in self.intake.spool}
        return {"round": number, "sites": rows, "missing": missing, "bank": self.method.monitors()}

    def _sample(self, number: int, connected: list[str]) -> list[str]:
        train = self.experiment.train
        wanted = max(round(train.participation * len(connected)), min(train.min_sites, len(connected)))
        return sorted(random.Random(f"{self.experiment.seed}:{number}").sample(connected, wanted))

    def _has_quorum(self, entry: RoundEntry) -> bool:
        return len(entry["sites"]) >= self.experiment.train.min_sites

    def _require_recent_quorum(self, missing: dict[str, str]) -> None:
        recent = self.journal.history[-PATIENCE:]
        if len(recent) == PATIENCE and not any(map(self._has_quorum, recent)):
            rule = f"{PATIENCE} rounds in a row had fewer than min_sites accepted replies"
            raise FederationError(f"{rule}; last missing {_in_words(missing)}")

    def _require_a_trained_model(self) -> None:
        if not any(map(self._has_quorum, self.journal.history)):
            rule = f"a round must have {self.experiment.train.min_sites} accepted replies; none had"
            raise FederationError(
                f"{rule}, so that the model is untrained; missing {', '.join(sorted(self._missing_sites()))}"
            )

    def _evaluate(self) -> None:
        if late := [site for site in self.roster.late(self.transport.sites()) if site in self.roster.lists]:
            self.roster.absent.update(self._describe(late))  # they came back with other data in the last round
        asked = self._present()
        missing = self.roster.missing(asked)
        missing |= self._ask("evaluate", self.experiment.train.num_rounds, asked)
        self.results = {update.site: update for update in self.intake.spool}
        if changed := self._forget_changed(missing):  # they came back with other data, and are asked once more
            missing = {site: why for site, why in missing.items() if site not in changed} | self._describe(changed)
            changed = [site for site in changed if site in self.roster.facts]
            missing |= self._ask("evaluate", self.experiment.train.num_rounds, changed)
            self.results |= {update.site: update for update in self.intake.spool}
        self.roster.absent.update(missing)
        if not self.results:
            raise FederationError(f"no site returned its test scores: {_in_words(missing)}")

    # Asking the sites.
    def _ask(self, stage: Stage, number: int, sites: list[str]) -> dict[str, str]:
        """Send every site its own payload.  Afterwards the intake's spool holds what was accepted.

        Returns:
            Reason by site from which nothing was accepted.
        """
        train = self.experiment.train
        self.intake.open(self.roster.view(number, train.num_rounds, train.max_size_ratio))
        for site in sites:
            shared, extra = self.shared, dict[str, Tensor]()
            if stage in ("train", "evaluate"):
                shared, extra = self.method.payload(site, self.shared, self.view)
            spec = self.spec if stage != "describe" else {}
            self.intake.sent[site] = Payload(stage, number, self.run_id, spec, shared, extra, train.warm_start)
        return self.intake.unanswered(self.transport.exchange(self.intake.sent, self.intake.accept))

    def _present(self) -> list[str]:
        return self.roster.present(self.transport.sites())

    # Checkpoint.
    def _checkpoint(self, complete: bool = False) -> None:
        tensors, memory = self.method.server_state()
        parts = {f"shared/{name}": value for name, value in self.shared.items()}
        parts |= {f"method/{name}": value for name, value in tensors.items()}
        record = {
            "config": self.experiment.hash(),
            "seed": self.experiment.seed,
            "run_id": self.run_id,
            "spec": self.spec,
            "complete": complete,
            "facts": self.roster.facts,
            "absent": self.roster.absent,
            "lists": self.roster.lists,
            "changes": self.roster.changes,
            "history": self.journal.history,
            "method": memory,
            "init_hash": self.init_hash,
        }
        self.checkpoints.save(self.round, parts, record)

    def _restore(self, tensors: Tensors, record: Json) -> None:
        if record["init_hash"] != self.init_hash:
            raise FederationError("the checkpoint must start from the same initial model; got another init_hash")
        self.shared = under(tensors, "shared")
        self.method.restore(under(tensors, "method"), record["method"])
        history = cast(list[RoundEntry], record["history"])
        while history and not self._has_quorum(history[-1]):  # such a round changed nothing, so it is done again
            history.pop()
        self.journal.history = history
        self.round = history[-1]["round"] if history else 0
        logger.info("resumed %s at round %d", self.experiment.job, self.round + 1)

    # The summary.
    def _missing_sites(self) -> set[str]:
        return set(self.roster.absent) | self.journal.missing_sites()

    def _summary(self, status: str, reason: str | None) -> Summary:
        facts, part = self.roster.facts, self.intake.partition
        demo = {described["source"] for described in facts.values()} == {"demo"}
        counts = {name: part.count(name) if part else 0 for name in Partition.parts()}
        return {
            "schema": 1,
            "job": self.experiment.job,
            "task": self.experiment.task["name"],
            "method": self.experiment.method["name"],
            "data": "synthetic demo" if demo else self.experiment.data.name,
            "seed": self.experiment.seed,
            "versions": versions(),
            "settings": self._settings(),
            "finished": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "status": status,
            "reason": reason,
            "rounds": {"planned": self.experiment.train.num_rounds, "completed": len(self.journal.history)},
            "partition": {"hash": part.hash() if part else "", **counts},
            "init_hash": self.init_hash,
            "backbone_hash": self.backbone_hash,
            "final_hash": digest(self.shared),
            "data_source": "demo" if demo else "site",
            "sites": {site: site_record(facts[site], update) for site, update in sorted(self.results.items())},
            "aggregate": aggregate(self.task.metrics, self.results),
            "higher_is_better": dict(self.task.metrics),
            "absent": self.roster.absent,
            "capped": self._capped(facts),
            "data_changes": self.roster.changes,
            "history": self.journal.history,
        }

    def _settings(self) -> dict[str, Json]:
        """All settings by section, with the defaults, as JSON holds them."""
        task, model, method = self.task.settings, self.task.model, self.method.settings
        sections = {"task": task, "model": model, "method": method, "train": self.experiment.train}
        return cast("dict[str, Json]", json.loads(json.dumps({name: asdict(part) for name, part in sections.items()})))

    def _capped(self, facts: dict[str, Facts]) -> dict[str, int]:
        """Weight by site whose weight is limited to fewer cases than it has."""
        sizes = self.view.sizes.items()
        return {site: size for site, size in sizes if site in facts and size < facts[site]["num_train"]}


def _in_words(missing: Mapping[str, str]) -> str:
    """Sites and why their replies are missing.

    >>> _in_words({"site-2": "no reply within 60 s"})
    'site-2 (no reply within 60 s)'
    """
    return ", ".join(f"{site} ({reason})" for site, reason in sorted(missing.items())) or "none"
