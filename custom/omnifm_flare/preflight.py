"""FLARE's side of `omnifm preflight`: a hospital's kit as shipped, its certificates, its policy and the way to the
server.  `python -m omnifm_flare.preflight <kit>` prints one JSON object per check.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST

from omnifm.preflight import Check, Doubt, judged

NVFLARE = "2.9.0"
"""The version that every site, the server and the admins must run; requirements.txt pins it."""
EGRESS_FILTER = "omnifm_flare.filters.EgressFilter"
OWN_CLASSES = (
    "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor",
    "omnifm_flare.aggregator.OmniAggregator",
    "omnifm_flare.controller.OmniController",
    "omnifm_flare.executors.OmniExecutor",
    EGRESS_FILTER,
)
"""What our jobs and policies name and FLARE's defaults do not allow; kits allow these beside the defaults."""
FILES = ("fed_client.json", "client.crt", "client.key", "rootCA.pem")
STARTS = ("start.sh", "start_docker.sh", "start_slurm.sh")
DENIED = ("byoc", "shell_commands")
MIN_DAYS = 30
MAX_SKEW_S = 300
TIMEOUT_S = 10.0


def checks(kit: Path) -> Iterator[Check]:
    """Judge a hospital's kit; what needs a file that is missing is left out."""
    startup, local = kit / "startup", kit / "local"
    yield judged("nvflare", version)
    whole = judged("kit", lambda: files(kit))
    yield whole
    if whole.verdict != "FAIL":
        yield judged("certificate", lambda: certificate(startup))
        yield judged("key", lambda: key(startup))
    yield judged("code", lambda: code(read(local, "authorization.json")))
    yield judged("classes", lambda: classes(read(local, "resources.json")))
    yield judged("logs", lambda: logs(read(local, "resources.json"), startup))
    yield judged("filter", lambda: egress(local))
    if whole.verdict != "FAIL":
        yield judged("server", lambda: server(startup))


def version() -> str:
    """One version everywhere: FLARE's messages and policies change between releases."""
    found = metadata.version("nvflare")
    if found != NVFLARE:
        raise ValueError(f"nvflare must be {NVFLARE}, as at every other site; got {found}")
    return found


def files(kit: Path) -> str:
    """Whether everything is there that a start needs."""
    startup = kit / "startup"
    if missing := [name for name in FILES if not (startup / name).is_file()]:
        raise ValueError(f"startup/ must hold {', '.join(FILES)}; a hospital's kit lacks {', '.join(missing)}")
    if not any((startup / name).is_file() for name in STARTS) and not (kit / "helm_chart").is_dir():
        raise ValueError(f"startup/ must hold one of {', '.join(STARTS)}; it has none")
    signed = (startup / "signature.json").is_file()
    return "complete" + (", signed" if signed else "; unsigned, as FLARE leaves kits without encrypted computing")


def certificate(startup: Path) -> str:
    """Issued by this consortium's own authority, to the key beside it, and valid long enough."""
    root, own = (x509.load_pem_x509_certificate((startup / name).read_bytes()) for name in ("rootCA.pem", "client.crt"))
    private = load_pem_private_key((startup / "client.key").read_bytes(), password=None)
    try:
        own.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        raise ValueError("client.crt must be issued by rootCA.pem; it is not") from None
    if private.public_key() != own.public_key():
        raise ValueError("client.key must belong to client.crt; it does not")
    now = datetime.now(UTC)
    if own.not_valid_before_utc > now:
        raise ValueError("client.crt must be valid already; it is not: is this machine's clock right?")
    days, root_days = ((c.not_valid_after_utc - now).days for c in (own, root))
    if min(days, root_days) < MIN_DAYS:
        raise ValueError(f"client.crt and rootCA.pem must be valid {MIN_DAYS} more days; got {days} and {root_days}")
    return f"{_common_name(own.subject)}, {days} days left; authority {root_days} days left"


def key(startup: Path) -> str:
    """Whoever reads the key is the hospital."""
    mode = stat.S_IMODE((startup / "client.key").stat().st_mode)
    if mode & 0o077:
        raise ValueError(f"client.key must be its owner's alone (chmod 600); its mode is {mode:o}")
    return f"mode {mode:o}"


def code(authorization: dict[str, Any]) -> str:
    """Nobody may bring code or a shell command."""
    roles = authorization.get("permissions", {})
    for role, rights in roles.items():
        for right in DENIED:
            granted = rights.get(right, "none") if isinstance(rights, dict) else rights
            if granted != "none":
                raise ValueError(f"authorization.json must deny {right} to {role}; it grants {granted!r}")
    if not roles:
        raise ValueError("authorization.json must say what each role may do; it names no role")
    return f"no role of {len(roles)} may bring code or shell commands"


