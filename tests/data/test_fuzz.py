"""Damaged files: thousands of seeded mutations of real ones are read or refused, nothing else.

`pytest tests/data/test_fuzz.py --fuzz-n 20000` for more.  The reading child's deaths are contained and counted.
"""

from __future__ import annotations

import gzip
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from omnifm.data.reader import READER
from omnifm.data.refusal import REASONS
from omnifm.data.volume import RefusedImage, read_label, read_volume

MAX_BYTES = 256 * 2**20
MAX_FILE_BYTES = 200_000
SLOWEST_S = 10.0


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight changes: flipped bits, random bytes, runs of 0 or 255, cuts, copies, extreme numbers."""
    content = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        # Half of the changes hit the first kilobytes, where headers are.
        reach = min(len(content), 2048) if rng.random() < 0.5 else len(content)
        at, size = int(rng.integers(max(1, reach))), int(rng.integers(1, 64))
        match rng.integers(7):
            case 0:
                content[at : at + 1] = bytes([content[at] ^ (1 << int(rng.integers(8)))]) if content else b""
            case 1:
                content[at : at + size] = rng.bytes(size)
            case 2:
                content[at : at + size] = bytes([int(rng.choice([0, 255]))]) * size
            case 3:
                del content[at : at + size]
            case 4:
                content[at:at] = content[at : at + size]
            case 5:
                content[at : at + 4] = int(rng.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1])).to_bytes(
                    4, "little"
                )
            case 6 if rng.random() < 0.2:
                del content[at:]
    return bytes(content)


def outcome(file: Path) -> str:
    """Read it; "read" or the reason of the refusal, within bounded time."""
    started = time.monotonic()
    try:
        volume = read_volume(file, max_bytes=MAX_BYTES)
    except RefusedImage as refusal:
        result, message = refusal.reason, str(refusal)
    else:
        message = ""
        assert np.isfinite(volume.array).all()
        assert np.isfinite(volume.affine).all()
        assert min(volume.spacing_mm) > 0
        assert volume.array.dtype == np.float32
        result = "read"
    assert result in ("read", *REASONS)
    assert "\n" not in message
    assert time.monotonic() - started < SLOWEST_S
    return result


def fuzz(files: list[Path], number: int, folder: Path, suffix: str, *, zipped: bool = False) -> Counter[str]:
    seen: Counter[str] = Counter()
    for case in range(number):
        rng = np.random.default_rng([number, case])
        source = files[int(rng.integers(len(files)))].read_bytes()
        # Inside a gzip nearly every change only breaks the checksum: most are made before zipping again.
        if zipped and rng.random() < 0.9:
            data = gzip.compress(mutated(gzip.decompress(source), rng), compresslevel=1)
        else:
            data = mutated(source, rng)
        target = folder / f"mutant{suffix}"
        target.write_bytes(data)
        seen[outcome(target)] += 1
    return seen


def small(root: Path, pattern: str) -> list[Path]:
    return [f for f in sorted(root.rglob(pattern)) if f.is_file() and f.stat().st_size < MAX_FILE_BYTES]


@pytest.fixture(scope="module")
def number(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fuzz-n"))


@pytest.mark.slow
class TestMutants:
    def test_dicom(self, shared_data, tmp_path, number):
        files = [f for f in small(shared_data / "dicom", "*") if f.suffix not in (".csv", ".json", ".txt", ".md")]
        seen = fuzz(files, number, tmp_path, ".dcm")
        print(f"{number} DICOM mutants: {dict(seen)}")
        assert 0.02 * number < seen["read"] < 0.98 * number  # neither everything nor nothing was refused

    def test_nifti(self, shared_data, tmp_path, number):
        seen = fuzz(small(shared_data / "nifti", "*.nii.gz"), number, tmp_path, ".nii.gz", zipped=True)
        print(f"{number} NIfTI mutants: {dict(seen)}")
        assert 0.02 * number < seen["read"] < 0.98 * number

    def test_masks(self, shared_data, tmp_path, number):
        image = read_volume(shared_data / "nifti/ct_spleen/spleen2_ct.nii.gz")
        source = gzip.decompress((shared_data / "nifti/ct_spleen/spleen2_seg.nii.gz").read_bytes())
        seen: Counter[str] = Counter()
        for case in range(number // 20):
            rng = np.random.default_rng([7, case])
            file = tmp_path / "mask.nii.gz"
            file.write_bytes(gzip.compress(mutated(source, rng), compresslevel=1))
            try:
                mask = read_label(file, image, {0: "background", 1: "spleen"})
                assert mask.shape == image.array.shape[:3]
                assert set(np.unique(mask)) <= {0, 1}
                seen["read"] += 1
            except RefusedImage as refusal:
                seen[refusal.reason] += 1
        assert seen["read"] < number // 20

    def test_the_child_outlives_them(self):
        """After all that the reader still answers; its deaths were its own."""
        assert READER.child is None or READER.child.poll() is None
