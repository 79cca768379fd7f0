import json
import shutil

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, GPT2Config, GPT2LMHeadModel

from omnifm.backbones import llava
from omnifm.backbones.llava import LlavaBackbone, fingerprint, load_language, load_tokenizer, load_vision, picture_side
from omnifm.backbones.tiny import tiny
from omnifm.method import Partition

TEXT = torch.tensor([[5, 6, 7, 8], [9, 10, 2, 2]])
BATCH = {"text": TEXT, "length": torch.tensor([4, 3])}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    cache = tmp_path_factory.mktemp("models")
    return str(tiny("vision", cache)), str(tiny("language", cache))


@pytest.fixture
def build(folders):
    def make(tuning="joint", peft="full", max_answer=6):
        torch.manual_seed(0)
        vision, language = folders
        parts = load_vision(vision), load_language(language), load_tokenizer(language)
        return LlavaBackbone(*parts, max_answer, tuning, peft).eval()

    return make


def trained(module):
    return {name for name, p in module.named_parameters() if p.requires_grad}


def images(num=2):
    return torch.randn(num, 3, 48, 48, generator=torch.Generator().manual_seed(1))


class TestReading:
    def test_the_sequence_is_start_picture_text(self, build):
        """By hand: patches of the last layer but one, connector, start token first; shifted by one for the logits."""
        backbone = build()
        tokens, features = backbone.encode({"image": images()})
        states = backbone.vision(pixel_values=images(), output_hidden_states=True).hidden_states
        torch.testing.assert_close(tokens, backbone.connector(states[1][:, 1:]))  # states: embeddings, layer 1, layer 2
        assert tokens.shape == (2, 36, backbone.width)
        embed = backbone.language.get_input_embeddings()
        inputs = torch.cat([embed(torch.full((2, 1), 1)), tokens, embed(TEXT)], dim=1)
        expected = backbone.language(inputs_embeds=inputs).logits[:, 36:-1]
        torch.testing.assert_close(backbone.decode(tokens, features, BATCH), expected)

    def test_padding_is_not_computed_and_changes_nothing(self, build):
        backbone = build()
        tokens, _ = backbone.encode({"image": images()})
        logits = backbone.decode(tokens, None, BATCH)
        longer = {"text": torch.cat([TEXT, torch.full((2, 5), 2)], dim=1), "length": BATCH["length"]}
        assert torch.equal(backbone.decode(tokens, None, longer), logits)
        alone = backbone.decode(tokens[1:], None, {"text": TEXT[1:], "length": torch.tensor([3])})
        torch.testing.assert_close(alone, logits[1:, :3])

    def test_more_visual_tokens_are_read_too(self, build):
        """[Z || r || c] is longer than r."""
        backbone = build()
        tokens, _ = backbone.encode({"image": images()})
        more = torch.cat([torch.randn_like(tokens), tokens, torch.randn_like(tokens[:, :4])], dim=1)
        logits = backbone.decode(more, None, BATCH)
        assert logits.shape == backbone.decode(tokens, None, BATCH).shape
        assert not torch.allclose(logits, backbone.decode(tokens, None, BATCH))

    def test_the_answer_is_transformers_greedy_one(self, build):
        backbone = build(max_answer=8)
        tokens, _ = backbone.encode({"image": images(1)})
        prompt = TEXT[:1]
        expected = backbone.language.generate(
            inputs_embeds=backbone._embedded(tokens, prompt), do_sample=False, max_new_tokens=8, pad_token_id=0
        )
        answer = backbone.decode(tokens, None, {"prompt": prompt})
        assert answer.tolist() == expected.tolist()
        assert 1 <= answer.shape[1] <= 8

    def test_an_answer_stops_at_the_end_of_text(self, build):
        backbone = build(max_answer=8)
        backbone.eos = int(backbone.decode(backbone.encode({"image": images(1)})[0], None, {"prompt": TEXT[:1]})[0, 0])
        assert backbone.decode(backbone.encode({"image": images(1)})[0], None, {"prompt": TEXT[:1]}).shape == (1, 1)

    def test_each_row_ends_on_its_own(self, build):
        """Two pictures at once give the two answers, the shorter one followed by ends of text."""
        backbone = build(max_answer=8)
        tokens, _ = backbone.encode({"image": torch.cat([images(1), torch.zeros(1, 3, 48, 48)])})
        alone = [backbone.decode(tokens[i : i + 1], None, {"prompt": TEXT[:1]})[0].tolist() for i in (0, 1)]
        backbone.eos = next(word for word in alone[0] if word not in alone[1])
        both = backbone.decode(tokens, None, {"prompt": TEXT[:1].expand(2, -1)}).tolist()
        end = alone[0].index(backbone.eos)
        assert both[0] == alone[0][:end] + [backbone.eos] * (8 - end)
        assert both[1] == alone[1]


