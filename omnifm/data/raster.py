"""Pictures: PNG, JPEG, TIFF, BMP through Pillow, and stacks of thumbnails (pictures or volumes) in npz.

Letters: x columns, y rows, z slices, c channel.  Nothing is converted by guess: grey stays one channel, colour is RGB,
a palette is looked up, 1-bit is 0 and 1, 16-bit grey keeps its values, an alpha channel must be opaque, and a
camera's EXIF rotation is applied, as viewers do.
"""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image, ImageOps, UnidentifiedImageError

from omnifm.data.refusal import RefusedImage, check_budget

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
NPZ_ARRAY = "images"
TRANSPARENT = "picture must be opaque; some pixels are transparent"


def read(path: Path, max_bytes: int, *, as_mask: bool = False) -> Float[np.ndarray, "x y 1 *c"]:
    """A picture as float32 grey levels, 0-255 for 8 bits; c = 3 (RGB) for colour.

    Args:
        path: an existing file.
        max_bytes: memory budget in bytes.
        as_mask: keep a palette's numbers instead of its colours (masks store classes there).

    Raises:
        RefusedImage: see `refusal.REASONS`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings quote file content; we keep our own budget below
        try:
            with Image.open(path, formats=FORMATS) as picture:
                _check(picture, path, max_bytes)
                if picture.format == "PNG":
                    _check_to_the_end(path)
                return from_rows(_pixels(picture, as_mask))
        except UnidentifiedImageError:
            raise RefusedImage("not_an_image", "content must be PNG, JPEG, TIFF or BMP; it is not") from None
        except Image.DecompressionBombError:
            raise RefusedImage("too_large", "picture must be within Pillow's pixel limit") from None
        except (OSError, SyntaxError) as error:
            reason = "truncated" if "truncat" in str(error) else "corrupt"
            raise RefusedImage(reason, "picture must decode to its last row; it does not") from None


def from_rows(rows: Shaped[np.ndarray, "rows columns *c"]) -> Float[np.ndarray, "x y 1 *c"]:
    """Row-major pixels as `x y 1` (`c` kept behind), float32.

    Raises:
        RefusedImage: `non_finite`.
    """
    return _finite(rows.swapaxes(0, 1)[:, :, None])


def from_stack(image: Shaped[np.ndarray, "*axes"]) -> Float[np.ndarray, "x y z *c"]:
    """One image of `read_npz` as `x y z` (`c` kept behind), float32; a picture has z = 1.

    Raises:
        RefusedImage: `non_finite`.
    """
    is_picture = image.ndim == 2 or image.shape[2] == 3
    return from_rows(image) if is_picture else _finite(image.transpose(2, 1, 0))


def read_npz(file: Path, max_bytes: int) -> Shaped[np.ndarray, " n *axes"]:
    """The stack of images in an npz: its only array, or the one named `images`.

    Its axes are (n, rows, columns), (n, rows, columns, 3) for RGB, or (n, slices, rows, columns).  Of four axes the
    last decides: 3 is colour, since no volume is three columns wide.

    Raises:
        RefusedImage: see `refusal.REASONS`.
    """
    with np.load(file, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise RefusedImage("not_an_image", "npz must be a zip of arrays; it is a single array")
        names = arrays.files
        name = names[0] if len(names) == 1 else NPZ_ARRAY
        if name not in names:
            raise RefusedImage("not_an_image", f"npz must hold one array or one named {NPZ_ARRAY!r}")
        # The archive's directory tells the size before anything inflates.
        check_budget(_inflated_size(file, name), max_bytes)
        stack = arrays[name]
    if stack.ndim not in (3, 4) or stack.dtype.kind not in "uif":
        known = "(n, rows, columns[, 3]) or (n, slices, rows, columns)"
        raise RefusedImage("unsupported_format", f"npz must hold numbers {known}; got {stack.dtype} of {stack.shape}")
    return stack


def _finite(pixels: Shaped[np.ndarray, "x y z *c"]) -> Float[np.ndarray, "x y z *c"]:
    with np.errstate(all="ignore"):
        array = np.ascontiguousarray(pixels, dtype=np.float32)
    if not np.isfinite(array).all():
        raise RefusedImage("non_finite", "every pixel must be finite; some are NaN or infinite")
    return array


def _inflated_size(file: Path, name: str) -> int:
    with zipfile.ZipFile(file) as archive:
        return archive.getinfo(f"{name}.npy").file_size


def _check(picture: Any, path: Path, max_bytes: int) -> None:
    width, height = picture.size
    # A phone's JPEG may carry previews behind its picture; pages of a TIFF or frames of a PNG are pictures too.
    if picture.format in ("PNG", "TIFF") and getattr(picture, "n_frames", 1) > 1:
        raise RefusedImage("several_volumes", f"picture file must hold one picture; got {picture.n_frames}")
    bands = 3 if picture.mode == "P" else len(picture.getbands())
    check_budget(width * height * bands * 9, max_bytes)  # decoded, turned upright, and as float32
    if picture.mode not in GREY_MODES and _bits_per_channel(picture, path) > 8:
        raise RefusedImage("unsupported_format", "colour must have 8 bits per channel; Pillow drops the rest")
    if picture.format == "TIFF" and not _grey_is_plain(picture):
        rule = "TIFF must say which grey is black (above 8 bits: 0), and its bytes must be unsigned"
        raise RefusedImage("unsupported_format", f"{rule}; it is otherwise")


def _check_to_the_end(path: Path) -> None:
    # Pillow stops reading once it has the last pixel, even where the checksum behind it is missing.
    with Image.open(path, formats=("PNG",)) as picture:
        picture.verify()


def _bits_per_channel(picture: Any, path: Path) -> int:
    if picture.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]  # IHDR: bit depth
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(258, (1,)))  # BitsPerSample
    return 8


def _grey_is_plain(picture: Any) -> bool:
    # Pillow turns white-is-zero (0, and its guess where nothing is said) round up to 8 bits and not above, and takes
    # signed bytes (sample format 2) for unsigned ones.
    white, signed = picture.tag_v2.get(262), 2 in picture.tag_v2.get(339, ())
    turned = white == 0 and picture.mode in ("1", "L")
    return (white not in (0, None) or turned) and not (signed and picture.mode == "L")


def _pixels(picture: Any, as_mask: bool) -> Shaped[np.ndarray, "rows columns *c"]:
    picture = ImageOps.exif_transpose(picture)
    if as_mask and picture.mode == "P":
        return np.asarray(picture)
    if "transparency" in picture.info and picture.mode in GREY_MODES:
        return _opaque(np.asarray(picture), picture.info["transparency"])
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode == "P":
        picture = picture.convert("RGB")
        return _grey_if_grey(np.asarray(picture))
    if picture.mode in ("LA", "RGBA"):
        pixels = np.asarray(picture)
        if (pixels[..., -1] != 255).any():
            raise RefusedImage("unsupported_format", TRANSPARENT)
        return pixels[..., 0] if picture.mode == "LA" else pixels[..., :3]
    if picture.mode not in (*GREY_MODES, "RGB"):
        raise RefusedImage("unsupported_format", f"picture must be grey or RGB; got {picture.mode}")
    return np.asarray(picture)


def _opaque(pixels: Shaped[np.ndarray, "rows columns"], clear: int) -> Shaped[np.ndarray, "rows columns"]:
    # Not by Pillow's conversion to grey and alpha: it clips 16 bits to 8 and makes 255 of a bit.
    if (pixels == np.array(clear).astype(pixels.dtype)).any():
        raise RefusedImage("unsupported_format", TRANSPARENT)
    return pixels


def _grey_if_grey(pixels: Shaped[np.ndarray, "rows columns 3"]) -> Shaped[np.ndarray, "rows columns *c"]:
    # Some programs store grey pictures with a palette: they must look like the site's other grey ones.
    return pixels[..., 0] if (pixels == pixels[..., :1]).all() else pixels
