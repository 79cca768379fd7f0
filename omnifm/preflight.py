"""A site checks itself before the first run: software, kit, policy, network, data, and one batch of the job.

Each check gives one line.  The checks of FLARE's kit, policy and network are in `omnifm_flare.preflight`, which runs in
a child process, so that nothing of FLARE is imported here.  The site's personal state is not changed.  Nothing is sent,
except a greeting to the server's port.
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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omnifm.config import Experiment, SiteConfig, site_config

if TYPE_CHECKING:
    from omnifm.records import Summary
    from omnifm.site.stages import Site

PLATFORM = "omnifm_flare.preflight"
PACKAGES = ("omnifm-flare", "torch", "monai", "numpy", "nibabel", "pydicom")
OLDEST_PYTHON = (3, 11)
OTHER_KITS = {"fed_server.json": "the server", "fed_admin.json": "an admin"}
"""A file in `startup/` that tells whose kit it is, if it is no hospital's."""
LONG_S = 5.0
"""A check that takes longer says how long it took, in seconds."""
DOES = {
    "classification": "classifies images",
    "image_fusion": "fuses pairs of images",
    "segmentation": "outlines structures",
    "vqa": "answers questions about images",
}
"""What a job of a shipped task does with labelled data.  Any other task is compared by reading the cases only."""
HOLDS = {
    "classification": "classes",
    "image_fusion": "pairs of images",
    "segmentation": "masks",
    "vqa": "questions and answers",
    None: "images without labels",
}
"""What data hold, by the task that they are for."""
MIN_FREE_GIB = 1.0
"""Free space that the state folder needs before a run starts, in GiB."""
NUM_STATES = 8
"""Copies of a model for which the state folder needs room: those of the last rounds, two checkpoints, and one that is
being written."""


class Doubt(ValueError):
    """Something is not as it should be, but the site can take part in a run."""


@dataclass(frozen=True)
class Check:
    """The result of one check: what was checked, the verdict, and what was found.

    >>> Check("state", "ok", "mode 700, 12 GiB free").line()
    'ok    state        mode 700, 12 GiB free'
    """

    name: str
    verdict: Literal["ok", "warn", "FAIL"]
    value: str

    def line(self) -> str:
        """The line for a terminal."""
        return f"{self.verdict:4}  {self.name:<11}  {self.value}"


def judged(name: str, look: Callable[[], str]) -> Check:
    """Run one check.

    Args:
        look: returns what it found, which gives the verdict `ok`.  A `Doubt` that it raises gives `warn`, any other
            ValueError or OSError gives `FAIL`.
    """
    start = time.monotonic()
    found = _judged(name, look)
    seconds = time.monotonic() - start
    return replace(found, value=f"{found.value} (checked in {seconds:.0f} s)") if seconds > LONG_S else found


def _judged(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", look())
    except Doubt as doubt:
        return Check(name, "warn", str(doubt))
    except ValueError as error:
        return Check(name, "FAIL", " ".join(str(error).split()))
    except OSError as error:
        return Check(name, "FAIL", error.strerror or type(error).__name__)


def preflight(kit: Path, job: Path | None = None) -> Iterator[Check]:
    """Run all checks, in the order in which a site is set up.

    Args:
        kit: the hospital's startup kit.
        job: a job folder or its experiment.json.  With None nothing is trained, and the task is taken from the data.

    Raises:
        ValueError: `kit` or `job` is wrong.  What is wrong with the site is not raised: it is in the checks.
    """
    if not (kit / "startup").is_dir():
        raise ValueError("kit must be a startup kit, a folder that holds startup/ and local/; it is not")
    for marker, owner in OTHER_KITS.items():
        if (kit / "startup" / marker).is_file():
            raise ValueError(f"this is the kit of {owner}, not a hospital's: give the hospital's folder with --kit")
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
        return
    fit = judged("task", lambda: task_and_data(experiment, config))
    yield fit
    if fit.verdict != "FAIL":
        yield from one_batch(experiment, config)


def software() -> str:
    """Check the versions of Python and of the packages that read and train."""
    if sys.version_info < OLDEST_PYTHON:
        raise ValueError(f"Python must be {'.'.join(map(str, OLDEST_PYTHON))} or newer; got {sys.version.split()[0]}")
    found = {name: _version(name) for name in PACKAGES}
    if missing := [name for name, version in found.items() if version is None]:
        raise ValueError(f"{', '.join(missing)} must be installed; install omnifm-flare with pip, then try again")
    return f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version}" for name, version in found.items())


