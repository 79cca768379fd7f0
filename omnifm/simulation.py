"""The same rounds in one process, without FLARE: for research loops, benchmarks and tests.

Its result equals FLARE's bit for bit: both call `Federation` at the server and `Site.reply` at each site.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnifm.config import Experiment, SiteConfig
from omnifm.data.demo import demo_site
from omnifm.federation.server import Accept, Federation, Transport
from omnifm.site.stages import Site
from omnifm.update import Payload

MAX_OPEN = 64
"""Sites whose cases stay in memory; of more, the oldest is closed and read again when it is asked, so that memory does
not grow with the number of sites."""


class InProcess(Transport):
    """Sites that are objects in this process, asked one after another."""

    def __init__(self, experiment: Experiment, configs: Mapping[str, SiteConfig]) -> None:
        self.experiment, self.configs = experiment, configs
        self.open: dict[str, Site] = {}

    def sites(self) -> list[str]:
        """All of them, always."""
        return sorted(self.configs)

    def exchange(self, payloads: Mapping[str, Payload], accept: Accept) -> dict[str, str]:
        """Ask each site in turn; a site's refusal is its reason, as over a network."""
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


class _Unread(Federation):
    """A run whose results folder nobody sees: its page, half of a tiny run's time, is not drawn."""

    def _report(self, summary: dict[str, Any]) -> None:
        pass


def run(
    experiment: Experiment,
    data_root: str | Path | None,
    sites: Sequence[str],
    *,
    state_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Run a job in this process.

    Args:
        data_root: folder with `<site>/dataset.json`; None is the embedded synthetic demo data.
        sites: names of the sites.
        state_dir: where checkpoint and personal state live; None is a temporary folder, so nothing is resumed.
        results_dir: where summary.json, rounds.jsonl and report.html go; None is a temporary folder.
        device: auto, cpu or cuda:N.

    Returns:
        The summary (contract: summary.json).

    Raises:
        ValueError: the configuration or a folder is not as it must be.
    """
    with tempfile.TemporaryDirectory(prefix="omnifm-") as scratch:
        state, results = Path(state_dir or f"{scratch}/state"), Path(results_dir or f"{scratch}/results")
        configs = {}
        for site in sites:
            demo = data_root is None
            root = demo_site(experiment.task["name"], site) if data_root is None else Path(data_root) / site
            if not root.is_dir():
                raise ValueError(f"data_root must hold one folder per site; {site!r} has none")
            configs[site] = SiteConfig(str(root), str(state / site), device, source="demo" if demo else "site")
        kind = _Unread if results_dir is None else Federation
        return kind(experiment, state / "server", results, InProcess(experiment, configs)).run()
