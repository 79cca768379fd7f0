"""The arithmetic of peers' rows, two peers on one small work, and memory over processes; nobody's speed is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from omnifm.bench.cost import peer_process, peers, processes, scale
from tests.conftest import experiment


def row(*seconds: float, difference: float | None = 0.0, first: float | None = 0.0) -> dict:
    return {
        "seconds": list(seconds),
        "cpu_seconds": [s / 2 for s in seconds],
        "peak_bytes": 3 * 2**20,
        "bytes_up": 12,
        "checksum": "ab",
        "difference": difference,
        "first_difference": first,
    }


class TestRows:
    def test_ratio_is_of_medians(self):
        rows = {"plain": row(1, 2, 30), "ours": row(3, 3, 100)}
        assert peers.ratio(rows, "ours") == 1.5
        assert peers.ratio(rows, "plain") == 1.0

    def test_equality_is_told(self):
        rows = {
            "plain": row(1),
            "ours": row(1),
            "pfl": row(1, difference=1e-2, first=1e-8),
            "flower": row(1, difference=0.1, first=1e-3),
        }
        assert peers.cells("ours", rows)[-1] == "equal, every bit"
        assert peers.cells("pfl", rows)[-1] == "relative difference 1.0e-08 after round 1, 1.0e-02 at the end"
        told = "relative difference 1.0e-03 after round 1, 1.0e-01 at the end: NOT THE SAME WORK"
        assert peers.cells("flower", rows)[-1] == told

    def test_a_peer_that_is_missing_costs_its_row_alone(self):
        rows = {"plain": row(1), "pfl": {"reason": "pfl: the package pfl must be installed; it is not"}}
        assert peers.line("pfl", rows).startswith("pfl-research 0.6: left out: pfl: the package pfl must")
        text = peers.markdown({"num_rounds": 2, "load": [0.0], "rows": rows})
        assert all(line.count("|") == 8 for line in text.splitlines() if line.startswith("|"))

    def test_difference_golden(self):
        """(3, 4) against (3, 3): a gap of 1 on a norm of sqrt(18); counters are left out."""
        one, other = ({"w": torch.tensor(w), "n": torch.tensor(n)} for w, n in (([3.0, 4.0], 1), ([3.0, 3.0], 9)))
        assert peers.difference(one, other) == pytest.approx(1 / 18**0.5)
        assert peers.difference(other, other) == 0

    def test_checksum_sees_the_last_bit_and_no_counter(self):
        weights = {"w": torch.ones(3), "steps": torch.tensor(1)}
        moved = {"w": torch.nextafter(torch.ones(3), torch.zeros(3)), "steps": torch.tensor(1)}
        assert peers.checksum(weights) == peers.checksum(weights | {"steps": torch.tensor(2)})
        assert peers.checksum(weights) != peers.checksum(moved)

    def test_rejects_one_round(self, tmp_path):
        with pytest.raises(ValueError, match="num_rounds must be at least 2, since the first is not counted; got 1"):
            peers.run(None, job=tmp_path, num_rounds=1)


@pytest.mark.slow
class TestPeerProcess:
    def test_ours_ends_with_the_plain_loops_weights(self, federation, tmp_path, monkeypatch):
        """To the last bit, over sites of different size; another seed ends elsewhere."""
        monkeypatch.setattr("omnifm.federation.journal.write_report", lambda *_args: None)
        (tmp_path / "data").symlink_to(federation)
        tiny = experiment(method={"name": "fedavg"})
        record = {
            "job": tiny.job,
            "task": tiny.task,
            "data": {"name": "tiny"},
            "model": tiny.model,
            "method": tiny.method,
            "seed": tiny.seed,
            "train": {"num_rounds": 2, "local_epochs": 1, "batch_size": 2, "lr": 0.01, "num_threads": 1},
        }
        (tmp_path / "experiment.json").write_text(json.dumps(record))
        for name in ("plain", "ours"):
            monkeypatch.setattr(sys, "argv", ["peer", name, str(tmp_path)])
            peer_process.main()
            assert len(json.loads((tmp_path / f"{name}.json").read_text())["stamps"]) == 2
        checksums = []
        for when in ("-first", ""):
            plain, ours = (load_file(tmp_path / f"{name}{when}.safetensors") for name in ("plain", "ours"))
            assert peers.checksum(plain) == peers.checksum(ours)
            checksums.append(peers.checksum(plain))
        assert checksums[0] != checksums[1]
        initial = peer_process.Work(tmp_path, "plain").model().state_dict()
        assert peers.checksum(plain) != peers.checksum(initial)
        assert peers._bytes_up("ours", tmp_path) > sum(value.nbytes for value in plain.values())

    def test_says_which_package_is_missing(self, tmp_path, monkeypatch, capsys):
        def absent(_work):
            raise ModuleNotFoundError("no", name="flwr")

        monkeypatch.setattr(peer_process, "Work", lambda *_args: None)
        monkeypatch.setitem(peer_process.DRIVERS, "flower", absent)
        monkeypatch.setattr(sys, "argv", ["peer", "flower", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            peer_process.main()
        assert ended.value.code == peer_process.MISSING
        assert "flower: the package flwr must be installed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="no /proc/.../smaps_rollup on this system")
def test_memory_grows_with_what_is_held():
    """In a child that does nothing else: this process's own readers come and go."""
    found = []
    for size in (1, 64 * 2**20):
        code = f"held = bytearray(b'x') * {size}; print(flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            found.append(processes.memory(child.pid))
            child.communicate(b"\n")
    assert found[1] - found[0] > 50 * 2**20


class TestScale:
    def test_sites_share_their_files(self, tmp_path):
        first, second = scale.sites(tmp_path, 2)
        listed = [json.loads((tmp_path / name / "dataset.json").read_text()) for name in (first, second)]
        assert listed[0] == listed[1]
        assert {split: len(listed[0][split]) for split in scale.CASES} == scale.CASES
        assert (tmp_path / first / "dataset.json").samefile(tmp_path / second / "dataset.json")

    def test_line_tells_the_growth(self):
        """From 10 to 110 sites 100 KiB more: one KiB each."""
        rows = [
            {"sites": 10, "seconds": 5.0, "peak_bytes": 2**20},
            {"sites": 110, "seconds": 55.0, "peak_bytes": 2**20 + 100 * 2**10},
        ]
        assert scale.line(rows) == "110 sites: 55.0 s, 0.500 s per site, peak 1 MiB, 1.0 KiB per site more"
        assert scale.line(rows[:1]).endswith("peak 1 MiB")

    def test_what_is_measured_is_written(self, tmp_path, monkeypatch):
        row = {"sites": 2, "seconds": 1.0, "peak_bytes": 2**20}
        done = subprocess.CompletedProcess([], 0, stdout=json.dumps(row), stderr="")
        monkeypatch.setattr(scale.subprocess, "run", lambda *_a, **_k: done)
        assert scale.run([2], tmp_path) == [row]
        assert json.loads((tmp_path / "scale.json").read_text())["rows"] == [row]

    def test_rejects_one_site(self):
        with pytest.raises(ValueError, match="sites must be at least 2; got 1"):
            scale.run([1])
