"""One exchange without FLARE's processes: which sites replied, why others did not, and when the wait ends."""

import threading
import time

import pytest
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, TaskCompletionStatus
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import make_reply
from nvflare.apis.signal import Signal

from omnifm.config import Train
from omnifm.update import Payload, Update
from omnifm_flare import wire
from omnifm_flare.transport import Aborted, Exchange, reply_handler


class Server:
    """Stands in for FLARE's controller; `clients` says how each site reacts to its task."""

    def __init__(self, **clients):
        self.clients, self.fl_ctx, self.abort_signal = clients, None, Signal()
        self.cancelled, self.tasks = [], {}

    def send(self, task, fl_ctx, targets):
        (site,) = targets
        self.tasks[site] = task
        react = self.clients.get(site)
        if react is not None:
            threading.Timer(0.05, lambda: self.receive(site, react(task))).start()

    def receive(self, site, result):
        if result is None:
            return
        done = ClientTask(Client(site, ""), self.tasks[site])
        done.result = result
        self.tasks[site].result_received_cb(done, peer(site))

    def cancel_task(self, task):
        self.cancelled.append(task)

    def get_client_disconnect_time(self, site):
        return 1.0 if self.clients.get(site) == "gone" else None


def peer(site):
    fl_ctx, other = FLContext(), FLContext()
    other.set_prop(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
    fl_ctx.set_peer_context(other)
    return fl_ctx


def answer(site, reason=None):
    def react(_task):
        return wire.failure(reason) if reason else wire.from_update(Update(site, "train", 1, "x", num_samples=1))

    return react


def exchange(server, sites, accept=lambda _update: None, **train):
    settings = Train(num_rounds=1, local_epochs=1, batch_size=1, lr=0.1, **{"round_timeout_s": 5.0} | train)
    payloads = {site: Payload("train", 1, f"run of {site}") for site in sites}
    return Exchange(server, settings, reply_handler(accept)).run(payloads)


class TestExchange:
    def test_every_site_gets_its_own_payload(self):
        server = Server(a=answer("a"), b=answer("b"))
        taken = []
        assert exchange(server, ["a", "b"], lambda update: taken.append(update.site)) == {}
        assert sorted(taken) == ["a", "b"]
        assert {site: wire.to_payload(t.data).run_id for site, t in server.tasks.items()} == {
            "a": "run of a",
            "b": "run of b",
        }

    def test_each_failure_has_a_short_reason(self):
        server = Server(
            a=answer("a"),
            b=answer("b", "trainer process ended (signal 9)"),
            c=answer("b"),
            d=lambda _task: make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR),
            e=lambda _task: make_reply(ReturnCode.OK),
            f="gone",
        )
        server.clients["f"] = None
        server.get_client_disconnect_time = lambda site: 1.0 if site == "f" else None
        missing = exchange(server, list("abcdef"))
        assert missing.pop("e").startswith("refused: the shareable is not a valid DXO")
        assert missing == {
            "b": "trainer process ended (signal 9)",
            "c": "refused: the reply names another site than the one that sent it",
            "d": "withheld by the site's own filter",
            "f": "disconnected",
        }
        assert server.cancelled == [server.tasks["f"]]

    def test_what_the_federation_refuses_is_missing(self):
        assert exchange(Server(a=answer("a")), ["a"], lambda _update: "its manifest differs") == {
            "a": "its manifest differs"
        }

    def test_an_error_while_accepting_does_not_end_the_server(self):
        def broken(_update):
            raise TypeError("secret")

        assert exchange(Server(a=answer("a")), ["a"], broken) == {"a": "refused: the reply cannot be read (TypeError)"}

    def test_the_round_closes_at_its_timeout(self):
        started = time.monotonic()
        assert exchange(Server(a=answer("a"), b=None), ["a", "b"], round_timeout_s=0.4) == {"b": "timeout"}
        assert 0.4 <= time.monotonic() - started < 2

    def test_grace_starts_when_enough_have_replied(self):
        server = Server(a=answer("a"), b=answer("b"), c=None)
        assert exchange(server, list("abc"), min_sites=2, grace_s=0.2) == {"c": "timeout"}

    def test_without_a_quorum_grace_does_not_start(self):
        server = Server(a=answer("a"), b=lambda _t: time.sleep(0.6) or answer("b")(None))
        assert exchange(server, ["a", "b"], min_sites=2, grace_s=0.1) == {}

    def test_a_late_reply_is_dropped(self):
        server, taken = Server(a=None), []
        assert exchange(server, ["a"], lambda update: taken.append(update.site), round_timeout_s=0.2) == {
            "a": "timeout"
        }
        server.receive("a", answer("a")(None))
        assert taken == []

    def test_a_second_reply_is_dropped(self):
        server, taken = Server(a=answer("a"), b=None), []
        server.clients["b"] = lambda task: server.receive("a", answer("a")(task)) or answer("b")(task)
        exchange(server, ["a", "b"], lambda update: taken.append(update.site))
        assert sorted(taken) == ["a", "b"]

    def test_a_task_that_flare_ended(self):
        server = Server(a=None)
        server.clients["a"] = lambda task: setattr(task, "completion_status", TaskCompletionStatus.CLIENT_DEAD)
        assert exchange(server, ["a"]) == {"a": "disconnected"}

    def test_abort_ends_the_wait(self):
        server = Server(a=None)
        server.abort_signal.trigger(True)
        with pytest.raises(Aborted):
            exchange(server, ["a"])
