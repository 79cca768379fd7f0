"""From a trained federation to predictions of new cases, through the command as a hospital types it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from omnifm import simulation
from omnifm.cli import app
from omnifm.config import Experiment, SiteConfig
from omnifm.data import writers
from omnifm.data.datalist import SPLITS, read_datalist
from omnifm.data.demo import demo_site
from omnifm.data.volume import RefusedImage, read_label, read_volume
from omnifm.site import trained as module
from omnifm.site.loader import Prepare
from omnifm.site.predict import predict
from omnifm.site.stages import Site
from omnifm.site.trained import load_personal, trained_folder
from omnifm.state import History
from omnifm.tasks import image_fusion, segmentation, super_resolution
from omnifm.update import Payload, digest
from tests.commands import omnifm
from tests.conftest import ROOT, experiment, write_site
from tests.data.test_dicom import write_series
from tests.data.test_writers import SHARED, needs_shared, patient, turned

LABELS = {0: "background", 1: "ball"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, federation):
    """The state of site-1 after a run of tiny 3-D segmentation."""
    state = tmp_path_factory.mktemp("state")
    simulation.run(experiment(), federation, ["site-1", "site-2"], state_dir=state)
    return state / "site-1"


@pytest.fixture
def copy(trained, tmp_path):
    """The same, to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def changed(state: Path, tensors=None, **record: object) -> Path:
    """Save the model anew, with a valid checksum, after a change."""
    history = History(state / "tiny", "after", keep=1)
    number, found, known = history.load()
    history.save(number, found if tensors is None else tensors(found), known | record)
    return state


