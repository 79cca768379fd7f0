"""What strict reading costs, on files small enough for a test: that the comparison runs and compares equal work."""

import nibabel
import numpy as np
import pytest

from omnifm.bench.cost import reading
from tests.conftest import write_site


class TestEpochs:
    def test_both_sides_see_the_same_volumes(self, tmp_path):
        site = write_site(tmp_path / "site-1", side=32)
        (measure,) = reading.epochs(site, num_pairs=1)
        assert measure.value > 0
        assert "4 cached volumes, patches of [32, 32, 32]" in measure.what


class TestSeries:
    def test_needs_a_readable_series(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="readable folder of at least 10 slices; it has none"):
            list(reading.read_series(tmp_path, 1))

    def test_real_series_are_measured(self, shared_data):
        measures = list(reading.read_series(shared_data / "dicom/series", 1))
        assert measures
        assert all(np.isfinite(m.value) and m.value > 0 for m in measures)

    def test_preprocessing_is_the_same_for_both(self, tmp_path):
        volume = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
        ours = reading._ours(tmp_path / "a.nii.gz")
        theirs = reading._preprocessed(
            reading.LoadImage(image_only=True, ensure_channel_first=True)(tmp_path / "a.nii.gz")
        )
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6)


def test_needs_something_to_measure():
    with pytest.raises(ValueError, match="folder of series, a site, or both; got neither"):
        reading.run(None, None)
