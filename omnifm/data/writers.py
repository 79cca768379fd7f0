"""Writes predictions to files, NIfTI, DICOM SEG or PNG depending on the kind of input, with an entry for the index.

The files are as confidential as the images themselves, so only their owner can read them.  Nothing that was read from a
header is written into a file's name or into the index.
"""

import gzip
import io
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from omnifm.data import dicom, raster, seg_writer
from omnifm.data.prediction import Answer, Classes, LabelMap, Picture, Prediction
from omnifm.data.refusal import RefusedImage
from omnifm.state import write_atomic

Kind = Literal["dicom", "nifti", "picture"]
LOW_CONFIDENCE = 0.6
"""A class whose probability is lower is marked, so that somebody looks at the case.  Probabilities of a trained network
are often too high: a higher one is no proof."""
BYTE_WINDOW = (0.0, 255.0)
"""Window of an 8-bit picture."""


def kind_of(source: Path) -> Kind:
    """The kind of an image that can be read; images in an npz file count as pictures."""
    name = source.name.lower()
    if source.is_file() and name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if source.exists() and not name.endswith(raster.SUFFIXES) and dicom.is_dicom(source):
        return "dicom"
    return "picture"


def write(prediction: Prediction, source: Path, folder: Path, name: str, model: str, version: str) -> dict[str, object]:
    """Write the files of a prediction.

    Args:
        prediction: the model's result.
        source: the image that it was predicted from.
        folder: folder for the files.
        name: how the names of the files begin.
        model: digest of the model.
        version: version of this software.

    Returns:
        the entry for the index: `files` (names), and further keys by kind of prediction.
        `LabelMap`: `voxels` and, for volumes, `millilitres` by class name; `confidence`; `note` if no DICOM SEG could
        be written.
        `Picture`: `window`, the values of the source that black and white stand for.
        `Classes`: `class`, `probabilities` and `low_confidence` (see `LOW_CONFIDENCE`).
        `Answer`: `question` and `answer`.
    """
    if isinstance(prediction, Classes):
        best = max(prediction.probabilities, key=prediction.probabilities.__getitem__)
        is_low = prediction.probabilities[best] < LOW_CONFIDENCE
        return {"files": [], "class": best, "probabilities": prediction.probabilities, "low_confidence": is_low}
    if isinstance(prediction, Answer):
        return {"files": [], "question": prediction.question, "answer": prediction.answer}
    if isinstance(prediction, Picture):
        return _write_picture(prediction, source, folder, name)
    written = _write_labels(prediction, source, folder, name, model, version)
    return written | _sizes(prediction) | {"confidence": prediction.confidence}


def nifti(array: Shaped[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> bytes:
    """Content of a .nii.gz file on this grid; the same array and affine give the same bytes."""
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    # A qform cannot hold shear.  If it differs from the affine, it is removed, and only the sform remains.
    if np.abs(image.get_qform() - affine).max() > 1e-3 * np.linalg.norm(affine[:3, :3], axis=0).min():
        image.set_qform(None, 0)
    return gzip.compress(image.to_bytes(), mtime=0)


def png(pixels: UInt8[np.ndarray, "rows columns *c"]) -> bytes:
    """Content of a PNG file, grey or RGB."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _write_labels(
    prediction: LabelMap, source: Path, folder: Path, name: str, model: str, version: str
) -> dict[str, object]:
    kind = kind_of(source)
    note: dict[str, object] = {}
    if kind == "dicom":
        try:
            content = seg_writer.encode(prediction, source, model, version)
            return {"files": [_save(folder, f"{name}.dcm", content)]}
        except RefusedImage as error:
            note = {"note": f"no DICOM SEG: {error}"}
    if kind == "nifti" or prediction.values.shape[2] > 1 or prediction.shown is None:
        return note | {"files": [_save(folder, f"{name}.nii.gz", nifti(prediction.values, prediction.affine))]}
    mask = png(np.ascontiguousarray(prediction.values[:, :, 0].T))
    shown = _save(folder, f"{name}-shown.png", png(prediction.shown))
    return note | {"files": [_save(folder, f"{name}.png", mask), shown]}


def _write_picture(prediction: Picture, source: Path, folder: Path, name: str) -> dict[str, object]:
    """Write PNG for colour and for 8-bit pictures, and otherwise NIfTI in the source's own values and geometry."""
    levels, (low, high) = prediction.levels, prediction.window
    in_bytes = kind_of(source) == "picture" and prediction.window == BYTE_WINDOW
    if levels.shape[2] == 1 and (levels.ndim == 4 or in_bytes):
        pixels = np.round(255 * np.clip(levels[:, :, 0], 0, 1)).astype(np.uint8)
        file = _save(folder, f"{name}.png", png(np.ascontiguousarray(pixels.swapaxes(0, 1))))
    else:
        values = (low + levels.astype(np.float64) * (high - low)).astype(np.float32)
        file = _save(folder, f"{name}.nii.gz", nifti(values, prediction.affine))
    return {"files": [file], "window": [low, high]}


def _sizes(prediction: LabelMap) -> dict[str, object]:
    """Number of voxels of each class, and for a volume also millilitres."""
    counts = np.bincount(prediction.values.ravel(), minlength=max(prediction.names) + 1)
    voxels = {name: int(counts[number]) for number, name in sorted(prediction.names.items()) if number > 0}
    if prediction.values.shape[2] == 1:
        return {"voxels": voxels}
    voxel_ml = abs(float(np.linalg.det(prediction.affine[:3, :3]))) / 1000
    return {"voxels": voxels, "millilitres": {name: round(count * voxel_ml, 3) for name, count in voxels.items()}}


def _save(folder: Path, name: str, content: bytes) -> str:
    write_atomic(folder / name, content)
    return name
