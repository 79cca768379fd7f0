import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from omnifm import simulation
from omnifm.backbones.llava import load_language, load_tokenizer
from omnifm.config import Experiment
from omnifm.data.demo import make_site
from omnifm.data.volume import RefusedImage, Volume
from omnifm.plugins import load_task
from omnifm.state import History
from omnifm.tasks import vqa
from omnifm.tasks.vqa import IGNORED, MEAN, STD, clip_picture, read_words

WORDS = {"question": "Is there a lesion?", "answer": "yes"}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """The tiny models are made by this test, whatever lies in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def job(task=None, model=None, **train):
    record = {
        "job": "tiny",
        "task": {"name": "vqa", **(task or {})},
        "data": {"name": "tiny"},
        "model": model or {},
        "method": {"name": "omnifm", "dim": 8, "num_bands": 8},
        "train": {"num_rounds": 2, "local_epochs": 1, "batch_size": 8, "lr": 0.001, **train},
    }
    return Experiment.from_json(json.dumps(record))


def configured(**settings):
    task = load_task(job(settings))
    task.configure(task.agree({"site-1": task.facts([], {})}))
    return task


def case(**words):
    rng = np.random.default_rng(0)
    return {"array": rng.integers(0, 256, (20, 30, 1, 3)).astype(np.float32), **read_words(WORDS | words)}


def contested(first, theirs):
    """An attribute that holds `first`, and after every access what another thread has just put there."""
    held = [theirs, first]

    def get(self):
        return held.pop() if len(held) > 1 else theirs

    return property(get, lambda self, value: held.clear())


class TestRead:
    def test_a_picture_and_its_words(self, tmp_path):
        Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "a.png")
        item = {"image": tmp_path / "a.png", "question": " Which organ? ", "answer": "Liver", "question_type": "organ"}
        read = load_task(job()).read(item, {})
        assert read["array"].shape == (30, 20, 1, 3)
        assert {key: value for key, value in read.items() if key != "array"} == {
            "question": "Which organ?",
            "answer": "Liver",
            "answer_type": "OPEN",
            "question_type": "organ",
        }

    def test_refuses_a_volume(self, tmp_path):
        import nibabel

        nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4), np.float32), np.eye(4)), tmp_path / "v.nii.gz")
        with pytest.raises(RefusedImage, match="image must be a picture or one slice; got 4"):
            load_task(job()).read({"image": tmp_path / "v.nii.gz", **WORDS}, {})

    @pytest.mark.parametrize(
        ("answer", "given", "kind"),
        [
            ("Yes", None, "CLOSED"),
            ("no.", None, "CLOSED"),
            ("left", None, "OPEN"),
            ("left", "CLOSED ", "CLOSED"),
            ("yes", "open", "OPEN"),
            (3, None, "OPEN"),
        ],
    )
    def test_answer_types(self, answer, given, kind):
        words = read_words(WORDS | {"answer": answer} | ({"answer_type": given} if given else {}))
        assert (words["answer_type"], words["question_type"]) == (kind, kind)
        assert words["answer"] == str(answer)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"question": "  "}, "question must be a text with a letter or a digit"),
            ({"question": None}, "question must be a text"),
            ({"answer": "?!"}, "answer must be a text"),
            ({"answer": ["yes"]}, "answer must be a text"),
            ({"answer": True}, "answer must be a text"),
            ({"answer_type": "BINARY"}, "answer_type must be CLOSED or OPEN"),
        ],
    )
    def test_refuses_what_is_no_text_without_repeating_it(self, change, message):
        with pytest.raises(RefusedImage, match=message) as refused:
            read_words(WORDS | change)
        assert refused.value.reason == "bad_text"
        assert "BINARY" not in str(refused.value)


class TestPicture:
    def test_a_square_of_the_encoders_size_is_as_transformers_prepares_it(self):
        rows = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        processor = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
        expected = processor(Image.fromarray(rows), return_tensors="pt")["pixel_values"][0]
        ours = clip_picture(rows.swapaxes(0, 1)[:, :, None].astype(np.float32), 48)
        torch.testing.assert_close(ours, torch.as_tensor(expected), atol=1e-5, rtol=1e-5)

    def test_a_wide_picture_keeps_its_shape_and_lies_upright(self):
        """24 columns, 12 rows, white but for black upper rows: the padding is CLIP's mean, 0."""
        array = np.full((24, 12, 1), 255.0, np.float32)
        array[:, :6] = 0
        unit = clip_picture(array, 24) * STD + MEAN
        assert torch.allclose(unit[:, 6:11], torch.zeros(()), atol=0.1)
        assert torch.allclose(unit[:, 13:17], torch.ones(()), atol=0.1)
        assert clip_picture(array, 24)[:, :4].abs().max() < 1e-6
        assert clip_picture(array, 24)[:, -4:].abs().max() < 1e-6

    def test_other_units_are_stretched(self):
        ramp = np.linspace(-1000, 3000, 48, dtype=np.float32)[:, None, None].repeat(48, axis=1)
        unit = clip_picture(ramp, 48) * STD + MEAN
        assert unit.min() > -0.01
        assert unit.max() < 1.01
        assert unit[0, 24, 24].item() == pytest.approx(0.5, abs=0.03)


