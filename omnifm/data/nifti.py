"""Strict reading of NIfTI-1 and NIfTI-2 in a single file: the header is checked before a voxel is read.

nibabel parses the header, and we read the voxels.  In this way a wrong header cannot make us allocate memory, and a
file that is shorter or longer than its header promises is refused.
"""

import gzip
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import TypeAlias

import nibabel
import numpy as np
from jaxtyping import Float, Shaped
from nibabel.spatialimages import HeaderDataError

from omnifm.data.refusal import ONE_INPUT, RefusedImage, check_budget

CHUNK = 2**20
MAX_EXTENSION_BYTES = 64 * 2**20
Header: TypeAlias = nibabel.Nifti1Header
"""A NIfTI-1 header, or one of NIfTI-2, which is a subclass."""
Image = tuple[Float[np.ndarray, "x y z *c"], Float[np.ndarray, "4 4"]]
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown (usually mm), metre, mm, micrometre
SPACING_LIMITS_MM = (1e-4, 100.0)
"""Smallest and largest spacing that is believed; anything outside is a mistake in the header."""


def read(path: Path, max_bytes: int) -> Image:
    """Voxels as float32 after slope and intercept, and the affine voxel -> RAS mm (sform before qform).

    Raises:
        RefusedImage: see `refusal.REASONS`.
    """
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            with gzip.GzipFile(fileobj=raw) if zipped else raw as stream:
                return _read_stream(stream, max_bytes)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            reason = "truncated" if isinstance(error, EOFError) else "corrupt"
            raise RefusedImage(reason, "compressed NIfTI must decompress to its end; it does not") from None


def _read_stream(stream: BufferedIOBase, max_bytes: int) -> Image:
    header = _read_header(stream)
    shape, dtype = _shape(header), _dtype(header)
    num_voxels = int(np.prod(shape, dtype=object))
    channels = len(dtype.names) if dtype.names else 1
    check_budget(num_voxels * (dtype.itemsize + 4 * channels), max_bytes)  # as stored, and as float32
    affine = _affine(header)
    slope, intercept = _scaling(header)
    _skip_extensions(stream, header)
    values = _read_exactly(stream, num_voxels * dtype.itemsize).view(dtype).reshape(shape, order="F")
    if dtype.names:  # RGB24: three bytes per voxel, never scaled
        return np.stack([values[name] for name in dtype.names], axis=-1).astype(np.float32), affine
    return _in_units(values, slope, intercept), affine


def _read_header(stream: BufferedIOBase) -> Header:
    start = stream.read(4)
    if len(start) < 4:
        raise RefusedImage("truncated", f"NIfTI header must be complete; the file holds {len(start)} bytes")
    kind = next((kind for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header) if _starts(kind, start)), None)
    if kind is None:
        raise RefusedImage("not_an_image", "NIfTI sizeof_hdr must be 348 or 540; it is not")
    size = kind.template_dtype.itemsize
    block = start + stream.read(size - 4)
    if len(block) < size:
        raise RefusedImage("truncated", f"NIfTI header must hold {size} bytes; got {len(block)}")
    if b"n+" not in (block[344:346], block[4:6]):
        raise RefusedImage("not_an_image", "NIfTI must be the single-file kind (magic n+1 or n+2); it is not")
    order = "<" if int.from_bytes(start, "little") == size else ">"
    return kind(binaryblock=block, endianness=order, check=False)


def _starts(kind: type[Header], start: bytes) -> bool:
    return kind.template_dtype.itemsize in (int.from_bytes(start, "little"), int.from_bytes(start, "big"))


def _shape(header: Header) -> tuple[int, int, int]:
    dims = [int(n) for n in header["dim"]]
    ndim, sizes = dims[0], dims[1 : 1 + dims[0]]
    if not 2 <= ndim <= 7 or min(sizes) < 1:
        raise RefusedImage("bad_geometry", f"NIfTI dim must be 2 to 7 positive sizes; got {dims}")
    if any(n > 1 for n in sizes[3:]):
        raise RefusedImage("several_volumes", f"NIfTI must hold one volume; got dim {sizes}: {ONE_INPUT}")
    x, y, z = [*sizes, 1][:3]
    return x, y, z


