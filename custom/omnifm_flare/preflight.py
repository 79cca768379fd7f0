"""The part of `omnifm preflight` that needs FLARE: the startup kit, its certificates and policies, and the server.

`python -m omnifm_flare.preflight <kit>` prints one JSON object per check.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST

from omnifm.preflight import Check, judged
from omnifm_flare.kit_files import objects, read
from omnifm_flare.server_check import common_name, server

NVFLARE = "2.9.0"
"""The version of nvflare that every site, the server and the admins must run; requirements.txt pins it."""
EGRESS_FILTER = "omnifm_flare.filters.EgressFilter"
OWN_CLASSES = (
    "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor",
    "omnifm_flare.aggregator.OmniAggregator",
    "omnifm_flare.controller.OmniController",
    "omnifm_flare.executors.OmniExecutor",
    EGRESS_FILTER,
)
"""Classes that our jobs and policies name and that FLARE does not allow by default.  Kits allow them as well."""
FILES = ("fed_client.json", "client.crt", "client.key", "rootCA.pem")
"""Files that every kit of a hospital holds in startup/."""
STARTS = ("start.sh", "start_docker.sh", "start_slurm.sh")
"""Start scripts, of which a kit holds one."""
DENIED = ("byoc", "shell_commands")
"""Rights that no role may have; FLARE calls code that a job brings "byoc" (bring your own code)."""
MIN_DAYS = 30
"""Days for which certificates must still be valid."""
AGAIN = "ask the consortium lead to provision again, and replace the file by the new kit's"
"""What to do about a policy file that this release cannot use."""


def checks(kit: Path) -> Iterator[Check]:
    """Check a hospital's kit.  Without the files of `startup/`, the checks that need them are left out."""
    startup, local = kit / "startup", kit / "local"
    yield judged("nvflare", version)
    complete = judged("kit", lambda: files(kit))
    yield complete
    if complete.verdict != "FAIL":
        yield judged("certificate", lambda: certificate(startup))
        yield judged("key", lambda: key(startup))
    yield judged("code", lambda: code(read(local, "authorization.json")))
    yield judged("classes", lambda: classes(read(local, "resources.json")))
    yield judged("logs", lambda: logs(read(local, "resources.json"), startup))
    yield judged("filter", lambda: egress(local))
    if complete.verdict != "FAIL":
        yield judged("server", lambda: server(startup))


def version() -> str:
    """Check that nvflare has the version of all sites; messages and policies change between its releases."""
    found = metadata.version("nvflare")
    if found != NVFLARE:
        raise ValueError(f"nvflare must be {NVFLARE}, as at every site; got {found}: install requirements.txt again")
    return found


def files(kit: Path) -> str:
    """Check that the kit holds all files that it needs to start."""
    startup = kit / "startup"
    if missing := [name for name in FILES if not (startup / name).is_file()]:
        raise ValueError(f"startup/ of a hospital's kit must hold {', '.join(FILES)}; it lacks {', '.join(missing)}")
    if not any((startup / name).is_file() for name in STARTS) and not (kit / "helm_chart").is_dir():
        raise ValueError(f"startup/ must hold one of {', '.join(STARTS)}; it holds none")
    signed = (startup / "signature.json").is_file()
    return "complete" + (", signed" if signed else "; unsigned, as FLARE signs only kits for confidential computing")


def certificate(startup: Path) -> str:
    """Check that the certificate is issued by the kit's authority, belongs to its key, and is valid long enough."""
    root = x509.load_pem_x509_certificate((startup / "rootCA.pem").read_bytes())
    own = x509.load_pem_x509_certificate((startup / "client.crt").read_bytes())
    private = load_pem_private_key((startup / "client.key").read_bytes(), password=None)
    try:
        own.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        raise ValueError("client.crt must be issued by rootCA.pem; it is not: use the files of one kit") from None
    if private.public_key() != own.public_key():
        raise ValueError("client.key must belong to client.crt; it does not: use the files of one kit")
    now = datetime.now(UTC)
    if own.not_valid_before_utc > now:
        raise ValueError("client.crt must be valid now; its time has not begun: is this machine's clock right?")
    days = (own.not_valid_after_utc - now).days
    root_days = (root.not_valid_after_utc - now).days
    if min(days, root_days) < MIN_DAYS:
        raise ValueError(
            f"client.crt and rootCA.pem must be valid {MIN_DAYS} more days; got {days} and {root_days}: "
            "ask the consortium lead for a new kit"
        )
    return f"{common_name(own.subject)}, {days} days left; authority {root_days} days left"