class TestTuning:
    @pytest.mark.parametrize(
        ("tuning", "parts"),
        [
            ("connector", {"connector"}),
            ("lm", {"language"}),
            ("joint", {"connector", "language"}),
            ("two_stage", {"connector", "language"}),
        ],
    )
    @pytest.mark.parametrize("peft", ["full", "lora"])
    def test_what_is_trained(self, build, tuning, parts, peft):
        assert {name.split(".")[0] for name in trained(build(tuning, peft))} == parts

    def test_what_is_frozen_is_neither_shared_nor_personal(self, build):
        backbone = build("joint", "lora")
        partition = Partition.of(backbone, personal=backbone.head())
        assert {*partition.shared, *partition.personal} == trained(backbone)
        assert {name.split(".")[0] for name in partition.frozen} == {"vision", "language"}
        assert partition.buffers == ()

    def test_two_stages_take_turns_and_the_partition_stays(self, build):
        backbone = build("two_stage", "lora")
        manifest = Partition.of(backbone)
        for progress, part in ((0.0, "connector"), (0.49, "connector"), (0.5, "language"), (0.9, "language")):
            backbone.schedule(progress)
            assert {name.split(".")[0] for name in trained(backbone)} == {part}
        assert {*manifest.shared} == {*(n for n, _ in backbone.connector.named_parameters("connector"))} | trained(
            backbone
        )

    def test_elsewhere_the_schedule_changes_nothing(self, build):
        backbone = build("joint", "lora")
        before = trained(backbone)
        backbone.schedule(0.0)
        assert trained(backbone) == before

    @pytest.mark.parametrize(
        ("tuning", "peft", "prefixes"),
        [
            ("joint", "full", ("language.model.layers.1.", "language.model.norm.")),
            ("lm", "lora", ("language.model.layers.1.",)),
            ("connector", "full", ("connector.2.",)),
        ],
    )
    def test_the_head_is_the_last_tuned_block(self, build, tuning, peft, prefixes):
        backbone = build(tuning, peft)
        home = Partition.of(backbone, personal=backbone.head()).personal
        assert home
        assert set(home) == {name for name in trained(backbone) if name.startswith(prefixes)}


