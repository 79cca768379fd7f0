import pytest
import torch
from transformers import AutoTokenizer, CLIPVisionModel, LlamaForCausalLM

from omnifm.backbones.tiny import WORDS, tiny
from omnifm.data.demos.vqa import texts


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["vision", "language"])
def test_made_again_it_is_the_same_files(tmp_path, kind):
    first = content(tiny(kind, tmp_path / "first"))
    torch.manual_seed(5)
    assert content(tiny(kind, tmp_path / "second")) == first


def test_making_it_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    tiny("vision", tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_they_are_models_of_transformers(tmp_path):
    assert CLIPVisionModel.from_pretrained(tiny("vision", tmp_path)).config.image_size == 48
    language = LlamaForCausalLM.from_pretrained(tiny("language", tmp_path))
    assert language.config.vocab_size == len(AutoTokenizer.from_pretrained(tiny("language", tmp_path)))


def test_the_demos_words_are_single_tokens_and_nothing_is_unknown(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny("language", tmp_path))
    for answer in texts()[-16:]:
        assert len(tokenizer.tokenize(f" {answer}")) == len(answer.split())
    assert all(len(tokenizer.tokenize(f" {word}")) == 1 for word in WORDS.split() if word.isalpha())
    for text in ("Hepatomegaly?", "ångström 肺 \t 12.5%"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
