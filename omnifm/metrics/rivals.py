"""The naming rule of baselines: `psnr_bicubic` is the `psnr` that the simple method "bicubic" reaches."""

from collections.abc import Iterable


def rivals(metrics: Iterable[str]) -> dict[str, dict[str, str]]:
    """For each metric of the model, the baselines beside it.

    Args:
        metrics: the names of a task's metrics, in the task's order.

    Returns:
        metric -> baseline in words -> metric with the baseline's score.  The baselines' metrics are not keys.

    >>> rivals(["psnr", "psnr_bicubic", "ssim"])
    {'psnr': {'bicubic': 'psnr_bicubic'}, 'ssim': {}}
    """
    names = list(metrics)
    found = {metric: _rivals_of(metric, names) for metric in names}
    of_rivals = {name for others in found.values() for name in others.values()}
    return {metric: others for metric, others in found.items() if metric not in of_rivals}


def _rivals_of(metric: str, names: Iterable[str]) -> dict[str, str]:
    start = f"{metric}_"
    return {name.removeprefix(start).replace("_", " "): name for name in names if name.startswith(start)}
