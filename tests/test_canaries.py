"""Names planted in every header, file name and list of a site: none may be printed, logged, reported or kept.

Files are read with all their faults: cut, mutated, of the wrong grid, missing.  Whether one is read or refused is
nobody's business here; that nothing in it comes out is.
"""

import base64
import gzip
import io
import json
import logging
import re
import subprocess
import sys
import warnings
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from typer.testing import CliRunner

from omnifm import simulation
from omnifm.cli import app
from omnifm.config import SiteConfig
from omnifm.site.stages import Site
from tests.conftest import experiment

CANARIES = ("CANARY", "19330411", "2.25.98765432101")
"""A name, a date of birth, a UID."""
NAME, BORN, UID = "CANARY^ALICE", "19330411", "2.25.98765432101"
PATTERN = re.compile(
    b"|".join(re.escape(word.encode(code)) for word in CANARIES for code in ("ascii", "utf-16-le")), re.IGNORECASE
)


def found(data: bytes) -> list[bytes]:
    """Canaries in these bytes, also in what is packed into them."""
    hits = PATTERN.findall(data)
    for blob in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data):
        hits += PATTERN.findall(base64.b64decode(blob))
    if data[:2] == b"\x1f\x8b":
        hits += found(gzip.decompress(data))
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            hits += [hit for name in archive.namelist() for hit in found(name.encode()) + found(archive.read(name))]
    if data[:1] == b"\x78":
        with suppress(zlib.error):
            hits += found(zlib.decompress(data))
    return hits


