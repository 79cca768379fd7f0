"""A hospital that makes its own key, as in provisioning/README.md under "Without a central key"."""

from __future__ import annotations

import re
import zipfile

from omnifm_flare import preflight
from tests.provisioning.kits import HOSPITALS, nvflare

FOLDER = "provisioning/distributed"


def test_its_key_stays_and_its_policy_is_everybodys(kits, tmp_path):
    name, request, authority = HOSPITALS[0], tmp_path / "request", tmp_path / "ca"
    said = nvflare(tmp_path, "cert", "init", "--profile", f"{FOLDER}/profile.yml", "-o", authority)
    (fingerprint,) = re.findall(r"SHA256:[0-9A-F:]{95}", said)
    nvflare(tmp_path, "cert", "request", "-p", f"{FOLDER}/hospital.yml", "--out", request)
    sent = request / f"{name}.request.zip"
    nvflare(tmp_path, "cert", "approve", sent, "-c", authority, "--profile", f"{FOLDER}/profile.yml")
    back = request / f"{name}.signed.zip"
    nvflare(tmp_path, "package", back, "--fingerprint", fingerprint, "--request-dir", request, "-w", tmp_path / "w")
    for file in (sent, back):
        assert not [entry for entry in zipfile.ZipFile(file).namelist() if entry.endswith(".key")]
    kit = tmp_path / "w/omnifm/prod_00" / name
    assert preflight.certificate(kit / "startup").startswith(f"{name}, 1094 days left")
    assert preflight.key(kit / "startup") == "mode 600"
    for file in ("resources.json", "resources.json.default", "authorization.json", "privacy.json"):
        assert (kit / "local" / file).read_bytes() == (kits / name / "local" / file).read_bytes()
