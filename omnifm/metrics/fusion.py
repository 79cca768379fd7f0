"""How much of two source pictures a fused picture keeps.

There is no true fused picture, so each metric compares the fused picture with both sources.  Read every metric beside
that of two simple baselines: the average and the maximum of the sources (`baselines`).  This matters most for L1: no
picture has a lower L1 than the baselines, and every picture whose pixels all lie between those of the two sources has
the same L1.

Letters: x columns, y rows.  Luminance is in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter, sobel
from skimage.measure import shannon_entropy
from skimage.metrics import structural_similarity, variation_of_information

Luminance = Float[np.ndarray, "x y"]

EYE_NOISE = 2.0
"""VIF's variance of the noise in the eye, on the scale 0-255."""
TINY = 1e-10
"""VIF: smaller variances count as zero."""
MIN_SIDE = 41
"""Shortest side in pixels; VIF needs it, because its four scales leave out the edges."""


def fusion_scores(fused: Luminance, a: Luminance, b: Luminance) -> dict[str, float | None]:
    """All metrics of one fused picture.

    `ssim`, `vif`, `l1` and `mi` are the mean of the metric against `a` and the metric against `b`.  (Some papers report
    the sum of the two, which is twice our number.)

    Args:
        fused: luminance in [0, 1], each side at least `MIN_SIDE` pixels.
        a: the first source, likewise.
        b: the second source, likewise.

    Returns:
        ssim: in [-1, 1], higher is better.
        vif: >= 0, higher is better; None if a source is uniform.
        l1: in [0, 1], lower is better.
        mi: in bits, >= 0, higher is better.
        qabf: in [0, 0.975], higher is better; None if both sources are uniform.
    """
    fused, a, b = (picture.astype(np.float64) for picture in (fused, a, b))
    return {
        "ssim": _both(ssim, fused, a, b),
        "vif": _both(vif, fused, a, b),
        "l1": _both(l1, fused, a, b),
        "mi": _both(mutual_information, fused, a, b),
        "qabf": qabf(fused, a, b),
    }


def baselines(a: Luminance, b: Luminance) -> dict[str, Luminance]:
    """Two simple fused pictures: the mean and the maximum of the sources in each pixel.

    >>> pictures = baselines(np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]]))
    >>> pictures["average"].tolist(), pictures["max"].tolist()
    ([[0.25, 0.75]], [[0.5, 1.0]])
    """
    return {"average": (a + b) / 2, "max": np.maximum(a, b)}


def ssim(source: Luminance, fused: Luminance) -> float:
    """Structural similarity, in [-1, 1]; 1 means equal pictures (Wang et al. 2004, IEEE TIP 13(4); scikit-image).

    Gaussian window with sigma 1.5 pixels; data range 1; each side at least 11 pixels.

    >>> ssim(np.eye(16), np.eye(16))
    1.0
    """
    similarity = structural_similarity(
        source, fused, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )
    return float(similarity)


def l1(source: Luminance, fused: Luminance) -> float:
    """Mean absolute difference, in [0, 1]; 0 means equal pictures.

    >>> l1(np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]]))
    0.5
    """
    return float(np.abs(source - fused).mean())


def vif(source: Luminance, fused: Luminance) -> float | None:
    """Visual information fidelity in the pixel domain ("VIFp", Sheikh and Bovik 2006, IEEE TIP 15(2)), >= 0.

    It is the share of the information about `source` that is left in `fused`: 1 if they are equal, 0 if nothing is
    left, above 1 if `fused` has more contrast.  It is not symmetric.  There are four scales, with Gaussian windows of
    17, 9, 5 and 3 pixels whose sigma is a fifth of the window.  The noise of the eye has variance 2 on the scale 0-255.

    Returns:
        None if the source holds no information, because it is uniform.

    >>> vif(np.zeros((41, 41)), np.zeros((41, 41))) is None
    True
    """
    x = 255.0 * source
    y = 255.0 * fused
    kept = 0.0
    total = 0.0
    for window in (17, 9, 5, 3):
        if window < 17:
            x = _blurred(x, window)[::2, ::2]
            y = _blurred(y, window)[::2, ::2]
        kept_here, total_here = _information(x, y, window)
        kept += kept_here
        total += total_here
    return kept / total if total > TINY * source.size else None


