"""Write our policy into FLARE's kits: allowed classes, stores, rights, egress filter, sealed jobs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.lighter.constants import AdminRole
from nvflare.lighter.entity import Project
from nvflare.lighter.spec import Builder, ProvisionContext

from omnifm_flare.preflight import EGRESS_FILTER, OWN_CLASSES

ROOT = Path(__file__).resolve().parents[1]
JOBS = ROOT / "jobs"
SITE = Path(__file__).resolve().parent / "site"
SUBMITTERS = (AdminRole.PROJECT_ADMIN, AdminRole.LEAD)
"""Roles that may submit jobs."""
HEART_BEATS_S = (60, 120)
RENEW_DAYS = (30, 330)
SECURE_LOGGING = """
# The text of an exception may name a patient, so FLARE must log only the exception's type.
export NVFLARE_SECURE_LOGGING=true
"""


class OmniFMBuilder(Builder):
    """Writes our policy into every kit.  It must come after FLARE's StaticFileBuilder and before its CertBuilder.

    Args:
        heart_beat_timeout_s: seconds without a message after which the server counts a hospital as disconnected,
            60 to 120.
        renew_days: certificates that end within this number of days are renewed, 30 to 330.  FLARE alone never
            renews a certificate.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, heart_beat_timeout_s: int = 90, renew_days: int = 90) -> None:
        low, high = HEART_BEATS_S
        if not low <= heart_beat_timeout_s <= high:
            raise ValueError(f"heart_beat_timeout_s must be {low} to {high}; got {heart_beat_timeout_s}")
        low, high = RENEW_DAYS
        if not low <= renew_days <= high:
            raise ValueError(f"renew_days must be {low} to {high}; got {renew_days}")
        self.heart_beat_timeout_s = heart_beat_timeout_s
        self.renew_days = renew_days

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Delete the certificates that end soon from the state, so that CertBuilder then makes new ones."""
        file = Path(ctx.get_state_dir()) / "cert.json"
        if file.exists():
            state = json.loads(file.read_text())
            ending = [name for name, kept in state.items() if isinstance(kept, dict) and self._ends_soon(kept["cert"])]
            _write(file, {name: kept for name, kept in state.items() if name not in ending})
            ctx.info(f"Certificates renewed: {', '.join(ending) or 'none'}")

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Let only the owner read the state: it holds every participant's private key."""
        state = Path(ctx.get_state_dir())
        state.chmod(0o700)
        for file in state.iterdir():
            file.chmod(0o600)

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Write our policy files into each participant's kit."""
        local = Path(ctx.get_local_dir(project.get_server()))
        self._write_resources(local, server=True)
        _write(local / "authorization.json", _authorization(local))
        shutil.copy(SITE / "study_runtime.yaml.sample", local)
        for hospital in project.get_clients():
            local = Path(ctx.get_local_dir(hospital))
            self._write_resources(local, server=False)
            _write(local / "authorization.json", _authorization(local))
            _write(local / "privacy.json", _privacy())
            _log_types_only(Path(ctx.get_kit_dir(hospital)) / "sub_start.sh")
            for sample in SITE.glob("*.sample"):
                shutil.copy(sample, local)
        for admin in project.get_admins():
            if admin.get_prop("role") in SUBMITTERS:
                seal_jobs(Path(ctx.get_transfer_dir(admin)))

    def _ends_soon(self, certificate: str) -> bool:
        end = x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc
        return end - datetime.now(UTC) < timedelta(days=self.renew_days)

    def _write_resources(self, local: Path, *, server: bool) -> None:
        """Write `resources.json`, which FLARE reads, and its default, which `nvflare deploy prepare` reads."""
        resources = json.loads((local / "resources.json.default").read_text())
        resources["class_list_enforcement_mode"] = "enforce"
        resources["class_allow_list"] = [*DEFAULT_CLASS_ALLOW_LIST, *OWN_CLASSES]
        if server:
            for entry in resources["servers"]:
                entry["heart_beat_timeout"] = self.heart_beat_timeout_s
            resources["snapshot_persistor"]["args"]["storage"] = _store("snapshot-storage")
            (manager,) = (part for part in resources["components"] if part["id"] == "job_manager")
            manager["args"]["uri_root"] = "jobs-storage"
            (store,) = (part for part in resources["components"] if part["id"] == "job_store")
            store |= _store(".")
        else:
            resources["allow_log_streaming"] = False
            resources["components"] = [part for part in resources["components"] if part["id"] != "site_log_streamer"]
        for name in ("resources.json", "resources.json.default"):
            _write(local / name, resources)


def _store(folder: str) -> dict[str, object]:
    """The entry for a store in the server's own kit.  FLARE's default is in the shared temporary folder."""
    return {"path": "omnifm_flare.stores.KitStorage", "args": {"root_dir": folder}}


def seal_jobs(folder: Path) -> None:
    """Copy every job without `app/custom`.  A sealed job brings no code; it names only classes that sites allow."""
    for job in sorted(path.parent for path in JOBS.glob("*/meta.json")):
        shutil.copytree(job, folder / job.name, ignore=shutil.ignore_patterns("custom", "__pycache__"))


def _authorization(local: Path) -> dict[str, object]:
    """FLARE's default rights, without shell commands and without code from outside for any role."""
    rights = json.loads((local / "authorization.json.default").read_text())
    all_rights = dict.fromkeys(rights["permissions"][AdminRole.LEAD], "any")
    for role, granted in rights["permissions"].items():
        granted = all_rights if granted == "any" else granted
        rights["permissions"][role] = {
            **granted,
            "byoc": "none",
            "shell_commands": "none",
            "server-predeployed-flwr": "none",
        }
    return rights


def _privacy() -> dict[str, object]:
    """One scope for every job: our egress filter checks each reply, whatever filters the job configures."""
    egress = [{"path": EGRESS_FILTER, "args": {}}]
    scope = {"name": "omnifm", "properties": {}, "task_data_filters": [], "task_result_filters": egress}
    return {"scopes": [scope], "default_scope": "omnifm"}


def _log_types_only(script: Path) -> None:
    shebang, _, rest = script.read_text().partition("\n")
    script.write_text(f"{shebang}\n{SECURE_LOGGING}{rest}")


def _write(file: Path, content: Mapping[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
