"""Leaving a site out of the tiny federation: what must not depend on it, and what its heads are made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from omnifm.bench.studies import unseen, unseen_table
from omnifm.config import SiteConfig
from omnifm.plugins import plugin
from omnifm.site.stages import Site
from omnifm.update import digest
from tests.conftest import experiment, write_site

SITES = ["site-1", "site-2", "site-3"]
MATCHED = {"name": "fedper", "capacity": "matched"}
TRAIN = {"num_rounds": 1, "local_epochs": 1, "batch_size": 2, "lr": 0.01, "num_threads": 1}


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    monkeypatch.setattr("omnifm.federation.journal.write_report", lambda *_args: None)


@pytest.fixture(scope="module")
def omnifm(federation):
    """Sites 1 and 2 after one round of OmniFM."""
    return unseen.train_without(experiment(train=TRAIN), federation, SITES[:2])


def site(federation: Path, state: Path, tiny) -> Site:
    return Site(tiny, "site-3", SiteConfig(str(federation / "site-3"), str(state), "cpu"))


@pytest.mark.slow
class TestTrainWithout:
    def test_the_left_out_site_changes_nothing(self, federation, omnifm, tmp_path):
        """Its images may be damaged, or absent."""
        for name in SITES:
            shutil.copytree(federation / name, tmp_path / name)
        for file in (tmp_path / "site-3/images").iterdir():
            file.write_bytes(b"no image")
        again = unseen.train_without(experiment(train=TRAIN), tmp_path, SITES[:2])
        assert digest(again.shared) == digest(omnifm.shared)
        assert [digest(head) for head in again.heads.values()] == [digest(head) for head in omnifm.heads.values()]

    def test_another_site_changes_the_shared_part(self, federation, omnifm, tmp_path):
        """The counterpart: what is trained on does matter."""
        shutil.copytree(federation / "site-1", tmp_path / "site-1")
        write_site(tmp_path / "site-2", seed=77)
        other = unseen.train_without(experiment(train=TRAIN), tmp_path, SITES[:2])
        assert digest(other.shared) != digest(omnifm.shared)

    def test_heads_are_what_stays_at_home(self, omnifm):
        assert sorted(omnifm.heads) == SITES[:2]
        assert not set(omnifm.heads["site-1"]) & set(omnifm.shared)
        assert any(name.startswith("prompts.") for name in omnifm.heads["site-1"])


@pytest.mark.slow
class TestMeanHead:
    def test_is_numpys_mean(self, omnifm):
        heads = list(omnifm.heads.values())
        for name, found in unseen.mean_head(heads).items():
            expected = np.mean([head[name].double().numpy() for head in heads], axis=0)
            if found.is_floating_point():
                np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-7)
                assert found.dtype == heads[0][name].dtype

    def test_golden(self):
        heads = [
            {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(7)},
            {"w": torch.tensor([3.0, 6.0]), "n": torch.tensor(9)},
        ]
        found = unseen.mean_head(heads)
        assert found["w"].tolist() == [2.0, 4.0]
        assert found["n"].item() == 7


@pytest.mark.slow
class TestJoin:
    def test_receives_the_bank_of_the_others(self, federation, omnifm, tmp_path):
        payload = unseen.welcome(experiment(train=TRAIN), omnifm, site(federation, tmp_path, experiment(train=TRAIN)))
        assert digest(payload.shared) == digest(omnifm.shared)
        assert len(payload.extra["prototypes"]) == len(omnifm.tensors["bank/vectors"]) > 0

    def test_no_steps_are_the_mean_head(self, federation, omnifm):
        found = unseen.join(experiment(train=TRAIN), omnifm, federation, "site-3", unseen.FewShot(2, 0))
        assert found["few_shot"] == found["mean_head"]
        assert found["untrained"] != found["mean_head"]
        assert found["own_head"] not in (found["mean_head"], found["untrained"])
        assert 0 <= found["mean_head"]["dice"] <= 1

    @pytest.mark.parametrize("method", [{"name": "omnifm", "dim": 8, "num_bands": 8}, MATCHED, {"name": "fedavg"}])
    def test_steps_train_the_head_alone(self, federation, tmp_path, method):
        tiny = experiment(train=TRAIN, method=method)
        newcomer = site(federation, tmp_path, tiny)
        told = newcomer.reply(unseen.Payload("describe", 0, "run")).facts["data"]
        spec = newcomer.task.agree({"site-3": told})
        model, partition = newcomer.build_model(spec)
        local = newcomer.open_round(unseen.Payload("evaluate", 1, "run", spec, partition.pick(model, "shared")))
        before = {name: value.clone() for name, value in local.model.state_dict().items()}
        unseen.train_head(newcomer, local, 2)
        moved = {name for name, value in local.model.state_dict().items() if not torch.equal(value, before[name])}
        head = unseen.Partition.of(local.model, personal=local.model.personal())
        assert moved
        assert moved <= {*head.personal, *head.buffers}
        if method["name"] != "fedavg":
            assert not moved & set(partition.shared)

    def test_a_class_that_nobody_had_is_an_answer(self, federation, omnifm, tmp_path, monkeypatch):
        """Site 3 has a label value that sites 1 and 2 never declared."""
        for name in SITES:
            shutil.copytree(federation / name, tmp_path / name)
        file = tmp_path / "site-3/dataset.json"
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"labels": record["labels"] | {"2": "new"}}))
        monkeypatch.setattr(unseen, "train_without", lambda *_args: omnifm)
        cell = unseen._cell(experiment(train=TRAIN), tmp_path, SITES, "site-3", unseen.FewShot(1, 0), tmp_path)
        assert cell["scores"] is None
        assert "sites must agree on label values" in cell["refused"]


class TestShotCases:
    CASES = tuple({"label": n % 3, "image": n} for n in range(30))

    def test_are_k_of_every_class(self):
        found = unseen.shot_cases(self.CASES, 2, seed=0)
        assert sorted(item["label"] for item in found) == [0, 0, 1, 1, 2, 2]

    def test_are_k_where_there_is_no_class(self):
        masks = [{"label": Path(f"{n}.png")} for n in range(9)]
        assert len(unseen.shot_cases(masks, 5, seed=0)) == 5
        assert len(unseen.shot_cases([{"question": "?"}] * 3, 5, seed=0)) == 3

    def test_depend_on_the_seed_alone(self):
        draws = [unseen.shot_cases(self.CASES, 2, seed) for seed in (0, 0, 1)]
        assert draws[0] == draws[1] != draws[2]


class TestTable:
    def cell(self, site, seed, dice, refused=None):
        scores = {moment: {"dice": dice} for moment in unseen_table.MOMENTS}
        return {"left_out": site, "seed": seed, "scores": None if refused else scores, "refused": refused}

    def test_golden(self):
        """Seed 0: 0.2 and 0.6, seed 1: 0.4 and 0.8; means 0.4 and 0.6, of sites 0.3 and 0.7."""
        cells = {
            "OmniFM": [self.cell("a", 0, 0.2), self.cell("b", 0, 0.6), self.cell("a", 1, 0.4), self.cell("b", 1, 0.8)]
        }
        row = unseen_table.tabulate(cells, ["a", "b"], {"dice": True})["rows"]["OmniFM"]["few_shot"]["dice"]
        assert row["mean"] == pytest.approx(0.5)
        assert row["std_over_seeds"] == pytest.approx(0.1)
        assert row["per_site"] == pytest.approx({"a": 0.3, "b": 0.7})

    def test_a_site_that_could_not_join_is_in_no_mean(self):
        cells = {"OmniFM": [self.cell("a", 0, 0.2), self.cell("b", 0, None, refused="label_values: no")]}
        found = unseen_table.tabulate(cells, ["a", "b"], {"dice": True})
        assert found["refused"] == {"b": "label_values: no"}
        assert found["rows"]["OmniFM"]["few_shot"]["dice"]["mean"] == 0.2

    def test_a_site_without_any_defined_score_has_no_mean(self):
        """NaN would be no JSON."""
        cells = {"OmniFM": [self.cell("a", 0, 0.2), self.cell("b", 0, float("nan"))]}
        row = unseen_table.tabulate(cells, ["a", "b"], {"dice": True})["rows"]["OmniFM"]["few_shot"]["dice"]
        assert row == {"mean": 0.2, "std_over_seeds": None, "per_site": {"a": 0.2, "b": None}}


@pytest.mark.slow
class TestRun:
    def test_writes_and_resumes(self, federation, omnifm, tmp_path, monkeypatch):
        scores = {
            moment: dict.fromkeys(plugin("tasks", "segmentation").metrics, 0.5) for moment in unseen_table.MOMENTS
        }
        monkeypatch.setattr(unseen, "train_without", lambda *_args: omnifm)
        monkeypatch.setattr(unseen, "join", lambda *_args: scores)
        monkeypatch.setattr(unseen, "CONTENDERS", {"OmniFM": experiment().method})
        tiny = experiment()
        record = {
            "job": tiny.job,
            "task": tiny.task,
            "model": tiny.model,
            "method": tiny.method,
            "data": {"name": "tiny"},
            "train": TRAIN,
        }
        (tmp_path / "job/app/config").mkdir(parents=True)
        (tmp_path / "job/app/config/experiment.json").write_text(json.dumps(record))
        arguments = {"job": tmp_path / "job", "num_seeds": 1, "shots": 1, "num_steps": 1}
        result = unseen.run(federation, tmp_path / "out", **arguments)
        assert set(result["rows"]["OmniFM"]["mean_head"]["dice"]["per_site"]) == set(SITES)
        assert len(list((tmp_path / "out/cells").iterdir())) == 3
        text = (tmp_path / "out/unseen.md").read_text()
        assert "over FLARE a head never leaves its site" in text
        assert all(words in text for words in unseen_table.MOMENTS.values())
        monkeypatch.setattr(unseen, "train_without", lambda *_args: pytest.fail("ran again"))
        assert unseen.run(federation, tmp_path / "out", **arguments) == result

    def test_rejects_too_few_sites(self, federation, tmp_path):
        shutil.copytree(federation / "site-1", tmp_path / "site-1")
        with pytest.raises(ValueError, match=r"data must hold at least 3 sites with a dataset\.json; got 1"):
            unseen.run(tmp_path, tmp_path, job=Path("jobs/seg_fets"), num_seeds=1)

    def test_rejects_no_shots(self, tmp_path):
        with pytest.raises(ValueError, match="shots must be at least 1 and num_steps at least 0; got 0 and 1"):
            unseen.run(tmp_path, tmp_path, job=Path("jobs/seg_fets"), num_seeds=1, shots=0, num_steps=1)

    def test_rejects_a_folder_without_a_job(self, tmp_path):
        with pytest.raises(ValueError, match="job must be a job folder"):
            unseen.run(tmp_path, tmp_path, job=tmp_path, num_seeds=1)
