"""Find the folders of a site's data and state, and of the server's state.

They are named by the site file, else by the environment, else (simulator only) they are the demo data.  State is kept
outside FLARE's run directory, because that belongs to a single job id and the server's can be downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from pydantic.dataclasses import dataclass

from omnifm.config import STRICT, Experiment, SiteConfig, env_folder, parse, require_absolute, site_config

SITE_FILE = "omnifm_site.json"
EXPERIMENT_FILE = "experiment.json"


@dataclass(frozen=True, config=STRICT)
class ServerConfig:
    """The server's own `local/omnifm_site.json`."""

    state_dir: str
    """Folder for checkpoint and bank, an absolute path; created if needed."""


def workspace_of(fl_ctx: FLContext) -> Workspace:
    """FLARE's workspace of this process."""
    return fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)


def experiment_file(fl_ctx: FLContext) -> Path:
    """The job's experiment.json as deployed here."""
    return Path(workspace_of(fl_ctx).get_app_config_dir(fl_ctx.get_job_id())) / EXPERIMENT_FILE


def find_site(fl_ctx: FLContext, experiment: Experiment) -> SiteConfig:
    """This site's configuration.

    Raises:
        ValueError: it is missing or invalid.  A provisioned site never uses the demo data instead.
    """
    name, workspace = str(fl_ctx.get_identity_name()), workspace_of(fl_ctx)
    simulated = _simulator_root(fl_ctx)
    state = simulated / "state" / name if simulated else None
    found = site_config(name, Path(workspace.get_site_config_dir()) / SITE_FILE, state=state)
    if found is not None:
        return found
    if simulated is None:
        raise ValueError(
            f"local/{SITE_FILE} must name data_root and state_dir; the file is missing: "
            f"copy local/{SITE_FILE}.sample and edit it"
        )
    from omnifm.data.demo import demo_site  # imported here because it takes a second, and only the simulator needs it

    if folder := env_folder("OMNIFM_STATE"):
        state = folder / name
    return SiteConfig(str(demo_site(experiment.task["name"], name)), str(state), source="demo")


def find_server_state(fl_ctx: FLContext) -> Path:
    """The server's folder for checkpoint and bank.

    Raises:
        ValueError: the server's site file is invalid.
    """
    workspace, simulated = workspace_of(fl_ctx), _simulator_root(fl_ctx)
    file = Path(workspace.get_site_config_dir()) / SITE_FILE
    if simulated is None and file.exists():
        state = parse(ServerConfig, file.read_bytes(), SITE_FILE).state_dir
        require_absolute(SITE_FILE, "state_dir", [state])
        return Path(state)
    if folder := env_folder("OMNIFM_STATE"):
        return folder / "server"
    return simulated / "state/server" if simulated else Path(workspace.get_root_dir()).absolute() / "state"


def _simulator_root(fl_ctx: FLContext) -> Path | None:
    """The folder given to `nvflare simulator -w`, or None in a provisioned deployment.

    FLARE must say that it simulates, and there must be no startup kit: a provisioned site must never use demo data.
    """
    root = Path(workspace_of(fl_ctx).get_root_dir()).absolute()
    kit = any((root / "startup" / name).exists() for name in ("fed_client.json", "fed_server.json"))
    simulated = bool(fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False))
    return root.parent if simulated and not kit else None


def private_folder(path: Path) -> Path:
    """Create the folder if needed, and let only its owner enter it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(path, 0o700)
    return path
