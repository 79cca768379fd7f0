"""Names of metrics as pages write them."""

from __future__ import annotations

from collections.abc import Iterable

from omnifm.records import Json, SiteRecord

NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95_mm": "HD95 (mm)",
    "auroc": "AUROC",
    "macro_f1": "macro F1",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "vif": "VIF",
    "mi": "MI",
    "l1": "L1",
    "qabf": "Q(AB/F)",
    "bleu1": "BLEU-1",
}
"""Names that are more than the metric's word with spaces."""


def metric_name(metric: str, unit: str | None = None) -> str:
    """Write a metric's name in words, with its unit where it has one.

    Args:
        metric: name in summary.json.
        unit: the unit, if it is another one than the metric's name says.

    >>> metric_name("hd95_mm"), metric_name("hd95_mm", "pixels"), metric_name("balanced_accuracy")
    ('HD95 (mm)', 'HD95 (pixels)', 'balanced accuracy')
    """
    name = NAMES.get(metric, metric.replace("_", " "))
    return f"{name.partition(' (')[0]} ({unit})" if unit else name


def common_unit(metric: str, sites: Iterable[SiteRecord]) -> str | None:
    """The unit that all sites give a metric beside its name: None if none does, both if they differ."""
    units = {site.get("units", {}).get(metric) for site in sites}
    named = sorted(unit for unit in units if unit)
    return None if not named else " or ".join([*named, "mm"] if None in units else named)


def units(data: Json, metrics: Iterable[str]) -> dict[str, str]:
    """Unit of the metrics that are named in mm and are in pixels, because the site's pictures do not say their spacing.

    >>> units({"dims": 2, "spacing_mm": [1.0, 1.0, 1.0]}, ["dice", "hd95_mm"])
    {'hd95_mm': 'pixels'}
    """
    unknown = data.get("dims") == 2 and data.get("spacing_mm") == [1.0, 1.0, 1.0]
    return {name: "pixels" for name in metrics if unknown and name.endswith("_mm")}
