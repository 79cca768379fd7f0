"""Random changes of training images that several tasks use."""

from __future__ import annotations

from monai.transforms import RandScaleIntensityd, RandShiftIntensityd, Transform


def random_intensities() -> list[Transform]:
    """Contrast and brightness, each changed by up to 10 % in half of the samples."""
    return [
        RandScaleIntensityd("image", factors=0.1, prob=0.5),
        RandShiftIntensityd("image", offsets=0.1, prob=0.5),
    ]