def run(*args: object):
    result = CliRunner().invoke(app, ["predict", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit | ValueError)
    return result


def index_of(folder: Path) -> dict:
    return json.loads((folder / "predictions.json").read_text())


def ball(path: Path, affine: np.ndarray, shape=(14, 18, 16)) -> Path:
    """A bright ball off the centre, no two axes alike."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    inside = ((grid - np.array([4, 11, 6])[:, None, None, None]) ** 2).sum(0) < 12
    noise = np.random.default_rng(0).normal(0, 5, shape)
    nibabel.save(nibabel.Nifti1Image((100 + 200 * inside + noise).astype(np.float32), affine), path)
    return path


class TestSegmentation:
    def test_a_site_predicts_its_own_list_as_it_scored_it(self, trained, federation, tmp_path):
        """Dice of the files equals what training measured on the test split, up to the last bit of a sum."""
        result = run("--personal", trained, "--input", federation / "site-1", "--output", tmp_path / "out")
        assert (result.exit_code, result.stdout) == (0, "predicted 6 of 6 cases\n")
        index = index_of(tmp_path / "out")
        places = [("training", 0), ("training", 1), ("training", 2), ("training", 3), ("validation", 0), ("test", 0)]
        assert [(case["list"], case["position"]) for case in index["cases"]] == places
        datalist = read_datalist(federation / "site-1", required=("image", "label"))
        image = read_volume(datalist.test[0]["image"])
        truth = read_label(datalist.test[0]["label"], image, LABELS)
        found = read_label(tmp_path / "out/test-0.nii.gz", image, LABELS)
        site = Site(experiment(), "site-1", SiteConfig(str(federation / "site-1"), str(tmp_path / "new"), "cpu"))
        used = load_personal(trained / "tiny", "cpu")
        site.task.configure(used.record["spec"])
        with torch.no_grad():
            scored = site.task.score(used.forward, Prepare(site.task, LABELS)(dict(datalist.test[0])))
        assert 2 * (truth & found).sum() / max(1, truth.sum() + found.sum()) == pytest.approx(scored["dice"], abs=1e-6)
        assert index["cases"][-1]["voxels"] == {"ball": int(found.sum())}
        assert index["cases"][-1]["millilitres"] == {"ball": pytest.approx(found.sum() / 1000, abs=1e-3)}

    def test_a_list_that_points_into_an_allowed_root(self, trained, federation, tmp_path):
        image = shutil.copy(next((federation / "site-1/images").iterdir()), tmp_path / "archived.nii.gz")
        (tmp_path / "list").mkdir()
        record = {"name": "new", "modality": {"0": "MR"}, "training": [{"image": str(image)}]}
        (tmp_path / "list/dataset.json").write_text(json.dumps(record))
        allowed = {"data_root": "/data", "state_dir": "/state", "allowed_roots": [str(tmp_path)]}
        (tmp_path / "omnifm_site.json").write_text(json.dumps(allowed))
        asked = ["--personal", trained, "--input", tmp_path / "list", "--output", tmp_path / "out"]
        assert run(*asked).exit_code == 1
        assert run(*asked, "--site-file", tmp_path / "omnifm_site.json").stdout == "predicted 1 of 1 cases\n"

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
    def test_a_case_too_large_for_the_memory_stops_no_other(self, trained, federation, tmp_path, monkeypatch, error):
        infer, seen = module.load_task(experiment()).__class__.infer, []

        def narrow(self, forward, item):
            seen.append(item)
            if len(seen) == 2:
                raise error
            return infer(self, forward, item)

        monkeypatch.setattr("omnifm.tasks.segmentation.Segmentation.infer", narrow)
        cases = predict(trained, federation / "site-1", tmp_path / "out", device="cpu")["cases"]
        assert [case.get("reason", case["status"]) for case in cases] == ["ok", "too_large", "ok", "ok", "ok", "ok"]

    def test_the_model_is_the_sites_own_and_trained(self, trained, federation):
        """Its weights are those of the checkpoint, and not those that the job's seed draws."""
        used = load_personal(trained_folder(trained), "cpu")
        _, tensors, _ = History(trained / "tiny", "after").load()
        state = used.model.state_dict()
        kept = {name.removeprefix("model/"): v for name, v in tensors.items() if name.startswith("model/")}
        assert all(torch.equal(state[name], value) for name, value in kept.items())
        assert set(used.extra) == {"prototypes", "mean"}
        assert len(used.extra["prototypes"]) > 0  # the bank snapshot that its forward pass retrieves from
        torch.manual_seed(used.experiment.seed)
        drawn = module.load_method(used.experiment).build(used.task).state_dict()
        assert any(not torch.equal(drawn[name], value) for name, value in kept.items())

    @pytest.mark.parametrize("affine", [turned(0), turned(4), np.diag([-1.0, -2, 3, 1])], ids=["a", "b", "LPS"])
    def test_classes_lie_where_the_image_does(self, trained, tmp_path, affine, monkeypatch):
        """A stub that says "ball" where the prepared image is bright proves orientation and resampling."""
        source = ball(tmp_path / "a.nii.gz", affine)

        def bright(self, batch):
            return torch.cat([1 - batch["image"], batch["image"] - 1], dim=1)

        monkeypatch.setattr(module.Personal, "forward", bright)
        monkeypatch.setattr("omnifm.tasks.segmentation.Segmentation._size", lambda self, c: c["native_label"].shape)
        index = predict(trained, source, tmp_path / "out", device="cpu")
        assert index["cases"][0]["files"] == ["input-0.nii.gz"]
        back, given = nibabel.load(tmp_path / "out/input-0.nii.gz"), nibabel.load(source)
        assert back.shape == given.shape
        np.testing.assert_array_equal(back.affine, given.affine)
        np.testing.assert_array_equal(np.asarray(back.dataobj), given.get_fdata() > 200)

    def test_a_dicom_series_gets_a_seg_equal_to_the_nifti_of_the_same_voxels(self, trained, tmp_path):
        pixels = {"PixelData": lambda z: np.random.default_rng(z).integers(0, 900, (3, 4)).astype(np.uint16).tobytes()}
        source = write_series(
            tmp_path / "s",
            5,
            **patient(),
            **pixels,
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
            ImagePositionPatient=lambda z: [4 * z, 0, 0],
        )
        self.check_equal(trained, source, tmp_path)

    @needs_shared
    def test_a_real_series_too(self, trained, tmp_path):
        self.check_equal(trained, SHARED / "series/mr_hippocrop_study3", tmp_path)

    @staticmethod
    def check_equal(trained: Path, source: Path, tmp_path: Path) -> None:
        volume = read_volume(source)
        nibabel.save(nibabel.Nifti1Image(volume.array, volume.affine), tmp_path / "same.nii.gz")
        result = run("--personal", trained, "--input", source, "--output", tmp_path / "dicom")
        assert (result.exit_code, index_of(tmp_path / "dicom")["cases"][0]["files"]) == (0, ["input-0.dcm"])
        predict(trained, tmp_path / "same.nii.gz", tmp_path / "nifti", device="cpu")
        seg = read_label(tmp_path / "dicom/input-0.dcm", volume, LABELS)
        np.testing.assert_array_equal(seg, nibabel.load(tmp_path / "nifti/input-0.nii.gz").get_fdata())
        assert 0 < seg.mean() < 1

    def test_one_bad_case_does_not_stop_the_rest(self, trained, tmp_path):
        folder = write_site(tmp_path / "data", num=4)
        (folder / "images/1.nii.gz").write_bytes(b"no image")
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "images/0.nii.gz", format="PNG")
        result = run("--personal", trained, "--input", folder / "dataset.json", "--output", tmp_path / "out")
        assert result.exit_code == 1
        first, _, second = result.stdout.splitlines()
        assert first == "predicted 2 of 4 cases"
        assert second.startswith("2 not_an_image: the content is not of the kind that the file's name says (")
        assert second.endswith("Open the file with a viewer: export it again, or take it out if it is no image.")
        rows = index_of(tmp_path / "out")["cases"]
        assert [row["status"] for row in rows] == ["refused", "refused", "ok", "ok"]
        assert set(rows[1]) == {"list", "position", "status", "reason", "message"}
        written = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert written == ["predictions.json", "test-0.nii.gz", "validation-0.nii.gz"]

    def test_an_image_of_another_kind_is_refused(self, trained, tmp_path):
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
        row = predict(trained, tmp_path / "a.png", tmp_path / "out", device="cpu")["cases"][0]
        assert (row["reason"], row["message"]) == (
            "bad_geometry",
            "image must be 3-D with 1 channel(s) for this model; got 2-D with 3",
        )

    def test_labels_of_new_cases_are_not_looked_at_and_one_list_can_be_chosen(self, trained, tmp_path):
        folder = write_site(tmp_path / "data", num=4)
        shutil.rmtree(folder / "labels")
        index = predict(trained, folder, tmp_path / "out", split="test", device="cpu")
        assert [(case["list"], case["status"]) for case in index["cases"]] == [("test", "ok")]

    def test_a_folder_of_images_is_as_many_cases(self, trained, tmp_path):
        (tmp_path / "Doe").mkdir()
        for name in ("b", "a", ".hidden"):
            ball(tmp_path / f"Doe/{name}.nii.gz", np.eye(4))
        (tmp_path / "Doe/notes.txt").write_text("no image")
        result = run("--personal", trained, "--input", tmp_path / "Doe", "--output", tmp_path / "out")
        assert (result.exit_code, result.stdout) == (0, "predicted 2 of 2 cases\n")
        cases = index_of(tmp_path / "out")["cases"]
        assert [(case["list"], case["position"], case["files"]) for case in cases] == [
            ("input", 0, ["input-0.nii.gz"]),
            ("input", 1, ["input-1.nii.gz"]),
        ]
        assert "Doe" not in (tmp_path / "out/predictions.json").read_text()
        names = (tmp_path / "out/names.txt").read_text()
        assert names == f"input-0\t{tmp_path}/Doe/a.nii.gz\ninput-1\t{tmp_path}/Doe/b.nii.gz\n"

    def test_confidence_is_the_mean_probability_of_the_foreground(self, trained, tmp_path, monkeypatch):
        source = ball(tmp_path / "a.nii.gz", np.eye(4))
        logits = torch.tensor([0.0, np.log(3.0)]).view(1, 2, 1, 1, 1)
        for sign, expected in ((1, 0.75), (-1, None)):  # ball everywhere, and nowhere
            monkeypatch.setattr(
                module.Personal,
                "forward",
                lambda self, b, s=sign: (s * logits).expand(len(b["image"]), 2, *b["image"].shape[2:]).clone(),
            )
            (case,) = predict(trained, source, tmp_path / f"out{sign}", device="cpu")["cases"]
            assert case["confidence"] == expected

    def test_no_name_of_a_file_or_a_patient_leaves_the_input(self, trained, tmp_path):
        source = ball(tmp_path / "Doe_Jane_1970.nii.gz", np.eye(4))
        run("--personal", trained, "--input", source, "--output", tmp_path / "out")
        said = [path.name + path.read_text(errors="ignore") for path in (tmp_path / "out").iterdir()]
        assert not any("Doe" in text for text in said)


