"""The naming rule of trivial rivals: the metric `psnr_bicubic` beside `psnr` is what "bicubic" gets."""

from collections.abc import Iterable


def rivals(metrics: Iterable[str]) -> dict[str, dict[str, str]]:
    """Metric -> its rivals in words -> the metric that holds their score; a rival is no key of its own.

    Args:
        metrics: a task's names, in its order.
    """
    names = list(metrics)
    found = {metric: _of(metric, names) for metric in names}
    scored = {name for others in found.values() for name in others.values()}
    return {metric: others for metric, others in found.items() if metric not in scored}


def _of(metric: str, names: Iterable[str]) -> dict[str, str]:
    start = f"{metric}_"
    return {name.removeprefix(start).replace("_", " "): name for name in names if name.startswith(start)}
