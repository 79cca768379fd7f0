"""Kits that `nvflare deploy prepare` makes for Docker and Kubernetes keep our policy."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from nvflare.app_opt.job_launcher.study_runtime import load_study_runtime_file

import omnifm
from omnifm_flare import preflight
from tests.conftest import ROOT
from tests.provisioning.kits import HOSPITALS, SERVER, nvflare

NAMES = (SERVER, HOSPITALS[0])


@pytest.fixture(scope="module")
def prepared(kits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<engine>/<participant>` for both engines."""
    folder = tmp_path_factory.mktemp("prepared")
    for engine in ("docker", "k8s"):
        for name in NAMES:
            settings = ROOT / f"provisioning/engines/{engine}.yaml"
            nvflare(folder, "deploy", "prepare", kits / name, "--output", folder / engine / name, "--config", settings)
    return folder


@pytest.mark.parametrize("engine", ["docker", "k8s"])
class TestPolicy:
    @pytest.mark.parametrize("name", NAMES)
    def test_classes_and_rights_stay(self, prepared, engine, name):
        local = prepared / engine / name / "local"
        preflight.classes(preflight.read(local, "resources.json"))
        preflight.code(preflight.read(local, "authorization.json"))

    def test_filter_and_silence_stay(self, prepared, engine, monkeypatch):
        monkeypatch.setenv("NVFLARE_SECURE_LOGGING", "true")  # as in the image
        kit = prepared / engine / HOSPITALS[0]
        assert preflight.files(kit).startswith("complete")
        preflight.egress(kit / "local")
        preflight.logs(preflight.read(kit / "local", "resources.json"), kit / "startup")

    def test_the_servers_stores_lie_in_the_mounted_kit(self, prepared, engine):
        resources = json.loads((prepared / engine / SERVER / "local/resources.json.default").read_text())
        storage = resources["snapshot_persistor"]["args"]["storage"]
        assert storage["path"] == "omnifm_flare.stores.KitStorage"
        assert storage["args"] == {"root_dir": "/var/tmp/nvflare/workspace/snapshot-storage"}


class TestEngines:
    @pytest.mark.parametrize("name", NAMES)
    def test_dockers_start_script_is_sound_and_names_our_image(self, prepared, name):
        script = prepared / "docker" / name / "startup/start_docker.sh"
        assert subprocess.run(["bash", "-n", script]).returncode == 0
        assert "omnifm-flare:0.2.0" in script.read_text()

    def test_kubernetes_ports_differ_at_the_server(self, prepared):
        values = yaml.safe_load((prepared / "k8s" / SERVER / "helm_chart/values.yaml").read_text())
        assert values["parentPort"] != values["fedLearnPort"]
        assert values["securityContext"]["runAsNonRoot"] is True

    @pytest.mark.parametrize("engine", ["docker", "k8s"])
    def test_flare_reads_the_sample_of_the_sites_folders(self, engine):
        sample = ROOT / "provisioning/site/study_runtime.yaml.sample"
        runtime = load_study_runtime_file(str(sample), launcher_mode=engine)
        assert runtime


class TestImage:
    def test_installs_the_pins_and_runs_as_nobody(self):
        lines = (ROOT / "provisioning/Dockerfile").read_text().splitlines()
        assert f":{omnifm.__version__} ." in "\n".join(lines)
        assert "USER 10001:10001" in lines
        assert all("@" in line or line.split()[1].startswith("python:3.11.") for line in lines if line[:4] == "FROM")
