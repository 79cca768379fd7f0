"""How far a run is: a bar in a terminal, else one plain line per round."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from omnifm.config import Experiment
from omnifm.plugins import plugin
from omnifm.report.numbers import counted, duration, number
from omnifm.simulation import Watcher
from omnifm.update import Stage, Update

DOING: dict[Stage, str] = {
    "describe": "reading the data of",
    "seed": "describing the images of",
    "train": "training",
    "evaluate": "testing",
}


class RunProgress(Watcher):
    """Shows the progress of one run on the console while its context is open.

    Args:
        sites: the sites that take part.
        label: stands before every line, for example a method's name.
    """

    def __init__(self, experiment: Experiment, sites: Sequence[str], console: Console, label: str = "") -> None:
        self.console, self.label = console, label
        self.num_rounds, self.num_sites = experiment.train.num_rounds, len(sites)
        self.metric = next(iter(plugin("tasks", experiment.task["name"]).metrics))
        self.replies: list[Update] = []
        self.round, self.started = 0, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        # Every site describes its data, trains in every round, and is tested.
        self.task = self.bar.add_task(label, total=self.num_sites * (self.num_rounds + 2))

    def __enter__(self) -> RunProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def reference_begins(self, method: str) -> None:
        """Start the bar anew, with the name of the method before every line."""
        self.label, self.round = f"reference {method}: ", 0
        self.bar.reset(self.task)

    def asks(self, stage: Stage, round_number: int, site: str) -> None:
        """Say what is done now."""
        if stage == "train" and round_number != self.round:
            self.round, self.started = round_number, time.monotonic()
        where = f"round {round_number}/{self.num_rounds}: " if stage == "train" else ""
        self.bar.update(self.task, description=f"{self.label}{where}{DOING[stage]} {site}")

    def replied(self, update: Update) -> None:
        """Go one step further."""
        if update.stage == "train":
            self.replies.append(update)
        if update.stage != "seed":
            self.bar.advance(self.task)

    def round_ended(self, round_number: int) -> None:
        """Print one line: the round's validation scores, as means over its sites."""
        before, after = (
            [score.mean for scores in both if (score := scores.get(self.metric)) and score.mean is not None]
            for both in ([u.before for u in self.replies], [u.after for u in self.replies])
        )
        change = f"{number(fmean(before) if before else None)} -> {number(fmean(after) if after else None)}"
        took = duration(time.monotonic() - self.started)
        who = counted(len(self.replies), "site")
        self.console.print(
            f"{self.label}round {round_number}/{self.num_rounds}  validation {self.metric} {change}  ({who}, {took})",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
        self.replies = []
        self.bar.update(self.task, completed=self.num_sites * (1 + round_number))