class TestText:
    def test_only_the_answer_and_the_end_are_taught(self):
        task = configured(question_tokens=16, answer_tokens=4)
        prepared, decode = task.prepare(case()), task.tokenizer.decode
        taught = prepared["target"][prepared["target"] != IGNORED]
        assert decode(taught) == " yes</s>"
        assert decode(prepared["prompt"]) == "Question: Is there a lesion? Answer:"
        assert decode(prepared["text"][: prepared["length"]]) == "Question: Is there a lesion? Answer: yes</s>"
        taught_at = prepared["target"] != IGNORED
        assert torch.equal(prepared["text"][taught_at], taught)

    def test_a_picture_asked_about_again_is_made_once_and_another_is_not_taken_for_it(self, monkeypatch):
        made = []
        monkeypatch.setattr(vqa, "clip_picture", lambda array, side: made.append(array) or torch.tensor(array.sum()))
        task, one, other = configured(), np.ones((4, 4, 1)), np.zeros((4, 4, 1))
        shown = [task.prepare(case() | {"array": array})["image"].item() for array in (one, one, other, one)]
        assert shown == [16, 16, 0, 16]
        assert len(made) == 3

    @pytest.mark.parametrize("held", ["one", "other", None])
    def test_another_threads_picture_is_not_taken_for_ones_own(self, monkeypatch, held):
        """The worst that a scheduler may do: after every look another thread puts its own picture in place."""
        arrays = {name: np.full((4, 4, 1), value) for name, value in (("one", 1.0), ("other", 0.0))}
        monkeypatch.setattr(vqa, "read_volume", lambda path, burned_in_text: Volume(arrays[path], np.eye(4)))
        monkeypatch.setattr(vqa, "clip_picture", lambda array, side: torch.tensor(array.sum()))
        task = configured()
        read = {name: ((name, "unknown"), array) for name, array in arrays.items()}
        shown = {name: (array, torch.tensor(array.sum())) for name, array in arrays.items()}
        monkeypatch.setattr(type(task), "read_last", contested(read.get(held), read["other"]), raising=False)
        monkeypatch.setattr(type(task), "shown_last", contested(shown.get(held), shown["other"]), raising=False)
        found = task.read(WORDS | {"image": "one"}, {})
        assert found["array"] is arrays["one"]
        assert task.prepare(found)["image"] == 16

    def test_every_case_is_equally_long(self):
        task = configured(question_tokens=16, answer_tokens=4)
        cases = [task.prepare(case(question=q)) for q in ("Why?", "Is there a lesion?", "word " * 99)]
        assert len({len(c[key]) for c in cases for key in ("text", "target")}) == 1

    def test_a_long_question_loses_its_end_and_a_long_answer_too(self):
        task = configured(question_tokens=8, answer_tokens=3)
        prepared = task.prepare(case(question="Is there a lesion? " * 9, answer="left lung liver brain"))
        assert task.tokenizer.decode(prepared["prompt"]).endswith(" Answer:")
        assert len(prepared["prompt"]) == 8 + len(task.tokenizer.tokenize(" Answer:"))
        taught = prepared["target"][prepared["target"] != IGNORED]
        assert len(taught) == 3
        assert task.tokenizer.eos_token_id not in taught

    def test_the_loss_is_the_mean_over_the_taught_tokens(self):
        """Cross-entropy by hand, in numpy."""
        task = configured(question_tokens=16, answer_tokens=4)
        prepared = task.prepare(case())
        target = prepared["target"][None]
        logits = torch.randn(1, prepared["length"], len(task.tokenizer))
        rows = logits[0].double().numpy()
        log = rows - np.log(np.exp(rows).sum(1, keepdims=True))
        terms = [-log[i, t] for i, t in enumerate(target[0, : prepared["length"]].tolist()) if t != IGNORED]
        assert task.loss(logits, {"target": target}).item() == pytest.approx(np.mean(terms), rel=1e-5)

    def test_nothing_is_flipped(self):
        """Left must stay left: a sample's picture is its own, up to scale and shift."""
        task = configured()
        prepared, augment = task.prepare(case()), task.augment().set_random_state(0)
        for _ in range(8):
            sample = augment(dict(prepared))
            assert np.corrcoef(sample["image"].flatten(), prepared["image"].flatten())[0, 1] > 0.9999
            assert set(sample) == {"image", "text", "target", "length"}