def _dtype(header: Header) -> np.dtype[np.generic]:
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        code = int(header["datatype"])
        raise RefusedImage("unsupported_format", f"NIfTI datatype must be known; got {code}") from None
    if dtype.names not in (None, ("R", "G", "B")) or (dtype.names is None and dtype.kind not in "iuf"):
        raise RefusedImage("unsupported_format", f"NIfTI datatype must be real or RGB24; got {dtype}")
    if dtype.itemsize > 8 or int(header["bitpix"]) != 8 * dtype.itemsize:
        got = f"datatype {dtype}, bitpix {int(header['bitpix'])}"
        raise RefusedImage("corrupt", f"NIfTI bitpix must agree with datatype and be at most 64; got {got}")
    return dtype


def _affine(header: Header) -> Float[np.ndarray, "4 4"]:
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        raise RefusedImage("bad_geometry", "NIfTI must give its orientation; sform_code and qform_code are 0")
    unit = int(header["xyzt_units"]) & 7
    if unit not in MM_PER_UNIT:
        raise RefusedImage("bad_geometry", f"NIfTI unit of length must be 0 to 3; got {unit}")
    try:
        affine = header.get_sform() if int(header["sform_code"]) > 0 else header.get_qform()
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        raise RefusedImage("bad_geometry", "NIfTI qform must be a rotation, pixdim > 0; it is not") from None
    affine = np.diag([MM_PER_UNIT[unit]] * 3 + [1.0]) @ np.asarray(affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        raise RefusedImage("bad_geometry", "NIfTI affine must be finite; it is not")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = SPACING_LIMITS_MM
    if not ((spacing >= low) & (spacing <= high)).all():
        got = [float(f"{step:.4g}") for step in spacing]
        raise RefusedImage("bad_geometry", f"spacing must be {low} to {high} mm; got {got}")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.01:
        raise RefusedImage(
            "bad_geometry", "the three axes must point in different directions; they lie nearly in one plane"
        )
    return affine


def _scaling(header: Header) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0:  # the standard's mark for "not scaled"
        return 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        got = f"{slope}, {intercept}"
        raise RefusedImage("non_finite", f"NIfTI slope and intercept must be finite; got {got}")
    return slope, intercept


def _skip_extensions(stream: BufferedIOBase, header: Header) -> None:
    offset, size = float(header["vox_offset"]), header.template_dtype.itemsize
    if not (size <= offset <= MAX_EXTENSION_BYTES and offset == int(offset)):
        limits = f"{size} to {MAX_EXTENSION_BYTES}"
        raise RefusedImage("corrupt", f"NIfTI vox_offset must be a whole number, {limits}; got {offset}")
    _read_exactly(stream, int(offset) - size, last=False)


def _read_exactly(stream: BufferedIOBase, num_bytes: int, *, last: bool = True) -> Shaped[np.ndarray, " n"]:
    """The next `num_bytes` bytes, read in chunks; with `last` the stream must end there (gzip then checks its sum)."""
    data = np.empty(num_bytes, dtype=np.uint8)
    view, done = data.data, 0
    while done < num_bytes:
        count = stream.readinto(view[done : done + CHUNK])
        if not count:
            raise RefusedImage("truncated", f"NIfTI must hold {num_bytes} more bytes; it ends after {done}")
        done += count
    if last and stream.read(1):
        raise RefusedImage("truncated", f"NIfTI must end after {num_bytes} bytes of voxels; more follow")
    return data


def _in_units(values: Shaped[np.ndarray, "x y z"], slope: float, intercept: float) -> Float[np.ndarray, "x y z"]:
    with np.errstate(all="ignore"):  # values too large for float32 become infinite, which is refused below
        array = np.ascontiguousarray(values, dtype=np.float32)
        if (slope, intercept) != (1.0, 0.0):
            for z in range(array.shape[2]):  # slice by slice: computed as double without the memory of a double volume
                array[..., z] = values[..., z].astype(np.float64) * slope + intercept
    if not np.isfinite(array).all():
        raise RefusedImage("non_finite", "every voxel must be finite; some are NaN or infinite")
    return array
