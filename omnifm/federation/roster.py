"""The sites of a federation: what they described, who is missing and why, and whether their data fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from omnifm.federation.limits import capped
from omnifm.method import ServerView
from omnifm.records import DataChange, Facts, Json
from omnifm.task import Task
from omnifm.update import Update

MALFORMED = (KeyError, TypeError, IndexError, ArithmeticError)
"""Errors that a task raises on data facts that do not have its form."""


UNKNOWN_DATA = (
    "its data are others than when this run began, and its state folder does not know any more whom the run has "
    "trained on: give it the same data or its state folder again, or start a new run"
)
"""Why a site that lost its state cannot go on with other data: a patient of the training split might be tested on."""


class Roster:
    """Who takes part.

    Attributes:
        facts: data facts by site that has described its data.
        absent: reason by site that should have taken part, and did not when it was asked before or after training.
        spec: what the federation agreed on; empty until then.
        lists: digest of the list of cases by site that has described its data in this run.
        changes: what changed in these lists since, in the order in which it was told.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.facts: dict[str, Facts] = {}
        self.absent: dict[str, str] = {}
        self.spec: Json = {}
        self.lists: dict[str, str] = {}
        self.changes: list[DataChange] = []

    def add(self, update: Update, next_round: int = 1) -> str | None:
        """Add a site that has described its data; return why it does not fit, or None.

        Two sites that come at once may each fit alone and contradict each other, so the second one is checked again.

        Args:
            next_round: the first round that will use the data.
        """
        if self.spec and (reason := self.misfit(update)):
            self.forget(update.site)
            return reason
        facts = cast(Facts, update.facts)
        if reason := self._note_change(update.site, facts, next_round):
            self.forget(update.site)
            return reason
        self.facts[update.site] = facts
        return None

    def forget(self, site: str) -> None:
        """Let a site describe its data again before it takes part again."""
        self.facts.pop(site, None)

    def _note_change(self, site: str, facts: Facts, next_round: int) -> str | None:
        """Compare a site's list with the one that it told before; return why the site cannot go on, or None."""
        told = facts.get("list")
        if not isinstance(told, dict) or not isinstance(told.get("digest"), str):  # a site of an older release
            return None
        before, now = self.lists.get(site), str(told["digest"])
        if before not in (None, now) and told.get("known") is not True:
            return UNKNOWN_DATA
        new, gone, changed, moved = (_count(told, name) for name in ("new", "gone", "changed", "moved"))
        change: DataChange = {
            "site": site,
            "before_round": next_round,
            "new": new,
            "gone": gone,
            "changed": changed,
            "moved": moved,
        }
        is_news = before not in (None, now) or (before is not None and moved > 0)
        if is_news and change not in self.changes:
            self.changes.append(change)
        self.lists[site] = now
        return None

    def agree(self) -> Json:
        """Fix the common specification of all sites.

        Raises:
            ValueError: the sites contradict each other, or their facts do not have the task's form.
        """
        try:
            return self.task.agree({site: facts["data"] for site, facts in sorted(self.facts.items())})
        except MALFORMED as error:
            raise ValueError(f"sites' data facts must have one form; got {type(error).__name__}") from None

    def misfit(self, update: Update) -> str | None:
        """Return why a site's data facts are unusable or contradict those of the sites that already take part."""
        others = {site: facts["data"] for site, facts in self.facts.items() if site != update.site}
        try:
            agreed = self.task.agree(others | {update.site: update.facts["data"]})
        except ValueError as error:
            return str(error)
        except MALFORMED as error:
            return f"its data facts must have the task's form; got {type(error).__name__}"
        return self._too_large_for_network(agreed) if self.spec else None

    def _too_large_for_network(self, agreed: Json) -> str | None:
        """Why the network, which is already built, cannot take what a late site adds: each of its rounds would fail."""
        labels: Mapping[str, str] = self.spec.get("labels", {})
        if more := sorted({*agreed.get("labels", {})} - {*labels}):
            return f"its labels must be among the {len(labels)} that this run began with; got {more[:5]}"
        most, wanted = self.spec.get("channels"), agreed.get("channels")
        if most is not None and wanted > most:
            return f"its images must have at most the {most} channel(s) that this run began with; got {wanted}"
        return None

    def late(self, connected: list[str]) -> list[str]:
        """Connected sites that have not described their data yet."""
        return sorted(set(connected) - set(self.facts))

    def present(self, connected: list[str]) -> list[str]:
        """Connected sites that have described their data."""
        return sorted(set(connected) & set(self.facts))

    def missing(self, connected: list[str]) -> dict[str, str]:
        """Reason by site that should take part in a round and is not connected, or could not describe its data."""
        gone = dict.fromkeys(sorted(set(self.facts) - set(connected)), "disconnected")
        return gone | {site: reason for site, reason in self.absent.items() if site not in self.facts}

    def view(self, round_number: int, num_rounds: int, max_size_ratio: float) -> ServerView:
        """What a method may know of the federation in this round.

        Args:
            max_size_ratio: see `Train.max_size_ratio`.
        """
        counts = {site: facts["num_train"] for site, facts in sorted(self.facts.items())}
        return ServerView(
            round=round_number,
            num_rounds=num_rounds,
            sizes=capped(counts, max_size_ratio),
            modalities={site: frozenset(facts["modalities"]) for site, facts in self.facts.items()},
            labels={site: _label_names(facts["data"]) for site, facts in self.facts.items()},
        )


def _count(told: Mapping[str, object], name: str) -> int:
    """A count that a site told; 0 for anything else, because a site may send whatever it likes."""
    count = told.get(name)
    return count if isinstance(count, int) and count >= 0 else 0


def _label_names(data: Json) -> dict[str, str]:
    """Names by label value.  A task without labels has not checked what a site wrote there, so it may be anything."""
    labels = data.get("labels")
    return {value: str(name) for value, name in labels.items()} if isinstance(labels, dict) else {}