class TestRefusedModels:
    def refused(self, state: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load_personal(trained_folder(state), "cpu")
        assert "\n" not in str(caught.value)

    def test_never_trained(self, copy):
        """A site that was killed in its first round holds what it received, with a head that the seed drew."""
        self.refused(changed(copy, trained=False), "must have been trained")
        before = History(copy / "tiny", "before").load()
        History(copy / "tiny", "after").clear()
        History(copy / "tiny", "before").save(1, before.tensors, before.record | {"trained": False})
        self.refused(copy, "must have been trained; no local round of this job is complete")

    def test_the_run_itself_says_what_was_trained(self, tmp_path, federation):
        """The checkpoint before the first local round is no model, and says so."""
        simulation.run(
            replace(experiment(), train=replace(experiment().train, num_rounds=1)),
            federation,
            ["site-1", "site-2"],
            state_dir=tmp_path,
        )
        records = {moment: History(tmp_path / "site-1/tiny", moment).load().record for moment in ("before", "after")}
        assert {moment: record["trained"] for moment, record in records.items()} == {"before": False, "after": True}

    @pytest.mark.parametrize("where", [20, 200, -1])
    def test_damaged(self, copy, where):
        [file] = (copy / "tiny").glob("after.*.state")
        data = bytearray(file.read_bytes())
        data[where] ^= 1
        file.write_bytes(data)
        self.refused(copy, "file must match its SHA-256; it is damaged")

    def test_cut_short(self, copy):
        [file] = (copy / "tiny").glob("after.*.state")
        file.write_bytes(file.read_bytes()[:-10])
        self.refused(copy, "it is damaged")

    def test_a_partition_that_differs(self, copy):
        self.refused(changed(copy, partition="0" * 64), "partition must be the one that its job gives; it differs")

    def test_a_specification_that_differs(self, copy):
        spec = History(copy / "tiny", "after").load().record["spec"]
        self.refused(
            changed(copy, spec=spec | {"labels": {"0": "b", "1": "c", "2": "d"}}),
            "partition must be the one that its job gives; it differs",
        )

    def test_another_method(self, copy):
        record = History(copy / "tiny", "after").load().record["experiment"]
        self.refused(
            changed(copy, experiment=record | {"method": {"name": "fedavg"}}),
            "partition must be the one that its job gives; it differs",
        )

    def test_a_lost_or_a_foreign_tensor(self, copy):
        def other(tensors):
            name = next(name for name in tensors if name.startswith("model/"))
            return {key: value for key, value in tensors.items() if key != name} | {"model/of.another": torch.zeros(2)}

        self.refused(changed(copy, other), "1 are missing, 1 belong to another")

    @pytest.mark.parametrize("spoil", [lambda v: v[:1].clone(), lambda v: v.double(), lambda v: v * np.nan])
    def test_a_tensor_of_another_shape_type_or_without_number(self, copy, spoil):
        def other(tensors):
            name = next(n for n, v in tensors.items() if n.startswith("model/") and v.ndim and len(v) > 1)
            return tensors | {name: spoil(tensors[name])}

        self.refused(changed(copy, other), "must be finite and .* in the personal model; it is not")

    def test_without_its_bank_snapshot(self, copy):
        def without(tensors):
            return {name: value for name, value in tensors.items() if name != "extra/prototypes"}

        self.refused(changed(copy, without), "must hold the tensors of its method, .*'prototypes'.*; it does not")

    def test_another_frozen_backbone(self, copy):
        self.refused(changed(copy, frozen="0" * 64), "the frozen backbone must be the one this model was trained with")

    def test_of_an_earlier_version(self, copy):
        history = History(copy / "tiny", "after")
        number, tensors, record = history.load()
        history.save(number, tensors, {key: value for key, value in record.items() if key != "frozen"})
        self.refused(copy, r"file must hold frozen; an older version wrote it")


class TestWrongUse:
    def test_state_folders(self, trained, copy, tmp_path):
        assert trained_folder(trained) == trained_folder(trained / "tiny").parent / "tiny" == trained / "tiny"
        shutil.copytree(copy / "tiny", copy / "other")
        assert trained_folder(copy, "other") == copy / "other"
        with pytest.raises(ValueError, match=r"must hold one job, or job must name one of other, tiny"):
            trained_folder(copy)
        with pytest.raises(ValueError, match=r"job must be one of other, tiny in this state folder; got 'x'"):
            trained_folder(copy, "x")
        assert trained_folder(copy / "tiny", "tiny") == copy / "tiny"
        with pytest.raises(ValueError, match=r"job must be what its model was trained for, 'tiny'; got 'other'"):
            predict(copy, tmp_path, tmp_path / "out", job="other")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="no trained model here: give the site's state folder"):
            trained_folder(tmp_path / "empty")
        with pytest.raises(ValueError, match=r"Sites below: copy. Choose one: --personal .../.*/copy$"):
            trained_folder(tmp_path)
        with pytest.raises(ValueError, match="there is no such folder"):
            trained_folder(tmp_path / "absent")

    def test_inputs_and_options_that_do_not_fit(self, trained, tmp_path):
        image, folder = ball(tmp_path / "a.nii.gz", np.eye(4)), write_site(tmp_path / "data", num=3)
        for source, options, message in (
            (tmp_path / "absent.nii", {}, "input must be an existing file or folder; it is not"),
            (image, {"question": "Why?"}, "question must not be given for segmentation of one image"),
            (image, {"second": image}, "second must not be given for segmentation of one image"),
            (image, {"split": "test"}, "split goes with dataset.json"),
            (folder, {"split": "tests"}, "split must be one of"),
            (image, {"question": " "}, "question must hold a word; it is empty"),
            (folder, {"question": "Why?"}, "second and question go with one image"),
            (image, {"device": "tpu"}, "device must be auto, cpu or cuda:N"),
        ):
            with pytest.raises(ValueError, match=message):
                predict(trained, source, tmp_path / "out", **{"device": "cpu", **options})
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    def test_costs_one_line_and_exit_code_2(self, trained, tmp_path):
        absent, out = tmp_path / "Doe.nii", tmp_path / "out"
        done = omnifm("predict", "--personal", trained, "--input", absent, "--output", out)
        assert done == (2, "", "omnifm: input must be an existing file or folder; it is not\n")

    def test_an_output_that_holds_something_is_left_alone(self, trained, tmp_path):
        image = ball(tmp_path / "a.nii.gz", np.eye(4))
        with pytest.raises(ValueError, match="output must be a new or an empty folder; it is not"):
            predict(trained, image, tmp_path)
        with pytest.raises(ValueError, match="output must be a new or an empty folder; it is not"):
            predict(trained, image, image)


