"""What stored pixels mean: every kind against numbers worked out here."""

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from omnifm.data.dicom_pixels import BLOCK
from tests.data.test_dicom import PIXELS, image, picture, read, refused, write, write_series

COLOURS = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)  # rows columns RGB


def rows(volume: object) -> np.ndarray:
    """The first slice as rows and columns."""
    return volume.array[:, :, 0].swapaxes(0, 1)


def ct(**changes: object) -> Dataset:
    section = {"Modality": "CT", "SOPClassUID": uid.CTImageStorage, "RescaleSlope": 2, "RescaleIntercept": -1024}
    return image(**{**section, **changes})


def compressed(pixels: np.ndarray) -> tuple[Dataset, bytes]:
    """A data set in JPEG 2000, and its only frame."""
    ds = image(pixels)
    ds.compress(uid.JPEG2000Lossless)
    return ds, next(generate_frames(ds.PixelData, number_of_frames=1))


class TestGrey:
    @pytest.mark.parametrize(
        "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]
    )
    @pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4"])
    def test_every_whole_type_equals_its_numbers(self, tmp_path, dtype, syntax):
        pixels = (PIXELS.astype(np.int64) * 9 - (50 if dtype[0] == "i" else 0)).astype(dtype)
        ds = image(pixels)
        if syntax == uid.ExplicitVRBigEndian:
            ds.PixelData = (pixels.view(np.uint16) if dtype[1] == "1" else pixels).byteswap().tobytes()
        volume = read(write(tmp_path / "a.dcm", ds, syntax))
        np.testing.assert_array_equal(rows(volume), pixels)
        assert volume.array.dtype == np.float32

    @pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
    def test_float_pixels(self, tmp_path, keyword, dtype):
        pixels = (PIXELS / 7).astype(dtype)
        ds = image(pixels, PixelData=None, BitsStored=None, HighBit=None, PixelRepresentation=None)
        setattr(ds, keyword, pixels.tobytes())
        np.testing.assert_array_equal(rows(read(write(tmp_path / "a.dcm", ds))), pixels.astype(np.float32))
        spoilt = pixels.copy()
        spoilt[1, 1] = np.inf
        setattr(ds, keyword, spoilt.tobytes())
        with refused("non_finite"):
            read(write(tmp_path / "b.dcm", ds))

    @pytest.mark.parametrize("signed", [0, 1])
    def test_overlays_above_the_stored_bits_are_cleared(self, tmp_path, signed):
        """12 stored bits: 0xF801 is 0x801, 2049 unsigned and -2047 signed."""
        ds = image(np.full((3, 4), 0xF801, np.uint16), BitsStored=12, HighBit=11, PixelRepresentation=signed)
        assert (rows(read(write(tmp_path / "a.dcm", ds))) == (-2047 if signed else 2049)).all()

    def test_one_bit_pixels(self, tmp_path):
        ds = image(BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=b"\x05\x08")  # lowest bit first, row by row
        np.testing.assert_array_equal(rows(read(write(tmp_path / "a.dcm", ds))).ravel(), [1, 0, 1, *[0] * 8, 1])

    def test_monochrome1_is_mirrored_in_its_range(self, tmp_path):
        """12 bits: v becomes 4095 - v, signed -1 - v; then slope 2, intercept 10."""
        changes = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
        volume = read(write(tmp_path / "a.dcm", picture(**changes, RescaleSlope=2, RescaleIntercept=10)))
        np.testing.assert_array_equal(rows(volume), 2 * (4095.0 - PIXELS) + 10)
        signed = picture(PIXELS.astype(np.int16) - 5, **changes)
        np.testing.assert_array_equal(rows(read(write(tmp_path / "b.dcm", signed))), 4.0 - PIXELS)

    def test_a_measurement_is_never_mirrored(self, tmp_path):
        volume = read(write(tmp_path / "a.dcm", ct(PhotometricInterpretation="MONOCHROME1")))
        np.testing.assert_array_equal(rows(volume), PIXELS * 2.0 - 1024)


