import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import read_volume

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)


def refused(reason: str, match: str | None = None):
    return pytest.raises(RefusedImage, match=match, check=lambda error: error.reason == reason)


def saved(folder, image, name="a.png", **options):
    image.save(folder / name, **options)
    return folder / name


def rows(path):
    return read_volume(path).array[:, :, 0].swapaxes(0, 1)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tiff", "a.bmp", "A.PNG"])
def test_lossless_formats_keep_every_pixel(tmp_path, name):
    np.testing.assert_array_equal(rows(saved(tmp_path, Image.fromarray(PIXELS), name)), PIXELS)


def test_jpeg_is_close(tmp_path):
    smooth = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))
    assert np.abs(rows(saved(tmp_path, Image.fromarray(smooth), "a.jpg", quality=95)) - smooth).max() < 8


def test_16_bit_grey_keeps_its_values(tmp_path):
    deep = np.array([[0, 1000], [40000, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(rows(saved(tmp_path, Image.fromarray(deep), name)), deep)


def test_1_bit_is_zero_and_one(tmp_path):
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(rows(saved(tmp_path, bits)), [[0, 1], [1, 0]])


def test_grey_palette_is_grey(tmp_path):
    grey = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    grey.putpalette([9, 9, 9, 7, 7, 7])
    np.testing.assert_array_equal(rows(saved(tmp_path, grey)), [[9, 7]])


def test_alpha_must_be_opaque(tmp_path):
    alpha = np.full((6, 5, 1), 255, np.uint8)
    np.testing.assert_array_equal(rows(saved(tmp_path, Image.fromarray(np.dstack([PIXELS, alpha])))), PIXELS)
    alpha[0, 0] = 0
    with refused("unsupported_format", "opaque"):
        read_volume(saved(tmp_path, Image.fromarray(np.dstack([PIXELS, alpha]))))


def test_a_cameras_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 3  # upside down
    path = saved(tmp_path, Image.fromarray(PIXELS), "a.png", exif=exif)
    np.testing.assert_array_equal(rows(path), PIXELS[::-1, ::-1])


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("pixels", "clear"),
    [
        (np.array([[0, 1000], [40000, 65535]], np.uint16), 7),
        (np.array([[0, 100], [200, 255]], np.uint8), 7),
        (np.array([[True, True]]), 0),
    ],
)
def test_a_grey_level_that_is_declared_transparent(tmp_path, pixels, clear):
    """Unused it changes nothing; used it is a hole in the picture."""
    path = saved(tmp_path, Image.fromarray(pixels))
    plain = path.read_bytes()
    for level in (clear, int(pixels[0, 1])):
        at = plain.index(b"IDAT") - 4
        path.write_bytes(plain[:at] + chunk(b"tRNS", struct.pack(">H", level)) + plain[at:])
        if level == clear:
            np.testing.assert_array_equal(rows(path), pixels)
    with refused("unsupported_format", "opaque"):
        read_volume(path)


def tagged(path, tag, old, new):
    """A little-endian TIFF that says something else in a tag of one short number."""
    entry = struct.pack("<HHI", tag, 3, 1)
    content = path.read_bytes()
    assert content.count(entry + struct.pack("<I", old)) == 1
    path.write_bytes(content.replace(entry + struct.pack("<I", old), entry + struct.pack("<I", new)))
    return path


def test_a_tiff_whose_white_is_zero_is_turned_round_or_refused(tmp_path):
    """PhotometricInterpretation (262) 0: Pillow turns up to 8 bits round, and no more."""
    grey = np.array([[0, 1], [200, 255]], np.uint8)
    path = tagged(saved(tmp_path, Image.fromarray(grey), "a.tif"), 262, 1, 0)
    np.testing.assert_array_equal(rows(path), 255 - grey)
    for kind in (np.uint16, np.float32):
        with refused("unsupported_format", r"\(above 8 bits: 0\)"):
            read_volume(tagged(saved(tmp_path, Image.fromarray(grey.astype(kind)), "a.tif"), 262, 1, 0))


def test_a_tiff_that_does_not_say_what_is_black_is_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[0, 255]], np.uint8)), "a.tif")
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<HHI", 262, 3, 1), struct.pack("<HHI", 60000, 3, 1)))
    with refused("unsupported_format", "must say which grey is black"):
        read_volume(path)