def platform(kit: Path) -> Iterator[Check]:
    """Check FLARE's side of the kit in a child process."""
    done = subprocess.run([sys.executable, "-m", PLATFORM, str(kit)], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        yield Check(**json.loads(line))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Check("kit", "FAIL", f"the kit could not be checked: {last:.200}")


def site_file(file: Path, found: list[SiteConfig]) -> str:
    """Read the site's own configuration and append it to `found`."""
    config = site_config("", file, environ={})
    if config is None:
        raise ValueError(
            "local/omnifm_site.json must name data_root and state_dir; this kit has none: copy "
            "local/omnifm_site.json.sample to it and write your folders into the copy"
        )
    found.append(config)
    return f"device {config.device}, at most {config.max_refused_fraction:.0%} of the cases may be refused"


def state_folder(folder: Path) -> str:
    """Check that the state folder is private, writable and has room; it is made if it does not exist, as in a run."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        raise ValueError(f"only the owner may read state_dir; its mode is {mode:o}, run chmod 700")
    with tempfile.TemporaryFile(dir=folder):
        pass
    free = shutil.disk_usage(folder).free / 2**30
    if free < MIN_FREE_GIB:
        raise ValueError(f"state_dir must have {MIN_FREE_GIB:g} GiB free; it has {free:.2f}")
    return f"mode {mode:o}, {free:.0f} GiB free"


def device(name: str) -> str:
    """Check that the configured device can hold a tensor."""
    import torch

    from omnifm.site.device import device_named

    try:
        place = torch.ones(1, device=device_named(name)).device
    except RuntimeError as error:  # the device exists, but is broken or in use
        raise ValueError(f"device must be usable; {name!r} cannot hold a tensor ({type(error).__name__})") from None
    if place.type == "cuda":
        free, total = torch.cuda.mem_get_info(place)
        return f"{place}, {torch.cuda.get_device_name(place)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    return f"{place}, {os.cpu_count()} cores"


def data(config: SiteConfig, file: Path) -> str:
    """Read every case, as `omnifm check` does; the task is taken from the items of dataset.json."""
    from omnifm.quality.inspection import check_site

    report, _ = check_site(Path(config.data_root), None, file)
    if not report["usable"]:
        raise ValueError("; ".join(report["problems"]) + " (run omnifm check to see where)")
    if report["task"] is None:
        raise Doubt("images without labels: ready for predict; to train, add masks or classes")
    cases = ", ".join(f"{split['cases']} {name}" for name, split in report["splits"].items())
    found = f"{report['task']}: {cases} cases, {len(report['refusals'])} refused"
    if not all(split["cases"] for split in report["splits"].values()):
        raise Doubt(f"{found}; without validation or test cases this site has no scores: add patients to dataset.json")
    things = {*report["warnings"], *(advice["what"] for advice in report["look_at"])}
    return f"{found}, {len(things)} things to look at" + (": run omnifm check on data_root" if things else "")


def task_and_data(experiment: Experiment, config: SiteConfig) -> str:
    """Compare what the job does with what the items of dataset.json hold, before a case is read."""
    from omnifm.data.datalist import read_datalist
    from omnifm.quality.inspection import kind_of_data

    roots = tuple(map(Path, config.allowed_roots))
    held = kind_of_data(read_datalist(Path(config.data_root), required=(), allowed_roots=roots))
    name = experiment.task["name"]
    if name in DOES and held != name:
        shown = HOLDS[held] + (f" ({held})" if held else "")
        raise ValueError(f"this job {DOES[name]} ({name}); your data hold {shown}. Wrong job or wrong data_root?")
    return f"the job is for {name}; the data hold {HOLDS[held]}"


def one_batch(experiment: Experiment, config: SiteConfig) -> Iterator[Check]:
    """Read every case as the job will, then train on the first batch and estimate the time of a whole round."""
    with tempfile.TemporaryDirectory(prefix="omnifm-") as scratch:
        train = replace(experiment.train, num_rounds=2, local_epochs=1, min_sites=1, participation=1.0)
        short = replace(experiment, train=train)
        opened: list[Site] = []
        with waiting("reading every case of data_root"):
            found = judged("data", lambda: _open(short, replace(config, state_dir=f"{scratch}/site"), opened))
        yield found
        if opened:
            with waiting("training the first batch"):
                found = judged("round", lambda: _round(experiment, opened[0], Path(scratch), Path(config.state_dir)))
            yield found


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal what is being done and for how long; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        shown.add_task(what, total=None)
        yield


def _open(experiment: Experiment, config: SiteConfig, opened: list[Site]) -> str:
    from omnifm.site.stages import Site

    site = Site(experiment, "site", config)
    opened.append(site)
    cases = ", ".join(f"{len(items)} {name}" for name, items in site.datalist.splits().items())
    return f"{experiment.task['name']}: {cases} cases, {site.num_refused} refused"


def _round(experiment: Experiment, site: Site, scratch: Path, state: Path) -> str:
    """Train two rounds on the first batch, with this site alone; the second has the cases in memory."""
    whole, size = site.datalist, experiment.train.batch_size
    site.loader.restrict(training=whole.training[:size], validation=whole.validation[:size], test=whole.test[:size])
    seconds_by_round: list[float] = []
    site.on_trained = seconds_by_round.append
    summary = _federated_alone(site, scratch)
    if summary["status"] != "COMPLETE":
        raise ValueError(summary["reason"] or "the job must train on this site's first batch; it did not")
    row = summary["history"][-1]["sites"][site.name]
    train = seconds_by_round[1]
    other = row["seconds"] - train
    num_batches = math.ceil(len(whole.training) / size)
    seconds = train * num_batches * experiment.train.local_epochs + other * math.ceil(len(whole.validation) / size)
    needed_gib = NUM_STATES * row["bytes_down"] / 2**30
    if needed_gib > shutil.disk_usage(state).free / 2**30:
        raise ValueError(f"state_dir must have room for {NUM_STATES} models, {needed_gib:.1f} GiB; free some space")
    return (
        f"about {seconds:.3g} s for this site's part of each round ({train:.2g} s per batch of {size}), "
        f"{row['bytes_down'] / 1e6:.2f} MB down, {row['bytes_up'] / 1e6:.2f} MB up; "
        f"{experiment.train.num_rounds} rounds planned"
    )


def _federated_alone(site: Site, scratch: Path) -> Summary:
    """Run the site's job in this process with this one site, and without the server's log."""
    from omnifm.federation.server import Federation
    from omnifm.simulation import InProcess

    transport = InProcess(site.experiment, {site.name: site.config})
    transport.open[site.name] = site
    server_log = logging.getLogger("omnifm.federation")
    level = server_log.level
    server_log.setLevel(logging.CRITICAL + 1)  # its warnings compare sites, and here is only one
    try:
        return Federation(site.experiment, scratch / "server", scratch / "results", transport, draw_report=False).run()
    except RuntimeError as error:  # from torch, mostly because memory is too small
        raise ValueError(f"this machine must train the first batch; it does not ({type(error).__name__})") from None
    finally:
        server_log.setLevel(level)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
