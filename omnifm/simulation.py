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
from omnifm.federation.server import Federation
from omnifm.federation.transport import Accept, Transport
from omnifm.records import Summary
from omnifm.site.stages import Site
from omnifm.update import Payload

MAX_OPEN = 64
"""Maximum number of sites that are open at once, with their cases in memory.  With more sites, the one that was opened
first is closed, and its cases are read again when it is next asked."""


class InProcess(Transport):
    """Sites in this process, which reply one after another."""

    def __init__(self, experiment: Experiment, configs: Mapping[str, SiteConfig]) -> None:
        self.experiment = experiment
        self.configs = configs
        self.open: dict[str, Site] = {}

    def sites(self) -> list[str]:
        """All sites: none is ever disconnected."""
        return sorted(self.configs)

    def exchange(self, payloads: Mapping[str, Payload], accept: Accept) -> dict[str, str]:
        """Ask each site in turn; if a site refuses, its message is the reason, as it is over a network."""
        missing = {}
        for name, payload in payloads.items():
            try:
                reason = accept(self._site(name).reply(payload))
            except ValueError as error:
                reason = str(error)
            if reason is not None:
                missing[name] = reason
        return missing

    def _site(self, name: str) -> Site:
        if name not in self.open:
            if len(self.open) >= MAX_OPEN:
                del self.open[next(iter(self.open))]
            self.open[name] = Site(self.experiment, name, self.configs[name])
        return self.open[name]


def run(
    experiment: Experiment,
    data_root: str | Path | None,
    sites: Sequence[str],
    *,
    state_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
    device: str = "cpu",
) -> Summary:
    """Run a job in this process.

    Args:
        data_root: folder with `<site>/dataset.json` for each site; None is the synthetic demo data of this package.
        sites: names of the sites.
        state_dir: where the server's checkpoint and the sites' personal state are kept; None is a temporary folder, so
            that nothing can be resumed.
        results_dir: where summary.json, rounds.jsonl and report.html are written; None is a temporary folder, without
            report.html.
        device: auto, cpu or cuda:N.

    Returns:
        The summary (contract: summary.json).

    Raises:
        ValueError: the job, the data or a folder breaks a rule.
    """
    with tempfile.TemporaryDirectory(prefix="omnifm-") as scratch:
        state = Path(state_dir or f"{scratch}/state")
        results = Path(results_dir or f"{scratch}/results")
        configs = {}
        for site in sites:
            root = demo_site(experiment.task["name"], site) if data_root is None else Path(data_root) / site
            if not root.is_dir():
                raise ValueError(f"data_root must hold one folder per site; {site!r} has none")
            source: Literal["demo", "site"] = "demo" if data_root is None else "site"
            configs[site] = SiteConfig(str(root), str(state / site), device, source=source)
        transport = InProcess(experiment, configs)
        # Nobody can read a report in a temporary folder, and drawing it takes half the time of a tiny run.
        draw_report = results_dir is not None
        federation = Federation(experiment, state / "server", results, transport, draw_report=draw_report)
        summary = federation.run()
        for name in experiment.reference if summary["status"] != "FAILED" else ():
            other = run(_with_method(experiment, name), data_root, sites, device=device)
            summary = federation.add_reference(summary, name, other)
        return summary


def _with_method(experiment: Experiment, name: str) -> Experiment:
    """The same job with another method and a network of the same capacity."""
    matched = "matched" if experiment.method["name"] == "omnifm" else "paper"
    capacity = experiment.method.get("capacity", matched)
    return replace(experiment, method={"name": name, "capacity": capacity}, reference=[])
