"""The kits that `nvflare provision` makes are ready to start and hold our policy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST

from omnifm_flare.preflight import EGRESS_FILTER, OWN_CLASSES, certificate
from provisioning.builders import OmniFMBuilder
from tests.conftest import ROOT
from tests.provisioning.kits import HOSPITALS, SERVER, nvflare


def read(kits: Path, name: str, file: str) -> dict:
    return json.loads((kits / name / "local" / file).read_text())


def paths(config: object) -> Iterator[str]:
    """Class paths in a job's FLARE configuration."""
    if isinstance(config, dict):
        if isinstance(config.get("path"), str):
            yield config["path"]
        for value in config.values():
            yield from paths(value)
    elif isinstance(config, list):
        for value in config:
            yield from paths(value)


class TestResources:
    @pytest.mark.parametrize("name", [SERVER, *HOSPITALS])
    def test_allow_exactly_flares_defaults_and_our_classes(self, kits, name):
        allowed = read(kits, name, "resources.json")["class_allow_list"]
        assert allowed[: len(DEFAULT_CLASS_ALLOW_LIST)] == list(DEFAULT_CLASS_ALLOW_LIST)
        assert allowed[len(DEFAULT_CLASS_ALLOW_LIST) :] == [
            "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor",
            "omnifm_flare.aggregator.OmniAggregator",
            "omnifm_flare.controller.OmniController",
            "omnifm_flare.executors.OmniExecutor",
            "omnifm_flare.filters.EgressFilter",
        ]
        assert read(kits, name, "resources.json")["class_list_enforcement_mode"] == "enforce"

    @pytest.mark.parametrize("name", [SERVER, *HOSPITALS])
    def test_the_default_that_deploy_prepare_starts_from_is_as_strict(self, kits, name):
        assert read(kits, name, "resources.json.default") == read(kits, name, "resources.json")

    def test_the_servers_stores_lie_in_its_kit(self, kits):
        resources = read(kits, SERVER, "resources.json")
        assert "/tmp" not in json.dumps(resources)
        assert resources["servers"][0]["heart_beat_timeout"] == 90

    @pytest.mark.parametrize("name", HOSPITALS)
    def test_no_log_leaves_a_hospital(self, kits, name):
        resources = read(kits, name, "resources.json")
        assert resources["allow_log_streaming"] is False
        assert "streamer" not in json.dumps(resources["components"]).lower()

    @pytest.mark.parametrize("name", HOSPITALS)
    def test_of_an_exception_only_its_type_is_logged(self, kits, name):
        script = (kits / name / "startup/sub_start.sh").read_text().splitlines()
        assert script[0].startswith("#!")
        assert script.index("export NVFLARE_SECURE_LOGGING=true") < 5


class TestPolicies:
    @pytest.mark.parametrize("name", [SERVER, *HOSPITALS])
    def test_nobody_brings_code_or_a_shell(self, kits, name):
        permissions = read(kits, name, "authorization.json")["permissions"]
        assert set(permissions) == {"project_admin", "lead", "org_admin", "member"}
        for rights in permissions.values():
            assert rights["byoc"] == rights["shell_commands"] == rights["server-predeployed-flwr"] == "none"
        assert permissions["lead"]["submit_job"] == permissions["project_admin"]["submit_job"] == "any"
        assert permissions["member"].get("submit_job", "none") == "none"

    @pytest.mark.parametrize("name", HOSPITALS)
    def test_every_job_passes_our_egress_filter(self, kits, name):
        privacy = read(kits, name, "privacy.json")
        (scope,) = privacy["scopes"]
        assert scope["name"] == privacy["default_scope"] == "omnifm"
        assert [f["path"] for f in scope["task_result_filters"]] == ["omnifm_flare.filters.EgressFilter"]

    @pytest.mark.parametrize("name", HOSPITALS)
    def test_the_sample_of_the_site_file_is_what_sites_need(self, kits, name):
        sample = read(kits, name, "omnifm_site.json.sample")
        assert {"data_root", "state_dir"} <= set(sample)


