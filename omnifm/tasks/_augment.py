"""Random changes of training images that several tasks use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from monai.transforms import (
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
    Transform,
)


def random_intensities() -> list[Transform]:
    """Contrast and brightness, each changed by up to 10 % in half of the samples."""
    return [
        RandScaleIntensityd("image", factors=0.1, prob=0.5),
        RandShiftIntensityd("image", offsets=0.1, prob=0.5),
    ]


def random_shapes(keys: Sequence[str], dims: int) -> list[Transform]:
    """Rotation and scaling of a fifth of the samples each, as nnU-Net does (Isensee et al. 2021, supplement).

    Args:
        keys: what is changed together: the image with linear interpolation, everything else with the nearest value.
        dims: 2 or 3.  Pictures turn by any angle, volumes by up to 30 degrees about each axis.
    """
    angle = np.pi if dims == 2 else np.pi / 6
    modes = ["bilinear" if key == "image" else "nearest" for key in keys]
    turned = {"rotate_range": [angle] * (1 if dims == 2 else 3)}
    scaled = {"scale_range": [0.3] * dims}
    return [RandAffined(keys, prob=0.2, mode=modes, padding_mode="reflection", **change) for change in (turned, scaled)]


def random_acquisition(dims: int) -> list[Transform]:
    """Noise, blur, brightness, contrast, low resolution and gamma, with the chances of nnU-Net (Isensee et al. 2021).

    They expect images with mean 0 and standard deviation 1.
    """
    smooth = "bilinear" if dims == 2 else "trilinear"
    return [
        RandGaussianNoised("image", prob=0.1, std=0.3),
        RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.2),
        RandScaleIntensityd("image", factors=0.25, prob=0.15),
        RandScaleIntensityFixedMeand("image", factors=0.25, prob=0.15, preserve_range=True),
        RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1.0), upsample_mode=smooth),
        RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
        RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
    ]