def _information(x: np.ndarray, y: np.ndarray, window: int) -> tuple[float, float]:
    """VIF's numerator and denominator at one scale: information about x that y keeps, and all information about x."""
    mean_x = _blurred(x, window)
    mean_y = _blurred(y, window)
    var_x = np.maximum(_blurred(x * x, window) - mean_x**2, 0)
    var_y = np.maximum(_blurred(y * y, window) - mean_y**2, 0)
    covariance = _blurred(x * y, window) - mean_x * mean_y
    # Nothing of the source is kept where one of the two is uniform, or where the fused picture is inverted.
    gain = np.where((var_x < TINY) | (var_y < TINY), 0, np.maximum(covariance / (var_x + TINY), 0))
    residual = np.maximum(var_y - gain * covariance, TINY)
    kept = np.log1p(gain**2 * var_x / (residual + EYE_NOISE)).sum()
    total = np.log1p(var_x / EYE_NOISE).sum()
    return float(kept), float(total)


def mutual_information(source: Luminance, fused: Luminance) -> float:
    """Information in bits, 0 to 8, that the grey levels of one picture give about those of the other.

    Computed over 256 levels, with scikit-image (Qu et al. 2002, Electronics Letters 38(7), one of the two terms).

    >>> half_black = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> mutual_information(half_black, half_black), mutual_information(half_black, np.zeros((2, 2)))
    (1.0, 0.0)
    """
    x, y = (np.round(255 * np.clip(picture, 0, 1)).astype(np.int64) for picture in (source, fused))
    _, x_given_y = variation_of_information(x, y)  # two conditional entropies: of y given x, and of x given y
    return max(0.0, float(shannon_entropy(x) - x_given_y))


def qabf(fused: Luminance, a: Luminance, b: Luminance) -> float | None:
    """Q^AB/F: how well the fused picture keeps the strength and the direction of the sources' edges, in [0, 0.975].

    Strong edges have more weight.  Xydeas and Petrovic 2000, Electronics Letters 36(4), with their constants; these
    give a perfect copy 0.975.
    Resolved: directions are compared modulo pi, because an edge from dark to bright and the same edge from bright to
    dark have the same direction.

    Returns:
        None if neither source has an edge.

    >>> qabf(np.eye(8), np.zeros((8, 8)), np.zeros((8, 8))) is None
    True
    """
    edges = _edges(fused)
    sources = [_edges(a), _edges(b)]
    total = sum(float(strength.sum()) for strength, _ in sources)
    kept = sum(float((strength * _preserved((strength, angle), edges)).sum()) for strength, angle in sources)
    return kept / total if total > 0 else None


Edges = tuple[np.ndarray, np.ndarray]
"""Strength and direction (radians, modulo pi) of the gradient in each pixel."""


def _edges(picture: Luminance) -> Edges:
    """The Sobel gradient."""
    across = sobel(picture, axis=0)
    down = sobel(picture, axis=1)
    return np.hypot(across, down), np.arctan2(down, across) % np.pi


def _preserved(source: Edges, fused: Edges) -> np.ndarray:
    """How well each edge of the source is kept, from 0 to about 0.975."""
    weak = np.minimum(source[0], fused[0])
    strong = np.maximum(source[0], fused[0])
    strength = np.divide(weak, strong, out=np.ones_like(weak), where=strong > 0)
    turn = np.abs(source[1] - fused[1])
    direction = 1 - np.minimum(turn, np.pi - turn) / (np.pi / 2)
    return _sigmoid(strength, 0.9994, 15.0, 0.5) * _sigmoid(direction, 0.9879, 22.0, 0.8)


def _sigmoid(value: np.ndarray, top: float, slope: float, middle: float) -> np.ndarray:
    return top / (1 + np.exp(-slope * (value - middle)))


def _both(
    measure: Callable[[Luminance, Luminance], float | None], fused: Luminance, a: Luminance, b: Luminance
) -> float | None:
    """Mean of a metric against both sources; None if it is undefined for one of them."""
    with_a = measure(a, fused)
    with_b = measure(b, fused)
    if with_a is None or with_b is None:
        return None
    return float(np.mean([with_a, with_b]))


def _blurred(picture: np.ndarray, window: int) -> np.ndarray:
    """Gaussian means over `window` pixels, without the edges where the window would reach outside."""
    half = window // 2
    return gaussian_filter(picture, window / 5, radius=half)[half:-half, half:-half]
