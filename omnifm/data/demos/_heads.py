"""Drawn heads with ring-enhancing lesions, and simulated scanners that image them.

Letters: x y z voxel axes.  Heads are drawn in RAS mm, so that a head is the same in scans of any orientation.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import gaussian_filter

from omnifm.data.demos import site_number

GRID = (48, 48, 40)
"""Number of voxels along x, y and z."""
TISSUES = ("air", "scalp", "skull", "csf", "grey", "white", "oedema", "core", "rim")
# Brightness of each tissue; 1 is white matter in a T1 scan.
CONTRASTS = {
    "T1ce": (0.0, 0.95, 0.10, 0.25, 0.70, 1.00, 0.65, 0.35, 1.75),
    "FLAIR": (0.0, 0.75, 0.08, 0.15, 1.00, 0.80, 1.30, 0.55, 1.95),
}


@dataclass(frozen=True)
class Scanner:
    """The properties that all scans of one hospital share.

    Attributes:
        contrast: brightness of each of `TISSUES`, before `gain`.
        gain: stored value of brightness 1, 200 to 1500.
        shading: strength of the coil's bias field, 0 to 0.35 of the brightness.
        noise: standard deviation of the Rician noise, 0.02 to 0.08 of brightness 1.
        spacing_mm: voxel size along x, y and z.
        axes: directions of the voxel axes, e.g. "LPS".
        tilt: rotation about the left-right axis, in radians; makes the scan oblique.
    """

    contrast: tuple[float, ...]
    gain: float
    shading: float
    noise: float
    spacing_mm: tuple[float, float, float]
    axes: str
    tilt: float

    @classmethod
    def of_site(cls, site: str, generator: np.random.Generator) -> "Scanner":
        """The scanner of a site: its number chooses contrast, spacing and axes, the generator draws the rest."""
        number = site_number(site)
        number = int(generator.integers(4)) if number is None else number
        base = np.array(CONTRASTS[("FLAIR", "T1ce")[number % 2]])
        return cls(
            contrast=tuple((base * generator.uniform(0.95, 1.05, base.shape)).tolist()),
            gain=float(generator.uniform(200, 1500)),
            shading=float(generator.uniform(0.1, 0.35)),
            noise=float(generator.uniform(0.02, 0.06)),
            spacing_mm=((3.6, 3.6, 4.0), (3.7, 3.7, 3.7), (3.8, 3.8, 4.4))[number % 3],
            axes=("LPS", "RAS", "LAS", "RAS")[number % 4],
            tilt=float(generator.uniform(-0.12, 0.12)),
        )

    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Voxel index -> RAS mm; the middle of the grid is the origin."""
        turn = np.eye(3)
        turn[1:, 1:] = [[np.cos(self.tilt), -np.sin(self.tilt)], [np.sin(self.tilt), np.cos(self.tilt)]]
        signs = np.diag([1.0 if axis in "RAS" else -1.0 for axis in self.axes])
        affine = np.eye(4)
        affine[:3, :3] = turn @ signs @ np.diag(self.spacing_mm)
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(GRID) - 1) / 2)
        return affine

    def scan(self, tissue: Int[np.ndarray, "x y z"], generator: np.random.Generator) -> Int[np.ndarray, "x y z"]:
        """The scan of a head (indices into `TISSUES`) by this scanner, int16."""
        mm = positions(self.affine())
        shade = 1 + self.shading * _waves(mm, generator, length_mm=(150.0, 300.0), number=6)
        # As in real scans, a voxel contains some of its neighbours' tissue, and no tissue is uniform.
        flat = gaussian_filter(np.array(self.contrast)[tissue], sigma=0.5)
        clean = flat * shade * (1 + 0.06 * _waves(mm, generator, length_mm=(10.0, 25.0), number=8))
        real, imaginary = generator.normal(0, self.noise, (2, *tissue.shape))
        return np.clip(np.hypot(clean + real, imaginary) * self.gain, 0, 32767).astype(np.int16)


