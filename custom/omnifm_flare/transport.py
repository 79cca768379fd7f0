"""Send payloads to sites and receive their updates with FLARE: one task per site, each with its own payload."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.workflows.model_controller import ModelController

from omnifm.config import Train
from omnifm.federation.transport import Accept
from omnifm.update import Payload, Update
from omnifm_flare import wire

POLL_S = 0.1
"""Seconds between two checks of time limits, disconnections and abort."""
ReplyHandler = Callable[[Shareable, FLContext], str | None]
"""Takes a site's reply; returns why it is refused, or None if it is accepted."""
END_REASONS = {
    TaskCompletionStatus.CLIENT_DEAD: "disconnected",
    TaskCompletionStatus.TIMEOUT: "timeout",
    TaskCompletionStatus.ERROR: "failed: the message could not be sent",
}
"""Reason why a site has no accepted reply, by the status with which FLARE ended its task."""


class Aborted(Exception):
    """The job is being aborted.  Its checkpoint is kept."""


class Exchange:
    """Sends one payload to each of several sites and collects their replies.

    The wait for a site ends with its reply, its failure, its disconnection or a time limit.  A later reply is dropped.

    Args:
        controller: FLARE's controller, which sends the tasks.
        train: the job's settings, with its time limits.
        handler: takes each reply.
    """

    def __init__(self, controller: ModelController, train: Train, handler: ReplyHandler) -> None:
        self.controller = controller
        self.train = train
        self.handler = handler
        self.waiting: dict[str, Task] = {}
        self.missing: dict[str, str] = {}
        self.num_accepted = 0
        self.quorum_at = float("inf")
        self.changed = threading.Condition()

    def run(self, payloads: Mapping[str, Payload]) -> dict[str, str]:
        """Send the payloads and wait; return {site: reason} for each site without an accepted reply.

        Raises:
            Aborted: the job is being aborted.
        """
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
                expired = now - started > self.train.round_timeout_s or now - self.quorum_at > self.train.grace_s
                for site, task in list(self.waiting.items()):
                    if reason := self._end_reason(site, task, expired):
                        self._close(site, reason)
                        self.controller.cancel_task(task)
        return self.missing

    def _end_reason(self, site: str, task: Task, expired: bool) -> str | None:
        """Why to stop waiting for the site, or None to go on."""
        if self.controller.abort_signal.triggered:
            raise Aborted
        if self.controller.get_client_disconnect_time(site):
            return "disconnected"
        return END_REASONS.get(task.completion_status, "timeout" if expired else None)

    def _received(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        """FLARE calls this for each reply.  It holds FLARE's locks, so it only checks and stores the reply."""
        site = client_task.client.name
        result = client_task.result
        client_task.result = None
        with self.changed:
            if site not in self.waiting:
                return
            try:
                reason = wire.failure_reason(result) or self.handler(result, fl_ctx)
            except ValueError as error:
                reason = f"refused: {error}"
            except Exception as error:  # noqa: BLE001 - no reply may stop the server
                reason = f"refused: the reply cannot be read ({type(error).__name__})"
            self.num_accepted += reason is None
            self._close(site, reason)
            self.changed.notify()

    def _close(self, site: str, reason: str | None) -> None:
        del self.waiting[site]
        if reason is not None:
            self.missing[site] = wire.one_line(reason)


def reply_handler(accept: Accept) -> ReplyHandler:
    """A handler that opens a reply, checks who sent it, and hands it to `accept`."""

    def handle(result: Shareable, fl_ctx: FLContext) -> str | None:
        update = wire.to_update(result)
        return identity_problem(update, fl_ctx) or accept(update)

    return handle


def identity_problem(update: Update, fl_ctx: FLContext) -> str | None:
    """Refuse a reply in another site's name; FLARE knows the sender from its certificate."""
    peer = fl_ctx.get_peer_context()
    if peer is not None and peer.get_identity_name() == update.site:
        return None
    return "refused: the reply names another site than the one that sent it"
