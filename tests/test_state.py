import random
import stat

import pytest
import torch

from omnifm.state import History, StateError, decode, encode, write_atomic


def test_decode_inverts_encode():
    tensors, record = decode(encode({"a": torch.arange(4), "b": torch.zeros(0, 2)}, {"round": 3, "name": "ü"}))
    assert record == {"round": 3, "name": "ü"}
    assert torch.equal(tensors["a"], torch.arange(4))
    assert tensors["b"].shape == (0, 2)


def test_every_single_bit_flip_is_detected():
    data, rng = encode({"a": torch.randn(20)}, {"round": 1}), random.Random(0)
    for _ in range(500):
        flipped = bytearray(data)
        position = rng.randrange(len(data) * 8)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(StateError):
            decode(bytes(flipped))


def test_cut_short_is_detected():
    with pytest.raises(StateError, match="SHA-256"):
        decode(encode({"a": torch.ones(3)}, {})[:-1])


class TestWriteAtomic:
    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        path = tmp_path / "x"
        write_atomic(path, b"old")

        def full(*_args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_atomic(path, b"new")
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["x"]

    def test_is_readable_by_its_owner_only(self, tmp_path):
        write_atomic(tmp_path / "deep/x", b"")
        assert stat.S_IMODE((tmp_path / "deep/x").stat().st_mode) == 0o600


class TestHistory:
    def save(self, folder, *rounds):
        history = History(folder, "personal", keep=3)
        for number in rounds:
            history.save(number, {"r": torch.tensor(number)}, {"round": number})
        return history

    def test_keeps_the_last_few(self, tmp_path):
        assert self.save(tmp_path, 1, 2, 3, 4).rounds() == [2, 3, 4]

    def test_load_before_a_round_is_what_a_resumed_run_asks_for(self, tmp_path):
        assert self.save(tmp_path, 1, 2, 3).load(before=3)[0] == 2

    def test_saving_an_earlier_round_again_forgets_the_later_ones(self, tmp_path):
        assert self.save(tmp_path, 1, 2, 3, 2).rounds() == [1, 2]

    def test_falls_back_to_the_one_before_and_says_so(self, tmp_path, caplog):
        history = self.save(tmp_path, 1, 2)
        path = tmp_path / "personal.2.state"
        path.write_bytes(path.read_bytes()[:-1])
        assert history.load()[0] == 1
        assert "state 'personal' of round 2 is unusable" in caplog.text

    def test_nothing_saved_is_none(self, tmp_path):
        assert History(tmp_path, "personal").load() is None

    def test_names_do_not_mix(self, tmp_path):
        self.save(tmp_path, 1)
        assert History(tmp_path, "person").rounds() == []
