"""One executor for every task and method: it hands the payload to the trainer process and packs what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from omnifm.config import Experiment, SiteConfig
from omnifm.data import redaction
from omnifm_flare.site_state import experiment_file, find_site
from omnifm_flare.trainer import Aborted, Trainer, TrainerError

if TYPE_CHECKING:
    from omnifm.method import Method

ASKED = "omnifm_asked"
"""FLContext property: (type, shape) of each shared tensor that the server sent, which bound what may go back."""
METHOD = "omnifm_method"
"""FLContext property: the job's Method, which declares what may go back beside them."""
SOURCE = "omnifm_source"
"""FLContext property: "demo" or "site", for the egress filter."""


class OmniExecutor(Executor):
    """Answers describe, seed, train and evaluate.

    It never returns TASK_UNKNOWN or UNSAFE_JOB, which would end the job for everyone: whatever goes wrong costs one
    reply, whose one-line reason names no patient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trainer: Trainer | None = None
        self.method: Method | None = None
        self.source = "site"
        self.problem = "failed: the executor was not started"

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Start the trainer with the run and end it with the run."""
        if event_type == EventType.START_RUN:
            try:
                self._start(fl_ctx)
            except Exception as error:  # noqa: BLE001 - whatever it is costs one reply, not the job
                self.problem = _reason(error)
                self.log_error(fl_ctx, self.problem, fire_event=False)
            from omnifm_flare import wire  # it imports torch: after the trainer's start, so that both import at once

            wire.register()
        elif event_type == EventType.END_RUN and self.trainer is not None:
            self.trainer.stop()
            self.trainer = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Answer one task."""
        from omnifm_flare import wire

        try:
            if self.trainer is None:
                raise TrainerError(self.problem)
            payload = wire.to_payload(shareable)
            asked = {name: (value.dtype, value.shape) for name, value in payload.shared.items()}
            fl_ctx.set_prop(ASKED, asked, private=True, sticky=False)
            fl_ctx.set_prop(METHOD, self.method, private=True, sticky=False)
            fl_ctx.set_prop(SOURCE, self.source, private=True, sticky=False)
            return wire.from_update(self.trainer.ask(payload, lambda: abort_signal.triggered))
        except Aborted:
            return make_reply(ReturnCode.TASK_ABORTED)
        except Exception as error:  # noqa: BLE001 - whatever it is costs one reply, not the job
            reason = _reason(error)
            self.log_warning(fl_ctx, f"no reply to {task_name}: {reason}", fire_event=False)
            return wire.failure(reason)

    def _start(self, fl_ctx: FLContext) -> None:
        redaction.install()
        trainer = Trainer()
        trainer.start()
        try:
            file = experiment_file(fl_ctx)
            experiment = Experiment.from_json(file.read_text())
            config = self._config(fl_ctx, experiment)
            redaction.install(config.data_root, config.state_dir)
            exchange = Path(config.state_dir) / experiment.job / "exchange"
            trainer.configure(file, str(fl_ctx.get_identity_name()), config, exchange)
            from omnifm.plugins import load_method  # it imports torch, while the trainer does

            self.method = load_method(experiment)
        except BaseException:
            trainer.stop()
            raise
        self.trainer, self.source = trainer, config.source

    def _config(self, fl_ctx: FLContext, experiment: Experiment) -> SiteConfig:
        """This site's configuration; what is wrong with it is the site's business, so only its own log says so."""
        try:
            return find_site(fl_ctx, experiment)
        except ValueError as error:
            self.log_warning(fl_ctx, str(error), fire_event=False)
            raise TrainerError("refused: the site's own configuration cannot be used; its log says why") from None


def _reason(error: Exception) -> str:
    """Our own refusals are safe to tell; of anything else only the type is, and the system's number of the error."""
    if isinstance(error, TrainerError):
        return str(error)
    if isinstance(error, ValueError):
        return f"refused: {error}"
    return f"failed: {redaction.kind_of(error)}"
