"""The trainer process: real child processes on tiny volumes, killed, aborted, hung, and without a parent."""

import io
import json
import os
import queue
import signal
import subprocess
import sys
import time

import psutil
import pytest

from omnifm.config import SiteConfig
from omnifm.state import encode
from omnifm.update import Payload, Update
from omnifm_flare import trainer_process
from omnifm_flare.cpu_time import IdleTimer, cpu_seconds
from omnifm_flare.trainer import Aborted, Trainer, TrainerError
from tests.conftest import experiment
from tests.processes import alive


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """experiment.json of the tiny job, as a file."""
    record = {
        "job": "tiny",
        "task": {"name": "segmentation", "patch_size": 16},
        "data": {"name": "tiny"},
        "model": {"channels": [4, 8]},
        "method": {"name": "fedavg"},
        "seed": 3,
        "train": {"num_rounds": 2, "local_epochs": 1, "batch_size": 2, "lr": 0.01, "num_threads": 1},
    }
    file = tmp_path_factory.mktemp("job") / "experiment.json"
    file.write_text(json.dumps(record))
    return file


@pytest.fixture(scope="module")
def trainer(job, federation, tmp_path_factory):
    """One trainer for the module: each start takes seconds, and it must replace the processes that tests kill."""
    child = Trainer()
    child.start()
    state = tmp_path_factory.mktemp("state")
    child.configure(job, "site-1", SiteConfig(str(federation / "site-1"), str(state), "cpu"), state / "tiny/exchange")
    yield child
    child.stop()


DESCRIBE = Payload("describe", 0, "run")
SPEC = {"dims": 3, "channels": 1, "labels": ["a", "b"], "spacing_mm": [1, 1, 1], "shape": [16] * 3, "patch": [16] * 3}


@pytest.mark.slow
class TestTrainer:
    def test_answers_and_leaves_no_message_behind(self, trainer):
        update = trainer.ask(DESCRIBE)
        assert (update.site, update.answers, update.facts["num_train"]) == ("site-1", DESCRIBE.digest(), 4)
        assert list(trainer.exchange.iterdir()) == []
        assert trainer.exchange.stat().st_mode & 0o077 == 0

    def test_a_killed_process_costs_one_answer(self, trainer):
        os.kill(trainer.process.pid, signal.SIGKILL)
        with pytest.raises(TrainerError, match=r"^trainer process ended \(signal 9\)$"):
            trainer.ask(DESCRIBE)
        assert trainer.ask(DESCRIBE).site == "site-1"

    def test_a_refusal_is_told_and_survived(self, trainer):
        with pytest.raises(TrainerError, match=r"^refused: the received shared part lacks"):
            trainer.ask(Payload("train", 1, "run", SPEC))
        assert trainer.ask(DESCRIBE).site == "site-1"

    def test_abort_kills_it(self, trainer):
        pid = trainer.process.pid
        os.kill(pid, signal.SIGSTOP)  # it does not answer, like a process in a long training
        with pytest.raises(Aborted):
            trainer.ask(DESCRIBE, lambda: True)
        assert not alive(pid)

    def test_one_that_hangs_is_replaced(self, trainer, monkeypatch):
        monkeypatch.setattr("omnifm_flare.trainer.HUNG_S", 2.0)
        assert trainer.ask(DESCRIBE).site == "site-1"  # the process that the last test killed is replaced
        pid = trainer.process.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TrainerError, match=r"^trainer process hung: no CPU time for 2 s$"):
            trainer.ask(DESCRIBE)
        assert not alive(pid)
        monkeypatch.setattr("omnifm_flare.trainer.HUNG_S", 60.0)
        assert trainer.ask(DESCRIBE).site == "site-1"

    def test_the_work_of_a_process_that_it_started_counts(self):
        """A large image may keep the reader process busy for minutes while the trainer process only waits for it."""
        code = """
import subprocess, sys, threading
burn = "import time\\nwhile time.process_time() < 1: pass\\nprint('done', flush=True); input()"
def start():
    subprocess.Popen([sys.executable, "-c", burn], stdin=sys.stdin, start_new_session=True)
threading.Thread(target=start).start()
print("started", flush=True)
threading.Event().wait()
"""
        trainer = Trainer()
        trainer.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert trainer.process.stdout.readline() == "started\n"
        before = cpu_seconds(trainer.process.pid)
        assert trainer.process.stdout.readline() == "done\n"
        assert cpu_seconds(trainer.process.pid) - before > 0.5
        trainer.stop()
        trainer.process.stdin.close(), trainer.process.stdout.close()

    def test_stop_removes_process_and_folder(self, job, tmp_path):
        trainer = Trainer()
        trainer.start()
        (tmp_path / "exchange").mkdir()
        (tmp_path / "exchange/request.state").write_text("left by an earlier process")
        trainer.configure(job, "site-1", SiteConfig("x", "y"), tmp_path / "exchange")
        assert list(trainer.exchange.iterdir()) == []
        trainer.stop()
        assert trainer.process.poll() == -signal.SIGKILL
        assert not trainer.exchange.exists()

    def test_the_process_ends_with_its_parent(self):
        """Even if the parent is killed while the child still imports its libraries."""
        code = """
import time
from omnifm_flare.cpu_time import IdleTimer, cpu_seconds
from omnifm_flare.trainer import Trainer
trainer = Trainer()
trainer.start()
print(trainer.process.pid, flush=True)
time.sleep(60)
"""
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        child = int(parent.stdout.readline())
        time.sleep(1)
        assert "omnifm_flare.trainer_process" in psutil.Process(child).cmdline()
        parent.kill()
        parent.wait()
        parent.stdout.close()
        end = time.monotonic() + 10
        while alive(child) and time.monotonic() < end:
            time.sleep(0.1)
        assert not alive(child)


