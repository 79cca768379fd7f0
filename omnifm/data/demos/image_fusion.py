"""Demo data for image fusion: slices of drawn heads, each in two modalities; the site determines which two.

Letters: x columns (from the patient's right to left), y rows (from front to back), as radiologists view them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter

from omnifm.data.datalist import DEMO_NAME
from omnifm.data.demos import CASES_PER_SPLIT, generator, site_number
from omnifm.data.demos._heads import CONTRASTS, draw_head
from omnifm.data.site_folder import write_datalist
from omnifm.records import Json

# Brightness of each of `TISSUES` in CT (attenuation, brain window), PET (glucose use) and SPECT (blood flow).
ATTENUATION = (0.0, 0.30, 1.0, 0.32, 0.45, 0.40, 0.34, 0.30, 0.52)
GLUCOSE = (0.0, 0.12, 0.02, 0.05, 0.80, 0.35, 0.25, 0.10, 1.0)
BLOOD_FLOW = (0.0, 0.10, 0.02, 0.05, 0.75, 0.30, 0.30, 0.15, 0.95)
# Colour maps of PET and SPECT, from dark to bright.
WARM = ((0, 0, 0), (40, 0, 120), (200, 0, 60), (255, 140, 0), (255, 255, 200))
RAINBOW = ((0, 0, 0), (0, 0, 200), (0, 190, 190), (0, 200, 0), (255, 230, 0), (255, 0, 0))
Slice = Int[np.ndarray, "x y"]


@dataclass(frozen=True)
class Look:
    """How one modality shows the tissues.

    Attributes:
        code: DICOM code.
        contrast: brightness of each of `TISSUES`.
        blur_mm: standard deviation of the blur.
        noise: standard deviation of the noise, in units of the brightness.
        colours: the colour map, from dark to bright; empty for a grey picture.
    """

    code: str
    contrast: tuple[float, ...]
    blur_mm: float
    noise: float
    colours: tuple[tuple[int, int, int], ...] = ()

    def picture(self, tissue: Slice, spacing_mm: float, random: np.random.Generator) -> UInt8[np.ndarray, "y x *c"]:
        """The 8-bit picture of a slice, rows first."""
        light = gaussian_filter(np.array(self.contrast)[tissue], self.blur_mm / spacing_mm)
        light += random.normal(0, self.noise, tissue.shape) * (light > 0.02)
        light = np.clip(light.T / max(1.0, max(self.contrast)), 0, 1)
        if not self.colours:
            return np.round(255 * light).astype(np.uint8)
        steps = np.linspace(0, 1, len(self.colours))
        channels = [np.interp(light, steps, channel) for channel in zip(*self.colours, strict=True)]
        return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


CT = Look("CT", ATTENUATION, blur_mm=1.0, noise=0.02)
PET = Look("PT", GLUCOSE, blur_mm=3.0, noise=0.02, colours=WARM)
SPECT = Look("NM", BLOOD_FLOW, blur_mm=5.0, noise=0.02, colours=RAINBOW)
OTHERS = (CT, PET, SPECT)
SIDES = ((96, 96), (104, 97), (88, 101))


def make(folder: Path, site: str, seed: int) -> None:
    """Write one institution: pairs of CT and MR, PET and MR, or SPECT and MR; consecutive site numbers take turns."""
    number = site_number(site)
    drawn = int(generator(site, seed).integers(3)) if number is None else number - 1
    kind = drawn % len(OTHERS)
    other = OTHERS[kind]
    mr = Look("MR", CONTRASTS[("T1ce", "FLAIR")[kind % 2]], blur_mm=1.0, noise=0.03)
    content: Json = {
        "name": DEMO_NAME,
        "description": "made by omnifm.data.demos; the heads are drawn, nobody was scanned",
        "modality": {"0": other.code, "1": "MR"},
    }
    (folder / "images").mkdir()
    for split, count in CASES_PER_SPLIT.items():
        content[split] = []
        for index in range(count):
            name = f"{split}-{index:02d}"
            random = generator("pair", site, seed, name)
            tissue, spacing_mm = _slice(SIDES[kind], random)
            item = {"patient": name, "modality": f"{other.code} MR"}
            for key, look in (("a", other), ("b", mr)):
                item |= {f"image_{key}": f"images/{name}-{key}.png", f"modality_{key}": look.code}
                Image.fromarray(look.picture(tissue, spacing_mm, random)).save(folder / item[f"image_{key}"])
            content[split].append(item)
    write_datalist(folder, content)


def _slice(shape: tuple[int, int], random: np.random.Generator) -> tuple[Slice, float]:
    """An axial slice of one head as indices into `TISSUES`, and its pixel size in mm."""
    spacing_mm = 180.0 / max(shape)
    x, y = (spacing_mm * (np.arange(side) - (side - 1) / 2) for side in shape)
    mm = np.stack(np.meshgrid(-x, -y, random.uniform(-15, 25, 1), indexing="ij"), axis=-1)
    return draw_head(mm.astype(np.float32), random)[:, :, 0], spacing_mm