class TestSealedJobs:
    def test_submitters_have_all_jobs_without_code(self, kits):
        jobs = {path.parent.name for path in (ROOT / "jobs").glob("*/meta.json")}
        for person in ("admin@consortium.example", "lead@consortium.example"):
            transfer = kits / person / "transfer"
            assert {path.name for path in transfer.iterdir()} == jobs
            assert not list(transfer.rglob("custom"))
            for job in jobs:
                same = (ROOT / "jobs" / job / "app/config/experiment.json").read_bytes()
                assert (transfer / job / "app/config/experiment.json").read_bytes() == same

    def test_others_have_none(self, kits):
        assert not list((kits / "observer@consortium.example/transfer").iterdir())


class TestProject:
    def test_has_a_server_three_hospitals_and_all_roles(self):
        people = yaml.safe_load((ROOT / "provisioning/project.yml").read_text())["participants"]
        assert [p["type"] for p in people].count("server") == 1
        assert [p["type"] for p in people].count("client") >= 3
        assert {p["role"] for p in people if p["type"] == "admin"} == {"project_admin", "lead", "org_admin", "member"}

    def test_our_classes_are_those_that_jobs_and_policies_name(self):
        wiring = [json.loads(file.read_text()) for file in (ROOT / "jobs").glob("*/app/config/config_fed_*.json")]
        named = {path for config in wiring for path in paths(config)} | {EGRESS_FILTER}
        assert sorted(named - set(DEFAULT_CLASS_ALLOW_LIST)) == list(OWN_CLASSES)

    def test_our_classes_exist(self):
        """A misspelt name in the allow-list would only fail at a hospital."""
        import importlib

        for path in OWN_CLASSES:
            module, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(module), name)

    @pytest.mark.parametrize("days", [29, 331])
    def test_refuses_to_renew_too_late_or_always(self, days):
        with pytest.raises(ValueError, match=f"renew_days must be 30 to 330; got {days}"):
            OmniFMBuilder(renew_days=days)

    @pytest.mark.parametrize("seconds", [59, 121])
    def test_refuses_extreme_heart_beats(self, seconds):
        with pytest.raises(ValueError, match=f"heart_beat_timeout_s must be 60 to 120; got {seconds}"):
            OmniFMBuilder(seconds)


class TestCertificates:
    def test_the_authoritys_key_is_its_owners_alone(self, kits):
        state = kits.parent / "state"
        assert state.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in state.iterdir()} == {0o600}

    def test_provisioning_again_renews_those_that_end_soon_and_only_those(self, kits, tmp_path):
        """hospital-a's certificate ends in 359 days.  hospital-b's is replaced by one that ends in 10 days."""
        shutil.copytree(kits.parent, tmp_path / "omnifm")
        file = tmp_path / "omnifm/state/cert.json"
        state = json.loads(file.read_text())
        state["hospital-b"]["cert"] = ending_certificate()
        file.write_text(json.dumps(state))
        said = nvflare(tmp_path, "provision", "-p", "provisioning/project.yml", "-w", tmp_path, "--force")
        assert "Certificates renewed: hospital-b" in said
        old, new = kits, tmp_path / "omnifm/prod_01"
        for name, same in (("hospital-a", True), ("hospital-b", False)):
            for part in ("client.crt", "client.key"):
                pair = [(folder / name / "startup" / part).read_bytes() for folder in (old, new)]
                assert (pair[0] == pair[1]) is same
        assert "359 days left" in certificate(new / "hospital-b/startup")
        assert (old / "hospital-b/startup/rootCA.pem").read_bytes() == (
            new / "hospital-b/startup/rootCA.pem"
        ).read_bytes()


def ending_certificate() -> str:
    """A certificate that ends in 10 days; its owner does not matter here."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=10))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