def leaks(folder: Path) -> list[str]:
    """Files below a folder that hold a canary or are named after one."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [
        str(p.relative_to(folder))
        for p in files
        if found(p.read_bytes()) or found(p.relative_to(folder).as_posix().encode())
    ]


class TestTheSearch:
    @pytest.mark.parametrize(
        "data",
        [
            b"..canary^alice..",
            gzip.compress(b"-CANARY-", mtime=0),
            zlib.compress(b"born 19330411"),
            "CANARY".encode("utf-16-le"),
            b'<img src="data:image/png;base64,' + base64.b64encode(b"tEXt CANARY") + b'">',
        ],
    )
    def test_finds_them_wherever_they_are(self, data):
        assert found(data)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a", data)
        assert found(archive.getvalue())

    def test_finds_nothing_in_nothing(self, tmp_path):
        assert found(np.random.default_rng(0).bytes(100_000)) == []
        (tmp_path / "CANARY.txt").write_text("")
        assert leaks(tmp_path) == ["CANARY.txt"]


# Building sites.
def volume(file: Path, seed: int, *, mask: bool = False, value: float = 0.0, side: int = 16) -> None:
    """A NIfTI file whose every text field is a canary."""
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"))
    ball = ((grid - side / 2) ** 2).sum(0) < (side / 4) ** 2
    array = ball.astype(np.uint8) if mask else 100 * ball + np.random.default_rng(seed).normal(value, 9, ball.shape)
    image = nibabel.Nifti1Image(array if mask else array.astype(np.float32), np.eye(4))
    for field in ("descrip", "intent_name", "aux_file", "db_name"):
        image.header[field] = f"{NAME} {field}"[:15].encode()
    image.header.extensions += [nibabel.nifti1.Nifti1Extension(code, f"{NAME} {BORN}".encode()) for code in (4, 6)]
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, file)


def series(folder: Path, *, damage: dict[bytes, bytes] | None = None, cut: int | None = None) -> None:
    """A CT series whose every text element, private ones too, is a canary; `damage` replaces bytes of its files."""
    folder.mkdir(parents=True)
    for z in range(16):
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{UID}.{z}"
        ds.StudyInstanceUID = ds.SeriesInstanceUID = ds.FrameOfReferenceUID = UID
        ds.PatientName = ds.ReferringPhysicianName = ds.OperatorsName = NAME
        ds.PatientID = ds.AccessionNumber = ds.StationName = ds.InstitutionName = ds.StudyID = "CANARY-77"
        ds.StudyDescription = ds.SeriesDescription = ds.ImageComments = ds.ProtocolName = f"{NAME} head"
        ds.Manufacturer = ds.ManufacturerModelName = ds.DeviceSerialNumber = NAME
        ds.PatientBirthDate = ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = BORN
        ds.private_block(0x0029, NAME, create=True).add_new(1, "LO", NAME)
        ds.Modality, ds.ImageType, ds.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], z + 1
        ds.Rows = ds.Columns = 16
        ds.PixelSpacing, ds.SliceThickness = ["1.25", "1.25"], "1.5"
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 1.5 * z], [1, 0, 0, 0, 1, 0]
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 1, 1
        ds.PhotometricInterpretation, ds.RescaleSlope, ds.RescaleIntercept = "MONOCHROME2", "1", "-1024"
        ds.PixelData = np.random.default_rng(z).integers(0, 2000, (16, 16)).astype(np.int16).tobytes()
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
        data = buffer.getvalue()
        for old, new in (damage or {}).items():
            assert len(old) == len(new)
            assert old in data
            data = data.replace(old, new)
        (folder / f"{NAME}_{z}.dcm").write_bytes(data[:cut])


def dicom_mask(file: Path) -> None:
    """A mask on the grid of `series`."""
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[4:9, 4:9, 4:9] = 1
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(mask, np.diag([-1.25, -1.25, 1.5, 1])), file)


def write(folder: Path, items: list[dict[str, object]], modality: str) -> Path:
    """dataset.json: the last two items are validation and test."""
    for number, item in enumerate(items):
        item |= {"patient": f"{NAME} {number}", "note": f"{NAME} {BORN}"}
    record = {
        "name": NAME,
        "description": NAME,
        "reference": NAME,
        "modality": {"0": modality},
        "labels": {"0": "background", "1": "ball"},
        "training": items[:-2],
        "validation": items[-2:-1],
        "test": items[-1:],
    }
    (folder / "dataset.json").write_text(json.dumps(record))
    return folder


def good_site(folder: Path, seed: int, num: int = 20) -> Path:
    """Volumes that can be read, but for one, and a DICOM series."""
    items = []
    for case in range(num):
        item = {"image": f"{NAME}/i{case}_{BORN}.nii.gz", "label": f"{NAME}/m{case}_{BORN}.nii.gz"}
        volume(folder / item["image"], 100 * seed + case, value=np.nan if case == 1 else 0.0)
        volume(folder / item["label"], 0, mask=True)
        items.append(item)
    series(folder / NAME / UID)
    dicom_mask(folder / f"{NAME}/dicom.nii.gz")
    return write(folder, [{"image": f"{NAME}/{UID}", "label": f"{NAME}/dicom.nii.gz"}, *items], "CT")


def bad_site(folder: Path) -> Path:
    """Every fault that a file can have, and some that are none."""
    faults: list[dict[str, object]] = [{}, {"value": np.nan}, {"side": 12}, {}, {}, {}, {}]
    items = []
    for case, fault in enumerate(faults):
        item = {"image": f"{NAME}/i{case}.nii.gz", "label": f"{NAME}/m{case}.nii.gz"}
        volume(folder / item["image"], case, **fault)
        volume(folder / item["label"], 0, mask=True)
        items.append(item)
    (folder / items[3]["image"]).write_bytes((folder / items[3]["image"]).read_bytes()[:200])
    (folder / items[4]["image"]).unlink()
    (folder / items[5]["label"]).chmod(0)
    damages: list[dict[str, object]] = [
        {},
        {"cut": 700},
        {"cut": 100},
        {"damage": {b"1.25\\1.25": b"CANARY^AL"}},
        {"damage": {b"-1024 ": b"CANARY"}},
        {"damage": {b"MONOCHROME2": b"CANARY^ALIC"}},
        {"damage": {b"ORIGINAL\\PRIM": b"CANARY^X\\PRIM"}},
        {"damage": {UID.encode(): b"CANARY^ALICE\\..."[: len(UID)]}},
        {"damage": {b"CS\x02\x00CT": b"CS\xff\x7fCT"}},
    ]
    for case, options in enumerate(damages):
        item = {"image": f"{NAME}/series {case} {UID}", "label": f"{NAME}/d{case}.nii.gz"}
        series(folder / item["image"], **options)
        dicom_mask(folder / item["label"])
        items.append(item)
    lonely = next((folder / items[7]["image"]).iterdir())
    items.append({"image": lonely.relative_to(folder).as_posix(), "label": items[7]["label"]})
    items += pictures(folder)
    return write(folder, items, "CT")


def pictures(folder: Path) -> list[dict[str, object]]:
    """Pictures with texts in them, whole and cut."""
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8))
    text, exif = PngImagePlugin.PngInfo(), Image.Exif()
    text.add_text("Author", NAME)
    text.add_text("Comment", f"{NAME} {BORN}", zip=True)
    text.add_itxt("Title", NAME)
    exif[0x010E], exif[0x013B], exif[0x9286], exif[0x0132] = NAME, NAME, NAME, f"{BORN} {NAME}"
    options = {"png": {"pnginfo": text}, "jpg": {"exif": exif, "comment": NAME.encode()}, "tif": {"description": NAME}}
    items = []
    for suffix, more in options.items():
        pixels.save(folder / f"{NAME}/whole.{suffix}", **more)
        data = (folder / f"{NAME}/whole.{suffix}").read_bytes()
        (folder / f"{NAME}/cut.{suffix}").write_bytes(data[: len(data) - 40])
        items += [{"image": f"{NAME}/{kind}.{suffix}", "label": f"{NAME}/whole.png"} for kind in ("whole", "cut")]
    (folder / f"{NAME}/no.png").write_text(f"{NAME} is no picture")
    return [*items, {"image": f"{NAME}/no.png", "label": f"{NAME}/whole.png"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder whose path is a canary."""
    return tmp_path_factory.mktemp("data") / f"{NAME} {BORN}"


