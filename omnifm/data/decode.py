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
from omnifm.data.mask_rules import NO_RULES, MaskRules
from omnifm.data.refusal import RefusedImage, refusing
from omnifm.data.volume import Box, BurnedIn, Volume


def read_image(path: Path, max_bytes: int, burned_in_text: BurnedIn = "unknown") -> Volume:
    """`volume.read_volume` in this process."""
    with refusing():
        volume = _read(path, max_bytes, burned_in_text, as_mask=False)
        return volume if isinstance(burned_in_text, str) else _blanked(volume, burned_in_text)


def read_mask(
    path: Path, image: Volume, labels: Mapping[int, str] | None, max_bytes: int, rules: MaskRules = NO_RULES
) -> Int[np.ndarray, "x y z"]:
    """`volume.read_label` in this process; of `image` only the grid, the frame of reference and the tag are used."""
    with refusing():
        if dicom_labels.knows(path):
            values = dicom_labels.read(path, image, labels, max_bytes, rules)
        else:
            mask = _oriented(_read(path, max_bytes, "none", as_mask=True), image, rules.exif)
            values = _one_channel(mask.array)
            check_same_grid(replace(mask, array=values), image)
        return _classes(values, None if labels is None else frozenset(labels))


def _oriented(mask: Volume, image: Volume, exif: str) -> Volume:
    """The mask of a picture, turned as its picture is."""
    if mask.exif == image.exif or exif == "apply":
        return mask
    if exif != "ignore":
        rule = "picture and mask must have one orientation tag (EXIF)"
        todo = 'look where the mask lies, then write "exif": "ignore" (drawn on the stored pixels) or '
        todo += '"exif": "apply" (drawn on the turned picture) into dataset.json, or save both without the tag'
        raise RefusedImage("label_geometry", f"{rule}; got {image.exif} and {mask.exif}: {todo}")
    stored = raster.turned(mask.array, mask.exif, back=True)
    return replace(mask, array=raster.turned(stored, image.exif), exif=image.exif)


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
        return replace(_picture(raster.read(path, max_bytes, as_mask=as_mask)), exif=raster.orientation(path))
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


def _classes(values: Shaped[np.ndarray, "x y z"], allowed: frozenset[int] | None) -> Int[np.ndarray, "x y z"]:
    """Class numbers as int32, all of them allowed; `None` allows every whole number from 0 up to 2^24."""
    levels = np.unique(values)
    if not np.array_equal(levels, np.round(levels)) or levels[0] < 0 or levels[-1] >= 2**24:
        wrong = levels[(levels != np.round(levels)) | (levels < 0) | (levels >= 2**24)]
        raise RefusedImage("label_values", f"mask values must be whole numbers >= 0; got {_listed(wrong)}")
    labels = values.astype(np.int32)
    if allowed is None or set(levels.tolist()) <= allowed:
        return labels
    if allowed == {0, 1} and set(levels.tolist()) <= {0, 255}:  # white on black; no other level is taken for a class
        return (labels > 0).astype(np.int32)
    wrong = levels[~np.isin(levels, sorted(allowed))]
    raise RefusedImage("label_values", f"mask values must be among {sorted(allowed)}; got {_listed(wrong)}")


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