def draw_head(mm: Float[np.ndarray, "x y z 3"], generator: np.random.Generator) -> Int[np.ndarray, "x y z"]:
    """A head of natural size with one to three lesions, as indices into `TISSUES`.

    Args:
        mm: position of each voxel in RAS mm; the middle of the head is near the origin.
        generator: draws the shape, the folds and the lesions.
    """
    mm = mm - generator.uniform(-4, 4, 3).astype(np.float32)
    axes = np.array([64, 74, 62]) * generator.uniform(0.93, 1.05, 3)
    bumps = 1 + 0.04 * _waves(mm, generator, length_mm=(90.0, 160.0), number=8)
    depth = np.linalg.norm(mm / axes, axis=-1) * bumps  # 0 in the middle, 1 at the skin
    tissue = np.full(depth.shape, TISSUES.index("air"))
    for name, limit in (("scalp", 1.0), ("skull", 0.93), ("csf", 0.86)):
        tissue[depth < limit] = TISSUES.index(name)
    folds = _waves(mm, generator, length_mm=(22.0, 45.0), number=24)
    brain = depth < 0.82 + 0.03 * folds
    tissue[brain] = TISSUES.index("grey")
    tissue[brain & (depth < 0.66 + 0.16 * folds)] = TISSUES.index("white")
    tissue[brain & _ventricles(mm, generator)] = TISSUES.index("csf")
    head_mm3 = 4 / 3 * np.pi * np.prod(axes)
    for share in generator.dirichlet([3] * int(generator.integers(1, 4))) * generator.uniform(0.014, 0.03):
        _draw_lesion(tissue, mm, depth, float(share * head_mm3), generator)
    return tissue


def _draw_lesion(
    tissue: Int[np.ndarray, "x y z"],
    mm: Float[np.ndarray, "x y z 3"],
    depth: Float[np.ndarray, "x y z"],
    volume_mm3: float,
    generator: np.random.Generator,
) -> None:
    """Draw one irregular lesion into the brain: a bright rim around a dark core, surrounded by oedema."""
    radius = (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)
    places = np.argwhere((depth > 0.25) & (depth < 0.62))
    centre = mm[tuple(places[generator.integers(len(places))])]
    stretch = generator.uniform(0.8, 1.25, 3)
    ragged = 1 + 0.22 * _waves(mm, generator, length_mm=(18.0, 40.0), number=10)
    distance = np.linalg.norm((mm - centre) / (radius * stretch), axis=-1) * ragged
    inside = (depth < 0.82) & (tissue != TISSUES.index("rim"))
    tissue[inside & (distance < 1.5) & (tissue == TISSUES.index("white"))] = TISSUES.index("oedema")
    tissue[inside & (distance < 1)] = TISSUES.index("rim")
    tissue[inside & (distance < 0.45)] = TISSUES.index("core")


def _ventricles(mm: Float[np.ndarray, "x y z 3"], generator: np.random.Generator) -> Bool[np.ndarray, "x y z"]:
    """Where the two lateral ventricles are."""
    size = generator.uniform(0.8, 1.3)
    horns = [np.array([side * 11.0, 0.0, 8.0]) for side in (-1, 1)]
    radii = np.array([6.0, 26.0, 9.0]) * size
    return np.any([np.linalg.norm((mm - horn) / radii, axis=-1) < 1 for horn in horns], axis=0)


def positions(affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "x y z 3"]:
    """Position of each voxel of the grid in RAS mm."""
    index = np.stack(np.meshgrid(*map(np.arange, GRID), indexing="ij"), axis=-1)
    return (index @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)


def _waves(
    mm: Float[np.ndarray, "x y z 3"],
    generator: np.random.Generator,
    length_mm: tuple[float, float],
    number: int,
) -> Float[np.ndarray, "x y z"]:
    """A smooth random field, about -1 to 1: the sum of plane waves of these lengths in random directions."""
    directions = generator.normal(size=(number, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = (directions * (2 * np.pi / generator.uniform(*length_mm, (number, 1)))).astype(np.float32)
    phases = generator.uniform(0, 2 * np.pi, number).astype(np.float32)
    total = np.zeros(mm.shape[:3], dtype=np.float32)
    for wave, phase in zip(waves, phases, strict=True):
        total += np.sin(mm @ wave + phase)
    return total / np.sqrt(2 * number)