@pytest.fixture(scope="module")
def bad(root):
    return bad_site(root / "bad")


@pytest.fixture
def heard(caplog, capfd):
    """All that a test printed, logged or warned; `caplog` records every level of every logger."""
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield lambda: "\n".join([caplog.text, *capfd.readouterr(), *(str(w.message) for w in warned)]).encode()


@pytest.mark.slow
class TestCheck:
    def test_words_json_and_page(self, bad, tmp_path, heard):
        for number, args in enumerate(([], ["--json"], ["--task", "super_resolution"], ["--task", "classification"])):
            page = tmp_path / f"{number}.html"
            done = CliRunner().invoke(app, ["check", str(bad), "--html", str(page), *args])
            assert done.exit_code == 1
            assert "Traceback" not in done.output
            assert len(done.output) > 1000
            assert found(done.output.encode()) == []
        assert leaks(tmp_path) == []
        assert found(heard()) == []

    def test_every_fault_is_met(self, bad):
        """Otherwise this file proves less than it says."""
        done = json.loads(CliRunner().invoke(app, ["check", str(bad), "--json"]).stdout)
        reasons = {refusal["reason"] for refusal in done["refusals"]}
        assert len(done["refusals"]) >= 14
        assert {"non_finite", "label_geometry", "truncated", "missing_file", "not_an_image"} <= reasons

    def test_a_real_process(self, bad):
        done = subprocess.run([Path(sys.executable).parent / "omnifm", "check", bad], capture_output=True)
        assert done.returncode == 1
        assert found(done.stdout + done.stderr) == []

    def test_a_list_that_breaks_a_rule(self, root, heard):
        image = {"image": f"{NAME}.nii", "patient": NAME}
        broken: list[dict[str, object]] = [
            {"training": [{"image": f"/{NAME}/a.nii"}]},
            {"training": [{"image": f"../{NAME}"}]},
            {NAME: 1},
            {"modality": {"0": NAME}},
            {"training": [image], "test": [image]},
            {"training": [NAME]},
            {"name": 3},
            {"labels": {NAME: "a"}},
            {"training": [{"image": NAME * 500}]},
            {"burned_in_text": NAME},
            {"training": [{"image": 3, NAME: 1}]},
            {"training": [image | {"patient": {NAME: 1}}]},
        ]
        for number, change in enumerate(broken):
            folder = root / f"rule {number}"
            folder.mkdir()
            record = {"name": NAME, "modality": {"0": "CT"}, "training": [{"image": f"{NAME}.nii"}]}
            (folder / "dataset.json").write_text(json.dumps(record | change))
            done = CliRunner().invoke(app, ["check", str(folder)])
            assert done.exit_code == 1, done.output
            assert found(done.output.encode()) == []
        (folder / "dataset.json").write_text(f'{{"name": "{NAME}", {NAME}')
        assert found(CliRunner().invoke(app, ["check", str(folder)]).output.encode()) == []
        assert found(heard()) == []


@pytest.mark.slow
class TestRun:
    def test_a_site_with_too_many_refused(self, bad, tmp_path, heard):
        with pytest.raises(ValueError, match=r"^\d+ of \d+ cases .* cannot be used") as caught:
            Site(experiment(), "site-1", SiteConfig(str(bad), str(tmp_path / "state"), "cpu"))
        assert found(str(caught.value).encode()) == []
        assert {path.name for path in (tmp_path / "state/tiny").iterdir()} == {"check.html", "quarantine.json"}
        assert leaks(tmp_path) == []
        assert found(heard()) == []

    def test_a_round(self, root, tmp_path, heard):
        for number in (1, 2):
            good_site(root / f"fed/site-{number}", number)
        job = experiment(train={"num_rounds": 1})
        summary = simulation.run(
            job, root / "fed", ["site-1", "site-2"], state_dir=tmp_path / "state", results_dir=tmp_path / "results"
        )
        assert summary["status"] == "COMPLETE"
        assert all(site["num_refused"] >= 1 for site in summary["sites"].values())
        assert leaks(tmp_path) == []
        assert found(json.dumps(summary).encode()) == []
        assert found(heard()) == []
