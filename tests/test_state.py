import os
import random
import stat
import subprocess
import sys

import pytest
import torch

from omnifm.state import History, StateError, decode, encode, locked, write_atomic


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


def test_every_flip_in_the_newest_file_falls_back(tmp_path):
    """Wherever the bit is, what is loaded is a state that was saved, and the older one is said to be."""
    history, rng = History(tmp_path, "server", keep=2), random.Random(1)
    for number in (1, 2):
        history.save(number, {"w": torch.full((8,), float(number))}, {"round": number})
    newest = tmp_path / "server.2.state"
    data = newest.read_bytes()
    for _ in range(500):
        flipped, position = bytearray(data), rng.randrange(len(data) * 8)
        flipped[position // 8] ^= 1 << position % 8
        newest.write_bytes(flipped)
        number, tensors, record = history.load()
        assert (number, record["round"], tensors["w"].tolist()) == (1, 1, [1.0] * 8)


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_a_readable_state():
    """The fault suite does it 200 times."""
    command = [sys.executable, "-m", "tests.faults.kills", "--kills", "20", "--kib", "256"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("20 kills, ") and done.stdout.endswith(" 0 without a readable checkpoint\n")


class TestLocked:
    def test_keeps_another_process_out(self, tmp_path):
        code = (
            "import sys, pathlib; from omnifm.state import locked\n"
            "with locked(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout.readline() == "in\n"
        with pytest.raises(StateError, match="must belong to one run at a time"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
        with locked(tmp_path):  # a killed process holds nothing
            assert stat.S_IMODE(os.stat(tmp_path / "lock").st_mode) == 0o600

    def test_waits_for_one_that_is_ending(self, tmp_path):
        with locked(tmp_path), pytest.raises(StateError), locked(tmp_path, wait_s=0.2):
            pass
        with locked(tmp_path):
            pass


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
        assert self.save(tmp_path, 1, 2, 3).load(before=3).round == 2

    def test_saving_an_earlier_round_again_forgets_the_later_ones(self, tmp_path):
        assert self.save(tmp_path, 1, 2, 3, 2).rounds() == [1, 2]

    def test_falls_back_to_the_one_before_and_says_so(self, tmp_path, caplog):
        history = self.save(tmp_path, 1, 2)
        path = tmp_path / "personal.2.state"
        path.write_bytes(path.read_bytes()[:-1])
        assert history.load().round == 1
        assert "state 'personal' of round 2 is unusable" in caplog.text

    def test_what_a_killed_writer_left_is_removed(self, tmp_path):
        (tmp_path / ".personal.3.state.x1y2").write_text("torn")
        self.save(tmp_path, 1)
        assert [path.name for path in tmp_path.iterdir()] == ["personal.1.state"]

    def test_nothing_saved_is_none(self, tmp_path):
        assert History(tmp_path, "personal").load() is None

    def test_names_do_not_mix(self, tmp_path):
        self.save(tmp_path, 1)
        assert History(tmp_path, "person").rounds() == []