class TestUnits:
    def test_ct_is_in_hounsfield_units(self, tmp_path):
        volume = read(write(tmp_path / "a.dcm", ct()))
        np.testing.assert_array_equal(rows(volume), PIXELS * 2.0 - 1024)
        assert volume.modality == "CT"

    def test_every_slice_has_its_own_slope(self, tmp_path):
        slopes = {"RescaleSlope": lambda z: 0.5 + z, "RescaleIntercept": lambda z: z}
        volume = read(write_series(tmp_path / "s", **slopes))
        for z in range(4):
            np.testing.assert_allclose(volume.array[..., z].T, (PIXELS + z) * (0.5 + z) + z)

    def test_a_look_up_table_replaces_the_slope(self, tmp_path):
        """First mapped value 2: 0, 1 and 2 become the first entry, all above 5 the last."""
        table = Dataset()
        table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [4, 2, 16], [10, 20, 40, 80], "US"
        ds = picture(Modality="CR", ModalityLUTSequence=[table])
        table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
        expected = [[10, 10, 10, 20], [40, 80, 80, 80], [80] * 4]
        np.testing.assert_array_equal(rows(read(write(tmp_path / "a.dcm", ds))), expected)
        ds.RescaleSlope, ds.RescaleIntercept = 1, 0
        with refused("corrupt", "not both"):
            read(write(tmp_path / "b.dcm", ds))
        del ds.RescaleSlope, ds.RescaleIntercept
        ds.PhotometricInterpretation = "MONOCHROME1"
        with refused("unsupported_format", "MONOCHROME1"):
            read(write(tmp_path / "c.dcm", ds))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"RescaleSlope": None, "RescaleIntercept": None}, "no_units"),
            ({"RescaleIntercept": None}, "no_units"),
            ({"RescaleType": "Z_EFF"}, "no_units"),
            ({"RescaleSlope": 0}, "corrupt"),
            ({"RescaleSlope": "1e400"}, "non_finite"),
            ({"RescaleSlope": "1e39"}, "non_finite"),
            ({"Modality": "MR", "RescaleIntercept": None}, "corrupt"),
        ],
    )
    def test_refuses_units_it_cannot_give(self, tmp_path, changes, reason):
        with refused(reason):
            read(write(tmp_path / "a.dcm", ct(**changes)))

    @pytest.mark.parametrize("kind", ["HU", "US"])
    def test_hounsfield_units_may_be_named_or_not(self, tmp_path, kind):
        read(write(tmp_path / "a.dcm", ct(RescaleType=kind)))

    def test_more_slices_than_are_turned_at_once(self, tmp_path):
        volume = read(write_series(tmp_path / "s", num=BLOCK + 3))
        np.testing.assert_array_equal(volume.array, PIXELS.T[..., None] + np.arange(BLOCK + 3))


class TestColour:
    def test_rgb_by_pixel_and_by_plane(self, tmp_path):
        volume = read(write(tmp_path / "a.dcm", picture(COLOURS)))
        assert volume.array.shape == (6, 4, 1, 3)
        np.testing.assert_array_equal(rows(volume), COLOURS)
        planes = picture(COLOURS, PlanarConfiguration=1, PixelData=COLOURS.transpose(2, 0, 1).tobytes())
        np.testing.assert_array_equal(rows(read(write(tmp_path / "b.dcm", planes))), COLOURS)

    def test_ybr_becomes_rgb(self, tmp_path):
        """PS3.3 C.7.6.3.1.2 backwards: R = Y + 1.402 (Cr - 128), B = Y + 1.772 (Cb - 128)."""
        y, cb, cr = (COLOURS.astype(float) * [0.5, 0.2, 0.2] + [64, 100, 100]).round().transpose(2, 0, 1)
        stored = np.stack([y, cb, cr], axis=-1).astype(np.uint8)
        green = y - (0.114 * 1.772 * (cb - 128) + 0.299 * 1.402 * (cr - 128)) / 0.587
        expected = np.stack([y + 1.402 * (cr - 128), green, y + 1.772 * (cb - 128)], axis=-1)
        volume = read(write(tmp_path / "a.dcm", picture(stored, PhotometricInterpretation="YBR_FULL")))
        np.testing.assert_allclose(rows(volume), expected, atol=1)

    def test_halved_chroma(self, tmp_path):
        """Two pixels share Cb and Cr: stored Y Y Cb Cr."""
        grey = picture(np.full((2, 4, 3), 128, np.uint8), PhotometricInterpretation="YBR_FULL_422")
        grey.PixelData = bytes([10, 20, 128, 128] * 4)
        expected = np.tile([10, 20, 10, 20], (2, 1))[..., None].repeat(3, axis=2)
        np.testing.assert_array_equal(rows(read(write(tmp_path / "a.dcm", grey))), expected)

    @pytest.mark.parametrize(("bits", "dtype"), [(8, "u1"), (16, "u2")])
    def test_palette_is_looked_up(self, tmp_path, bits, dtype):
        tables = np.random.default_rng(1).integers(0, 2**bits, (3, 12)).astype(dtype)
        np.testing.assert_array_equal(
            rows(read(write(tmp_path / "a.dcm", palette(tables, bits)))), tables.T[PIXELS].astype(np.float32)
        )

    def test_a_grey_palette_is_grey(self, tmp_path):
        tables = np.tile(np.arange(12, dtype=np.uint8) * 3, (3, 1))
        volume = read(write(tmp_path / "a.dcm", palette(tables, 8)))
        np.testing.assert_array_equal(volume.array[..., 0].T, PIXELS * 3)

    def test_a_series_of_colours_is_a_volume(self, tmp_path):
        for z in range(3):
            write(tmp_path / f"s/{z}.dcm", image(COLOURS, ImagePositionPatient=[0, 0, z]))
        assert read(tmp_path / "s").array.shape == (6, 4, 3, 3)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"PhotometricInterpretation": "CMYK"}, "unsupported_format"),
            ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "unsupported_format"),
            ({"SamplesPerPixel": 1}, "corrupt"),
            ({"RescaleSlope": 2, "RescaleIntercept": 0}, "unsupported_format"),
        ],
    )
    def test_refuses_colours_it_does_not_understand(self, tmp_path, changes, reason):
        with refused(reason):
            read(write(tmp_path / "a.dcm", picture(COLOURS, **changes)))


