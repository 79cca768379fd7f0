"""From a PACS export to a trained model: real DICOM series, masks drawn by threshold, the job seg_fets, two sites."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from omnifm import simulation
from omnifm.config import Experiment
from omnifm.data.importers.dicom import prepare
from omnifm.data.volume import read_volume

pytestmark = pytest.mark.slow

EXPORTS = {
    "site-1": ("mr_jpeglossless_fragments", "mr_ge_anat_d2n", "mr_siemens_anat_d2n"),
    "site-2": ("mr_hippocrop_study3", "generic_compressed_j2k_d2n", "mr_ge_anat_implicit_d2n"),
}


def export(series: Path, folder: Path) -> None:
    """A series with a mask beside it: its brightest tenth.  Drawn for this test, no anatomy."""
    shutil.copytree(series, folder)
    image = read_volume(folder)
    bright = (image.array > np.percentile(image.array, 90)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(bright, image.affine), folder / "mask.nii.gz")


@pytest.mark.timeout(600)
def test_real_series_train_seg_fets(shared_data, tmp_path):
    for site, names in EXPORTS.items():
        for name in names:
            export(shared_data / "dicom/series" / name, tmp_path / "pacs" / site / name)
        prepare(
            tmp_path / "pacs" / site, tmp_path / "data", site=site, modality="MR", labels="bright", mask="mask.nii.gz"
        )
        content = json.loads((tmp_path / "data" / site / "dataset.json").read_text())
        assert sum(len(content[split]) for split in ("training", "validation", "test")) == 3
        assert min(len(content[split]) for split in ("training", "test")) >= 1  # some series are of one patient
    experiment = Experiment.from_job("seg_fets")
    train = replace(experiment.train, num_rounds=1, local_epochs=1)
    experiment = replace(experiment, train=train, model={"channels": [4, 8, 8]})
    summary = simulation.run(experiment, tmp_path / "data", sorted(EXPORTS))
    assert summary["status"] == "COMPLETE"
    assert summary["data_source"] == "site"
    assert all(site["modalities"] == {"MR": 3} for site in summary["sites"].values())
    assert all(np.isfinite(row["train_loss"]) for row in summary["history"][0]["sites"].values())
    assert all(site["metrics"]["dice"]["after"] is not None for site in summary["sites"].values())