@pytest.fixture(scope="module", params=["classification", "image_fusion", "super_resolution", "vqa"])
def other(request, tmp_path_factory):
    """Another task: its name, a site's state after one local round, the items of its demo data."""
    name, state = request.param, tmp_path_factory.mktemp("other")
    jobs = [json.loads(file.read_text()) for file in ROOT.glob("jobs/*/app/config/experiment.json")]
    job = Experiment.from_json(json.dumps(next(job for job in jobs if job["task"]["name"] == name) | SMALL[name]))
    root = demo_site(name, "site-1")
    site = Site(job, "site-1", SiteConfig(str(root), str(state), "cpu"))
    site.loader.restrict(**{split: getattr(site.datalist, split)[:2] for split in SPLITS})
    spec = site.task.agree({"site-1": site.reply(Payload("describe", 0, "run")).facts["data"]})
    model, partition = site.build_model(spec)
    extra = {"prototypes": torch.eye(2, 64), "mean": torch.zeros(64)}
    site.reply(Payload("train", 1, "run", spec, partition.pick(model, "shared"), extra))
    return name, state, site.datalist.training


SMALL = {
    "classification": {"model": {"channels": [8, 8, 8, 8], "norm": "group"}},
    "vqa": {},
    "image_fusion": {"model": {"growth": 4, "decoder": [8]}},
    "super_resolution": {"model": {"channels": 8, "num_blocks": 1}},
}


