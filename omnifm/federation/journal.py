"""What a run says of itself: the parts of summary.json and of a round's line, from facts and accepted updates."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from omnifm.federation.intake import COUNT_KEYS
from omnifm.update import Score, Update

PACKAGES = ("omnifm-flare", "nvflare", "torch", "monai", "transformers", "peft", "numpy", "nibabel", "pydicom")


def site_row(facts: Mapping[str, Any], update: Update) -> dict[str, Any]:
    """A site's counts and test scores, before and after local training.

    Args:
        facts: what the site described.
        update: its evaluation.
    """
    metrics = {
        name: {
            "before": update.before[name].mean,
            "after": after.mean,
            "support": after.support,
            "undefined": after.undefined,
        }
        for name, after in update.after.items()
    }
    return {key: facts[key] for key in (*COUNT_KEYS, "modalities")} | {"metrics": metrics}


def aggregate(metrics: Mapping[str, bool], results: Mapping[str, Update]) -> dict[str, Any]:
    """Mean, spread and worst over the sites where a metric is defined, after local training.

    Args:
        metrics: name -> whether higher is better.
        results: site -> its evaluation.
    """
    out = {}
    for name, higher in metrics.items():
        scores = {site: update.after[name].mean for site, update in sorted(results.items())}
        values = {site: value for site, value in scores.items() if value is not None}
        if values:
            worst = (min if higher else max)(values, key=lambda site: values[site])
            numbers = list(values.values())
            out[name] = {
                "mean": float(np.mean(numbers)),
                "std": float(np.std(numbers)),
                "worst": values[worst],
                "worst_site": worst,
            }
    return out


def progress(row: Mapping[str, Any], metric: str) -> str:
    """A site's row of a round's history in words.

    Args:
        metric: the one to show, on validation.
    """
    scores = [f"{row[when][metric]:.3f}" if metric in row[when] else "undefined" for when in ("before", "metrics")]
    return (
        f"loss {row['train_loss']:.4f}  {metric} {' -> '.join(scores)} (validation)  {row['seconds']:.1f} s  "
        f"up {row['bytes_up'] / 1e6:.2f} MB  down {row['bytes_down'] / 1e6:.2f} MB"
    )


def means(scores: Mapping[str, Score]) -> dict[str, float]:
    """The defined ones."""
    return {name: score.mean for name, score in scores.items() if score.mean is not None}


def versions() -> dict[str, str]:
    """Package -> version, of those installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
