"""Run a job in one process, without FLARE: for research, benchmarks and tests.

The result equals FLARE's bit for bit: both call `Federation` at the server and `Site.reply` at each site.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from omnifm.config import Experiment, SiteConfig
from omnifm.data.demo import demo_site
from omnifm.federation.roster import Roster
from omnifm.federation.server import Federation
from omnifm.federation.transport import Accept, Transport
from omnifm.method import Tensors
from omnifm.plugins import load_task
from omnifm.records import Summary
from omnifm.report.numbers import natural
from omnifm.site.stages import Site
from omnifm.task import Planned
from omnifm.update import Payload, Stage, Update

MAX_OPEN = 64
"""Maximum number of sites that are open at once, with their cases in memory.  With more sites, the one that was opened
first is closed, and its cases are read again when it is next asked."""


DEMO_SITES = ("site-1", "site-2")
"""The sites of the synthetic demo data, where no others are named."""


class Watcher:
    """Is told how a run goes, for example to draw a progress bar.  Every method does nothing by default."""

    def reference_begins(self, method: str) -> None:
        """Called before the whole run of a method that is only a reference; the same calls follow as for the run."""

    def asks(self, stage: Stage, round_number: int, site: str) -> None:
        """Called before a site is asked."""

    def replied(self, update: Update) -> None:
        """Called with a reply, before the server accepts or refuses it."""

    def round_ended(self, round_number: int) -> None:
        """Called when a training round has ended."""


class InProcess(Transport):
    """Sites in this process, which reply one after another."""

    def __init__(
        self, experiment: Experiment, configs: Mapping[str, SiteConfig], watcher: Watcher | None = None
    ) -> None:
        self.experiment = experiment
        self.configs = configs
        self.watcher = watcher or Watcher()
        self.open: dict[str, Site] = {}

    def sites(self) -> list[str]:
        """All sites: none is ever disconnected."""
        return sorted(self.configs)

    def exchange(self, payloads: Mapping[str, Payload], accept: Accept) -> dict[str, str]:
        """Ask each site in turn; if a site refuses, its message is the reason, as it is over a network."""
        missing = {}
        for name, payload in payloads.items():
            self.watcher.asks(payload.stage, payload.round, name)
            try:
                update = self._site(name).reply(payload)
                self.watcher.replied(update)
                reason = accept(update)
            except ValueError as error:
                reason = str(error)
            if reason is not None:
                missing[name] = reason
        return missing

    def closed(self, round_number: int, shared: Tensors) -> None:
        """Tell the watcher that a round has ended."""
        self.watcher.round_ended(round_number)

    def _site(self, name: str) -> Site:
        if name not in self.open:
            if len(self.open) >= MAX_OPEN:
                del self.open[next(iter(self.open))]
            self.open[name] = Site(self.experiment, name, self.configs[name])
        return self.open[name]


def run(
    experiment: Experiment,
    data_root: str | Path | None = None,
    sites: Sequence[str] | None = None,
    *,
    state_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
    device: str = "cpu",
    watcher: Watcher | None = None,
) -> Summary:
    """Run a job in this process.

    >>> from omnifm import Experiment, simulate
    >>> simulate(Experiment.from_job("seg_fets"), results_dir="results")["status"]  # doctest: +SKIP
    'COMPLETE'

    Args:
        data_root: folder with `<site>/dataset.json` for each site; None is the synthetic demo data of this package.
        sites: names of the sites; None takes all that `data_root` holds, or two sites of the demo data.
        state_dir: where the server's checkpoint and the sites' personal state are kept; None is a temporary folder, so
            that nothing can be resumed.
        results_dir: where summary.json, rounds.jsonl and report.html are written; None is a temporary folder, without
            report.html.
        device: auto, cpu or cuda:N.
        watcher: is told how the run goes.

    Returns:
        The summary (contract: summary.json).

    Raises:
        ValueError: the job, the data or a folder breaks a rule.
    """
    if sites is None:
        sites = DEMO_SITES if data_root is None else prepared_sites(Path(data_root))
    with tempfile.TemporaryDirectory(prefix="omnifm-") as scratch:
        state = Path(state_dir or f"{scratch}/state")
        results = Path(results_dir or f"{scratch}/results")
        configs = _configs(experiment, data_root, sites, state, device)
        transport = InProcess(experiment, configs, watcher)
        # Nobody can read a report in a temporary folder, and drawing it takes half the time of a tiny run.
        draw_report = results_dir is not None
        federation = Federation(experiment, state / "server", results, transport, draw_report=draw_report)
        summary = federation.run()
        for name in experiment.reference if summary["status"] != "FAILED" else ():
            if watcher is not None:
                watcher.reference_begins(name)
            other = run(_with_method(experiment, name), data_root, sites, device=device, watcher=watcher)
            summary = federation.add_reference(summary, name, other)
        return summary


def plan(experiment: Experiment, data_root: str | Path | None, sites: Sequence[str]) -> list[Planned]:
    """Read the data of all sites and return what a run would plan from them; nothing is trained.

    Args:
        data_root: as in `run`.
        sites: names of the sites.

    Raises:
        ValueError: a site's data cannot be used, or the sites contradict each other.
    """
    with tempfile.TemporaryDirectory(prefix="omnifm-") as scratch:
        transport = InProcess(experiment, _configs(experiment, data_root, sites, Path(scratch), "cpu"))
        roster = Roster(load_task(experiment))
        missing = transport.exchange({site: Payload("describe", 0, "plan") for site in sites}, roster.add)
        if missing:
            raise ValueError("; ".join(f"{site}: {reason}" for site, reason in missing.items()))
        roster.task.configure(roster.agree())
        return roster.task.planned()


def _configs(
    experiment: Experiment, data_root: str | Path | None, sites: Sequence[str], state: Path, device: str
) -> dict[str, SiteConfig]:
    """Each site's configuration.

    Raises:
        ValueError: a site has no folder of data.
    """
    configs = {}
    for site in sites:
        root = demo_site(experiment.task["name"], site) if data_root is None else Path(data_root) / site
        if not root.is_dir():
            raise ValueError(f"data_root must hold one folder per site; {site!r} has none")
        source: Literal["demo", "site"] = "demo" if data_root is None else "site"
        configs[site] = SiteConfig(str(root), str(state / site), device, source=source)
    return configs


def _with_method(experiment: Experiment, name: str) -> Experiment:
    """The same job with another method and a network of the same capacity."""
    matched = "matched" if experiment.method["name"] == "omnifm" else "paper"
    capacity = experiment.method.get("capacity", matched)
    return replace(experiment, method={"name": name, "capacity": capacity}, reference=[])


def prepared_sites(data_root: Path) -> list[str]:
    """Names of the sites whose data were prepared below a folder: site-2 before site-10.

    Raises:
        ValueError: there is none, or the folder is that of one site.
    """
    if (data_root / "dataset.json").is_file():
        raise ValueError(
            "data must be the folder that holds one folder per site; it is one site's own. Name the folder above it"
        )
    names = sorted((file.parent.name for file in data_root.glob("*/dataset.json")), key=natural)
    if not names:
        raise ValueError("data must hold one folder per site, each with a dataset.json; it holds none")
    return names