class TestOtherTasks:
    @pytest.mark.slow
    def test_one_new_image_through_the_command(self, other, tmp_path):
        name, state, items = other
        item = items[0]
        options = {"image_fusion": ["--second", item.get("image_b")], "vqa": ["--question", "Is there a ring?"]}
        source = item.get("image") or item["image_a"]
        result = run("--personal", state, "--input", source, "--output", tmp_path / "out", *options.get(name, []))
        assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "predicted 1 of 1 cases")
        row = index_of(tmp_path / "out")["cases"][0]
        assert (row.pop("list"), row.pop("position"), row.pop("status")) == ("input", 0, "ok")
        getattr(self, f"check_{name}")(row, tmp_path / "out", source)

    @staticmethod
    def check_classification(row: dict, out: Path, source: Path) -> None:
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["probabilities"][row["class"]] == max(row["probabilities"].values())
        assert row["low_confidence"] == (row["probabilities"][row["class"]] < 0.6)

    @staticmethod
    def check_vqa(row: dict, out: Path, source: Path) -> None:
        assert (row["question"], type(row["answer"])) == ("Is there a ring?", str)

    @staticmethod
    def check_super_resolution(row: dict, out: Path, source: Path) -> None:
        small, large = Image.open(source), Image.open(out / row["files"][0])
        assert large.size == (2 * small.size[0], 2 * small.size[1])
        assert np.asarray(large).mean() == pytest.approx(np.asarray(small).mean(), abs=10)  # it is the same picture

    @staticmethod
    def check_image_fusion(row: dict, out: Path, source: Path) -> None:
        assert Image.open(out / row["files"][0]).size == Image.open(source).size

    def test_what_one_image_must_come_with(self, other, tmp_path):
        name, state, items = other
        missing = {"image_fusion": "second must be given for image_fusion", "vqa": "question must be given for vqa"}
        source = items[0].get("image") or items[0]["image_a"]
        with pytest.raises(ValueError, match=missing.get(name, "question must not be given")):
            predict(state, source, tmp_path / "out", question=None if name in missing else "Why?", device="cpu")

    def test_a_frozen_backbone_is_part_of_the_model(self, other, monkeypatch):
        """The vision encoder that is loaded, not kept: another one is refused."""
        name, state, _ = other
        if name != "vqa":  # all of it is trained, and kept
            assert load_personal(trained_folder(state), "cpu").record["frozen"] == digest({})
            return
        original = module.load_task

        def swapped(experiment):
            task = original(experiment)
            build = task.backbone

            def backbone():
                built = build()
                next(built.vision.parameters()).data.mul_(1.01)
                return built

            task.backbone = backbone
            return task

        load_personal(trained_folder(state), "cpu")
        monkeypatch.setattr(module, "load_task", swapped)
        with pytest.raises(ValueError, match="the frozen backbone must be the one this model was trained with"):
            load_personal(trained_folder(state), "cpu")


