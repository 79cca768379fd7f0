"""The reasons for which an image is refused.  A refusal concerns one case: the run continues without it.

Messages are written to logs.  They name the rule and the value, and never a path, a patient or a date.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REASONS = {
    "missing_file": "the file named in dataset.json does not exist or cannot be opened",
    "not_an_image": "the content is not of the kind that the file's name says",
    "unsupported_format": "a file format, pixel type or colour model that we do not read",
    "unsupported_transfer_syntax": "a DICOM compression that we do not decode",
    "truncated": "the file holds fewer or more bytes than its header promises",
    "corrupt": "a checksum or a decoder failed, or the header contradicts itself",
    "too_large": "the image needs more memory than the budget allows",
    "non_finite": "voxels, slope or intercept are NaN or infinite",
    "too_slow": "decoding takes longer than is allowed for an image of this size",
    "bad_geometry": "size, affine or spacing do not say where the voxels lie in space",
    "mixed_orientation": "slices of one series point in different directions",
    "irregular_spacing": "slices of one series are not equally far apart",
    "missing_slices": "slices are missing within a series",
    "several_volumes": "a time series, several series or several pages where one volume is wanted",
    "duplicate_slices": "two slices of a series lie at the same place",
    "gantry_tilt": "slices are not stacked at a right angle to their plane; correct the tilt when converting",
    "localizer": "a localizer (scout view), which is no volume",
    "mosaic": "many slices tiled into one picture",
    "no_units": "values that cannot be given in the unit of their modality: a CT without Hounsfield units",
    "no_pixels": "a DICOM object without an image: a plan, a report, structures",
    "burned_in_text": "pixels may show a patient's name; look at them, then declare `burned_in_text` in dataset.json",
    "missing_label": "a series for which no mask is found",
    "several_labels": "a series for which more than one mask is found",
    "label_geometry": "a mask that does not lie on its image's grid of voxels",
    "bad_text": "a question, answer or answer type that is empty or not as declared",
    "label_values": "a mask with values that are fractional or not declared",
}
"""What each reason means, as reports explain it."""


class RefusedImage(ValueError):
    """An image that cannot be read *correctly*.

    Attributes:
        reason: one of `REASONS`.
    """

    def __init__(self, reason: str, message: str) -> None:
        if reason not in REASONS:  # a mistake in our code, not in the user's data
            raise KeyError(reason)
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # Readers may run in a child process, which returns the refusal by pickling it.
        return type(self), (self.reason, str(self))


@contextmanager
def refusing() -> Iterator[None]:
    """Turn any exception of a decoder into a refusal.

    The decoder's own message is dropped (`from None`), because it may hold a path or header text.

    Raises:
        RefusedImage: the block raised any exception.
    """
    try:
        yield
    except RefusedImage:
        raise
    except MemoryError:
        raise RefusedImage("too_large", "image must fit in memory; the decoder ran out of it") from None
    except EOFError:
        raise RefusedImage("truncated", "image must be complete; its file ends too early") from None
    except FileNotFoundError:
        raise RefusedImage("missing_file", "image file must exist; it does not") from None
    except PermissionError:
        raise RefusedImage("missing_file", "image file must be readable; permission denied") from None
    except Exception as error:  # noqa: BLE001  # callers rely on it that readers raise refusals only
        name = type(error).__name__
        raise RefusedImage("corrupt", f"image must decode; the decoder raised {name}") from None


def check_budget(num_bytes: int, max_bytes: int) -> None:
    """Refuse an image that needs too much memory, before any memory is allocated for it.

    Args:
        num_bytes: memory that reading needs at its peak, computed from the header.
        max_bytes: the caller's budget; where this machine has less free memory, that is the budget.

    Raises:
        RefusedImage: `too_large`.
    """
    left = available_memory_bytes()
    budget = max_bytes if left is None else min(max_bytes, left)
    if num_bytes > budget:
        needed, left_mib = num_bytes // 2**20 + 1, budget // 2**20
        raise RefusedImage("too_large", f"image must fit in {left_mib} MiB of memory; it needs {needed} MiB")


def available_memory_bytes() -> int | None:
    """Free memory in bytes: the smaller of what Linux and the control group report; None if neither does."""
    left: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        left += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        limit = int(
            Path("/sys/fs/cgroup/memory.max").read_text()
        )  # without a limit it is "max", which raises ValueError
        # Cached file pages count as used but are freed when needed, so only anonymous memory is counted here.
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        left.append(max(0, limit - int(stat["anon"])))
    except (OSError, ValueError, KeyError):
        pass
    return min(left) if left else None
