"""The reasons for which an image is refused.  A refusal concerns one case: the run continues without it.

Messages are written to logs.  They name the rule and the value, and never a path, a patient or a date.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ONE_INPUT = "several sequences or time points as one input are not supported yet: give one volume for each case"
"""What is said where four MR sequences, a 4-D file or a list of files is given as one image."""


class Reason(NamedTuple):
    """What a refusal means, and what a site does about it; both are shown to people."""

    meaning: str
    """Begins in lower case and has no full stop: it follows a count or a colon."""
    advice: str
    """Whole sentences."""


REASONS = {
    "missing_file": Reason(
        "the file does not exist or cannot be opened",
        "Put the file where the list or the image's name says, or take its case out; check who may read it.",
    ),
    "not_an_image": Reason(
        "the content is not of the kind that the file's name says",
        "Open the file with a viewer: export it again, or take it out if it is no image.",
    ),
    "unsupported_format": Reason(
        "a file format, pixel type or colour model that we do not read",
        "Convert it to NIfTI, DICOM, PNG, JPEG, TIFF or BMP.",
    ),
    "unsupported_transfer_syntax": Reason(
        "a DICOM compression that we do not decode",
        "Export the series without compression.",
    ),
    "truncated": Reason(
        "the file holds fewer or more bytes than its header promises",
        "Export or copy the file again.",
    ),
    "corrupt": Reason(
        "a checksum or a decoder failed, or the header contradicts itself",
        "Export or copy the file again.",
    ),
    "too_large": Reason(
        "the image needs more memory than the budget allows",
        "Free memory, use a larger machine, or cut the image to the part that is needed.",
    ),
    "non_finite": Reason(
        "voxels, slope or intercept are NaN or infinite",
        "Find the step that made them, often a resampling, and write the image again.",
    ),
    "too_slow": Reason(
        "decoding takes longer than is allowed for an image of this size",
        "Try again when the machine is less busy; otherwise export the file again.",
    ),
    "bad_geometry": Reason(
        "size, affine or spacing do not say where the voxels lie in space, or do not suit the task",
        "Convert the image again from its source, with its orientation and spacing.",
    ),
    "mixed_orientation": Reason(
        "slices of one series point in different directions",
        "Export each direction as a series of its own.",
    ),
    "irregular_spacing": Reason(
        "slices of one series are not equally far apart",
        "Check that the export holds all slices; leave such a series out if it was scanned so.",
    ),
    "missing_slices": Reason("slices are missing within a series", "Export the whole series again."),
    "several_volumes": Reason(
        "a time series, several series or several pages where one volume is wanted",
        "Several sequences or time points as one input are not supported yet: give one volume for each case.",
    ),
    "duplicate_slices": Reason(
        "two slices of a series lie at the same place",
        "Keep one of the two; split a series with several echoes or time points into one per volume.",
    ),
    "gantry_tilt": Reason(
        "slices are not stacked at a right angle to their plane",
        "Prepare it with `omnifm prepare dicom --tilt shear`, which resamples the slices.",
    ),
    "localizer": Reason("a localizer (scout view), which is no volume", "Leave it out; nothing is lost."),
    "not_a_slice": Reason(
        "a scout view or a screenshot among the slices of a series, which is read without it",
        "Nothing, if it is no slice; otherwise correct its ImageType.",
    ),
    "mosaic": Reason(
        "many slices tiled into one picture",
        "Prepare it with `omnifm prepare dicom --convert mosaic`, or convert it to NIfTI with dcm2niix.",
    ),
    "no_units": Reason(
        "values that cannot be given in the unit of their modality: a CT without Hounsfield units",
        "Export the original series, not one that was processed.",
    ),
    "no_pixels": Reason("a DICOM object without an image: a plan, a report, structures", "Leave it out."),
    "burned_in_text": Reason(
        "pixels may show a patient's name",
        "Look at the pictures. Then list them in a dataset.json, your own if `prepare` left them out: with "
        '`"burned_in_text": "none"` if none shows a name, otherwise with the boxes to blank.',
    ),
    "missing_label": Reason(
        "a series for which no mask is found",
        "Run without `--labels` first, draw masks, save each as mask.nii.gz in its series' folder, "
        "then add `--mask mask.nii.gz`.",
    ),
    "several_labels": Reason(
        "a series for which more than one mask is found",
        "Keep one mask for each series, and move the others away.",
    ),
    "label_geometry": Reason(
        "a mask that has another size or position than its image",
        "Draw on the original image; do not resample or crop.",
    ),
    "bad_text": Reason(
        "a question, answer or answer type that is empty or not as declared",
        "Write the text into the item, or take the item out.",
    ),
    "label_values": Reason(
        "a mask or class with a value that has no name, or that is no whole number",
        "Give every value a name, in the order 0, 1, 2, ...: `--labels background,NAME` in prepare, 'labels' in "
        "dataset.json.",
    ),
    "malformed": Reason(
        "an entry of the data set's list lacks a field or has a wrong value",
        "Compare the list with the published one; download the data set again if they differ.",
    ),
    "no_image_name": Reason(
        "a file whose name does not end like an image's, for example a text",
        "Nothing, if it is no image; otherwise convert it to NIfTI, DICOM, PNG, JPEG, TIFF or BMP.",
    ),
    "beside_unreadable": Reason(
        "a series in the folder of a file that cannot be read and may be one of its slices",
        "Repair or remove that file; it is listed, too.",
    ),
}
"""What each reason means and what to do about it, as reports explain it."""


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
