"""What classification and segmentation share: images of 2 or 3 dimensions, and their size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from monai.transforms import Resize
from torch import Tensor

from omnifm.data.volume import RefusedImage
from omnifm.records import Json


def dims_of_cases(cases: Iterable[Json]) -> int:
    """The number of dimensions (2 or 3) of a site's cases.

    Raises:
        ValueError: some cases are pictures and others volumes.
    """
    found = sorted({case["dims"] for case in cases})
    if len(found) != 1:
        raise ValueError(f"a site's cases must have one number of dimensions; got {found}")
    return int(found[0])


def dims_of_sites(facts: Mapping[str, Json]) -> int:
    """The number of dimensions (2 or 3) of all sites.

    Raises:
        ValueError: some sites have pictures and others volumes.
    """
    by_site = {site: fact["dims"] for site, fact in facts.items()}
    if len(set(by_site.values())) > 1:
        raise ValueError(f"sites must agree on dims; got {by_site}")
    return int(next(iter(by_site.values())))


def check_fits_model(facts: Json, spec: Json) -> None:
    """Refuse a new image that has other dimensions or channels than the images the model was trained on.

    Args:
        facts: `case_facts` of the image.
        spec: the federation's specification.

    Raises:
        RefusedImage: `bad_geometry`.
    """
    if facts["dims"] != spec["dims"] or facts["channels"] not in (1, spec["channels"]):
        rule = f"image must be {spec['dims']}-D with {spec['channels']} channel(s) for this model"
        raise RefusedImage("bad_geometry", f"{rule}; got {facts['dims']}-D with {facts['channels']}")


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image (c, *space) interpolated linearly to another size; axes that shrink are smoothed first."""
    shape = np.array(image.shape[1:])
    shrinks = bool(np.any(np.array(size) < shape))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return Resize(list(size), mode=mode, anti_aliasing=shrinks)(image)