def palette(tables: np.ndarray, bits: int) -> Dataset:
    ds = picture(PIXELS.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [len(table), 0, bits])
        setattr(ds, f"{name}PaletteColorLookupTableData", table.tobytes())
        ds[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        ds[f"{name}PaletteColorLookupTableData"].VR = "OW"
    return ds


class TestStorage:
    @pytest.mark.parametrize("signed", [False, True])
    @pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless])
    def test_lossless_syntaxes_equal_their_numbers(self, tmp_path, syntax, signed):
        pixels = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)
        pixels = pixels.astype(np.int16) - 2048 if signed else pixels
        ds = image(pixels, BitsStored=12, HighBit=11)
        ds.compress(syntax)
        np.testing.assert_array_equal(rows(read(write(tmp_path / "a.dcm", ds, syntax))), pixels)

    @pytest.mark.parametrize("syntax", [uid.MPEG2MPML, "1.2.840.10008.1.2.1.98", "1.2.3.4"])
    def test_refuses_what_it_does_not_decode(self, tmp_path, syntax):
        ds = image(PixelData=encapsulate([PIXELS.tobytes()]))
        ds["PixelData"].is_undefined_length = True
        path = write(tmp_path / "a.dcm", ds, uid.RLELossless)
        whole, old = path.read_bytes(), uid.RLELossless.encode()
        new = str(syntax).encode()
        new += bytes(len(old) + len(old) % 2 - len(new)) if len(new) < len(old) else b""
        at = whole.index(old)
        length = len(old) + len(old) % 2
        path.write_bytes(whole[: at - 2] + len(new).to_bytes(2, "little") + new + whole[at + length :])
        with refused("unsupported_transfer_syntax") as caught:
            read(path)
        assert "1.2" not in str(caught.value)

    @pytest.mark.parametrize("change", [-2, 2, 24])
    def test_refuses_fewer_or_more_bytes_than_promised(self, tmp_path, change):
        data = PIXELS.tobytes()
        data = data[:change] if change < 0 else data + bytes(change)
        with refused("truncated", f"24 bytes promised; they take {24 + change}"):
            read(write(tmp_path / "a.dcm", image(PixelData=data)))

    def test_refuses_a_file_cut_within_its_pixels(self, tmp_path):
        for syntax in (uid.ExplicitVRLittleEndian, uid.RLELossless):
            ds = image()
            if syntax == uid.RLELossless:
                ds.compress(syntax)
            path = write(tmp_path / "a.dcm", ds, syntax)
            path.write_bytes(path.read_bytes()[:-9])
            with refused("truncated"):
                read(path)

    def test_refuses_more_or_fewer_compressed_frames_than_promised(self, tmp_path):
        ds, frame = compressed(np.zeros((64, 64), np.uint16))
        for name, has_table in {"a": True, "b": False}.items():
            ds.PixelData = encapsulate([frame, frame], has_bot=has_table)
            with refused("truncated", "the 1 frames promised"):
                read(write(tmp_path / f"{name}.dcm", ds, uid.JPEG2000Lossless))

    def test_a_frame_may_come_in_fragments(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
        ds, frame = compressed(pixels)
        ds.PixelData = encapsulate([frame], fragments_per_frame=4, has_bot=False)
        np.testing.assert_array_equal(rows(read(write(tmp_path / "a.dcm", ds, uid.JPEG2000Lossless))), pixels)

    def test_refuses_a_codestream_without_its_end(self, tmp_path):
        """openjpeg fills the rest with grey and says nothing."""
        ds, frame = compressed(np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16))
        ds.PixelData = encapsulate([frame[:-2000]])
        with refused("truncated", "end mark"):
            read(write(tmp_path / "a.dcm", ds, uid.JPEG2000Lossless))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"BitsStored": 12, "HighBit": 15}, "unsupported_format"),
            ({"BitsStored": 17, "HighBit": 16}, "unsupported_format"),
            ({"BitsAllocated": 12}, "unsupported_format"),
            ({"Rows": 0}, "corrupt"),
            ({"Columns": None}, "corrupt"),
            ({"PixelRepresentation": None}, "corrupt"),
        ],
    )
    def test_refuses_pixels_that_are_described_wrongly(self, tmp_path, changes, reason):
        with refused(reason):
            read(write(tmp_path / "a.dcm", image(**changes)))