def test_the_cpu_time_of_a_process_that_has_ended_is_unknown():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert cpu_seconds(process.pid) is None
    assert IdleTimer(process.pid).idle_s() == 0


class TestServe:
    """The loop of the trainer process, run in this process with a stand-in for the site."""

    def answers(self, monkeypatch, tmp_path, job, reply):
        class Site:
            def __init__(self, experiment, name, config):
                self.name = name

            def reply(self, payload):
                return reply(payload)

        class Done(Exception):
            pass

        monkeypatch.setattr("omnifm.site.stages.Site", Site)
        request = tmp_path / "request.state"
        request.write_bytes(encode(*DESCRIBE.pack()))
        config = {"data_root": "x", "state_dir": str(tmp_path / "state")}
        lines = queue.Queue()
        lines.put(json.dumps({"experiment": str(job), "site": "site-1", "config": config}))
        lines.put(json.dumps({"request": str(request), "reply": str(tmp_path / "reply.state")}))
        answers = io.StringIO()

        def get():
            if lines.empty():
                raise Done
            return lines.get_nowait()

        stub = type("Lines", (), {"get": staticmethod(get)})()
        with pytest.raises(Done):
            trainer_process.serve(stub, answers)
        assert not request.exists()
        return json.loads(answers.getvalue())

    def test_the_reply_is_a_file(self, monkeypatch, tmp_path, job):
        update = Update("site-1", "describe", 0, DESCRIBE.digest())
        assert self.answers(monkeypatch, tmp_path, job, lambda _payload: update) == {"ok": True}
        assert (tmp_path / "reply.state").read_bytes() == encode(*update.pack())

    def test_our_refusals_are_told(self, monkeypatch, tmp_path, job):
        def refuse(_payload):
            experiment(train={"lr": -1.0})

        answer = self.answers(monkeypatch, tmp_path, job, refuse)
        assert answer["reason"].startswith("refused: experiment.json: ")

    @pytest.mark.parametrize("error", [ValueError("/data/DOE^JANE.dcm"), RuntimeError("p17"), MemoryError("p17")])
    def test_of_foreign_errors_only_the_type_is_told(self, monkeypatch, tmp_path, job, error):
        """A library's ValueError may hold a path; ours never does.  The details are kept in the site's own folder."""

        def fail(_payload):
            raise error

        answer = self.answers(monkeypatch, tmp_path, job, fail)
        assert answer["reason"] == f"failed: {type(error).__name__}"
        kept = tmp_path / "state/tiny/last-error.txt"
        assert str(error) in kept.read_text()
        assert kept.stat().st_mode & 0o077 == 0


def test_torch_is_imported_after_the_trainer_has_started():
    """The executor's module must not import torch: the trainer process would start a second later, at every task."""
    code = "import sys, omnifm_flare.filters; print('torch' in sys.modules, 'monai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_hidden_packages_can_be_imported_afterwards():
    code = (
        "from omnifm_flare.trainer_process import _import_monai; _import_monai(); "
        "import matplotlib.pyplot, transformers; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr[-500:]
