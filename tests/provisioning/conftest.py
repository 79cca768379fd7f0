"""The kits of one consortium for all tests of provisioning."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.provisioning.kits import provision


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kits as provisioned.  A test that changes a kit must copy it first."""
    return provision(tmp_path_factory.mktemp("provision"))
