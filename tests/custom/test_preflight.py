"""Each check passes on a kit as provisioned, and fails on a copy in which one thing was changed."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from omnifm.preflight import Check
from omnifm_flare import preflight
from tests.conftest import ROOT
from tests.provisioning.kits import HOSPITALS, SERVER, provision


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return provision(tmp_path_factory.mktemp("provision"))


@pytest.fixture
def kit(kits: Path, tmp_path: Path) -> Path:
    """A copy of a hospital's kit that a test may change."""
    return Path(shutil.copytree(kits / HOSPITALS[0], tmp_path / "kit"))


def edit(file: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Change a JSON file of a kit."""

    def apply(kit: Path) -> None:
        content = json.loads((kit / file).read_text())
        change(content)
        (kit / file).write_text(json.dumps(content))

    return apply


def resources(**values: object) -> Callable[[Path], None]:
    return edit("local/resources.json", lambda content: content.update(values))


def no_export(kit: Path) -> None:
    script = kit / "startup/sub_start.sh"
    script.write_text(script.read_text().replace("export NVFLARE_SECURE_LOGGING=true", ""))


def verdict(kit: Path, name: str) -> Check:
    (found,) = (check for check in preflight.checks(kit) if check.name == name)
    return found


class TestAsShipped:
    def test_only_the_server_that_nobody_started_is_missing(self, kit):
        found = {check.name: check for check in preflight.checks(kit)}
        assert {name for name, check in found.items() if check.verdict != "ok"} == {"server"}
        assert "is the server started?" in found["server"].value
        assert "hospital-a, 359 days left; authority 3649 days left" in found["certificate"].value

    def test_the_version_is_the_pinned_one(self):
        assert f"nvflare=={preflight.NVFLARE}" in (ROOT / "requirements.txt").read_text().splitlines()


BROKEN = {
    "no root": ("kit", lambda kit: (kit / "startup/rootCA.pem").unlink(), "lacks rootCA.pem"),
    "no start": ("kit", lambda kit: (kit / "startup/start.sh").unlink(), "it holds none"),
    "another root": (
        "certificate",
        lambda kit: shutil.copy(kit / "startup/client.crt", kit / "startup/rootCA.pem"),
        "client.crt must be issued by rootCA.pem; it is not",
    ),
    "open key": ("key", lambda kit: (kit / "startup/client.key").chmod(0o640), "its mode is 640"),
    "code from the lead": (
        "code",
        edit("local/authorization.json", lambda c: c["permissions"]["lead"].update(byoc="any")),
        "authorization.json must deny byoc to lead; it grants 'any'",
    ),
    "everything to the admin": (
        "code",
        edit("local/authorization.json", lambda c: c["permissions"].update(project_admin="any")),
        "must deny byoc to project_admin; it grants 'any'",
    ),
    "no roles": ("code", edit("local/authorization.json", lambda c: c.update(permissions={})), "it names no role"),
    "warn": ("classes", resources(class_list_enforcement_mode="warn"), "must be 'enforce'; got 'warn'"),
    "every class": (
        "classes",
        edit("local/resources.json", lambda c: c["class_allow_list"].append("*")),
        r"got \* too",
    ),
    "a class less": (
        "classes",
        edit("local/resources.json", lambda c: c["class_allow_list"].pop()),
        "it lacks omnifm_flare.filters.EgressFilter",
    ),
    "streaming": ("logs", resources(allow_log_streaming=True), "allow_log_streaming must be false; got True"),
    "a streamer": (
        "logs",
        edit("local/resources.json", lambda c: c["components"].append({"id": "site_log_streamer", "path": "x"})),
        "components must hold no log streamer",
    ),
    "talkative exceptions": ("logs", no_export, "NVFLARE_SECURE_LOGGING must be true"),
    "no privacy": ("filter", lambda kit: (kit / "local/privacy.json").unlink(), "it is missing"),
    "no filter": (
        "filter",
        edit("local/privacy.json", lambda c: c["scopes"][0].update(task_result_filters=[])),
        "scope 'omnifm' must filter results with omnifm_flare.filters.EgressFilter",
    ),
    "no scope": ("filter", edit("local/privacy.json", lambda c: c.update(default_scope="other")), "got 'other'"),
    "no JSON": ("filter", lambda kit: (kit / "local/privacy.json").write_text("{"), "privacy.json must be JSON"),
    "half TLS": (
        "server",
        edit("startup/fed_client.json", lambda c: c["client"].update(connection_security="tls")),
        "connection_security in fed_client.json must be 'mtls'; got 'tls'",
    ),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_broken_kit_fails_its_check(kit, case, monkeypatch):
    monkeypatch.delenv("NVFLARE_SECURE_LOGGING", raising=False)
    name, breaks, words = BROKEN[case]
    assert verdict(kit, name).verdict in ("ok", "FAIL")
    breaks(kit)
    found = verdict(kit, name)
    assert found.verdict == "FAIL"
    assert re.search(words, found.value)


class TestCertificate:
    def test_fails_a_month_before_it_ends(self, kit, monkeypatch):
        monkeypatch.setattr(preflight, "MIN_DAYS", 360)
        assert "must be valid 360 more days; got 359 and 3649: ask" in verdict(kit, "certificate").value

    def test_fails_with_another_hospitals_key(self, kit, kits):
        shutil.copy(kits / HOSPITALS[1] / "startup/client.key", kit / "startup/client.key")
        assert verdict(kit, "certificate").value.startswith("client.key must belong to client.crt; it does not")

    def test_fails_where_the_clock_is_behind(self, kit, monkeypatch):
        class Past(preflight.datetime):
            @classmethod
            def now(cls, tz=None):
                return super().now(tz).replace(year=2020)

        monkeypatch.setattr(preflight, "datetime", Past)
        assert "is this machine's clock right?" in verdict(kit, "certificate").value


@pytest.fixture
def listening(kits: Path, kit: Path) -> Iterator[type[BaseHTTPRequestHandler]]:
    """A running server with the consortium's certificate, which the kit names; a test may change its handler."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    startup = kits / SERVER / "startup"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(startup / "rootCA.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(startup / "server.crt", startup / "server.key")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    target = f"localhost:{server.server_port}"
    edit("startup/fed_client.json", lambda c: c["servers"][0]["service"].update(target=target))(kit)
    yield Handler
    server.shutdown()
    server.server_close()


class TestServer:
    def test_is_reached_as_this_hospital(self, kit, listening):
        found = verdict(kit, "server")
        assert found.verdict == "ok"
        assert found.value.startswith(f"{SERVER} at localhost:")
        assert found.value.endswith("clocks 0 s apart") or found.value.endswith("clocks 1 s apart")

    def test_must_be_who_the_kit_says(self, kit, listening):
        edit("startup/fed_client.json", lambda c: c["servers"][0].update(identity="server.other.example"))(kit)
        assert f"must be server.other.example; its certificate says {SERVER}" in verdict(kit, "server").value

    def test_must_hold_a_certificate_of_this_consortium(self, kit, listening, tmp_path):
        other = provision(tmp_path / "other") / HOSPITALS[0] / "startup"
        for name in ("rootCA.pem", "client.crt", "client.key"):
            shutil.copy(other / name, kit / "startup" / name)
        assert "must speak TLS with this consortium's certificates" in verdict(kit, "server").value

    def test_must_live_at_the_same_time(self, kit, listening):
        listening.date_time_string = lambda self, timestamp=None: "Mon, 01 Jan 2024 00:00:00 GMT"
        assert "clocks must be within 300 s of each other" in verdict(kit, "server").value

    def test_that_tells_no_time_is_doubted(self, kit, listening):
        listening.date_time_string = lambda self, timestamp=None: ""
        listening.send_header = lambda self, name, value: None
        found = verdict(kit, "server")
        assert (found.verdict, "the clocks were not compared" in found.value) == ("warn", True)
