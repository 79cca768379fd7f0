"""A site checks itself before day one: software, kit, policy, network, data, and one batch of the job; a line each.

FLARE's kit, policy and network are FLARE's words: `omnifm_flare.preflight` judges them in a child process, and nothing
of FLARE is imported here.  Personal state is not touched, and nothing is sent but a greeting to the server's port.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omnifm.config import Experiment, SiteConfig, site_config

if TYPE_CHECKING:
    from omnifm.site.stages import Site

PLATFORM = "omnifm_flare.preflight"
PACKAGES = ("omnifm-flare", "torch", "monai", "numpy", "nibabel", "pydicom")
OLDEST_PYTHON = (3, 11)
MIN_FREE_GIB = 1.0
"""Below this the state folder is too full to start."""
STATES = 8
"""Copies of a model that a site keeps at most: three rounds, two checkpoints, and what is being written."""


class Doubt(ValueError):
    """Not as it should be, but no reason to stay away."""


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, the verdict, and what was found."""

    name: str
    verdict: Literal["ok", "warn", "FAIL"]
    value: str

    def line(self) -> str:
        """For a terminal."""
        return f"{self.verdict:4}  {self.name:<11}  {self.value}"


def judged(name: str, look: Callable[[], str]) -> Check:
    """What `look` returns is ok; a `Doubt` that it raises is a warning, any other ValueError or OSError a failure."""
    try:
        return Check(name, "ok", look())
    except Doubt as doubt:
        return Check(name, "warn", str(doubt))
    except ValueError as error:
        return Check(name, "FAIL", " ".join(str(error).split()))
    except OSError as error:
        return Check(name, "FAIL", error.strerror or type(error).__name__)


def preflight(kit: Path, job: Path | None = None) -> Iterator[Check]:
    """Look at everything, in the order in which a site is set up.

    Args:
        kit: the hospital's startup kit.
        job: a job folder or its experiment.json; None leaves the task to the data, and trains nothing.

    Raises:
        ValueError: wrong use; what is wrong with the site is in the checks.
    """
    if not (kit / "startup").is_dir():
        raise ValueError("kit must be a startup kit, a folder that holds startup/ and local/; it is not")
    experiment = None if job is None else Experiment.from_job(job)
    yield judged("software", software)
    yield from platform(kit)
    file = kit / "local/omnifm_site.json"
    found: list[SiteConfig] = []
    yield judged("site file", lambda: site_file(file, found))
    if not found:
        return
    config = found[0]
    yield judged("state", lambda: state_folder(Path(config.state_dir)))
    yield judged("device", lambda: device(config.device))
    if experiment is None:
        yield judged("data", lambda: data(config, file))
    else:
        yield from one_batch(experiment, config)


def software() -> str:
    """Versions of Python and of what reads and trains."""
    if sys.version_info < OLDEST_PYTHON:
        raise ValueError(f"Python must be {'.'.join(map(str, OLDEST_PYTHON))} or newer; got {sys.version.split()[0]}")
    found = {name: _version(name) for name in PACKAGES}
    if missing := [name for name, version in found.items() if version is None]:
        raise ValueError(f"{', '.join(missing)} must be installed; they are not")
    return f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version}" for name, version in found.items())


