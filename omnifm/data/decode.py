"""Reading one image or mask: the reader is chosen by the content and the name of the file.

This runs inside the child process `reader_process`.  Call `volume.read_volume` and `volume.read_label` instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from omnifm.data import dicom, dicom_labels, nifti, raster
from omnifm.data.grid import check_same_grid
from omnifm.data.refusal import RefusedImage, refusing
from omnifm.data.volume import Box, BurnedIn, Volume

MIN_LEVEL_GAP = 16
"""Smallest distance between the grey levels of a painted mask; class numbers and JPEG noise are closer."""


def read_image(path: Path, max_bytes: int, burned_in_text: BurnedIn = "unknown") -> Volume:
    """`volume.read_volume` in this process."""
    with refusing():
        volume = _read(path, max_bytes, burned_in_text, as_mask=False)
        return volume if isinstance(burned_in_text, str) else _blanked(volume, burned_in_text)


def read_mask(path: Path, image: Volume, labels: Mapping[int, str] | None, max_bytes: int) -> Int[np.ndarray, "x y z"]:
    """`volume.read_label` in this process; only the grid and the frame of reference of `image` are used."""
    with refusing():
        is_picture = False
        if dicom_labels.knows(path):
            values = dicom_labels.read(path, image, labels, max_bytes)
        else:
            mask = _read(path, max_bytes, "none", as_mask=True)
            values = _one_channel(mask.array)
            check_same_grid(replace(mask, array=values), image)
            is_picture = not path.name.lower().endswith((".nii", ".nii.gz"))
        return _classes(values, None if labels is None else frozenset(labels), is_picture)


def _read(path: Path, max_bytes: int, burned_in_text: BurnedIn, *, as_mask: bool) -> Volume:
    if "#" in path.name and not path.exists():
        return _picture(_from_npz(path, max_bytes))
    if path.is_dir():
        return dicom.read(path, max_bytes, burned_in_text)
    if not path.is_file():  # reading a pipe could wait for ever
        what = "mask" if as_mask else "image"
        raise RefusedImage("missing_file", f"{what} file must exist and be a regular file; it is not")
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return Volume(*nifti.read(path, max_bytes))
    if name.endswith(raster.SUFFIXES):
        return _picture(raster.read(path, max_bytes, as_mask=as_mask))
    if dicom.is_dicom(path):
        return dicom.read(path, max_bytes, burned_in_text)
    known = "NIfTI, DICOM, PNG, JPEG, TIFF, BMP or npz#index"
    raise RefusedImage("unsupported_format", f"image must be {known}; it is none of these: convert it")


def _blanked(volume: Volume, boxes: Sequence[Box]) -> Volume:
    """The volume with the boxes set to its smallest value, in every slice."""
    array = volume.array.copy()
    columns, rows = array.shape[:2]
    for left, top, right, bottom in boxes:
        if not (0 <= left < right <= columns and 0 <= top < bottom <= rows):
            got = f"{[left, top, right, bottom]} in {columns} x {rows}"
            raise RefusedImage("burned_in_text", f"boxes in burned_in_text must lie inside the image; got {got}")
        array[left:right, top:bottom] = array.min()
    return replace(volume, array=array)


def _classes(
    values: Shaped[np.ndarray, "x y z"], allowed: frozenset[int] | None, is_picture: bool
) -> Int[np.ndarray, "x y z"]:
    """Class numbers as int32, all of them allowed; `None` allows every whole number from 0 up to 2^24."""
    levels = np.unique(values)
    if not np.array_equal(levels, np.round(levels)) or levels[0] < 0 or levels[-1] >= 2**24:
        wrong = levels[(levels != np.round(levels)) | (levels < 0) | (levels >= 2**24)]
        raise RefusedImage("label_values", f"mask values must be whole numbers >= 0; got {_listed(wrong)}")
    labels = values.astype(np.int32)
    if allowed is None or set(levels.tolist()) <= allowed:
        return labels
    if allowed == {0, 1} and _is_painted(levels, is_picture):
        return (labels > 0).astype(np.int32)
    wrong = levels[~np.isin(levels, sorted(allowed))]
    raise RefusedImage("label_values", f"mask values must be among {sorted(allowed)}; got {_listed(wrong)}")


def _is_painted(levels: Float[np.ndarray, " n"], is_picture: bool) -> bool:
    """Whether every level above 0 means class 1: 255 is the only one, or in a picture all are far apart."""
    inside = levels[levels > 0].tolist()
    return inside == [255] or (is_picture and bool((np.diff([0, *inside]) >= MIN_LEVEL_GAP).all()))


def _one_channel(array: Shaped[np.ndarray, "x y z *c"]) -> Shaped[np.ndarray, "x y z"]:
    if array.ndim == 3:
        return array
    if not (array == array[..., :1]).all():
        raise RefusedImage("label_values", "mask must hold one value per voxel; its colour channels differ")
    return array[..., 0]


def _listed(values: Shaped[np.ndarray, " n"]) -> str:
    more = "" if len(values) <= 5 else f" and {len(values) - 5} more"
    return ", ".join(f"{value:g}" for value in values[:5].tolist()) + more


def _picture(array: Float[np.ndarray, "x y z *c"]) -> Volume:
    return Volume(array, np.eye(4))


def _from_npz(path: Path, max_bytes: int) -> Float[np.ndarray, "x y z *c"]:
    name, _, index = path.name.rpartition("#")
    file = path.with_name(name)
    if not file.is_file():
        raise RefusedImage("missing_file", "npz file must exist and be a regular file; it is not")
    if not (index.isascii() and index.isdigit()):
        raise RefusedImage(
            "not_an_image", "npz image must be named like file.npz#7, with a whole number as index; it is not"
        )
    stack = _npz_stack(file, file.stat().st_mtime_ns, max_bytes)
    if int(index) >= len(stack):
        raise RefusedImage("missing_file", f"npz index must be below {len(stack)}; got {int(index)}")
    return raster.from_stack(stack[int(index)])


@lru_cache(maxsize=4)
def _npz_stack(file: Path, mtime_ns: int, max_bytes: int) -> Shaped[np.ndarray, " n *axes"]:
    # Cached, since one npz holds thousands of small pictures, and decompressing it for each would be slow.
    return raster.read_npz(file, max_bytes)
