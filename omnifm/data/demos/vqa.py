"""Demo data for visual question answering: drawn organs with lesions and a coloured marker, and questions about them.

Letters: y x rows and columns of a picture, from -1 (top left corner) to 1.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter

from omnifm.data.datalist import DEMO_NAME
from omnifm.data.demos import generator, site_number
from omnifm.data.site_folder import write_datalist
from omnifm.records import Json

CASES_PER_SPLIT = {"training": 72, "validation": 8, "test": 12}
"""Number of pictures of one site; each has five or six questions."""
SIDE = 48
"""Side of a picture in pixels."""
MODALITIES = {"CT": "ct", "MR": "mri", "DX": "x ray", "US": "ultrasound"}
PAIRS = (("US", "CT"), ("CT", "MR"), ("DX", "US"), ("MR", "DX"))
"""The two modalities of a site, by its number modulo 4; sites 1 and 2 have none in common."""
ORGANS = {  # ellipses: centre y, centre x, radius y, radius x
    "brain": [(0.0, 0.0, 0.75, 0.6)],
    "lungs": [(0.0, -0.45, 0.7, 0.3), (0.0, 0.45, 0.7, 0.3)],
    "liver": [(-0.1, -0.25, 0.4, 0.65)],
    "kidneys": [(0.35, -0.5, 0.35, 0.22), (0.35, 0.5, 0.35, 0.22)],
}
COLOURS = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 240), "yellow": (240, 220, 40)}
QUESTIONS = {  # question type -> two wordings
    "modality": ("Which modality is this?", "How was this picture taken?"),
    "organ": ("Which organ is shown?", "What does the picture show?"),
    "colour": ("What colour is the marker?", "Which colour has the marker?"),
    "abnormality": ("Is there a lesion?", "Does the picture show a lesion?"),
    "position": ("On which side of the picture is the lesion?", "Where is the lesion?"),
    "kind": ("Does this picture show the {organ}?", "Is the {organ} visible?"),
}


def make(folder: Path, site: str, seed: int) -> None:
    """Write one hospital, whose pictures are of two modalities."""
    number = site_number(site)
    number = int(generator("modalities", site, seed).integers(4)) if number is None else number
    content: Json = {
        "name": DEMO_NAME,
        "description": "made by omnifm.data.demos; organs and lesions are drawn, nobody was imaged",
        "modality": {"0": PAIRS[number % 4][0]},
    }
    (folder / "images").mkdir()
    for split, count in CASES_PER_SPLIT.items():
        content[split] = []
        for index in range(count):
            name = f"{split}-{index:02d}"
            random = generator("picture", site, seed, name)
            modality = PAIRS[number % 4][index % 2]
            organ = list(ORGANS)[int(random.integers(4))]
            side = ("left", "right", None)[int(random.choice(3, p=[0.35, 0.35, 0.3]))]
            colour = list(COLOURS)[int(random.integers(4))]
            Image.fromarray(_draw(modality, organ, side, colour, random)).save(folder / f"images/{name}.png")
            fixed = {"image": f"images/{name}.png", "patient": name, "modality": modality}
            content[split] += [fixed | asked for asked in _asked(modality, organ, side, colour, random)]
    write_datalist(folder, content)


def texts() -> list[str]:
    """All questions and answers that the demo data can contain."""
    asked = [words.format(organ=organ) for pair in QUESTIONS.values() for words in pair for organ in ORGANS]
    answers = [*MODALITIES.values(), *ORGANS, *COLOURS, "yes", "no", "left", "right"]
    return [*sorted(set(asked)), *answers]


def _asked(
    modality: str, organ: str, side: str | None, colour: str, random: np.random.Generator
) -> Iterator[dict[str, str]]:
    """The questions about one picture; `side` is that of the lesion, None if there is none."""
    other = organ if random.random() < 0.5 else str(random.choice([name for name in ORGANS if name != organ]))
    answers = {
        "modality": MODALITIES[modality],
        "organ": organ,
        "colour": colour,
        "abnormality": "yes" if side else "no",
        "position": side,
        "kind": "yes" if other == organ else "no",
    }
    for kind, answer in answers.items():
        question = QUESTIONS[kind][int(random.integers(2))].format(organ=other)
        if answer is not None:
            closed = "CLOSED" if answer in ("yes", "no") else "OPEN"
            yield {"question": question, "answer": answer, "answer_type": closed, "question_type": kind}


def _draw(
    modality: str, organ: str, side: str | None, colour: str, random: np.random.Generator
) -> UInt8[np.ndarray, "y x 3"]:
    """The picture of an organ, with a lesion (if `side` is given) and a coloured marker."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    shift = random.uniform(-0.08, 0.08, 2)
    inside = np.any([_ellipse(y - shift[0], x - shift[1], *e) for e in ORGANS[organ]], axis=0)
    grey = _imaged(modality, inside, y, x, random)
    if side:
        centre = (random.uniform(-0.3, 0.3), random.uniform(0.3, 0.6) * (-1 if side == "left" else 1))
        grey[_ellipse(y, x, *centre, 0.2, 0.2)] = 1.0
    rgb = np.repeat((255 * np.clip(grey, 0, 1)).astype(np.uint8)[..., None], 3, axis=2)
    rgb[_ellipse(y, x, 0.8, 0.0, 0.17, 0.17)] = COLOURS[colour]
    return rgb


def _imaged(
    modality: str, inside: Bool[np.ndarray, "y x"], y: np.ndarray, x: np.ndarray, random: np.random.Generator
) -> Float[np.ndarray, "y x"]:
    """The organ as a modality shows it, with that modality's background and noise; brightness about 0 to 1."""
    noise = random.normal(0, 1, inside.shape)
    if modality == "CT":  # a bright ring of bone, dark air
        ring = _ellipse(y, x, 0.0, 0.0, 0.98, 0.98) & ~_ellipse(y, x, 0.0, 0.0, 0.88, 0.88)
        return 0.1 + 0.4 * inside + 0.8 * ring + 0.03 * noise
    if modality == "MR":  # smooth shading over soft tissue
        return 0.3 + 0.35 * inside + 0.12 * x + 0.02 * noise
    if modality == "DX":  # a bright background, organs darker, blurred
        return np.asarray(gaussian_filter(0.75 - 0.35 * inside, 1.2)) + 0.02 * noise
    fan = (np.abs(x) < 0.25 + 0.45 * (y + 1)) & (y < 0.95)  # ultrasound: speckle inside a fan
    return np.asarray(fan * (0.25 + 0.3 * inside) * (1 + 0.5 * gaussian_filter(noise, 0.7)))


def _ellipse(
    y: np.ndarray, x: np.ndarray, centre_y: float, centre_x: float, radius_y: float, radius_x: float
) -> Bool[np.ndarray, "y x"]:
    """True inside the ellipse."""
    return ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 < 1
