"""The server's workflow.  `Federation` runs the rounds; this sends its messages with FLARE and fires FLARE's events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsDataType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.workflows.model_controller import ModelController

from omnifm.config import Experiment, env_folder
from omnifm.federation.closing import closing_lines
from omnifm.federation.server import Federation
from omnifm.federation.transport import Accept, Transport
from omnifm.method import Tensors
from omnifm.records import Summary
from omnifm.report.numbers import natural
from omnifm.update import Payload, Update
from omnifm_flare import wire
from omnifm_flare.aggregator import OmniAggregator
from omnifm_flare.site_state import experiment_file, find_server_state
from omnifm_flare.transport import Aborted, Exchange, identity_problem, reply_handler

logger = logging.getLogger("omnifm.federation")


class OmniController(ModelController):
    """Runs the job that experiment.json in the job's config folder describes.

    Args:
        persistor_id: id of the component that saves the shared part and the best shared part.
        aggregator_id: id of the component of class OmniAggregator.
    """

    def __init__(self, persistor_id: str = "persistor", aggregator_id: str = "aggregator") -> None:
        super().__init__(persistor_id=persistor_id, ignore_result_error=True, task_check_period=0.1)
        self.aggregator_id = aggregator_id

    def run(self) -> None:
        """Run all rounds.  If the run must end early, FLARE's log gets one line with the reason."""
        wire.register()
        try:
            experiment = Experiment.from_json(experiment_file(self.fl_ctx).read_text())
            results = Path(self.get_run_dir()) / "results"
            transport = FlareTransport(self, experiment)
            summary = Federation(experiment, find_server_state(self.fl_ctx), results, transport).run()
            self._say_how_it_ended(summary, results, transport.sites())
        except Aborted:
            self.warning("the job was aborted; submit the same job again to resume it after its last finished round")
        except ValueError as error:
            self.panic(wire.one_line(str(error)))
        except OSError as error:
            self.panic(f"the server's state or results cannot be read or written: {error.strerror}")
        else:
            if summary["status"] == "FAILED":
                self.panic(wire.one_line(summary["reason"] or "the run failed"))

    def _say_how_it_ended(self, summary: Summary, results: Path, started: list[str]) -> None:
        """Log the status, the score of every site, where the report lies, and which prepared sites were left out."""
        for line in [*closing_lines(summary, results), *not_started(env_folder("OMNIFM_DATA"), started)]:
            logger.info(line)


