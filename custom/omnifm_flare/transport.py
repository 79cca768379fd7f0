"""How payloads reach sites and updates come back over FLARE: one task per site, each with its own payload."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.workflows.model_controller import ModelController

from omnifm.config import Train
from omnifm.federation.server import Accept
from omnifm.update import Payload, Update
from omnifm_flare import wire

POLL_S = 0.1
Take = Callable[[Shareable, FLContext], str | None]
ENDS = {
    TaskCompletionStatus.CLIENT_DEAD: "disconnected",
    TaskCompletionStatus.TIMEOUT: "timeout",
    TaskCompletionStatus.ERROR: "failed: the message could not be sent",
}


class Aborted(Exception):
    """The job is being aborted; its checkpoint stays."""


class Exchange:
    """One round trip to several sites.

    A reply, a failure, a disconnection or the time ends the wait for a site; what comes later is dropped.
    """

    def __init__(self, controller: ModelController, train: Train, take: Take) -> None:
        self.controller, self.train, self.take = controller, train, take
        self.waiting: dict[str, Task] = {}
        self.missing: dict[str, str] = {}
        self.num_accepted, self.quorum_at = 0, float("inf")
        self.changed = threading.Condition()

    def run(self, payloads: Mapping[str, Payload]) -> dict[str, str]:
        """Send and wait; return {site: why nothing was accepted from it}."""
        quorum = min(self.train.min_sites, len(payloads))
        for site, payload in payloads.items():
            self.waiting[site] = Task(payload.stage, wire.from_payload(payload), result_received_cb=self._received)
        for site, task in list(self.waiting.items()):
            self.controller.send(task, self.controller.fl_ctx, targets=[site])
        started = time.monotonic()
        with self.changed:
            while self.waiting:
                self.changed.wait(POLL_S)
                now = time.monotonic()
                if self.num_accepted >= quorum:
                    self.quorum_at = min(self.quorum_at, now)
                late = now - started > self.train.round_timeout_s or now - self.quorum_at > self.train.grace_s
                for site, task in list(self.waiting.items()):
                    if reason := self._over(site, task, late):
                        self._close(site, reason)
                        self.controller.cancel_task(task)
        return self.missing

    def _over(self, site: str, task: Task, late: bool) -> str | None:
        """Why there is nothing more to wait for, if so."""
        if self.controller.abort_signal.triggered:
            raise Aborted
        if self.controller.get_client_disconnect_time(site):
            return "disconnected"
        return ENDS.get(task.completion_status, "timeout" if late else None)

    def _received(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        """FLARE's callback; it holds the server's locks, so it only checks and spools."""
        site, result = client_task.client.name, client_task.result
        client_task.result = None
        with self.changed:
            if site not in self.waiting:
                return
            try:
                reason = wire.failure_reason(result) or self.take(result, fl_ctx)
            except ValueError as error:
                reason = f"refused: {error}"
            except Exception as error:  # noqa: BLE001 - a reply must not be able to stop the server
                reason = f"refused: it cannot be read ({type(error).__name__})"
            self.num_accepted += reason is None
            self._close(site, reason)
            self.changed.notify()

    def _close(self, site: str, reason: str | None) -> None:
        del self.waiting[site]
        if reason is not None:
            self.missing[site] = wire.one_line(reason)


def taker(accept: Accept) -> Take:
    """Open a reply and have it accepted."""

    def take(result: Shareable, fl_ctx: FLContext) -> str | None:
        update = wire.to_update(result)
        return identity_problem(update, fl_ctx) or accept(update)

    return take


def identity_problem(update: Update, fl_ctx: FLContext) -> str | None:
    """A site speaks for itself only: FLARE knows from the certificate who sent this."""
    peer = fl_ctx.get_peer_context()
    return None if peer is not None and peer.get_identity_name() == update.site else "refused: it names another site"