def classes(resources: dict[str, Any]) -> str:
    """A job may name FLARE's own default classes and ours, nothing else."""
    if (mode := resources.get("class_list_enforcement_mode")) != "enforce":
        raise ValueError(f"class_list_enforcement_mode must be 'enforce'; got {mode!r}")
    allowed, expected = resources.get("class_allow_list") or [], {*DEFAULT_CLASS_ALLOW_LIST, *OWN_CLASSES}
    if foreign := sorted(set(allowed) - expected):
        raise ValueError(f"class_allow_list must hold this release's classes only; got {', '.join(foreign):.200} too")
    if missing := sorted(expected - set(allowed)):
        raise ValueError(f"class_allow_list must hold every class of this release; it lacks {', '.join(missing):.200}")
    return f"{len(expected)} allowed, enforced"


def logs(resources: dict[str, Any], startup: Path) -> str:
    """No log leaves, and exceptions in it say no more than their type."""
    if resources.get("allow_log_streaming") is not False:
        raise ValueError(f"allow_log_streaming must be false; got {resources.get('allow_log_streaming')!r}")
    parts = [str(part.get("id", "")) + str(part.get("path", "")) for part in resources.get("components", [])]
    if any("logstreamer" in part.lower().replace("_", "") for part in parts):
        raise ValueError("components must hold no log streamer; there is one")
    scripts = "".join(path.read_text() for path in startup.glob("*start.sh"))
    if "export NVFLARE_SECURE_LOGGING=true" not in scripts and os.environ.get("NVFLARE_SECURE_LOGGING") != "true":
        raise ValueError("NVFLARE_SECURE_LOGGING must be true in sub_start.sh or in the environment; it is not")
    return "none is streamed; of exceptions only the type is logged"


def egress(local: Path) -> str:
    """Every job's replies pass our filter, whatever the job says."""
    if not (local / "privacy.json").is_file():
        raise ValueError("local/privacy.json must hold the scope with our egress filter; it is missing")
    privacy = read(local, "privacy.json")
    scopes = {scope.get("name"): scope for scope in privacy.get("scopes", [])}
    if privacy.get("default_scope") not in scopes:
        raise ValueError(f"default_scope must be one of the scopes; got {privacy.get('default_scope')!r}")
    for name, scope in scopes.items():
        if EGRESS_FILTER not in [part.get("path") for part in scope.get("task_result_filters", [])]:
            raise ValueError(f"scope {name!r} must filter results with {EGRESS_FILTER}; it does not")
    return f"scope {privacy['default_scope']}: {EGRESS_FILTER} on every reply"


def server(startup: Path) -> str:
    """Reach the server's port as this hospital, see whose it is, and compare clocks."""
    config = read(startup, "fed_client.json")
    if (security := config["client"].get("connection_security")) != "mtls":
        raise ValueError(f"connection_security must be 'mtls'; got {security!r}")
    entry = config["servers"][0]
    host, _, port = entry["service"]["target"].rpartition(":")
    context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
    context.check_hostname = False  # as in FLARE: who it is says the certificate's name, which is compared below
    context.load_cert_chain(startup / "client.crt", startup / "client.key")
    try:
        with socket.create_connection((host, int(port)), TIMEOUT_S) as plain, context.wrap_socket(plain) as tls:
            peer = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
            date = _greet(tls) if entry["service"]["scheme"] in ("http", "https") else None
    except ssl.SSLError as error:
        raise ValueError(f"{host}:{port} must speak TLS with this consortium's certificates: {error.reason}") from None
    except OSError as error:
        words = error.strerror or "no answer"
        raise ValueError(f"{host}:{port} must be reachable from here: {words}; is the server started?") from None
    if (name := _common_name(peer.subject)) != entry["identity"]:
        raise ValueError(f"{host}:{port} must be {entry['identity']}; its certificate says {name}")
    if date is None:
        raise Doubt(f"{name} at {host}:{port}; it told no time, so the clocks were not compared")
    skew = (datetime.now(UTC) - date).total_seconds()
    if abs(skew) > MAX_SKEW_S:
        raise ValueError(f"clocks must be within {MAX_SKEW_S} s of each other; this one is {skew:.0f} s ahead")
    return f"{name} at {host}:{port}, clocks {abs(skew):.0f} s apart"


def _greet(tls: ssl.SSLSocket) -> datetime | None:
    """Ask for a page that does not exist: the refusal carries the server's time."""
    tls.sendall(b"GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
    for line in tls.recv(4096).decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        if name.lower() == "date":
            return parsedate_to_datetime(value.strip())
    return None


def read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a kit; as FLARE does, its `.default` where the site has none of its own."""
    file = folder / name if (folder / name).is_file() else folder / f"{name}.default"
    if not file.is_file():
        raise ValueError(f"the kit must hold {folder.name}/{name}; it is missing")
    try:
        content = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be JSON; got {error.msg} in line {error.lineno}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} must be an object; got {type(content).__name__}")
    return content


def _common_name(subject: x509.Name) -> str:
    return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


if __name__ == "__main__":
    for check in checks(Path(sys.argv[1])):
        print(json.dumps(asdict(check)), flush=True)