def platform(kit: Path) -> Iterator[Check]:
    """FLARE's side of the kit, judged in a process of its own."""
    done = subprocess.run([sys.executable, "-m", PLATFORM, str(kit)], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        yield Check(**json.loads(line))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Check("kit", "FAIL", f"it could not be judged: {last:.200}")


def site_file(file: Path, found: list[SiteConfig]) -> str:
    """Read the site's own configuration into `found`."""
    config = site_config("", file, environ={})
    if config is None:
        raise ValueError("local/omnifm_site.json must name data_root and state_dir; this kit has none")
    found.append(config)
    return f"device {config.device}, at most {config.max_refused_fraction:.0%} of the cases may be refused"


def state_folder(folder: Path) -> str:
    """Whether personal state can be kept: private, writable, with room; made if absent, as a run would."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        raise ValueError(f"state_dir must be its owner's alone (chmod 700); its mode is {mode:o}")
    with tempfile.TemporaryFile(dir=folder):
        pass
    free = shutil.disk_usage(folder).free / 2**30
    if free < MIN_FREE_GIB:
        raise ValueError(f"state_dir must have {MIN_FREE_GIB:g} GiB free; it has {free:.2f}")
    return f"mode {mode:o}, {free:.0f} GiB free"


def device(name: str) -> str:
    """Whether a tensor can live on the configured device."""
    import torch

    from omnifm.site.device import device_named

    try:
        place = torch.ones(1, device=device_named(name)).device
    except RuntimeError as error:  # there, but broken or in use
        raise ValueError(f"device must take a tensor; {name!r} does not: {type(error).__name__}") from None
    if place.type == "cuda":
        free, total = torch.cuda.mem_get_info(place)
        return f"{place}, {torch.cuda.get_device_name(place)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    return f"{place}, {os.cpu_count()} cores"


def data(config: SiteConfig, file: Path) -> str:
    """Read every case, as `omnifm check` does; the task is told by the items."""
    from omnifm.check.inspection import check_site

    report, _ = check_site(Path(config.data_root), None, file)
    if not report["usable"]:
        raise ValueError("; ".join(report["problems"]) + " (omnifm check says where)")
    cases = ", ".join(f"{split['cases']} {name}" for name, split in report["splits"].items())
    return f"{report['task']}: {cases} cases, {len(report['refusals'])} refused, {len(report['warnings'])} warnings"


def one_batch(experiment: Experiment, config: SiteConfig) -> Iterator[Check]:
    """Read every case as the job will, then train on the first batch alone and say what a whole round will take."""
    with tempfile.TemporaryDirectory(prefix="omnifm-") as scratch:
        train = replace(experiment.train, num_rounds=2, local_epochs=1, min_sites=1, participation=1.0)
        alone = replace(experiment, train=train)
        opened: list[Site] = []
        yield judged("data", lambda: _open(alone, replace(config, state_dir=f"{scratch}/site"), opened))
        if opened:
            yield judged("round", lambda: _round(experiment, opened[0], Path(scratch), Path(config.state_dir)))


def _open(experiment: Experiment, config: SiteConfig, opened: list[Site]) -> str:
    from omnifm.site.stages import Site

    site = Site(experiment, "site", config)
    opened.append(site)
    cases = ", ".join(f"{len(items)} {name}" for name, items in site.datalist.splits().items())
    return f"{experiment.task['name']}: {cases} cases, {site.num_refused} refused"


def _round(experiment: Experiment, site: Site, scratch: Path, state: Path) -> str:
    """Two rounds of a federation of this one site on its first batch: the second has the cases in memory."""
    from omnifm.federation.server import Federation
    from omnifm.simulation import InProcess

    whole, size = site.datalist, experiment.train.batch_size
    site.loader.restrict(training=whole.training[:size], validation=whole.validation[:size], test=whole.test[:size])
    steps: list[float] = []
    site.on_trained = steps.append
    transport = InProcess(site.experiment, {site.name: site.config})
    transport.open[site.name] = site
    rounds = logging.getLogger("omnifm.federation.server")
    rounds.disabled = True  # what it warns of, one site alone cannot tell
    try:
        summary = Federation(site.experiment, scratch / "server", scratch / "results", transport).run()
    except RuntimeError as error:  # torch's, of memory above all
        raise ValueError(f"this machine must train the first batch; it does not ({type(error).__name__})") from None
    finally:
        rounds.disabled = False
    if summary["status"] != "COMPLETE":
        raise ValueError(summary["reason"] or "the job must train on this site's first batch; it did not")
    row = summary["history"][-1]["sites"][site.name]
    train, other = steps[1], row["seconds"] - steps[1]
    num_batches = math.ceil(len(whole.training) / size)
    seconds = train * num_batches * experiment.train.local_epochs + other * math.ceil(len(whole.validation) / size)
    kept = STATES * row["bytes_down"] / 2**30
    if kept > shutil.disk_usage(state).free / 2**30:
        raise ValueError(f"state_dir must have room for {STATES} models, {kept:.1f} GiB; it has not")
    return (
        f"about {seconds:.3g} s ({train:.2g} s per batch of {size}), {row['bytes_down'] / 1e6:.2f} MB down, "
        f"{row['bytes_up'] / 1e6:.2f} MB up; {experiment.train.num_rounds} rounds planned"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
