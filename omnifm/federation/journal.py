"""What a run writes down: plan.json, rounds.jsonl, audit.jsonl, summary.json and report.html."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from omnifm.records import Aggregate, RoundEntry, SiteRound, Summary
from omnifm.report.run import write_report
from omnifm.state import write_atomic
from omnifm.task import Planned
from omnifm.update import Payload, Score, Update

ALIKE = "the spectral prototypes of all sites look alike, so retrieval adds nothing here; the scores remain valid"
PACKAGES = ("omnifm-flare", "nvflare", "torch", "monai", "transformers", "peft", "numpy", "nibabel", "pydicom")
"""Packages whose versions the summary records."""
RECENT = 5
"""Number of past rounds whose changes show what is usual, where too few sites reply to show it among themselves."""
logger = logging.getLogger("omnifm.federation")


class Journal:
    """The files in a run's results folder, and its history of rounds.

    Args:
        folder: results folder, made when the first file is written.
        num_rounds: planned number of rounds, for the lines of progress.
        metric: the metric that the lines of progress show.
    """

    def __init__(self, folder: Path, num_rounds: int, metric: str) -> None:
        self.folder, self.num_rounds, self.metric = folder, num_rounds, metric
        self.history: list[RoundEntry] = []

    def audit(self, stage: str, number: int, site: str, rule: str) -> None:
        """Write one line for a reply that is left out, to the log and to audit.jsonl: the site and the broken rule."""
        logger.warning("left out: site %s, %s %d: %s", site, stage, number, rule)
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "round": number, "stage": stage, "site": site}
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "audit.jsonl").open("a") as file:
            file.write(json.dumps(line | {"rule": rule}) + "\n")

    def restart(self, history: list[RoundEntry]) -> None:
        """Begin with the history of the checkpoint, or with none, and write rounds.jsonl anew."""
        self.history = history
        write_atomic(self.folder / "rounds.jsonl", "".join(json.dumps(entry) + "\n" for entry in history).encode())

    def plan(self, planned: Iterable[Planned]) -> None:
        """Write plan.json: what was planned from the data of all sites, and why."""
        write_atomic(self.folder / "plan.json", json.dumps([row._asdict() for row in planned], indent=1).encode())

    def add(self, entry: RoundEntry) -> None:
        """Append a round to the history and to rounds.jsonl, and log a line per site."""
        self.history.append(entry)
        for site, row in entry["sites"].items():
            logger.info("round %d/%d  %s  %s", entry["round"], self.num_rounds, site, progress(row, self.metric))
        for site, reason in entry["missing"].items():
            logger.warning("round %d/%d  %s  missing: %s", entry["round"], self.num_rounds, site, reason)
        with (self.folder / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self._say_alike()

    def _say_alike(self) -> None:
        """Say when the bank's prototypes begin to look alike: once, not in every round that they do."""
        alike = [entry["bank"].get("alike", False) for entry in self.history[-2:]]
        if alike in ([True], [False, True]):
            logger.info("round %d: note: %s", self.history[-1]["round"], ALIKE)

    def recent_norms(self) -> list[float]:
        """Norms of the changes that were accepted in the last RECENT rounds."""
        return [row["norm"] for entry in self.history[-RECENT:] for row in entry["sites"].values()]

    def missing_sites(self) -> set[str]:
        """Sites that should have taken part in a training round and did not."""
        return {site for entry in self.history for site in entry["missing"]}

    def finish(self, summary: Summary, pictures: Mapping[str, bytes], *, draw_report: bool) -> None:
        """Write summary.json and, if wanted, report.html; a page that cannot be drawn does not fail the run."""
        write_atomic(self.folder / "summary.json", json.dumps(summary, indent=1).encode())
        if not draw_report:
            return
        try:
            write_report(summary, self.folder / "report.html", pictures)
        except Exception as error:  # noqa: BLE001  # whatever is wrong with the page, the run is complete
            logger.error("report.html could not be written (%s); summary.json is complete", type(error).__name__)


def site_round(update: Update, sent: Payload, norm: float) -> SiteRound:
    """An accepted training reply as a row of its round.

    Args:
        norm: L2 norm of the change of the shared part.
    """
    return {
        "train_loss": update.train_loss,
        "metrics": means(update.after),
        "before": means(update.before),
        "num_samples": update.num_samples,
        "seconds": update.seconds,
        "bytes_up": update.num_bytes(),
        "bytes_down": sent.num_bytes(),
        "norm": norm,
    }


def aggregate(metrics: Mapping[str, bool], results: Mapping[str, Update]) -> dict[str, Aggregate]:
    """Mean, standard deviation and worst value of each metric after local training, over the sites that define it.

    Args:
        metrics: whether higher is better, by name.
        results: evaluation by site.
    """
    found: dict[str, Aggregate] = {}
    for name, higher_is_better in metrics.items():
        scores = {site: update.after[name].mean for site, update in sorted(results.items())}
        values = {site: value for site, value in scores.items() if value is not None}
        if not values:
            continue
        worst_site = (min if higher_is_better else max)(values, key=lambda site: values[site])
        numbers = list(values.values())
        found[name] = {
            "mean": float(np.mean(numbers)),
            "std": float(np.std(numbers)),
            "worst": values[worst_site],
            "worst_site": worst_site,
        }
    return found


def pictures(results: Iterable[Update]) -> dict[str, bytes]:
    """PNG files of predictions by caption.  Only sites with synthetic data send any."""
    return {
        f"{update.site}, {caption} (synthetic)": value.numpy().tobytes()
        for update in sorted(results, key=lambda update: update.site)
        for caption, value in update.pictures.items()
    }


def progress(row: SiteRound, metric: str) -> str:
    """A site's row of a round in words.

    Args:
        metric: the validation metric to show.
    """
    scores = [_shown(row["before"].get(metric)), _shown(row["metrics"].get(metric))]
    return (
        f"loss {row['train_loss']:.4f}  {metric} {' -> '.join(scores)} (validation)  {row['seconds']:.1f} s  "
        f"up {row['bytes_up'] / 1e6:.2f} MB  down {row['bytes_down'] / 1e6:.2f} MB"
    )


def _shown(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.3f}"


def means(scores: Mapping[str, Score]) -> dict[str, float]:
    """The mean of each score that is defined."""
    return {name: score.mean for name, score in scores.items() if score.mean is not None}


def versions() -> dict[str, str]:
    """Version by package, of those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