class TestGrids:
    """Stubs in place of networks: where what a task says comes to lie."""

    def test_classes_of_a_picture_and_their_overlay(self, tmp_path):
        rows = np.zeros((40, 60), np.uint8)
        rows[5:12, 30:55] = 200  # neither rows nor columns in the middle
        Image.fromarray(rows).save(tmp_path / "a.png")
        task = segmentation.Segmentation(segmentation.Settings(), segmentation.Model())
        task.configure({"dims": 2, "channels": 1, "labels": {"0": "b", "1": "bar"}, "patch": [64, 64]})
        found = task.infer(lambda b: torch.cat([1 - b["image"], b["image"] - 1], 1), {"image": tmp_path / "a.png"})
        assert ((rows > 0) == found.values[:, :, 0].T).mean() > 0.98  # rounding at the edges of two resizings
        assert found.shown.shape == (40, 60, 3)
        assert np.ptp(found.shown[8, 40].astype(int)) > 50  # coloured there
        assert np.ptp(found.shown[30, 10].astype(int)) == 0  # and grey here

    def test_an_enlarged_slice_covers_the_same_place_in_the_same_unit(self, tmp_path):
        """Corners stay where they are, in millimetres."""
        array = np.random.default_rng(0).normal(300, 900, (12, 10, 1)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(array, turned()), tmp_path / "a.nii.gz")
        task = super_resolution.SuperResolution(super_resolution.Settings(), super_resolution.Model())
        task.configure({"channels": 1})
        item = {"image": tmp_path / "a.nii.gz"}
        large = task.infer(lambda b: b["image"].repeat_interleave(2, 2).repeat_interleave(2, 3), item)
        assert writers.write(large, item["image"], tmp_path, "out", "0", "0")["files"] == ["out.nii.gz"]
        back, given = nibabel.load(tmp_path / "out.nii.gz"), nibabel.load(tmp_path / "a.nii.gz")
        np.testing.assert_allclose(back.get_fdata()[::2, 1::2], array, atol=1e-2)
        for corner in ((-0.5, -0.5), (11.5, -0.5), (11.5, 9.5)):
            enlarged = [2 * (side + 0.5) - 0.5 for side in corner]
            places = [i.affine @ [*at, 0, 1] for i, at in ((given, corner), (back, enlarged))]
            np.testing.assert_allclose(*places, atol=1e-4)

    def test_a_colour_picture_is_not_made_grey(self, tmp_path):
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
        task = super_resolution.SuperResolution(super_resolution.Settings(), super_resolution.Model())
        task.configure({"channels": 1})
        with pytest.raises(RefusedImage, match="image must be grey for this model; got RGB"):
            task.infer(lambda b: b["image"], {"image": tmp_path / "a.png"})

    def test_a_fused_slice_lies_on_its_first_source(self, tmp_path):
        rng, files = np.random.default_rng(0), {}
        for key, flip in (("image_a", [-1.0, 2, 1, 1]), ("image_b", [1.0, 2, 1, 1])):
            affine = np.diag(flip)
            affine[0, 3] = 47 if flip[0] < 0 else 0  # the same place, read from the other side
            files[key] = tmp_path / f"{key}.nii.gz"
            array = rng.integers(0, 4000, (48, 44, 1)).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(array, affine), files[key])
        task = image_fusion.ImageFusion(image_fusion.Settings(), image_fusion.Model())
        task.configure({"dims": 2, "channels": 2, "patch": [64, 64]})
        fused = task.infer(lambda batch: batch["image"][:, :1], files)
        writers.write(fused, files["image_a"], tmp_path, "out", "0", "0")
        back, given = nibabel.load(tmp_path / "out.nii.gz"), nibabel.load(files["image_a"])
        np.testing.assert_array_equal(back.affine, given.affine)
        low, high = np.percentile(given.get_fdata(), (0.5, 99.5))
        expected = 255 * np.clip((given.get_fdata() - low) / (high - low), 0, 1)
        np.testing.assert_allclose(back.get_fdata(), expected, atol=0.01)
