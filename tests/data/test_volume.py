import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from omnifm.data.datalist import read_datalist
from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import Volume, read_label, read_volume
from omnifm.quality.quarantine import check_cases

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real test data are not at ../shared/data")


def nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine), path)
    return path


def picture(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def refused(reason: str, match: str | None = None):
    return pytest.raises(RefusedImage, match=match, check=lambda error: error.reason == reason)


class TestVolume:
    def test_spacing_is_the_length_of_the_affine_columns(self):
        turned = np.array([[0, -3, 0, 5], [2, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1.0]])
        assert Volume(np.zeros((2, 2, 2)), turned).spacing_mm == (2, 3, 4)

    def test_in_ras_golden(self):
        """x runs to the left, y upwards, z to the front: by hand, R = -x, A = z, S = y."""
        affine = np.array([[-1, 0, 0, 1.0], [0, 0, 3, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
        array = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
        upright = Volume(array, affine).in_ras()
        np.testing.assert_array_equal(upright.array, array[::-1].transpose(0, 2, 1))
        np.testing.assert_allclose(upright.affine, np.diag([1, 3, 2, 1.0]))

    @pytest.mark.parametrize("seed", range(5))
    def test_in_ras_moves_no_voxel_in_space(self, seed):
        random = np.random.default_rng(seed)
        turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
        affine = np.eye(4)
        affine[:3] = np.c_[turn @ np.diag([1, 2, 3]), [4, 5, 6]]
        array = random.permutation(24).reshape(2, 3, 4).astype(np.float32)
        before, after = Volume(array, affine), Volume(array, affine).in_ras()
        assert np.all(after.affine.diagonal() > 0)
        for value in (0, 7, 23):
            places = [v.affine @ [*np.argwhere(v.array == value)[0], 1] for v in (before, after)]
            np.testing.assert_allclose(*places)

    def test_a_picture_knows_no_patient_axes(self):
        flat, deep = np.zeros((2, 3, 1)), np.zeros((2, 3, 2))
        section = Volume(flat, np.diag([-1.0, -1.0, 3.0, 1.0]))
        assert Volume(flat, np.eye(4)).is_picture
        assert Volume(flat, np.diag([0.1, 0.2, 1, 1])).is_picture
        assert not any(v.is_picture for v in (section, section.in_ras(), Volume(deep, np.eye(4))))

    def test_in_ras_keeps_channels_last(self):
        volume = Volume(np.zeros((2, 3, 4, 3), np.float32), np.diag([-1, 1, 1, 1.0]))
        assert volume.in_ras().array.shape == (2, 3, 4, 3)


class TestReadVolume:
    def test_picture_is_columns_rows_one_and_stays_upright(self, tmp_path):
        pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
        volume = read_volume(picture(tmp_path / "a.png", pixels))
        np.testing.assert_array_equal(volume.array[:, :, 0].T, pixels)
        np.testing.assert_array_equal(volume.in_ras().array, volume.array)
        assert volume.array.dtype == np.float32
        assert volume.spacing_mm == (1, 1, 1)

    def test_npz_index(self, tmp_path):
        stack = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
        np.savez_compressed(tmp_path / "a.npz", images=stack)
        volume = read_volume(tmp_path / "a.npz#1")
        assert volume.array.shape == (4, 3, 1, 3)
        np.testing.assert_array_equal(volume.array[:, :, 0].swapaxes(0, 1), stack[1])

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("missing.nii.gz", "missing_file"),
            ("missing.npz#0", "missing_file"),
            ("a.npz#2", "missing_file"),
            ("a.npz#-1", "not_an_image"),
            ("a.npz#x", "not_an_image"),
            ("a.mha", "unsupported_format"),
            ("a.dcm", "not_an_image"),
            ("series", "unsupported_format"),
            ("a\0b.nii", "missing_file"),
            ("x" * 300 + ".nii", "corrupt"),
        ],
    )
    def test_refuses_and_names_no_path(self, tmp_path, name, reason):
        np.savez(tmp_path / "a.npz", np.zeros((2, 3, 4)))
        (tmp_path / "a.mha").write_bytes(b"ObjectType = Image")
        (tmp_path / "a.dcm").write_bytes(bytes(200))
        (tmp_path / "series").mkdir()
        with refused(reason) as caught:
            read_volume(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
        assert name not in str(caught.value)

    def test_does_not_wait_on_a_pipe(self, tmp_path):
        import os

        os.mkfifo(tmp_path / "pipe.nii")
        with refused("missing_file"):
            read_volume(tmp_path / "pipe.nii")

    def test_refusal_survives_a_child_process(self):
        refusal = pickle.loads(pickle.dumps(RefusedImage("truncated", "ends early")))  # noqa: S301
        assert (refusal.reason, str(refusal)) == ("truncated", "ends early")


class TestReadLabel:
    def pair(self, folder: Path, mask: np.ndarray, affine: np.ndarray | None = None) -> tuple[Path, Volume]:
        image = read_volume(nifti(folder / "image.nii.gz", np.zeros((3, 4, 5), np.int16)))
        return nifti(folder / "mask.nii.gz", mask, affine), image

    def test_whole_floats_are_labels(self, tmp_path):
        mask = np.random.default_rng(0).integers(0, 3, (3, 4, 5))
        labels = read_label(*self.pair(tmp_path, mask.astype(np.float32)), dict.fromkeys(range(3), ""))
        np.testing.assert_array_equal(labels, mask)
        assert labels.dtype == np.int32

    @pytest.mark.parametrize("value", [0.5, -1.0, 2.0**25])
    def test_refuses_what_is_no_label(self, tmp_path, value):
        mask = np.zeros((3, 4, 5), np.float32)
        mask[1, 1, 1] = value
        with refused("label_values", f"whole numbers >= 0; got {value:g}".replace("+", r"\+")):
            read_label(*self.pair(tmp_path, mask))

    def test_refuses_undeclared_values_by_name(self, tmp_path):
        mask = np.zeros((3, 4, 5), np.uint8)
        mask[0, 0] = 4
        with refused("label_values", r"among \[0, 1, 2\]; got 4$"):
            read_label(*self.pair(tmp_path, mask), dict.fromkeys(range(3), ""))

    def test_refuses_another_shape(self, tmp_path):
        with refused("label_geometry", "image 3x4x5 voxels.*mask 3x4x6 voxels"):
            read_label(*self.pair(tmp_path, np.zeros((3, 4, 6), np.uint8)))

    @pytest.mark.parametrize("diagonal", [(-2, 3, 4), (2, 3, 4.2), (2.2, 3, 4)])
    def test_refuses_another_grid_of_the_same_shape(self, tmp_path, diagonal):
        with refused("label_geometry", "mask must lie on its image's grid"):
            read_label(*self.pair(tmp_path, np.zeros((3, 4, 5), np.uint8), np.diag([*diagonal, 1.0])))

    @pytest.mark.parametrize(("shift_mm", "fits"), [(0.15, True), (0.25, False), (1.0, False)])
    def test_a_tenth_of_a_voxel_is_rounding_and_more_is_not(self, tmp_path, shift_mm, fits):
        affine = np.diag([2.0, 3.0, 4.0, 1.0])
        affine[0, 3] = shift_mm  # the smallest spacing is 2 mm
        mask, image = self.pair(tmp_path, np.zeros((3, 4, 5), np.uint8), affine)
        if fits:
            read_label(mask, image)
        else:
            with refused("label_geometry"):
                read_label(mask, image)

    @pytest.mark.parametrize("levels", [(0, 255), (0, 80, 160, 240), (0, 100)])
    def test_painted_pictures_are_inside_and_outside(self, tmp_path, levels):
        pixels = np.array([levels, levels[::-1]], np.uint8)
        image = read_volume(picture(tmp_path / "image.png", pixels))
        labels = read_label(picture(tmp_path / "mask.png", pixels), image, dict.fromkeys(range(2), ""))
        np.testing.assert_array_equal(labels[:, :, 0].T, pixels > 0)

    @pytest.mark.parametrize("levels", [(0, 2), (0, 1, 2), (0, 3, 252, 255), (0, 1, 255), (0, 250, 255)])
    def test_class_numbers_and_jpeg_noise_are_not_painted(self, tmp_path, levels):
        file = picture(tmp_path / "mask.png", np.array([levels], np.uint8))
        with refused("label_values"):
            read_label(file, read_volume(file), dict.fromkeys(range(2), ""))

    def test_nifti_knows_255_but_no_greys(self, tmp_path):
        mask = np.zeros((3, 4, 5), np.uint8)
        mask[0] = 255
        assert read_label(*self.pair(tmp_path, mask), dict.fromkeys(range(2), "")).sum() == 20
        with refused("label_values"):
            read_label(*self.pair(tmp_path, mask), dict.fromkeys(range(3), ""))
        mask[0] = 100
        with refused("label_values"):
            read_label(*self.pair(tmp_path, mask), dict.fromkeys(range(2), ""))

    def test_grey_rgb_is_one_channel_and_colour_is_refused(self, tmp_path):
        pixels = np.zeros((2, 2, 3), np.uint8)
        pixels[0] = 1
        file = picture(tmp_path / "mask.png", pixels)
        assert read_label(file, read_volume(file), dict.fromkeys(range(2), "")).sum() == 2
        pixels[0, 0, 0] = 0
        with refused("label_values", "colour channels differ"):
            read_label(picture(file, pixels), read_volume(file), dict.fromkeys(range(2), ""))

    def test_palette_holds_classes_not_colours(self, tmp_path):
        mask = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8), mode="P")
        mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        mask.save(tmp_path / "mask.png")
        image = read_volume(tmp_path / "mask.png")
        assert image.array.shape == (2, 2, 1, 3)
        labels = read_label(tmp_path / "mask.png", image, dict.fromkeys(range(3), ""))
        np.testing.assert_array_equal(labels[:, :, 0].T, [[0, 1], [2, 2]])


@pytest.mark.slow
@needs_shared
class TestRealData:
    @pytest.mark.parametrize(
        "name", ["seg_polyp", "seg_fundus", "seg_brain_2d", "seg_four_modalities", "seg_hippocampus"]
    )
    def test_no_good_case_is_refused(self, name):
        for site in sorted((SHARED / "federations" / name).glob("site-*")):
            datalist = read_datalist(site, required=("image", "label"))
            allowed = datalist.labels
            read = lambda item: read_label(item["label"], read_volume(item["image"]), allowed)  # noqa: B023, E731
            assert check_cases(datalist, read, 0.0) == (datalist, ())

    def test_awkward_nifti_equals_nibabel(self):
        files = [f for f in sorted((SHARED / "nifti").glob("*/*.nii.gz")) if "rgb" not in f.name]
        assert len(files) >= 10
        for file in files:
            ours, theirs = read_volume(file), nibabel.load(file)
            np.testing.assert_allclose(ours.array, theirs.get_fdata(dtype=np.float32), rtol=1e-6)
            np.testing.assert_allclose(ours.affine, theirs.affine)

    def test_rgb24_has_channels_last(self):
        assert read_volume(SHARED / "nifti/awkward_nifti/rgb_dtype.nii.gz").array.shape == (10, 10, 4, 3)
