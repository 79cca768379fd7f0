"""Images without labels: they are read and checked although no task trains on them yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from omnifm.data.items import Item
from omnifm.data.volume import read_volume
from omnifm.records import Json

NOT_YET = (
    "No labels here: ready for predict or for drawing masks. To train, add masks or classes. Super-resolution needs "
    "none: --task super_resolution."
)
"""What is said about images without labels."""


@runtime_checkable
class CaseReader(Protocol):
    """What a check needs of a task."""

    def read(self, item: Item, labels: Mapping[int, str]) -> Json:
        """Read and check one case."""

    def case_facts(self, case: Json) -> Json:
        """Return what one case says about the data."""


class ImagesOnly:
    """Reads the image of a case and nothing else."""

    required = ("image",)

    def read(self, item: Item, labels: Mapping[int, str]) -> Json:
        """Read the image of one case.

        Raises:
            RefusedImage: it cannot be read correctly.
        """
        return {"array": read_volume(item["image"], burned_in_text=item.get("burned_in_text", "unknown")).array}

    def case_facts(self, case: Json) -> Json:
        """Return the number of channels."""
        return {"channels": case["array"].shape[3] if case["array"].ndim == 4 else 1}


def is_unlabelled(items: Sequence[Item]) -> bool:
    """Return whether most items are one image with nothing to learn: no label, no question and no second image."""
    bare = [not {"image_a", "question", "label"} & item.keys() for item in items]
    return 2 * sum(bare) > len(bare)
