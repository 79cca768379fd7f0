"""One executor for every task and method: it hands the payload to the trainer process and packs the update."""

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
"""FLContext property: (type, shape) of each shared tensor that the server sent; the reply must have the same."""
METHOD = "omnifm_method"
"""FLContext property: the job's Method, which declares all other tensors and facts that a reply may hold."""
SOURCE = "omnifm_source"
"""FLContext property: "demo" or "site", where the data come from."""


class OmniExecutor(Executor):
    """Answers the stages describe, seed, train and evaluate.

    It never returns TASK_UNKNOWN or UNSAFE_JOB, because these end the job for every site.  After any error it sends a
    one-line reason, which names no patient, instead of an update.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trainer: Trainer | None = None
        self.method: Method | None = None
        self.source = "site"
        self.problem = "failed: the executor was not started"

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Start the trainer process when the run starts, and stop it when the run ends."""
        if event_type == EventType.START_RUN:
            try:
                self._start(fl_ctx)
            except Exception as error:  # noqa: BLE001 - any error costs one reply, not the job
                self.problem = _reason(error)
                self.log_error(fl_ctx, self.problem, fire_event=False)
            from omnifm_flare import wire  # imports torch: after the trainer starts, so that both import at once

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
        except Exception as error:  # noqa: BLE001 - any error costs one reply, not the job
            reason = _reason(error)
            self.log_warning(fl_ctx, f"no update for {task_name}: {reason}", fire_event=False)
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
            from omnifm.plugins import load_method  # imports torch, while the trainer does the same

            self.method = load_method(experiment)
        except BaseException:
            trainer.stop()
            raise
        self.trainer = trainer
        self.source = config.source

    def _config(self, fl_ctx: FLContext, experiment: Experiment) -> SiteConfig:
        """This site's configuration.  What is wrong with it is written to the site's own log only, not sent."""
        try:
            return find_site(fl_ctx, experiment)
        except ValueError as error:
            self.log_warning(fl_ctx, str(error), fire_event=False)
            raise TrainerError("refused: the site's configuration cannot be used; see the site's own log") from None


def _reason(error: Exception) -> str:
    """Our own refusals name no patient, so their text is sent.  Of other errors only type and system text are."""
    if isinstance(error, TrainerError):
        return str(error)
    if isinstance(error, ValueError):
        return f"refused: {error}"
    return f"failed: {redaction.kind_of(error)}"
