"""What the server accepts: every reply is checked here, and nothing of a refused one is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from omnifm.federation.journal import Journal
from omnifm.federation.limits import Change, change, malformed, outliers
from omnifm.federation.roster import Roster
from omnifm.federation.spool import Spool
from omnifm.method import Method, Partition, ServerView
from omnifm.update import Payload, Update

WEIGHTS = ""
"""Key of the change of the weights, beside the names of the method's own tensors; no tensor has an empty name."""

AS_DESCRIBED = "num_samples must be positive and as described"
"""Why a reply is refused that rests on another number of cases than the site has told."""


class Intake:
    """The replies of one stage of one round.

    Attributes:
        partition: which tensors a reply must hold; None until the model is built.
        sent: payload by site, as it was sent.
        spool: accepted updates, on disk.
        changes: for each accepted training reply, the change of the weights (`WEIGHTS`) and the size of each tensor
            of the method that the method does not check itself.
    """

    def __init__(self, folder: Path, method: Method, roster: Roster, journal: Journal) -> None:
        self.method, self.roster, self.journal = method, roster, journal
        self.partition: Partition | None = None
        self.view = ServerView()
        self.spool = Spool(folder)
        self.sent: dict[str, Payload] = {}
        self.changes: dict[str, dict[str, Change]] = {}
        self.refused: set[str] = set()

    def open(self, view: ServerView) -> None:
        """Discard the replies of the stage before and begin a new one."""
        self.spool.clear()
        self.view = view
        self.sent = {}
        self.changes = {}
        self.refused = set()

    def accept(self, update: Update) -> str | None:
        """Take one reply; return why it is refused, or None.  Nothing of a refused update is used."""
        reason = self._refuse(update) or self._keep(update)
        if reason is not None:
            self.refused.add(update.site)
            self.journal.audit(update.stage, update.round, update.site, reason)
        return reason

    def unanswered(self, missing: Mapping[str, str]) -> dict[str, str]:
        """Return the reason by asked site that has no accepted reply, and audit those that were not audited yet."""
        gone = {site: missing.get(site, "no reply") for site in self.sent if site not in self.spool}
        for site in sorted(set(gone) - self.refused):  # lost on the way, or refused by the site itself
            self.journal.audit(self.sent[site].stage, self.sent[site].round, site, gone[site])
        return gone

    def withhold(self, ratio: float) -> dict[str, str]:
        """Drop the replies whose change is much larger than the other sites', when all replies of a round are there.

        Args:
            ratio: see `Train.max_norm_ratio`.

        Returns:
            Reason by site.
        """
        reasons: dict[str, str] = {}
        for part in sorted({part for parts in self.changes.values() for part in parts}):
            found = {site: parts[part] for site, parts in self.changes.items() if part in parts}
            norms = {site: measured.norm for site, measured in found.items()}
            past = self.journal.recent_norms() if part == WEIGHTS else []
            for site, most in outliers(norms, self.view.sizes, past, ratio).items():
                norm, tensor = found[site]
                reasons[site] = f"its change must have norm at most {most:.3g}; got {norm:.3g}, most in {tensor!r:.80}"
        for site, reason in reasons.items():
            self.spool.drop(site)
            self.journal.audit("train", self.view.round, site, reason)
        return reasons

    def _keep(self, update: Update) -> str | None:
        """Store a sound update; return why that failed, or None."""
        kept, reasons = update, list[str]()
        if update.stage in ("seed", "train"):
            kept, reasons = remove_refused(self.method, update, self.view)
        if update.stage == "train":
            kept = replace(kept, num_samples=self.view.sizes[update.site])
        try:
            self.spool.add(kept)
        except OSError as error:
            return f"the server cannot store it: {error.strerror}"
        if update.stage == "train":
            self.changes[update.site] = self._changes(update)
        for reason in reasons:
            rule = f"weights kept, the rest dropped: {reason}"
            self.journal.audit(update.stage, update.round, update.site, rule)
        return None

    def _changes(self, update: Update) -> dict[str, Change]:
        weights = change(self.sent[update.site].shared, update.shared)
        own = {name: value for name, value in update.extra.items() if name not in self.method.judges}
        return {WEIGHTS: weights} | {name: Change(float(value.double().norm()), name) for name, value in own.items()}

    def _refuse(self, update: Update) -> str | None:
        """Why the reply does not answer what was asked, or holds what it must not; None if it is sound."""
        payload = self.sent.get(update.site)
        if payload is None or update.site in self.spool:
            return "it was not asked, or has replied already"
        if (update.stage, update.round, update.answers) != (payload.stage, payload.round, payload.digest()):
            return "it answers another request"
        metrics = self.roster.task.metrics
        if reason := malformed(update) or self.method.undeclared(update, metrics):
            return reason
        if update.stage == "describe":
            return self.roster.misfit(update)
        return self._refuse_model(update)

    def _refuse_model(self, update: Update) -> str | None:
        """The rules for the stages that need the model: seed, train and evaluate."""
        assert self.partition is not None
        metrics, facts = self.roster.task.metrics, self.roster.facts[update.site]
        if update.partition != self.partition.hash():
            return "its partition manifest differs from the server's"
        if update.pictures and facts.get("source") != "demo":
            return "it holds pictures of cases that are not synthetic"
        if update.stage == "seed":
            return None
        if not set(update.before) == set(update.after) == set(metrics):
            return f"it must score {sorted(metrics)} before and after; got {sorted(update.after)!r:.80}"
        if update.stage == "evaluate":
            return None
        if not 0 < update.num_samples == facts["num_train"]:
            return f"{AS_DESCRIBED}; got {update.num_samples!r:.20}"
        if update.train_loss is None:
            return "train_loss must be finite; got None"
        return self.partition.refuse(update.shared)


def remove_refused(method: Method, update: Update, view: ServerView) -> tuple[Update, list[str]]:
    """Remove the tensors that the method itself refuses (`Method.judge`); return the rest and the reasons."""
    refused = method.judge(update, view)
    extra = {name: value for name, value in update.extra.items() if name not in refused}
    return replace(update, extra=extra), sorted(set(refused.values()))
