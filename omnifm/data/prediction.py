"""A model's result for one case, before it is written to a file.  It lies on the grid of the image as stored.

Letters: x y z voxel axes, c channel.
"""

from dataclasses import dataclass

import nibabel
import numpy as np
from jaxtyping import Float, Shaped, UInt8

RAS = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A class for every voxel.

    Attributes:
        values: class numbers; 0 is background.
        affine: affine of the image, voxel -> RAS mm.
        names: class number -> name, background included.
        shown: the picture with its classes drawn in colour, for people to look at; None for a volume.
        confidence: mean probability that the network gives to its foreground, in [0, 1]; None without foreground.
    """

    values: UInt8[np.ndarray, "x y z"]
    affine: Float[np.ndarray, "4 4"]
    names: dict[int, str]
    shown: UInt8[np.ndarray, "rows columns 3"] | None = None
    confidence: float | None = None


@dataclass(frozen=True, eq=False)
class Picture:
    """A new image.

    Attributes:
        levels: values from 0 to 1; grey, or c = 3 (RGB).
        window: the values that levels 0 and 1 stand for, in the unit of the source image.
        affine: voxel -> RAS mm.
    """

    levels: Float[np.ndarray, "x y z *c"]
    window: tuple[float, float]
    affine: Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Classes:
    """One class for the whole image.

    Attributes:
        probabilities: class name -> probability, in the order of class numbers; they sum to 1.
    """

    probabilities: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """A question and the model's answer."""

    question: str
    answer: str


Prediction = LabelMap | Picture | Classes | Answer


def as_stored(
    array: Shaped[np.ndarray, "x y z *c"], affine: Float[np.ndarray, "4 4"]
) -> Shaped[np.ndarray, "u v w *c"]:
    """Undo `Volume.in_ras`: turn axes from RAS to the order and direction of the image with this affine.

    >>> as_stored(np.arange(3).reshape(3, 1, 1), np.diag([-1.0, 1.0, 1.0, 1.0]))[:, 0, 0]
    array([2, 1, 0])
    """
    back = nibabel.orientations.ornt_transform(RAS, nibabel.orientations.io_orientation(affine))
    return np.ascontiguousarray(nibabel.orientations.apply_orientation(array, back))
