"""PET: when a series becomes SUV, with real headers of five scanners, and when it keeps its unit."""

import json
from datetime import datetime

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from omnifm.data.dicom_suv import suv_factor
from omnifm.data.volume import read_volume
from tests.data.test_dicom import PIXELS, SHARED, image, needs_shared, read, write

HEADERS = SHARED / "pet_suv_header_json"
INJECTION = (
    "RadionuclideTotalDose",
    "RadionuclideHalfLife",
    "RadiopharmaceuticalStartTime",
    "RadiopharmaceuticalStartDateTime",
)
FACTS = {
    "Units": "BQML",
    "CorrectedImage": ["ATTN", "DECY"],
    "DecayCorrection": "START",
    "PatientWeight": 70,
    "SeriesDate": "20200101",
    "SeriesTime": "110000",
    "AcquisitionDate": "20200101",
    "AcquisitionTime": "110000",
    "RadionuclideTotalDose": 3.7e8,
    "RadionuclideHalfLife": 3600,
    "RadiopharmaceuticalStartTime": "100000.00",
}
GOLDEN = 70_000 / (3.7e8 / 2)
"""One half-life after the injection half of the dose is left: g per Bq."""


def header(facts: dict[str, object]) -> Dataset:
    """A PET header; facts of the injection go where they belong, None leaves one out."""
    ds, injection = Dataset(), Dataset()
    for keyword, value in facts.items():
        if keyword == "PhilipsPETPrivateGroup":
            names = {"SUVScaleFactor": 0x00, "ActivityConcentrationScaleFactor": 0x09}
            block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
            for name, number in value.items():
                block.add_new(names[name], "DS", str(number).strip())
        elif value is not None:
            setattr(injection if keyword in INJECTION else ds, keyword, value)
    ds.RadiopharmaceuticalInformationSequence = [injection]
    return ds


def factor(**changes: object) -> float:
    return suv_factor([header({**FACTS, **changes})])


class TestFactor:
    def test_golden(self):
        assert factor() == pytest.approx(GOLDEN)

    def test_values_corrected_to_the_injection_need_no_time(self):
        assert factor(DecayCorrection="ADMIN", SeriesTime=None) == pytest.approx(70_000 / 3.7e8)

    def test_series_before_acquisition_is_the_scan_start(self):
        assert factor(AcquisitionTime="113000") == pytest.approx(GOLDEN)
        assert factor(AcquisitionTime="105959.5") == pytest.approx(GOLDEN)  # clocks are rounded

    def test_a_reconstruction_counts_from_the_first_acquisition(self):
        late = {"SeriesTime": "150000", "FrameReferenceTime": 0}
        headers = [header({**FACTS, **late, "AcquisitionTime": time}) for time in ("110500", "110000", "111000")]
        assert suv_factor(headers) == pytest.approx(GOLDEN)

    def test_a_reconstruction_counts_back_from_the_mean_count_rate(self):
        """A frame of one half-life T: mean rate at T log2(log 2 / 0.5) = 0.4712 T after its start."""
        late = {"SeriesTime": "150000", "AcquisitionTime": "113000", "ActualFrameDuration": 3.6e6}
        mean_rate_ms = 3.6e6 * np.log2(np.log(2) / 0.5)
        assert factor(**late, FrameReferenceTime=1.8e6 + mean_rate_ms) == pytest.approx(GOLDEN)

    def test_ge_says_when_it_scanned(self):
        ds = header({**FACTS, "SeriesTime": "150000", "AcquisitionTime": "113000"})
        ds.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20200101110000.00")
        assert suv_factor([ds]) == pytest.approx(GOLDEN)

    def test_philips_counts(self):
        counts = {"Units": "CNTS"}
        assert factor(**counts, PhilipsPETPrivateGroup={"SUVScaleFactor": 0.5}) == 0.5
        to_bqml = {"ActivityConcentrationScaleFactor": 2}
        assert factor(**counts, PhilipsPETPrivateGroup=to_bqml) == pytest.approx(2 * GOLDEN)
        assert factor(**counts, PhilipsPETPrivateGroup={"SUVScaleFactor": 0, **to_bqml}) == pytest.approx(2 * GOLDEN)
        assert factor(**counts) == 1
        assert factor(**counts, PhilipsPETPrivateGroup=to_bqml, PatientWeight=None) == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"Units": "GML"},
            {"Units": "PROPCPS"},
            {"Units": None},
            {"CorrectedImage": ["ATTN"]},
            {"CorrectedImage": ["DECY"]},
            {"CorrectedImage": None},
            {"DecayCorrection": "NONE"},
            {"PatientWeight": None},
            {"PatientWeight": 0},
            {"PatientWeight": 7000},
            {"RadionuclideTotalDose": None},
            {"RadionuclideTotalDose": 370},
            {"RadionuclideHalfLife": 0},
            {"RadionuclideHalfLife": None},
            {"RadiopharmaceuticalStartTime": None},
            {"RadiopharmaceuticalStartTime": "120000"},
            {"RadiopharmaceuticalStartTime": "noon"},
            {"RadiopharmaceuticalStartDateTime": "20191201100000"},
            {"RadiopharmaceuticalStartDateTime": "20200101100000+0100"},
            {"SeriesDate": None},
            {"SeriesTime": None},
            {"AcquisitionTime": None},
            {"SeriesTime": "150000"},
            {"SeriesTime": "150000", "FrameReferenceTime": -1},
            {"SeriesTime": "150000", "FrameReferenceTime": 5},
        ],
        ids=str,
    )
    def test_keeps_its_unit_when_a_fact_is_missing_or_implausible(self, change):
        with_defaults = {**FACTS, **change}
        assert suv_factor([header(with_defaults)]) == 1

    def test_keeps_its_unit_after_several_injections(self):
        ds = header(FACTS)
        ds.RadiopharmaceuticalInformationSequence = list(ds.RadiopharmaceuticalInformationSequence) * 2
        assert suv_factor([ds]) == 1

    def test_keeps_its_unit_when_slices_disagree(self):
        assert suv_factor([header(FACTS), header({**FACTS, "PatientWeight": 71})]) == 1


