"""Grey and colour pictures side by side, and words under drawn ones.

Letters: c channels, x y z axes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

FONT_SIZE = 12
LINE_HEIGHT = 16


def common_channels(found: Iterable[int], whose: str) -> int:
    """The number of channels for all: that of each, or 3 where some are colour and the others grey.

    Args:
        found: numbers of channels, at least one.
        whose: what has them, for the message.

    Raises:
        ValueError: they differ otherwise; four MR contrasts have no grey version.
    """
    numbers = sorted(set(found))
    if len(numbers) > 1 and numbers != [1, 3]:
        raise ValueError(f"{whose} must have one number of channels, or 1 and 3 (grey and colour); got {numbers}")
    return numbers[-1]


def in_channels(array: Float[np.ndarray, "x y z *c"], channels: int) -> Float[np.ndarray, "{channels} x y z"]:
    """Channels first; grey becomes `channels` equal channels.

    Raises:
        ValueError: the array has other channels, as of a colour picture for a model of grey ones.
    """
    last = array if array.ndim == 4 else array[..., None]
    first = np.moveaxis(last, -1, 0)
    if len(first) not in (1, channels):
        raise ValueError(f"image must be grey or of this federation's {channels} channel(s); got {len(first)}")
    return np.repeat(first, channels, axis=0) if len(first) == 1 else first


def caption(pixels: UInt8[np.ndarray, "rows columns 3"], text: str) -> UInt8[np.ndarray, "higher columns 3"]:
    """White lines of text on a black strip below a picture; what does not fit its width is cut off."""
    strip = Image.new("RGB", (pixels.shape[1], LINE_HEIGHT * (text.count("\n") + 1)))
    plain = text.encode("ascii", "replace").decode()  # the font of every Pillow knows these
    ImageDraw.Draw(strip).multiline_text((4, 0), plain, font=ImageFont.load_default(FONT_SIZE), spacing=2)
    return np.concatenate([pixels, np.asarray(strip)])