class TestLoading:
    def test_a_whole_clip_gives_its_vision_encoder(self, tmp_path):
        size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        clip = CLIPModel(
            CLIPConfig(vision_config=size | {"image_size": 32, "patch_size": 8}, text_config=size, projection_dim=8)
        )
        clip.save_pretrained(tmp_path)
        assert picture_side(str(tmp_path)) == 32
        expected = clip.vision_model.state_dict()
        state = load_vision(str(tmp_path)).state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)

    def test_half_precision_is_computed_in_float32(self, folders, tmp_path):
        load_language(folders[1]).to(torch.bfloat16).save_pretrained(tmp_path)
        assert {p.dtype for p in load_language(str(tmp_path)).parameters()} == {torch.float32}

    @pytest.mark.parametrize("load", [load_language, load_tokenizer])
    @pytest.mark.parametrize("name", ["meta-llama/not-on-this-machine", "no folder", ""])
    def test_what_is_not_here_is_refused_at_once_in_one_line(self, load, name):
        with pytest.raises(ValueError, match=r"model.language must be 'tiny', a folder .*`hf download`") as error:
            load(name)
        assert "\n" not in str(error.value)

    def test_refuses_missing_weights(self, folders, tmp_path):
        load_language(folders[1]).model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"model.language must hold every weight of a LlamaForCausalLM; 1 are"):
            load_language(str(tmp_path))

    @pytest.mark.parametrize("load", [load_language, load_tokenizer])
    def test_code_in_a_folder_is_never_run_nor_asked_about(self, load, folders, tmp_path, monkeypatch):
        shutil.copytree(folders[1], tmp_path / "lm")
        ran = tmp_path / "ran"
        (tmp_path / "lm" / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: ...\n")
        codes = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
        for name in ("config.json", "tokenizer_config.json"):
            content = json.loads((tmp_path / "lm" / name).read_text())
            content |= {"auto_map": codes, "model_type": "evil", "tokenizer_class": "Evil"}
            (tmp_path / "lm" / name).write_text(json.dumps(content))
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
        with pytest.raises(ValueError, match=r"model.language must be .tiny., a folder"):
            load(str(tmp_path / "lm"))
        assert not ran.exists()

    @pytest.mark.parametrize("change", ["cut", "sizes"])
    def test_weights_that_do_not_fit_cost_one_line(self, change, folders, tmp_path):
        shutil.copytree(folders[1], tmp_path / "lm")
        config, weights = tmp_path / "lm" / "config.json", tmp_path / "lm" / "model.safetensors"
        if change == "cut":
            weights.write_bytes(weights.read_bytes()[:1000])
        else:
            config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 96}))
        with pytest.raises(ValueError, match=r"model.language must be .tiny., a folder") as error:
            load_language(str(tmp_path / "lm"))
        assert "\n" not in str(error.value)

    def test_a_fingerprint_covers_the_tokenizers_words(self, folders, tmp_path):
        shutil.copytree(folders[1], tmp_path / "lm")
        file = tmp_path / "lm" / "tokenizer.json"
        content = json.loads(file.read_text())
        vocab = content["model"]["vocab"]
        vocab["Ġleft"], vocab["Ġright"] = vocab["Ġright"], vocab["Ġleft"]
        file.write_text(json.dumps(content))
        assert fingerprint(folders[0], str(tmp_path / "lm")) != fingerprint(*folders)

    def test_a_fingerprint_refuses_more_words_than_embeddings(self, folders, tmp_path):
        shutil.copytree(folders[1], tmp_path / "lm")
        tokenizer = load_tokenizer(folders[1])
        tokenizer.add_tokens(["hepatosplenomegaly"])
        tokenizer.save_pretrained(tmp_path / "lm")
        with pytest.raises(ValueError, match="a tokenizer must have no more words than its model has embeddings"):
            fingerprint(folders[0], str(tmp_path / "lm"))

    def test_refuses_another_family(self, tmp_path):
        GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"model.language must be of the LLaMA family; got GPT2LMHeadModel"):
            load_language(str(tmp_path))

    def test_refuses_a_tokenizer_without_an_end(self, folders, tmp_path):
        tokenizer = load_tokenizer(folders[1])
        tokenizer.eos_token = None
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="tokenizer that marks the end of a text"):
            load_tokenizer(str(tmp_path))

    def test_refuses_more_words_than_embeddings(self, folders):
        tokenizer = load_tokenizer(folders[1])
        size = len(tokenizer)
        tokenizer.add_tokens(["hepatosplenomegaly"])
        with pytest.raises(ValueError, match=rf"no more words than its model has .*; got {size + 1} for {size}"):
            LlavaBackbone(load_vision(folders[0]), load_language(folders[1]), tokenizer, 4, "joint", "full")


def test_the_fingerprint_knows_a_single_weight(folders, tmp_path):
    first = fingerprint(*folders)
    language = load_language(folders[1])
    load_tokenizer(folders[1]).save_pretrained(tmp_path)
    language.save_pretrained(tmp_path)
    assert fingerprint(folders[0], str(tmp_path)) == first
    with torch.no_grad():
        language.lm_head.weight[0, 0] += 1e-3
    language.save_pretrained(tmp_path)
    llava.fingerprint.cache_clear()
    assert fingerprint(folders[0], str(tmp_path)) != first
