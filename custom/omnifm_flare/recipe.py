"""The same jobs through FLARE's Recipe API, which upstream puts in the place of `nvflare simulator`:

    from nvflare.recipe import SimEnv
    from omnifm_flare.recipe import OmniFMRecipe

    print(OmniFMRecipe("jobs/seg_fets").run(SimEnv(num_clients=2)).get_result())

A job folder is complete, so a recipe hands it to the environment as it is; what can be set stands in experiment.json.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from nvflare.apis.job_def import ALL_SITES
from nvflare.job_config.api import FedJob
from nvflare.job_config.fed_job_config import FedJobConfig
from nvflare.recipe.prod_env import ProdEnv
from nvflare.recipe.spec import ExecEnv, Recipe

from omnifm.config import Experiment


class OmniFMRecipe(Recipe):
    """A job folder for SimEnv, PocEnv and ProdEnv.

    For ProdEnv it is sealed: hospitals take no `app/custom`, which bare simulator and POC workspaces need.

    Args:
        folder: the job, e.g. "jobs/seg_fets".

    Raises:
        ValueError: it is no job folder, or its experiment.json is not as it must be.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(FolderJob(Path(folder)))

    def process_env(self, env: ExecEnv) -> None:
        """Called by FLARE before the job goes to this environment."""
        self._job.job.sealed = isinstance(env, ProdEnv)


class FolderJob(FedJob):
    """FLARE's job object around a folder."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "meta.json").is_file():
            raise ValueError("folder must be a job, which holds meta.json and app/; it is not")
        Experiment.from_job(folder)
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        super().__init__(meta["name"], meta["min_clients"])
        self.clients = [ALL_SITES]
        self.job = FolderConfig(folder, meta["name"], meta["min_clients"])


class FolderConfig(FedJobConfig):
    """What FLARE asks to write the job to a folder."""

    def __init__(self, folder: Path, name: str, min_clients: int) -> None:
        super().__init__(name, min_clients)
        self.folder, self.sealed = folder.resolve(), False

    def generate_job_config(self, job_root: str) -> None:
        """Copy the job to `<job_root>/<name>`; raises ValueError if a recipe's helper has added something."""
        if self.fed_apps:
            raise ValueError("a job folder must be changed in its experiment.json; components were added to the recipe")
        leave_out = ["__pycache__", *(["custom"] if self.sealed else [])]
        shutil.copytree(self.folder, Path(job_root) / self.job_name, ignore=shutil.ignore_patterns(*leave_out))
