"""The server's side of a run: agree, seed, rounds, evaluation, checkpoint, summary.  It knows no transport.

Both drivers call `Federation.run`; what differs between one process and FLARE is only the `Transport`.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from omnifm.config import Experiment
from omnifm.federation.intake import capped, change, malformed, outliers, remove_refused
from omnifm.federation.journal import aggregate, means, progress, site_row, versions
from omnifm.federation.spool import Spool
from omnifm.method import Partition, ServerView, Tensors
from omnifm.plugins import load_method, load_task
from omnifm.report.run import write_report
from omnifm.state import History, locked, write_atomic
from omnifm.update import Payload, Stage, Update, digest, under

PATIENCE = 3
"""Rounds in a row that may close without a quorum before the run fails."""
LOCK_WAIT_S = 10.0
"""Seconds that a run waits for a killed predecessor to be gone."""
MALFORMED = (KeyError, TypeError, IndexError, ArithmeticError)
"""What data facts of another form than the task's make it raise."""
PAST = 5
"""Rounds whose accepted changes tell what is usual where too few sites reply to tell it among themselves."""
Accept = Callable[[Update], str | None]
logger = logging.getLogger("omnifm.federation.server")


class FederationError(ValueError):
    """The run cannot go on; the summary says why and the checkpoint is kept."""


class Transport(ABC):
    """How payloads reach sites and updates come back."""

    @abstractmethod
    def sites(self) -> list[str]:
        """Sites that are connected now."""

    @abstractmethod
    def exchange(self, payloads: Mapping[str, Payload], accept: Accept) -> dict[str, str]:
        """Deliver each payload, hand every reply to `accept`; return {site: why nothing was accepted from it}."""

    def opened(self, round_number: int, shared: Tensors) -> None:
        """A training round begins with this shared part."""

    def aggregate(self, combine: Callable[[], Tensors]) -> Tensors:
        """Combine the accepted updates of the round; a driver may tell others before and after."""
        return combine()

    def closed(self, round_number: int, shared: Tensors) -> None:
        """A training round ended with this shared part."""