def test_a_tiff_of_signed_bytes_is_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[1, 255]], np.uint8)), "a.tif", tiffinfo={339: 1})
    with refused("unsupported_format", "bytes must be unsigned"):
        read_volume(tagged(path, 339, 1, 2))


def test_refuses_16_bit_colour_rather_than_lose_bits(tmp_path):
    head, body = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), zlib.compress(bytes(7))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    with refused("unsupported_format", "8 bits per channel"):
        read_volume(tmp_path / "a.png")


def test_refuses_other_colour_models(tmp_path):
    with refused("unsupported_format", "grey or RGB; got CMYK"):
        read_volume(saved(tmp_path, Image.fromarray(PIXELS).convert("CMYK"), "a.tif"))


def test_refuses_several_pages(tmp_path):
    page = Image.fromarray(PIXELS)
    with refused("several_volumes", "got 3"):
        read_volume(saved(tmp_path, page, "a.tif", save_all=True, append_images=[page, page]))


def test_refuses_more_than_the_budget_before_decoding(tmp_path):
    path = saved(tmp_path, Image.fromarray(PIXELS))
    read_volume(path, max_bytes=6 * 5 * 3 * 9)
    with refused("too_large"):
        read_volume(path, max_bytes=6 * 5 * 3 * 9 - 1)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_refuses_cut_files(tmp_path, name):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS.repeat(8, 0).repeat(8, 1)).save(buffer, Image.registered_extensions()[name[1:]])
    whole = buffer.getvalue()
    for length in np.linspace(0, len(whole) - 20, 23).astype(int):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(RefusedImage):
            read_volume(tmp_path / name)


def test_refuses_other_content(tmp_path):
    (tmp_path / "a.png").write_bytes(b"GIF89a" + bytes(100))
    with refused("not_an_image"):
        read_volume(tmp_path / "a.png")


class TestStacks:
    """What read_npz's docstring promises of (n, slices, rows, columns) and of a last axis of 3."""

    def image(self, folder, stack, index=1):
        np.savez_compressed(folder / "a.npz", images=stack)
        return read_volume(folder / f"a.npz#{index}")

    def test_a_volume_has_columns_first_and_slices_last(self, tmp_path):
        stack = np.arange(2 * 4 * 5 * 6, dtype=np.uint8).reshape(2, 4, 5, 6)
        volume = self.image(tmp_path, stack)
        assert volume.array.shape == (6, 5, 4)
        assert volume.array[5, 2, 3] == stack[1, 3, 2, 5]
        assert volume.spacing_mm == (1.0, 1.0, 1.0)

    def test_one_slice_of_a_volume_is_the_picture_of_that_slice(self, tmp_path):
        stack = np.random.default_rng(1).integers(0, 256, (2, 4, 5, 6)).astype(np.uint8)
        volume, picture = self.image(tmp_path, stack), self.image(tmp_path, stack[1], 2)
        np.testing.assert_array_equal(volume.array[:, :, 2], picture.array[:, :, 0])

    def test_a_last_axis_of_three_is_colour(self, tmp_path):
        assert self.image(tmp_path, np.zeros((2, 4, 5, 3), np.uint8)).array.shape == (5, 4, 1, 3)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": np.full((1, 2, 2, 2), np.inf)}, "non_finite"),
        ({"a": np.zeros((2, 3, 4)), "b": np.zeros((2, 3, 4))}, "not_an_image"),
        ({"images": np.zeros((2, 3))}, "unsupported_format"),
        ({"images": np.zeros((2, 3, 4, 5, 6))}, "unsupported_format"),
        ({"images": np.array([["a"]])}, "unsupported_format"),
        ({"images": np.full((1, 2, 2), np.nan)}, "non_finite"),
        ({"images": np.array([{}], dtype=object)}, "corrupt"),
        ({"images": np.zeros((1, 2000, 2000))}, "too_large"),
    ],
)
def test_refuses_npz_that_hold_no_pictures(tmp_path, arrays, reason):
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with refused(reason):
        read_volume(tmp_path / "a.npz#0", max_bytes=10**6)
