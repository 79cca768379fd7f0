"""What several tasks share: the channels of grey and colour images, and pictures for the site's report.

Letters: c channels, x y z axes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

FONT_SIZE = 12
LINE_HEIGHT = 16
"""Pixels."""


def common_channels(found: Iterable[int], whose: str) -> int:
    """The number of channels for all images: the one they share, or 3 if some are RGB and the others grey.

    Args:
        found: numbers of channels, at least one.
        whose: the things that have these numbers, for the message.

    Raises:
        ValueError: the numbers differ in another way, e.g. 1 and 4.

    >>> common_channels([1, 3, 1], "sites")
    3
    """
    numbers = sorted(set(found))
    if len(numbers) > 1 and numbers != [1, 3]:
        raise ValueError(f"{whose} must have one number of channels, or 1 and 3 (grey and colour); got {numbers}")
    return numbers[-1]


def in_channels(array: Float[np.ndarray, "x y z *c"], channels: int) -> Float[np.ndarray, "{channels} x y z"]:
    """The array with its channels as the first axis; a grey one is repeated to get `channels` equal channels.

    Raises:
        ValueError: the array is not grey and has another number of channels.
    """
    channels_last = array if array.ndim == 4 else array[..., None]
    channels_first = np.moveaxis(channels_last, -1, 0)
    number = len(channels_first)
    if number not in (1, channels):
        raise ValueError(f"image must be grey or of this federation's {channels} channel(s); got {number}")
    return np.repeat(channels_first, channels, axis=0) if number == 1 else channels_first


def as_rgb(image: Shaped[np.ndarray, "c x y"]) -> Float[np.ndarray, "x y 3"]:
    """Any values as colours from 0 to 1: black is the 1st percentile, white the 99th.

    Three channels are red, green and blue; of any other number of channels the first is shown in grey.
    """
    low, high = np.percentile(image, (1, 99))
    unit = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
    colours = unit if len(unit) == 3 else np.repeat(unit[:1], 3, axis=0)
    return np.moveaxis(colours, 0, -1)


def caption(pixels: UInt8[np.ndarray, "rows columns 3"], text: str) -> UInt8[np.ndarray, "higher columns 3"]:
    """A picture with lines of white text on a black strip below it; text that is too wide is cut off."""
    strip = Image.new("RGB", (pixels.shape[1], LINE_HEIGHT * (text.count("\n") + 1)))
    plain = text.encode("ascii", "replace").decode()  # Pillow's default font may lack other letters
    ImageDraw.Draw(strip).multiline_text((4, 0), plain, font=ImageFont.load_default(FONT_SIZE), spacing=2)
    return np.concatenate([pixels, np.asarray(strip)])