class TestScore:
    def forward(self, task, answer, blank):
        def answered(batch):
            said = [answer if picture.abs().max() > 0 else blank for picture in batch["image"]]
            rows = [[*task.tokenizer(f" {text}")["input_ids"], task.tokenizer.eos_token_id] for text in said]
            longest = max(len(row) for row in rows)
            return torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows])

        return answered

    def test_model_prior_and_blank_picture_are_told_apart(self):
        task = configured()
        task.observe([WORDS | {"answer": a, "question_type": "side"} for a in ("left", "left", "right")])
        prepared = task.prepare(case(question="Where?", answer="right", question_type="side"))
        assert task.score(self.forward(task, "Right.", "left"), prepared) == {
            "accuracy": 1.0,
            "closed_accuracy": None,
            "open_exact": 1.0,
            "open_recall": 1.0,
            "bleu1": 1.0,
            "accuracy_prior": 0.0,
            "accuracy_question_only": 0.0,
            "position": 0.0,
        }

    def test_many_are_answered_together_as_each_alone(self):
        """Twenty questions of either length; the answer depends on picture and question."""
        task, sizes = configured(), []

        def forward(batch):
            sizes.append(len(batch["image"]))
            seen = batch["image"].abs().sum((1, 2, 3)).round().long() + batch["prompt"].sum(1)
            return torch.stack([seen % 40 + 5, seen % 50 + 5], dim=1)

        sides, asked = ("left", "right"), ("Is it {}?", "Is it on the {} side, then?")
        cases = [task.prepare(case(question=asked[i % 2].format(sides[i // 2 % 2]))) for i in range(40)]
        assert len({tuple(one["prompt"].tolist()) for one in cases}) == 4
        for number, one in enumerate(cases):
            one["image"] = one["image"] + number
            one["answer"] = task.predict(forward, one) if number % 3 else "no such answer"
        each = [task.score(forward, one) for one in cases]
        assert {row.pop("position") for row in each} == {0.0}
        alone = sorted(json.dumps(row) for row in each)
        sizes.clear()
        together = list(task.scores(forward, iter(cases)))
        assert sorted(row.pop("position") for row in together) == list(range(40))
        assert sorted(map(json.dumps, together)) == alone
        assert sizes == [32, 32, 8, 8]

    def test_without_training_answers_the_prior_is_undefined(self):
        task = configured()
        scores = task.score(self.forward(task, "no", "yes"), task.prepare(case()))
        assert (scores["closed_accuracy"], scores["accuracy_question_only"], scores["accuracy_prior"]) == (0, 1, None)

    def test_accuracy_picks_checkpoints(self):
        assert next(iter(load_task(job()).metrics.items())) == ("accuracy", True)

    def test_pictures_show_the_words(self):
        task = configured()
        prepared = task.prepare(case(question="肺? " + "long " * 60))
        drawn = task.picture(self.forward(task, "no", "no"), prepared)
        assert drawn.dtype == np.uint8
        assert drawn.shape[1:] == (256, 3)
        assert drawn.shape[0] > 256
        assert drawn[256:].max() > 200  # white on black


class TestAgreement:
    def test_other_pretrained_models_than_agreed_are_refused(self):
        task = load_task(job())
        with pytest.raises(ValueError, match="pretrained models and tokenizer must be those of the agreement"):
            task.configure({"pretrained": "0" * 64})

    def test_no_word_leaves(self):
        task = load_task(job())
        task.observe([WORDS | {"answer": "hepatomegaly"}])
        said = json.dumps([task.case_facts(case(answer="hepatomegaly")), task.facts([{}], {})])
        assert "hepato" not in said
        assert "lesion" not in said

    def test_refuses_other_pretrained_weights(self, tmp_path):
        """Frozen weights never travel: a site with another revision would spoil the average unseen."""
        language = load_language("tiny")
        load_tokenizer("tiny").save_pretrained(tmp_path)
        with torch.no_grad():
            language.lm_head.weight += 0.01
        language.save_pretrained(tmp_path)
        task, other = load_task(job()), load_task(job(model={"language": str(tmp_path)}))
        facts = {"site-1": task.facts([], {}), "site-2": other.facts([], {})}
        with pytest.raises(ValueError, match=r"sites must hold the server's pretrained .*; others at \['site-2'\]"):
            task.agree(facts)

    def test_made_or_found_the_models_start_equal(self, monkeypatch, tmp_path):
        """A site that has to make the tiny models draws the same connector as one that finds them."""
        states = []
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        for _ in range(2):
            task = load_task(job())
            torch.manual_seed(7)
            states.append(task.backbone().state_dict())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_two_stages_of_lora_in_a_federation(tmp_path, monkeypatch):
    """Only what is tuned travels or is stored, and in its first round the language model stays as it was."""
    import omnifm.data.demos.vqa as demo

    monkeypatch.setattr(demo, "CASES_PER_SPLIT", {"training": 3, "validation": 1, "test": 1})
    sites = ["site-1", "site-2"]
    for site in sites:
        make_site("vqa", site, tmp_path / "data" / site)
    experiment = job({"answer_tokens": 3}, {"tuning": "two_stage", "peft": "lora"})
    states = []
    original = History.save

    def save(self, number, tensors, record):
        states.append((self.name, number, dict(tensors)))
        original(self, number, tensors, record)

    monkeypatch.setattr(History, "save", save)
    summary = simulation.run(experiment, tmp_path / "data", sites)
    assert summary["status"] == "COMPLETE"
    assert summary["partition"]["frozen"] > summary["partition"]["shared"]
    lora = 2 * 8 * (4 * (64 + 64) + 2 * (64 + 128) + (128 + 64))
    connector = 2 * (64 * 64 + 64)
    assert summary["partition"]["shared"] + summary["partition"]["personal"] >= lora + connector
    assert all("lm_head" not in name and ".vision." not in name for *_, tensors in states for name in tensors)
    server = {number: tensors for name, number, tensors in states if name == "server"}
    moved = {
        number: {name for name in server[0] if not torch.equal(server[number][name], server[number - 1][name])}
        for number in (1, 2)
    }
    assert any("connector" in name for name in moved[1]) and not any("language" in name for name in moved[1])
    assert any("language" in name for name in moved[2]) and not any("connector" in name for name in moved[2])
    for site in summary["sites"].values():
        assert site["metrics"]["accuracy_prior"]["before"] == site["metrics"]["accuracy_prior"]["after"]
