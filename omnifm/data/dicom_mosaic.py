"""Siemens mosaics, many slices tiled into one picture, are converted by dcm2niix in a process that can do nothing else.

dcm2niix is native code and reads files that may be hostile.  It therefore sees copies in a private folder, has no
network, an empty environment, and limits of memory, time and size of files.  What it says is never shown or logged: it
quotes paths.  Only one file with the expected name is accepted.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np

from omnifm.data.dicom_volumes import FIRST, check_choice
from omnifm.data.refusal import RefusedImage, check_budget
from omnifm.data.site_folder import place
from omnifm.data.volume import Volume

LIMITS = ("--as=4294967296", "--cpu=30", "--fsize=1073741824", "--core=0")
"""Memory in bytes, processor time in seconds, size of a file in bytes, no core dump."""
CLOCK_S = 120
OPTIONS = ("-b", "n", "-z", "n", "-f", "v", "-w", "1", "-m", "n")
EXPECTED = "v.nii"
BESIDE = frozenset({"v.bval", "v.bvec"})
"""Texts with diffusion weightings that dcm2niix writes beside the image."""
DOUBT = re.compile(r"var(?:y|ies)|missing|unable|error", re.IGNORECASE)
"""Words by which dcm2niix says that its result may be wrong."""


def program() -> Path:
    """The dcm2niix program, from the Python package of that name or from the system.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec("dcm2niix")
    inside = Path(spec.origin).parent / "dcm2niix" if spec and spec.origin else None
    found = inside if inside and inside.is_file() else shutil.which("dcm2niix")
    if found is None or not all(map(shutil.which, ("prlimit", "unshare"))):
        raise ValueError(
            "converting mosaics needs dcm2niix and util-linux (prlimit, unshare); one is absent: pip install dcm2niix"
        )
    return Path(found).resolve()


@contextmanager
def converted(folder: Path) -> Iterator[Path]:
    """The NIfTI file of a folder of mosaics; it is deleted when the block ends.

    Raises:
        RefusedImage: `mosaic` if the conversion fails or is doubtful.
        ValueError: dcm2niix is not installed.
    """
    tool = program()
    with tempfile.TemporaryDirectory(prefix="omnifm-mosaic-") as name:
        source, target = Path(name, "in"), Path(name, "out")
        source.mkdir(mode=0o700)
        target.mkdir(mode=0o700)
        for file in sorted(folder.iterdir()):
            place(file, source / file.name)
        sandbox = ("prlimit", *LIMITS, "unshare", "-rn", "env", "-i", str(tool))
        try:
            done = subprocess.run(
                [*sandbox, *OPTIONS, "-o", str(target), str(source)],
                capture_output=True,
                timeout=CLOCK_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise RefusedImage("mosaic", f"dcm2niix must convert a mosaic within {CLOCK_S} s; it did not") from None
        made = {file.name for file in target.iterdir()}
        words = (done.stdout + done.stderr).decode("utf-8", "replace").replace(name, "")
        if done.returncode != 0:
            raise RefusedImage("mosaic", f"dcm2niix must convert the mosaic; it ended with code {done.returncode}")
        if EXPECTED not in made or made - BESIDE != {EXPECTED} or (target / EXPECTED).is_symlink():
            raise RefusedImage("mosaic", f"dcm2niix must make one image of the series; it made {len(made)} files")
        if DOUBT.search(words):
            raise RefusedImage("mosaic", "dcm2niix must convert the mosaic without a warning; it doubts its result")
        yield target / EXPECTED


def read_one(path: Path, max_bytes: int, choice: str) -> Volume:
    """One volume of a NIfTI file that `converted` made; runs inside the child process.

    Args:
        path: the file.
        max_bytes: memory budget in bytes.
        choice: "first", "time=K" (counted from 1), or "" if there is only one volume.

    Raises:
        RefusedImage: `several_volumes`, `too_large`.
    """
    check_choice(choice)
    image = nibabel.Nifti1Image.from_filename(path)
    shape = (*image.shape, 1)
    check_budget(12 * int(np.prod(shape[:3], dtype=object)), max_bytes)
    times = shape[3]
    listed = f"this series holds {times} volumes: time=1 to {times}. Choose one with --volume"
    if not choice and times > 1:
        raise RefusedImage("several_volumes", listed)
    wanted = re.fullmatch(r"time=(\d+)", "time=1" if choice in ("", FIRST) else choice)
    if wanted is None or not 1 <= int(wanted[1]) <= times:
        raise RefusedImage("several_volumes", f"--volume {choice} must choose one volume; it fits none: {listed}")
    data = image.dataobj[..., int(wanted[1]) - 1] if len(image.shape) == 4 else image.dataobj[...]
    return Volume(np.asarray(data, np.float32), np.asarray(image.affine, np.float64))
