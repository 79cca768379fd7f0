"""The splits of the patients that were prepared into a destination, so that they keep them when more are prepared.

`.omnifm-splits` in the destination holds them, each patient as a salted digest; only the owner can read it.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from omnifm.data.partition import three_way
from omnifm.state import write_atomic

FILE = ".omnifm-splits"


def one_patient(patients: Sequence[str]) -> list[str]:
    """A line if all cases are one patient's, so that nothing is left to validate or to test on; else none."""
    if len(patients) < 2 or len(set(patients)) > 1:
        return []
    return [
        f"all {len(patients)} cases are of one patient, so that all of them are in 'training': if an anonymiser gave "
        "everybody one PatientID, let it give each patient another one, then prepare again"
    ]


class SplitMemory:
    """The splits of one destination.

    Args:
        destination: folder that holds the sites.
        seed: of the split; another seed makes other splits.

    Raises:
        ValueError: the file in the destination is damaged.
    """

    def __init__(self, destination: Path, seed: int) -> None:
        self.file = destination / FILE
        self.seed = seed
        self.salt, self.splits = secrets.token_hex(32), dict[str, str]()
        if self.file.is_file():
            try:
                record = json.loads(self.file.read_text())
                self.salt, self.splits = record["salt"], record["splits"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{FILE} in the destination must be as prepare wrote it; it is damaged: take it from a backup, or "
                    "remove it, and patients of small sites may then change their split"
                ) from None

    def known(self, patients: Collection[str]) -> dict[str, str]:
        """Split by patient, of those that were prepared before."""
        keys = {patient: self._key(patient) for patient in patients}
        return {patient: self.splits[key] for patient, key in keys.items() if key in self.splits}

    def three_way(self, patients: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """`partition.three_way` for one site; the splits are remembered."""
        parts = three_way(patients, self.seed, self.known(patients))
        self.keep({patients[i]: split for split, part in parts.items() for i in part})
        return parts

    def keep(self, splits: Mapping[str, str]) -> None:
        """Remember splits by patient."""
        self.splits |= {self._key(patient): split for patient, split in splits.items()}
        write_atomic(self.file, json.dumps({"salt": self.salt, "splits": self.splits}).encode())

    def _key(self, patient: str) -> str:
        text = f"{self.seed} {patient}".encode("utf-8", "surrogatepass")
        return hmac.new(self.salt.encode(), text, "sha256").hexdigest()[:32]