def key(startup: Path) -> str:
    """Check that only its owner can read the private key: who has it can act as this hospital."""
    mode = stat.S_IMODE((startup / "client.key").stat().st_mode)
    if mode & 0o077:
        raise ValueError(f"client.key must be readable by its owner only; its mode is {mode:o}: run chmod 600")
    return f"mode {mode:o}"


def code(authorization: Mapping[str, object]) -> str:
    """Check that nobody may submit code or a shell command."""
    roles = authorization.get("permissions")
    if not isinstance(roles, dict) or not roles:
        raise ValueError("authorization.json must say what each role may do; it names no role")
    for role, rights in roles.items():
        for right in DENIED:
            granted = rights.get(right, "none") if isinstance(rights, dict) else rights
            if granted != "none":
                raise ValueError(f"authorization.json must deny {right} to {role}; it grants {granted!r}: {AGAIN}")
    return f"none of {len(roles)} roles may submit code or shell commands"


def classes(resources: Mapping[str, object]) -> str:
    """Check that a job may use FLARE's default classes and ours, and no other."""
    if (mode := resources.get("class_list_enforcement_mode")) != "enforce":
        raise ValueError(f"class_list_enforcement_mode must be 'enforce'; got {mode!r}: {AGAIN}")
    listed = resources.get("class_allow_list")
    allowed = {str(name) for name in listed} if isinstance(listed, list) else set()
    expected = {*DEFAULT_CLASS_ALLOW_LIST, *OWN_CLASSES}
    if foreign := sorted(allowed - expected):
        raise ValueError(f"class_allow_list must hold this release's classes only; got {_joined(foreign)} too: {AGAIN}")
    if missing := sorted(expected - allowed):
        raise ValueError(
            f"class_allow_list must hold every class of this release; it lacks {_joined(missing)}: {AGAIN}"
        )
    return f"{len(expected)} allowed, enforced"


def _joined(names: list[str]) -> str:
    return f"{', '.join(names):.200}"


def logs(resources: Mapping[str, object], startup: Path) -> str:
    """Check that no log leaves the site, and that logs show only the type of an exception."""
    if resources.get("allow_log_streaming") is not False:
        raise ValueError(f"allow_log_streaming must be false; got {resources.get('allow_log_streaming')!r}: {AGAIN}")
    parts = [f"{part.get('id', '')}{part.get('path', '')}" for part in objects(resources.get("components"))]
    if any("logstreamer" in part.lower().replace("_", "") for part in parts):
        raise ValueError(f"components must hold no log streamer; there is one: {AGAIN}")
    scripts = "".join(path.read_text() for path in startup.glob("*start.sh"))
    if "export NVFLARE_SECURE_LOGGING=true" not in scripts and os.environ.get("NVFLARE_SECURE_LOGGING") != "true":
        raise ValueError("NVFLARE_SECURE_LOGGING must be true in startup/sub_start.sh or in the environment; it is not")
    return "none is streamed; of exceptions only the type is logged"


def egress(local: Path) -> str:
    """Check that every job's replies pass our egress filter, whatever the job configures."""
    if not (local / "privacy.json").is_file():
        raise ValueError(f"local/privacy.json must hold the scope with our egress filter; it is missing: {AGAIN}")
    privacy = read(local, "privacy.json")
    scopes = {scope.get("name"): scope for scope in objects(privacy.get("scopes"))}
    default = privacy.get("default_scope")
    if default not in scopes:
        raise ValueError(f"default_scope in privacy.json must be one of its scopes; got {default!r}: {AGAIN}")
    for name, scope in scopes.items():
        if EGRESS_FILTER not in [part.get("path") for part in objects(scope.get("task_result_filters"))]:
            raise ValueError(f"scope {name!r} must filter results with {EGRESS_FILTER}; it does not: {AGAIN}")
    return f"scope {default}: {EGRESS_FILTER} on every reply"


if __name__ == "__main__":
    for check in checks(Path(sys.argv[1])):
        print(json.dumps(asdict(check)), flush=True)
