"""Pictures: PNG, JPEG, TIFF and BMP, read by Pillow, and stacks of small pictures or volumes in npz files.

Letters: x columns, y rows, z slices, c channel.  Grey has one channel, and colour is RGB.  Colours of a palette are
looked up; 1-bit pixels become 0 and 1; 16-bit grey keeps its values; an alpha channel must be opaque.  A camera's EXIF
rotation is applied, as viewers do.
"""

import warnings
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from omnifm.data.refusal import RefusedImage, check_budget

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
NPZ_ARRAY = "images"
TRANSPARENT = "picture must be opaque; some pixels are transparent: save it without an alpha channel"


def read(path: Path, max_bytes: int, *, as_mask: bool = False) -> Float[np.ndarray, "x y 1 *c"]:
    """A picture as float32 grey levels, 0-255 for 8 bits; c = 3 (RGB) for colour.

    Args:
        path: an existing file.
        max_bytes: memory budget in bytes.
        as_mask: return the numbers of a palette instead of its colours, because masks store classes in them.

    Raises:
        RefusedImage: see `refusal.REASONS`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they may quote the file; the memory budget is checked below
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
    """Pixels in rows as float32 `x y 1`, or `x y 1 c` with channels.

    Raises:
        RefusedImage: `non_finite`.

    >>> from_rows(np.zeros((2, 5, 3))).shape
    (5, 2, 1, 3)
    """
    return _finite(rows.swapaxes(0, 1)[:, :, None])


def from_stack(image: Shaped[np.ndarray, "*axes"]) -> Float[np.ndarray, "x y z *c"]:
    """One image of `read_npz` as float32 `x y z`, or `x y z c` with channels; a picture has z = 1.

    Raises:
        RefusedImage: `non_finite`.

    >>> from_stack(np.zeros((4, 2, 5))).shape  # 4 slices of 2 rows and 5 columns
    (5, 2, 4)
    """
    is_picture = image.ndim == 2 or image.shape[2] == 3
    return from_rows(image) if is_picture else _finite(image.transpose(2, 1, 0))


def read_npz(file: Path, max_bytes: int) -> Shaped[np.ndarray, " n *axes"]:
    """The stack of images in an npz file: its only array, or the one named `images`.

    Its axes are (n, rows, columns), (n, rows, columns, 3) for RGB, or (n, slices, rows, columns).  An array of four
    axes is RGB if the last one has length 3, since no volume is three columns wide.

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
        # The archive's directory gives the size before anything is decompressed.
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


def _check(picture: Image.Image, path: Path, max_bytes: int) -> None:
    width, height = picture.size
    # A phone's JPEG may hold previews after its picture.  Pages of a TIFF or frames of a PNG are pictures of their own.
    num_frames = getattr(picture, "n_frames", 1) if picture.format in ("PNG", "TIFF") else 1
    if num_frames > 1:
        raise RefusedImage("several_volumes", f"picture file must hold one picture; got {num_frames}")
    bands = 3 if picture.mode == "P" else len(picture.getbands())
    check_budget(width * height * bands * 9, max_bytes)  # decoded, turned upright, and as float32
    if picture.mode not in GREY_MODES and _bits_per_channel(picture, path) > 8:
        raise RefusedImage(
            "unsupported_format", "colour must have 8 bits per channel; it has more, of which some would be lost"
        )
    if isinstance(picture, TiffImageFile) and not _grey_is_plain(picture):
        rule = "TIFF must say which grey is black (above 8 bits: 0), and its bytes must be unsigned"
        raise RefusedImage("unsupported_format", f"{rule}; one of these is not so")


def _check_to_the_end(path: Path) -> None:
    # Pillow stops reading after the last pixel, even if the checksum after it is missing.
    with Image.open(path, formats=("PNG",)) as picture:
        picture.verify()


def _bits_per_channel(picture: Image.Image, path: Path) -> int:
    if picture.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]  # IHDR: bit depth
    if isinstance(picture, TiffImageFile):
        return max(picture.tag_v2.get(258, (1,)))  # BitsPerSample
    return 8


def _grey_is_plain(picture: TiffImageFile) -> bool:
    # PhotometricInterpretation 0 means that 0 is white.  Pillow inverts such grey, and grey without this tag, only up
    # to 8 bits.  It also reads signed bytes (sample format 2) as unsigned ones.
    photometric = picture.tag_v2.get(262)
    is_signed = 2 in picture.tag_v2.get(339, ())
    is_inverted = photometric == 0 and picture.mode in ("1", "L")
    return (photometric not in (0, None) or is_inverted) and not (is_signed and picture.mode == "L")


def _pixels(picture: Image.Image, as_mask: bool) -> Shaped[np.ndarray, "rows columns *c"]:
    picture = ImageOps.exif_transpose(picture)
    if as_mask and picture.mode == "P":
        return np.asarray(picture)
    if "transparency" in picture.info and picture.mode in GREY_MODES:
        return _checked_opaque(np.asarray(picture), picture.info["transparency"])
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode == "P":
        picture = picture.convert("RGB")
        return _one_channel_if_grey(np.asarray(picture))
    if picture.mode in ("LA", "RGBA"):
        pixels = np.asarray(picture)
        if (pixels[..., -1] != 255).any():
            raise RefusedImage("unsupported_format", TRANSPARENT)
        return pixels[..., 0] if picture.mode == "LA" else pixels[..., :3]
    if picture.mode not in (*GREY_MODES, "RGB"):
        raise RefusedImage("unsupported_format", f"picture must be grey or RGB; got {picture.mode}")
    return np.asarray(picture)


def _checked_opaque(pixels: Shaped[np.ndarray, "rows columns"], clear: int) -> Shaped[np.ndarray, "rows columns"]:
    # Pillow's conversion to grey and alpha is not used: it reduces 16 bits to 8, and turns 1-bit pixels into 255.
    if (pixels == np.array(clear).astype(pixels.dtype)).any():
        raise RefusedImage("unsupported_format", TRANSPARENT)
    return pixels


def _one_channel_if_grey(pixels: Shaped[np.ndarray, "rows columns 3"]) -> Shaped[np.ndarray, "rows columns *c"]:
    # Some programs store grey pictures with a palette; they must have one channel like the site's other grey pictures.
    return pixels[..., 0] if (pixels == pixels[..., :1]).all() else pixels
