"""Run the job folders with FLARE's Recipe API, with which FLARE replaces `nvflare simulator`:

    from nvflare.recipe import SimEnv
    from omnifm_flare.recipe import OmniFMRecipe

    print(OmniFMRecipe("jobs/seg_fets").run(SimEnv(num_clients=2)).get_result())

A job folder is complete, so the recipe passes it on unchanged.  Change a job's settings in its experiment.json.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from nvflare.apis.job_def import ALL_SITES
from nvflare.job_config.api import FedJob
from nvflare.job_config.fed_job_config import FedJobConfig
from nvflare.recipe.prod_env import ProdEnv
from nvflare.recipe.spec import ExecEnv, Recipe

from omnifm.config import Experiment


class OmniFMRecipe(Recipe):
    """A job folder for SimEnv, PocEnv and ProdEnv.

    For ProdEnv the job is sealed, which means that it has no `app/custom`: hospitals refuse jobs that bring code.

    Args:
        folder: the job, e.g. "jobs/seg_fets".

    Raises:
        ValueError: the folder is not a job, or its experiment.json is invalid.
    """

    def __init__(self, folder: str | Path) -> None:
        job = FolderJob(Path(folder))
        super().__init__(job)
        self.config = job.job

    def process_env(self, env: ExecEnv) -> None:
        """FLARE calls this before it hands the job to the environment."""
        self.config.sealed = isinstance(env, ProdEnv)


class FolderJob(FedJob):
    """FLARE's job object around a folder."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "meta.json").is_file():
            raise ValueError("folder must be a job folder, which holds meta.json and app/; this one has no meta.json")
        Experiment.from_job(folder)
        meta = json.loads((folder / "meta.json").read_text())
        super().__init__(meta["name"], meta["min_clients"])
        self.clients = [ALL_SITES]
        self.job = FolderConfig(folder, meta["name"], meta["min_clients"])


class FolderConfig(FedJobConfig):
    """Writes the job to a folder when FLARE asks for it."""

    def __init__(self, folder: Path, name: str, min_clients: int) -> None:
        super().__init__(name, min_clients)
        self.folder = folder.resolve()
        self.sealed = False

    def generate_job_config(self, job_root: str) -> None:
        """Copy the job to `<job_root>/<name>`.

        Raises:
            ValueError: somebody added components to the recipe, which a job folder cannot take.
        """
        if self.fed_apps:
            raise ValueError("a job must be changed in its experiment.json only; components were added to the recipe")
        leave_out = ["__pycache__", *(["custom"] if self.sealed else [])]
        shutil.copytree(self.folder, Path(job_root) / self.job_name, ignore=shutil.ignore_patterns(*leave_out))