class FlareTransport(Transport):
    """Sends the payloads of `Federation` as FLARE tasks and fires FLARE's events around its rounds.

    Raises:
        ValueError: the job's aggregator component is not an OmniAggregator, or the job asks for a reference.
    """

    def __init__(self, controller: OmniController, experiment: Experiment) -> None:
        aggregator = controller.get_component(controller.aggregator_id)
        if not isinstance(aggregator, OmniAggregator):
            raise ValueError(
                f"component {controller.aggregator_id!r} must be an OmniAggregator; got {type(aggregator).__name__}"
            )
        if experiment.reference:
            asked = ", ".join(experiment.reference)
            raise ValueError(
                f"a FLARE job trains one method, so that reference must be empty; got {asked}. Leave the key out of "
                "experiment.json, or compare on one computer: omnifm simulate JOB --data FOLDER --set "
                "'reference=[\"local\"]'"
            )
        self.controller = controller
        self.experiment = experiment
        self.aggregator = aggregator
        self._set_property(AppConstants.NUM_ROUNDS, experiment.train.num_rounds)
        self._set_property(AppConstants.CURRENT_ROUND, 0)

    def sites(self) -> list[str]:
        """Names of the job's sites that are not disconnected, sorted."""
        names = (client.name for client in self.controller.engine.get_clients())
        return sorted(name for name in names if not self.controller.get_client_disconnect_time(name))

    def exchange(self, payloads: Mapping[str, Payload], accept: Accept) -> dict[str, str]:
        """Send one task per site.  Training replies pass FLARE's aggregator and its events."""
        train = any(payload.stage == "train" for payload in payloads.values())
        self.aggregator.accept_update = accept
        handler = self._handle_training_reply if train else reply_handler(accept)
        return Exchange(self.controller, self.experiment.train, handler).run(payloads)

    def opened(self, round_number: int, shared: Tensors) -> None:
        """Tell FLARE's components that a round begins with this shared part."""
        self._set_property(AppConstants.CURRENT_ROUND, round_number)
        self._set_property(AppConstants.GLOBAL_MODEL, make_model_learnable(shared, {}))
        self.aggregator.reset_stats()
        self.controller.event(AppEventType.ROUND_STARTED)

    def aggregate(self, combine: Callable[[], Tensors]) -> Tensors:
        """Combine the replies, between the two events to which FLARE's model selector and metric writers react."""
        self.aggregator.combine = combine
        self.controller.event(AppEventType.BEFORE_AGGREGATION)
        result = self.aggregator.aggregate_model()
        result.current_round = self.controller.fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        self.controller.fl_ctx.set_prop(AppConstants.AGGREGATION_RESULT, result, private=True, sticky=False)
        self.controller.event(AppEventType.AFTER_AGGREGATION)
        self.controller.fl_ctx.set_prop(AppConstants.AGGREGATION_RESULT, None, private=True, sticky=False)
        return result.params

    def closed(self, round_number: int, shared: Tensors) -> None:
        """Save the shared part as FLARE's global model, and tell FLARE's components that the round ended."""
        self._set_property(AppConstants.GLOBAL_MODEL, make_model_learnable(shared, {}))
        if shared:
            self.controller.save_model(FLModel(params_type=ParamsType.FULL, params=shared))
        self.controller.event(AppEventType.ROUND_DONE)

    def _handle_training_reply(self, result: Shareable, fl_ctx: FLContext) -> str | None:
        update = wire.to_update(result)
        if problem := identity_problem(update, fl_ctx):
            return problem
        fl_ctx.set_prop(AppConstants.TRAINING_RESULT, result, private=True, sticky=False)
        self.controller.fire_event(AppEventType.BEFORE_CONTRIBUTION_ACCEPT, fl_ctx)
        reason = self.aggregator.accept_model(FLModelUtils.from_shareable(result))
        fl_ctx.set_prop(AppConstants.AGGREGATION_ACCEPTED, reason is None, private=True, sticky=False)
        self.controller.fire_event(AppEventType.AFTER_CONTRIBUTION_ACCEPT, fl_ctx)
        if reason is None:
            self._send_curves(update)
        return reason

    def _send_curves(self, update: Update) -> None:
        """Send loss and scores to TensorBoard.

        The server does it, because the update has passed the site's filters.  Analytics from a site bypass them.
        """
        points = {"train_loss": update.train_loss} | {name: score.mean for name, score in update.after.items()}
        with self.controller.engine.new_context() as fl_ctx:
            for name, value in points.items():
                if value is not None:
                    dxo = create_analytic_dxo(
                        f"{name}/{update.site}", value, AnalyticsDataType.SCALAR, global_step=update.round
                    )
                    send_analytic_dxo(self.controller, dxo, fl_ctx, ANALYTIC_EVENT_TYPE)

    def _set_property(self, key: str, value: object) -> None:
        self.controller.fl_ctx.set_prop(key, value, private=True, sticky=True)


def not_started(data: Path | None, started: Sequence[str]) -> list[str]:
    """A line that names the sites whose data were prepared, and that took no part; none if there is no such site.

    Args:
        data: the folder in OMNIFM_DATA, which only the simulator's server sees; None if it is not set.
    """
    prepared = sorted((file.parent.name for file in data.glob("*/dataset.json")), key=natural) if data else []
    missing = [name for name in prepared if name not in started]
    if not missing:
        return []
    numbered = prepared == [f"site-{number}" for number in range(1, len(prepared) + 1)]
    option = f"-n {len(prepared)}" if numbered else f"-c {','.join(prepared)}"
    return [f"Data were prepared for {', '.join(missing)}, but not started: use nvflare simulator {option}"]