class TestVolume:
    def test_values_are_multiplied_after_the_slope(self, tmp_path):
        place = header(FACTS)
        ds = image(
            Modality="PT", SOPClassUID=uid.PositronEmissionTomographyImageStorage, RescaleSlope=3, RescaleIntercept=5
        )
        ds.update(place)
        volume = read(write(tmp_path / "a.dcm", ds))
        np.testing.assert_allclose(volume.array[..., 0].T, (PIXELS * 3 + 5) * GOLDEN, rtol=1e-6)
        del ds.PatientWeight
        np.testing.assert_array_equal(read(write(tmp_path / "b.dcm", ds)).array[..., 0].T, PIXELS * 3 + 5)


@needs_shared
class TestRealHeaders:
    @pytest.mark.parametrize(
        ("name", "scan"),
        [
            ("BQML_AC_DT_lessThan_S_DT_SIEMENS", "123515"),
            ("CPS_AND_BQML_AC_DT_-_S_DT", "130348.234"),  # the series is 45 minutes younger: a reconstruction
            ("GE_MEDICAL_AND_BQML", "095621"),
            ("PHILIPS_BQML", "110155"),
            ("RADIOPHARM_DATETIME_UNDEFINED", "135431.843"),
            ("SIEMENS", "104829"),
        ],
    )
    def test_bqml(self, name, scan):
        records = json.loads((HEADERS / f"{name}-instances.json").read_text())
        facts = records[0]
        start = facts["RadiopharmaceuticalStartTime"]
        scanned, injected = (datetime.strptime(f"{float(time):013.6f}", "%H%M%S.%f") for time in (scan, start))
        half_lives = (scanned - injected).total_seconds() / facts["RadionuclideHalfLife"]
        dose_left = facts["RadionuclideTotalDose"] * 2**-half_lives
        expected = facts["PatientWeight"] * 1000 / dose_left
        assert suv_factor([header(record) for record in records]) == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize(
        ("name", "expected"), [("PHILIPS_CNTS_AND_BQML_SUV", 0.000551), ("PHILIPS_CNTS_AND_SUV", 0.000728)]
    )
    def test_counts(self, name, expected):
        records = json.loads((HEADERS / f"{name}-instances.json").read_text())
        assert suv_factor([header(record) for record in records]) == expected

    def test_a_real_slice_is_in_suv(self):
        """69.7 kg, 178 MBq, scanned 66 min 16.9 s later, half-life 6586.2 s, slope 9.12329."""
        volume = read_volume(SHARED / "single/pet/1.dcm")
        per_bqml = 69_734.4 / (178340011.59668 * 2 ** -(3976.921 / 6586.2))
        counts = volume.array / (per_bqml * 9.12329)
        np.testing.assert_allclose(counts, np.round(counts), atol=0.01)
        assert 0 < volume.array.max() < 20
