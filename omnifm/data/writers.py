"""Predictions as files: NIfTI, DICOM SEG or PNG after the kind of the input, and what the index says of them.

Files hold what a hospital may not give away as little as its images: they are readable by their owner only.
Nothing read from a header goes into a file's name or into the index.
"""

import gzip
import io
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from omnifm.data import dicom, raster, seg_writer
from omnifm.data.prediction import Answer, Classes, LabelMap, Picture, Prediction
from omnifm.data.refusal import RefusedImage
from omnifm.state import write_atomic

Kind = Literal["dicom", "nifti", "picture"]
BYTE_WINDOW = (0.0, 255.0)


def kind_of(source: Path) -> Kind:
    """What kind of input a readable image is; thumbnails in npz are pictures."""
    name = source.name.lower()
    if source.is_file() and name.endswith((".nii", ".nii.gz")):
        return "nifti"
    return "dicom" if source.exists() and not name.endswith(raster.SUFFIXES) and dicom.is_dicom(source) else "picture"


def write(prediction: Prediction, source: Path, folder: Path, name: str, model: str, version: str) -> dict[str, Any]:
    """Write a prediction's files.

    Args:
        source: the image it was predicted from.
        folder: where the files go.
        name: how their names begin.
        model: digest of the model.
        version: of this software.

    Returns:
        What the index says: `files` (names), and by kind of prediction
        `voxels` and for volumes `millilitres` by class name, `note` where a DICOM SEG was impossible;
        `window`, the source's values of black and white, where a picture has no unit of its own;
        `class` and `probabilities`; or `question` and `answer`.
    """
    if isinstance(prediction, Classes):
        best = max(prediction.probabilities, key=prediction.probabilities.__getitem__)
        return {"files": [], "class": best, "probabilities": prediction.probabilities}
    if isinstance(prediction, Answer):
        return {"files": [], "question": prediction.question, "answer": prediction.answer}
    if isinstance(prediction, Picture):
        return _write_picture(prediction, source, folder, name)
    return _write_labels(prediction, source, folder, name, model, version) | _sizes(prediction)


def nifti(array: Shaped[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> bytes:
    """Content of a .nii.gz on exactly this grid; the same array gives the same bytes."""
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    # A qform cannot hold shear: where it says something else, it must say nothing.
    if np.abs(image.get_qform() - affine).max() > 1e-3 * np.linalg.norm(affine[:3, :3], axis=0).min():
        image.set_qform(None, 0)
    return gzip.compress(image.to_bytes(), mtime=0)


def png(pixels: UInt8[np.ndarray, "rows columns *c"]) -> bytes:
    """Content of a PNG, grey or RGB."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _write_labels(
    prediction: LabelMap, source: Path, folder: Path, name: str, model: str, version: str
) -> dict[str, Any]:
    kind, said = kind_of(source), dict[str, Any]()
    if kind == "dicom":
        try:
            content = seg_writer.encode(prediction, source, model, version)
            return {"files": [_saved(folder, f"{name}.dcm", content)]}
        except RefusedImage as error:
            said = {"note": f"no DICOM SEG: {error}"}
    if kind == "nifti" or prediction.values.shape[2] > 1 or prediction.shown is None:
        return said | {"files": [_saved(folder, f"{name}.nii.gz", nifti(prediction.values, prediction.affine))]}
    mask = png(np.ascontiguousarray(prediction.values[:, :, 0].T))
    shown = _saved(folder, f"{name}-shown.png", png(prediction.shown))
    return said | {"files": [_saved(folder, f"{name}.png", mask), shown]}


def _write_picture(prediction: Picture, source: Path, folder: Path, name: str) -> dict[str, Any]:
    """PNG for colour and for 8-bit pictures; else NIfTI in the source's own values, which keeps place and depth."""
    levels, (low, high) = prediction.levels, prediction.window
    in_bytes = kind_of(source) == "picture" and prediction.window == BYTE_WINDOW
    if levels.shape[2] == 1 and (levels.ndim == 4 or in_bytes):
        pixels = np.round(255 * np.clip(levels[:, :, 0], 0, 1)).astype(np.uint8)
        file = _saved(folder, f"{name}.png", png(np.ascontiguousarray(pixels.swapaxes(0, 1))))
    else:
        values = (low + levels.astype(np.float64) * (high - low)).astype(np.float32)
        file = _saved(folder, f"{name}.nii.gz", nifti(values, prediction.affine))
    return {"files": [file], "window": [low, high]}


def _sizes(prediction: LabelMap) -> dict[str, Any]:
    counts = np.bincount(prediction.values.ravel(), minlength=max(prediction.names) + 1)
    voxels = {name: int(counts[number]) for number, name in sorted(prediction.names.items()) if number > 0}
    if prediction.values.shape[2] == 1:
        return {"voxels": voxels}
    voxel_ml = abs(float(np.linalg.det(prediction.affine[:3, :3]))) / 1000
    return {"voxels": voxels, "millilitres": {name: round(count * voxel_ml, 3) for name, count in voxels.items()}}


def _saved(folder: Path, name: str, content: bytes) -> str:
    write_atomic(folder / name, content)
    return name