class Federation:
    """One run of one job.

    Args:
        experiment: the job.
        state_dir: folder for the checkpoint and the bank; must outlive the run and lie outside its results.
        results_dir: folder for summary.json, rounds.jsonl, report.html and, if anything was refused, audit.jsonl.
        transport: the way to the sites.
        draw_report: whether report.html is drawn; without a reader it takes half the time of a tiny run.
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
        self.experiment, self.transport, self.results_dir = experiment, transport, results_dir
        self.draw_report = draw_report
        self.method, self.task = load_method(experiment), load_task(experiment)
        self.folder = state_dir / experiment.job
        self.checkpoints = History(self.folder, "server", keep=2)
        self.run_id, self.round = "", 0
        self.spec: dict[str, Any] = {}
        self.shared: Tensors = {}
        self.partition: Partition | None = None
        self.init_hash, self.backbone_hash = "", ""
        self.facts: dict[str, dict[str, Any]] = {}
        self.view = ServerView()
        self.absent: dict[str, str] = {}
        self.history: list[dict[str, Any]] = []
        self.sent: dict[str, Payload] = {}
        self.spool = Spool(self.folder / "spool")
        self.results: dict[str, Update] = {}
        self.changes: dict[str, dict[str, tuple[float, str]]] = {}
        self.refused: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        """Run or resume the job; return the summary (contract: summary.json), which is also written.

        Raises:
            StateError: another run of this job uses the state folder.
            OSError: state or results cannot be written; the last checkpoint is whole.
        """
        with locked(self.folder, LOCK_WAIT_S):
            return self._run()

    def _run(self) -> dict[str, Any]:
        status, reason = "FAILED", None
        try:
            self._begin()
            while self.round < self.experiment.train.num_rounds:
                self._train(self.round + 1)
            self._require_a_round()
            self._evaluate()
            status = "SUBSET" if self.absent or any(entry["missing"] for entry in self.history) else "COMPLETE"
        except FederationError as error:
            reason = str(error)
            logger.error("run failed: %s", reason)
        if status == "SUBSET":
            reason = f"sites that should have taken part did not: {sorted(self._missing_sites())}"
        summary = self._summary(status, reason)
        write_atomic(self.results_dir / "summary.json", json.dumps(summary, indent=1).encode())
        if self.draw_report:
            self._report(summary)
        if status != "FAILED":
            self._checkpoint(complete=True)
        return summary

    def accept(self, update: Update) -> str | None:
        """Take one reply; return why it is refused, or None.  Nothing of a refused update is used."""
        reason = self._refuse(update) or self._keep(update)
        if reason is not None:
            self.refused[update.site] = reason
            self._audit(update.stage, update.round, update.site, reason)
        return reason

    def _keep(self, update: Update) -> str | None:
        trained = update.stage == "train"
        kept, reasons = (
            remove_refused(self.method, update, self.view) if update.stage in ("seed", "train") else (update, [])
        )
        try:
            self.spool.add(replace(kept, num_samples=self.view.sizes[update.site]) if trained else kept)
        except OSError as error:
            return f"the server cannot store it: {error.strerror}"
        if trained:
            sent, judged = self.sent[update.site].shared, self.method.judges
            self.changes[update.site] = {"": change(sent, update.shared)} | {
                name: (float(value.double().norm()), name) for name, value in update.extra.items() if name not in judged
            }
        for reason in reasons:
            self._audit(update.stage, update.round, update.site, f"weights kept, the rest dropped: {reason}")
        return None

    def _audit(self, stage: str, number: int, site: str, rule: str) -> None:
        """One line per reply left out, in the log and in audit.jsonl: whose, and which rule on which tensor."""
        logger.warning("left out: site %s, %s %d: %s", site, stage, number, rule)
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "round": number, "stage": stage, "site": site}
        self.results_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.results_dir / "audit.jsonl").open("a") as file:
            file.write(json.dumps(line | {"rule": rule}) + "\n")

    # Before round 1.
    def _begin(self) -> None:
        found = self.checkpoints.load()
        record = found.record if found else {}
        same = (record.get("config"), record.get("seed")) == (self.experiment.hash(), self.experiment.seed)
        resumes = bool(found and same and not record["complete"])
        self.run_id = record["run_id"] if resumes else secrets.token_hex(8)
        if resumes:
            self.facts, self.absent, self.spec = dict(record["facts"]), dict(record["absent"]), dict(record["spec"])
        missing = self._describe(self.transport.sites())
        if len(self.facts) < self.experiment.train.min_sites:
            raise FederationError(f"min_sites must describe their data; got {sorted(self.facts)}, missing {missing}")
        self.absent.update(missing)
        self._build(record["spec"] if resumes else self._agreed())
        if resumes:
            assert found is not None
            self._restore(found.tensors, record)
        else:
            self.checkpoints.clear()
            if self.method.seeds:
                self.absent.update(self._ask("seed", 0, self._connected()))
                self.method.receive_seeds(list(self.spool), self.view)
            self._checkpoint()
        write_atomic(self.results_dir / "rounds.jsonl", "".join(json.dumps(e) + "\n" for e in self.history).encode())

    def _describe(self, sites: list[str]) -> dict[str, str]:
        missing = self._ask("describe", 0, sorted(sites))
        for update in self.spool:
            if self.spec and (reason := self._misfit(update)):  # of two that come at once each alone may fit
                missing[update.site] = reason
                self._audit("describe", 0, update.site, reason)
                continue
            self.facts[update.site] = update.facts
        return missing

    def _agreed(self) -> dict[str, Any]:
        try:
            return self.task.agree({site: facts["data"] for site, facts in sorted(self.facts.items())})
        except ValueError as error:
            raise FederationError(str(error)) from None
        except MALFORMED as error:
            raise FederationError(f"sites' data facts must have one form; got {type(error).__name__}") from None

    def _build(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.task.configure(spec)
        torch.manual_seed(self.experiment.seed)  # every site draws the same initial values
        model = self.method.build(self.task)
        self.partition = self.method.partition(model)
        self.shared = self.partition.pick(model, "shared")
        self.init_hash = digest(self.shared)
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        # The same for methods that share different parts of it, which init_hash cannot show.
        self.backbone_hash = digest({name: w for name, w in trained.items() if name.startswith("backbone.")})
        self.method.start(self.shared)
        sizes = {part: self.partition.count(part) for part in Partition.parts()}
        logger.info("partition %s: %s values; sites %s", self.partition.hash()[:12], sizes, sorted(self.facts))

    # One round.
    def _train(self, number: int) -> None:
        if late := sorted(set(self.transport.sites()) - set(self.facts)):
            self.absent.update(self._describe(late))
        connected = self._connected()
        absent = dict.fromkeys(sorted(set(self.facts) - set(connected)), "disconnected")
        absent |= {site: reason for site, reason in self.absent.items() if site not in self.facts}
        sampled = self._sample(number, connected)
        self.transport.opened(number, self.shared)
        missing = absent | self._ask("train", number, sampled) | self._withhold(number)
        missing = {site: reason for site, reason in missing.items() if site not in self.spool}  # it came back
        if len(self.spool) >= self.experiment.train.min_sites:
            self.shared = self.transport.aggregate(lambda: self._combine(number))
        else:
            logger.warning(
                "round %d: %d replies, fewer than min_sites; the previous model stays", number, len(self.spool)
            )
        self.round = number
        self._note(number, missing)
        self.transport.closed(number, self.shared)
        self._checkpoint()
        recent = self.history[-PATIENCE:]
        if len(recent) == PATIENCE and not any(map(self._is_quorate, recent)):
            raise FederationError(
                f"{PATIENCE} rounds in a row had fewer than min_sites accepted replies; last missing {missing}"
            )

    def _withhold(self, number: int) -> dict[str, str]:
        """Leave out replies whose change is not of the size of the others'; only now is everybody's known."""
        ratio, sizes, reasons = self.experiment.train.max_norm_ratio, self.view.sizes, dict[str, str]()
        rows = [row for entry in self.history[-PAST:] for row in entry["sites"].values()]
        for part in sorted({part for parts in self.changes.values() for part in parts}):
            norms = {site: parts[part][0] for site, parts in self.changes.items() if part in parts}
            past = [] if part else [row["norm"] for row in rows]
            for site, most in outliers(norms, sizes, past, ratio).items():
                norm, tensor = self.changes[site][part]
                reasons[site] = f"its change must have norm at most {most:.3g}; got {norm:.3g}, most in {tensor!r:.80}"
        for site, reason in reasons.items():
            self.spool.drop(site)
            self._audit("train", number, site, reason)
        return reasons

    def _combine(self, number: int) -> Tensors:
        return self.method.aggregate(self.shared, self.spool, self.view)

    def _sample(self, number: int, connected: list[str]) -> list[str]:
        train = self.experiment.train
        wanted = max(round(train.participation * len(connected)), min(train.min_sites, len(connected)))
        return sorted(random.Random(f"{self.experiment.seed}:{number}").sample(connected, wanted))

    def _require_a_round(self) -> None:
        if not any(map(self._is_quorate, self.history)):
            rule = f"a round must have {self.experiment.train.min_sites} accepted replies; none had"
            raise FederationError(f"{rule}, so that the model is untrained; missing {sorted(self._missing_sites())}")

    def _is_quorate(self, entry: Mapping[str, Any]) -> bool:
        return len(entry["sites"]) >= self.experiment.train.min_sites

    def _evaluate(self) -> None:
        connected = self._connected()
        missing = dict.fromkeys(sorted(set(self.facts) - set(connected)), "disconnected")
        missing |= self._ask("evaluate", self.experiment.train.num_rounds, connected)
        self.results = {update.site: update for update in self.spool}
        self.absent.update(missing)
        if not self.results:
            raise FederationError(f"no site returned its test scores: {missing}")

    # Asking and taking.
    def _ask(self, stage: Stage, number: int, sites: list[str]) -> dict[str, str]:
        """Send every site its own payload; afterwards the spool holds what was accepted."""
        self.spool.clear()
        self.sent, self.changes, self.refused = {}, {}, {}
        counts = {site: facts["num_train"] for site, facts in sorted(self.facts.items())}
        self.view = ServerView(
            round=number,
            num_rounds=self.experiment.train.num_rounds,
            sizes=capped(counts, self.experiment.train.max_size_ratio),
            modalities={site: frozenset(facts["modalities"]) for site, facts in self.facts.items()},
            labels={site: _label_names(facts["data"]) for site, facts in self.facts.items()},
        )
        for site in sites:
            shared, extra = (
                self.method.payload(site, self.shared, self.view)
                if stage in ("train", "evaluate")
                else (self.shared, {})
            )
            self.sent[site] = Payload(
                stage,
                number,
                self.run_id,
                self.spec if stage != "describe" else {},
                shared,
                extra,
                self.experiment.train.warm_start,
            )
        missing = self.transport.exchange(self.sent, self.accept)
        gone = {site: missing.get(site, "no reply") for site in sites if site not in self.spool}
        for site in sorted(set(gone) - set(self.refused)):  # refused on the way, or by the site itself
            self._audit(stage, number, site, gone[site])
        return gone

    def _refuse(self, update: Update) -> str | None:
        payload = self.sent.get(update.site)
        if payload is None or update.site in self.spool:
            return "it was not asked, or has replied already"
        if (update.stage, update.round, update.answers) != (payload.stage, payload.round, payload.digest()):
            return "it answers another request"
        if reason := malformed(update) or self.method.undeclared(update, self.task.metrics):
            return reason
        if update.stage == "describe":
            return self._misfit(update)
        assert self.partition is not None
        if update.partition != self.partition.hash():
            return "its partition manifest differs from the server's"
        if update.pictures and self.facts[update.site].get("source") != "demo":
            return "it holds pictures of cases that are not synthetic"
        if update.stage == "seed":
            return None
        if not set(update.before) == set(update.after) == set(self.task.metrics):
            return f"it must score {sorted(self.task.metrics)} before and after; got {sorted(update.after)!r:.80}"
        if update.stage == "evaluate":
            return None
        if not 0 < update.num_samples == self.facts[update.site]["num_train"]:
            return f"num_samples must be positive and as described; got {update.num_samples!r:.20}"
        if update.train_loss is None:
            return "train_loss must be finite; got None"
        return self.partition.refuse(update.shared)

    def _connected(self) -> list[str]:
        return sorted(set(self.transport.sites()) & set(self.facts))

    def _misfit(self, update: Update) -> str | None:
        """Why a site's data facts are unusable, or differ from those of the sites that are in already."""
        others = {site: facts["data"] for site, facts in self.facts.items() if site != update.site}
        try:
            agreed = self.task.agree(others | {update.site: update.facts["data"]})
        except ValueError as error:
            return str(error)
        except MALFORMED as error:
            return f"its data facts must have the task's form; got {type(error).__name__}"
        return self._outgrown(agreed) if self.spec else None

    def _outgrown(self, agreed: Mapping[str, Any]) -> str | None:
        """Why the network, which is built already, cannot take what a late site would add; every round would fail."""
        if more := sorted({*agreed.get("labels", ())} - {*self.spec.get("labels", ())}):
            return f"its labels must be among the {len(self.spec['labels'])} that this run began with; got {more[:5]}"
        most, wanted = self.spec.get("channels"), agreed.get("channels")
        if most is not None and wanted > most:
            return f"its images must have at most the {most} channel(s) that this run began with; got {wanted}"
        return None

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
            "facts": self.facts,
            "absent": self.absent,
            "history": self.history,
            "method": memory,
            "init_hash": self.init_hash,
        }
        self.checkpoints.save(self.round, parts, record)

    def _restore(self, tensors: Tensors, record: dict[str, Any]) -> None:
        if record["init_hash"] != self.init_hash:
            raise FederationError("the checkpoint must start from the same initial model; got another init_hash")
        self.shared = under(tensors, "shared")
        self.method.restore(under(tensors, "method"), record["method"])
        self.history = record["history"]
        while self.history and not self._is_quorate(self.history[-1]):  # they gave nothing, and may now
            self.history.pop()
        self.round = self.history[-1]["round"] if self.history else 0
        logger.info("resumed %s at round %d", self.experiment.job, self.round + 1)

    # What people see.
    def _note(self, number: int, missing: dict[str, str]) -> None:
        sites, planned = {}, self.experiment.train.num_rounds
        for update in self.spool:
            down, up = self.sent[update.site].num_bytes(), update.num_bytes()
            sites[update.site] = {
                "train_loss": update.train_loss,
                "metrics": means(update.after),
                "before": means(update.before),
                "num_samples": update.num_samples,
                "seconds": update.seconds,
                "bytes_up": up,
                "bytes_down": down,
                "norm": self.changes[update.site][""][0],
            }
            row = sites[update.site]
            logger.info(
                "round %d/%d  %s  %s", number, planned, update.site, progress(row, next(iter(self.task.metrics)))
            )
        for site, reason in missing.items():
            logger.warning("round %d/%d  %s  missing: %s", number, planned, site, reason)
        entry: dict[str, Any] = {"round": number, "sites": sites, "missing": missing, "bank": self.method.monitors()}
        self.history.append(entry)
        with (self.results_dir / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        collapsed = [entry["bank"].get("collapsed", False) for entry in self.history[-2:]]
        if collapsed in ([True], [False, True]):  # once, not every round
            logger.warning(
                "round %d: the bank has collapsed (effective rank %.2f < 2): tokens tell sites apart no longer",
                number,
                entry["bank"]["effective_rank"],
            )

    def _missing_sites(self) -> set[str]:
        return set(self.absent) | {site for entry in self.history for site in entry["missing"]}

    def _pictures(self) -> dict[str, bytes]:
        """PNG files by caption; sites on real data send none."""
        return {
            f"{site}, {caption} (synthetic)": value.numpy().tobytes()
            for site, update in sorted(self.results.items())
            for caption, value in update.pictures.items()
        }

    def _report(self, summary: dict[str, Any]) -> None:
        try:
            write_report(summary, self.results_dir / "report.html", self._pictures())
        except Exception as error:  # noqa: BLE001  # a page that cannot be drawn must not cost the run
            logger.error("report.html could not be written (%s); summary.json is complete", type(error).__name__)

    def _summary(self, status: str, reason: str | None) -> dict[str, Any]:
        part = self.partition
        demo = {facts["source"] for facts in self.facts.values()} == {"demo"}
        return {
            "schema": 1,
            "job": self.experiment.job,
            "task": self.experiment.task["name"],
            "method": self.experiment.method["name"],
            "data": "synthetic demo" if demo else self.experiment.data.name,
            "seed": self.experiment.seed,
            "versions": versions(),
            "status": status,
            "reason": reason,
            "rounds": {"planned": self.experiment.train.num_rounds, "completed": len(self.history)},
            "partition": {
                "hash": part.hash() if part else "",
                **{name: part.count(name) if part else 0 for name in Partition.parts()},
            },
            "init_hash": self.init_hash,
            "backbone_hash": self.backbone_hash,
            "final_hash": digest(self.shared),
            "data_source": "demo" if demo else "site",
            "sites": {site: site_row(self.facts[site], update) for site, update in sorted(self.results.items())},
            "aggregate": aggregate(self.task.metrics, self.results),
            "absent": self.absent,
            "capped": self._capped(),
            "history": self.history,
        }

    def _capped(self) -> dict[str, int]:
        """Sites that count with fewer cases than they have, and with how many."""
        return {site: size for site, size in self.view.sizes.items() if size < self.facts[site]["num_train"]}


def _label_names(data: Mapping[str, Any]) -> dict[str, str]:
    """Names by label value; a task without labels never looked at what a site put there."""
    labels = data.get("labels")
    return {value: str(name) for value, name in labels.items()} if isinstance(labels, dict) else {}
