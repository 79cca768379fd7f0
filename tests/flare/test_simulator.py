"""Real FLARE processes, about two minutes: the result equals that of one process, also after processes are killed.

With one thread, the simulator starts a new client process for every task; with two threads it keeps one per site.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from omnifm import simulation
from omnifm.config import Experiment
from tests.flare.conftest import Simulator, write_job
from tests.processes import alive

SITES = ["site-1", "site-2"]


def alone(job, federation):
    """Run the same job in this process."""
    record = (job / "app/config/experiment.json").read_text()
    return simulation.run(Experiment.from_json(record), federation, SITES)


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.timeout(600)
class TestSimulator:
    def test_one_thread_gives_the_result_of_one_process(self, tmp_path, federation, tidy):
        job = write_job(tmp_path / "job")
        simulator = Simulator(job, tmp_path / "ws", OMNIFM_DATA=federation)
        tidy.append(simulator)
        summary = simulator.summary()
        assert (summary["status"], sorted(summary["sites"])) == ("COMPLETE", SITES)
        assert summary["final_hash"] == alone(job, federation)["final_hash"]
        self.check_artifacts(simulator, tmp_path / "ws")

    def check_artifacts(self, simulator, ws):
        """FLARE's components wrote their files, and the results hold nothing personal."""
        run = ws / "server/simulate_job"
        model = torch.load(run / "app_server/FL_global_model.pt", weights_only=True)["model"]
        assert all(isinstance(value, torch.Tensor) for value in model.values())
        assert not any("suffix" in name or "head" in name for name in model)
        assert (run / "app_server/best_FL_global_model.pt").exists()
        assert '"name":"site-1"' in (run / "metrics/round_metrics.jsonl").read_text()
        (events,) = (run / "tb_events").rglob("events.*")
        curves = EventAccumulator(str(events.parent)).Reload().Tags()["scalars"]
        assert {"train_loss/site-1", "train_loss/site-2", "dice/site-1"} <= set(curves)
        assert not [p for p in run.rglob("*") if p.suffix == ".state"]
        for site in SITES:
            files = [p for p in (ws / "state" / site).rglob("*") if p.is_file()]
            assert files
            assert all(p.stat().st_mode & 0o077 == 0 for p in files)
        console = simulator.console()
        assert "round 1/1  site-1  loss" in console
        assert "COMPLETE: tiny, method omnifm, 1 round; all sites took part" in console
        assert f"Report:  {simulator.results.resolve()}/report.html" in console
        assert "Traceback" not in console

    def test_a_killed_trainer_costs_one_reply(self, tmp_path, federation, tidy):
        job = write_job(tmp_path / "job", num_rounds=6, local_epochs=4)
        simulator = Simulator(job, tmp_path / "ws", "-n", "2", "-t", "2", OMNIFM_DATA=federation)
        tidy.append(simulator)
        until(lambda: simulator.rounds() >= 1 and simulator.trainers())
        os.kill(simulator.trainers()[0], signal.SIGKILL)
        summary = simulator.summary()
        missing = [entry["missing"] for entry in summary["history"] if entry["missing"]]
        assert (summary["status"], summary["rounds"]["completed"]) == ("SUBSET", 6)
        assert [list(entry.values()) for entry in missing] == [["trainer process ended (signal 9)"]]
        assert sorted(summary["sites"]) == sorted(summary["history"][-1]["sites"]) == SITES

    def test_a_killed_server_resumes_to_the_undisturbed_result(self, tmp_path, federation, tidy):
        job = write_job(tmp_path / "job", num_rounds=6, local_epochs=4)
        state = tmp_path / "state"
        command = (job, tmp_path / "ws", "-n", "2", "-t", "2")
        first = Simulator(*command, OMNIFM_DATA=federation, OMNIFM_STATE=state)
        tidy.append(first)
        until(lambda: first.rounds() >= 2)
        processes = first.descendants()
        os.killpg(first.process.pid, signal.SIGKILL)
        first.wait()
        assert first.rounds() < 6
        until(lambda: not any(alive(pid) for pid in processes), 30)
        second = Simulator(*command, OMNIFM_DATA=federation, OMNIFM_STATE=state)
        tidy.append(second)
        summary = second.summary()
        assert "resumed tiny at round" in second.console()
        assert [entry["round"] for entry in summary["history"]] == list(range(1, 7))
        assert (summary["status"], summary["final_hash"]) == ("COMPLETE", alone(job, federation)["final_hash"])

    def test_a_wrong_configuration_ends_in_one_line(self, tmp_path, tidy):
        job = write_job(tmp_path / "job", learning_rate=0.1)
        simulator = Simulator(job, tmp_path / "ws", "-n", "2", "-t", "2")
        tidy.append(simulator)
        assert simulator.wait() != 0
        console = simulator.console()
        assert "unknown key 'train.learning_rate'" in console
        assert "Traceback" not in console
