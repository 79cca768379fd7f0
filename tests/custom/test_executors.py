"""The executor with a stand-in for the trainer: any error costs one reply, whose reason names no patient."""

import pytest
import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal

from omnifm.config import SiteConfig
from omnifm.update import Payload, Update
from omnifm_flare import executors, wire
from omnifm_flare.executors import ASKED, METHOD, SOURCE, OmniExecutor
from omnifm_flare.trainer import Aborted, TrainerError

PAYLOAD = Payload("train", 1, "run", {}, {"w": torch.ones(2)})


class FakeTrainer:
    """Answers with an update, or raises."""

    def __init__(self, outcome=None):
        self.outcome, self.running = outcome, True

    def ask(self, payload, aborted):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return Update("site-1", payload.stage, payload.round, payload.digest(), shared=payload.shared)

    def start(self):
        pass

    def configure(self, *_args):
        pass

    def stop(self):
        self.running = False


def ask(outcome=None):
    executor, fl_ctx = OmniExecutor(), FLContext()
    executor.trainer = FakeTrainer(outcome)
    return executor.execute("train", wire.from_payload(PAYLOAD), fl_ctx, Signal()), fl_ctx


class TestExecute:
    def test_the_answer_belongs_to_the_request(self):
        reply, fl_ctx = ask()
        assert wire.to_update(reply).answers == PAYLOAD.digest()
        assert fl_ctx.get_prop(ASKED) == {"w": (torch.float32, torch.Size([2]))}
        assert (fl_ctx.get_prop(METHOD), fl_ctx.get_prop(SOURCE)) == (None, "site")

    @pytest.mark.parametrize(
        ("outcome", "reason"),
        [
            (
                TrainerError("trainer process ended (signal 9)"),
                "trainer process ended (signal 9)",
            ),
            (OSError("/data/DOE^JANE"), "failed: OSError"),
            (OSError(28, "of /data/DOE^JANE", "/data/DOE^JANE"), "failed: OSError (No space left on device)"),
            (RuntimeError("/data/DOE^JANE"), "failed: RuntimeError"),  # FLARE would log the text and call it an abort
        ],
    )
    def test_a_failure_is_one_line_without_details(self, outcome, reason):
        reply, _ = ask(outcome)
        assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
        assert wire.failure_reason(reply) == reason

    def test_abort(self):
        assert ask(Aborted())[0].get_return_code() == ReturnCode.TASK_ABORTED

    def test_a_message_that_cannot_be_opened(self):
        executor = OmniExecutor()
        executor.trainer = FakeTrainer()
        reply = executor.execute("train", wire.failure("x"), FLContext(), Signal())
        assert wire.failure_reason(reply).startswith("refused: the shareable is not a valid DXO")

    def test_without_a_trainer_it_says_why(self):
        reply = OmniExecutor().execute("train", wire.from_payload(PAYLOAD), FLContext(), Signal())
        assert wire.failure_reason(reply) == "failed: the executor was not started"


class TestRun:
    def start(self, monkeypatch, tmp_path, find):
        file = tmp_path / "experiment.json"
        file.write_text("""{"job": "tiny", "task": {"name": "segmentation"}, "data": {"name": "x"},
            "method": {"name": "fedavg"},
            "train": {"num_rounds": 1, "local_epochs": 1, "batch_size": 1, "lr": 0.1}}""")
        made = []
        monkeypatch.setattr(executors, "Trainer", lambda: made.append(FakeTrainer()) or made[-1])
        monkeypatch.setattr(executors, "experiment_file", lambda _fl_ctx: file)
        monkeypatch.setattr(executors, "find_site", find)
        executor = OmniExecutor()
        executor.handle_event(EventType.START_RUN, FLContext())
        return executor, made[0]

    def test_starts_and_ends_with_the_run(self, monkeypatch, tmp_path):
        config = SiteConfig("x", str(tmp_path), source="demo")
        executor, trainer = self.start(monkeypatch, tmp_path, lambda *_args: config)
        assert (executor.trainer, executor.source) == (trainer, "demo")
        assert type(executor.method).__name__ == "FedAvg"
        executor.handle_event(EventType.END_RUN, FLContext())
        assert not trainer.running

    def test_a_wrong_site_configuration_is_told_without_its_content(self, monkeypatch, tmp_path):
        def refuse(*_args):
            raise ValueError("omnifm_site.json: data_root: got '/mnt/ward-7'")

        executor, trainer = self.start(monkeypatch, tmp_path, refuse)
        assert not trainer.running
        reply = executor.execute("describe", wire.from_payload(PAYLOAD), FLContext(), Signal())
        assert wire.failure_reason(reply) == "refused: the site's configuration cannot be used; see the site's own log"
