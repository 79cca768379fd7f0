"""Things in a site's data that are no error, but that somebody should look at: one sentence and what to do next.

All of it stays at the site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from omnifm.quality.records import Advice, PlaceRecord

SCALE_GAP = 10.0
"""An image is odd if its range of intensities is this many times wider or narrower than its modality's median."""
SPACING_GAP = 3.0
"""An image is odd if its spacing along an axis is this many times longer or shorter than its modality's median."""
APART = 0.5
"""Largest distance between two transforms of one file that is taken for rounding, in voxels."""
TINY = 10
"""A mask with fewer voxels of foreground than this is tiny."""
COVERED = 0.5
"""A mask is odd if its foreground covers more than this share of the image."""
PADDED = 0.9
"""An image is odd if more than this share of its voxels has the smallest value."""


class Thing(NamedTuple):
    """A kind of finding: what it is, after the number of cases, and what to do next."""

    what: str
    advice: str


THINGS = {
    "flat": Thing(
        "image(s) hold one value everywhere",
        "Open them in a viewer; if they are empty there too, export them again or take them out of dataset.json.",
    ),
    "empty_mask": Thing(
        "mask(s) hold no foreground",
        "Right if nothing is to be seen in these patients; otherwise the mask was not saved, or its values are others "
        "than in 'labels'.",
    ),
    "tiny_mask": Thing(
        f"mask(s) hold fewer than {TINY} voxels of foreground",
        "Look whether the structure is really so small; single voxels often come from a slip of the brush.",
    ),
    "large_mask": Thing(
        f"mask(s) cover more than {100 * COVERED:.0f} % of their image",
        "Look whether foreground and background are swapped, or whether 'labels' names the background.",
    ),
    "equal_masks": Thing(
        "mask(s) are the same, voxel by voxel, as the mask of another patient",
        "Two patients never have the same outline: look which of them the mask belongs to, and copy the right file.",
    ),
    "header_modality": Thing(
        "image(s) are of another modality by their header than by dataset.json",
        "Correct 'modality' in dataset.json, or take the images out that came in by mistake.",
    ),
    "intensity": Thing(
        f"image(s) are on another scale: intensities {SCALE_GAP:g} times wider or narrower than most",
        "Look whether they were rescaled, or whether they are of another kind; export all of them in one way.",
    ),
    "spacing": Thing(
        f"image(s) have voxels {SPACING_GAP:g} times longer or shorter than most",
        "Look whether they are of another protocol (localiser, thick slices); take out what does not belong.",
    ),
    "two_transforms": Thing(
        f"file(s) have an sform and a qform that lie more than {APART:g} voxel apart; the sform is used",
        "Viewers may show them shifted or mirrored: compare left and right with the original, and export them again "
        "with one transform.",
    ),
    "orientation_tag": Thing(
        "picture(s) have an EXIF tag that turns them; they are read turned, as viewers show them",
        "Look whether the masks lie right in the pictures below; if they were drawn on the pixels as stored, save the "
        "pictures without the tag and draw or turn the masks again.",
    ),
    "padding": Thing(
        f"image(s) have their smallest value in more than {100 * PADDED:.0f} % of their voxels",
        "Padding or empty background: look whether the body is there in full; cropping makes training faster.",
    ),
}
"""Kinds that concern single cases, by their name in the report."""
PICTURED = ("tiny_mask", "large_mask", "equal_masks", "two_transforms", "orientation_tag", "padding", "header_modality")
"""Kinds of which the page shows pictures."""
LEAKED = (
    "Keep one copy of an image, or put all its copies into one split; if the image belongs to two patients, find out "
    "whose it is."
)
"""What to do about equal images in several splits."""
REPEATED = "Delete the copies in dataset.json, unless the image stands there twice on purpose."
"""What to do about equal images within one split."""


def of_cases(odd: Mapping[str, Sequence[PlaceRecord]]) -> list[Advice]:
    """What there is to say about single cases, by kind."""
    return [
        {"name": name, "what": f"{len(places)} {THINGS[name].what}", "advice": THINGS[name].advice}
        for name, places in odd.items()
    ]


def of_patients(patients: Sequence[str | None]) -> list[Advice]:
    """What there is to say if all cases are one patient's; `patients` holds that of each case, None if it has none."""
    if len(patients) < 2 or None in patients or len(set(patients)) > 1:
        return []
    return [
        {
            "name": "one_patient",
            "what": f"all {len(patients):,} cases name one and the same patient, so that they are in one split, and "
            "nothing is left to validate or to test on",
            "advice": "If an anonymiser gave everybody one PatientID, give each patient a pseudonym of their own in "
            "'patient' of dataset.json (for DICOM: in the export, then prepare again).",
        }
    ]


def of_classes(labels: Mapping[int, str], found: set[int]) -> list[Advice]:
    """What there is to say about classes of `labels` that occur in no case; `found` holds those that do."""
    unpainted = [name for value, name in labels.items() if value not in found] if found else []
    if not unpainted:
        return []
    shown = ", ".join(repr(name) for name in unpainted[:5]) + (" ..." if len(unpainted) > 5 else "")
    return [
        {
            "name": "unpainted",
            "what": f"{len(unpainted)} of {len(labels)} classes in 'labels' occur in no case: {shown}",
            "advice": "A class that nobody has cannot be learned here: look whether the masks use other values or "
            "names, or whether the case lists are complete. It may stay if another site has it.",
        }
    ]
