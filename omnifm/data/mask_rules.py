"""What a site declares in `dataset.json` about how its masks were made, where the files do not say it themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field

RULES = ("aliases", "fractional_threshold", "exif")
"""Their keys in `dataset.json`."""
EXIF = ("ignore", "apply")


@dataclass(frozen=True)
class MaskRules:
    """What a site declares; without a declaration, a mask that needs one is refused.

    Attributes:
        aliases: name of a label -> other names of the same structure in DICOM SEG and RTSTRUCT.
        fractional_threshold: in (0, 1]; a pixel of a fractional DICOM SEG belongs to its segment from this share on.
        exif: for a picture that a camera's orientation tag turns, and whose mask has another tag or none: "ignore" if
            the mask was drawn on the picture as it is stored, "apply" if on the picture as viewers turn it.
    """

    aliases: Mapping[str, list[str]] = field(default_factory=dict)
    fractional_threshold: float | None = None
    exif: str = ""


NO_RULES = MaskRules()


def folded(name: str) -> str:
    """A name as names are compared: without surrounding spaces, and without case.

    >>> folded(" Liver")
    'liver'
    """
    return name.strip().casefold()


def mask_rules(content: Mapping[str, object], labels: Mapping[int, str]) -> MaskRules:
    """The rules that `dataset.json` declares.

    Args:
        content: the whole list; keys other than `RULES` are not looked at.
        labels: label value -> name.

    Raises:
        ValueError: a rule has another form, or an alias is not clear.
    """
    threshold = content.get("fractional_threshold")
    is_share = isinstance(threshold, (int, float)) and not isinstance(threshold, bool) and 0 < threshold <= 1
    if threshold is not None and not is_share:
        raise ValueError("'fractional_threshold' in dataset.json must be a number above 0, at most 1; it is not")
    exif = content.get("exif", "")
    if exif not in ("", *EXIF):
        raise ValueError(f"'exif' in dataset.json must be one of {list(EXIF)}; it is not")
    aliases = _aliases(content.get("aliases", {}), labels)
    return MaskRules(aliases, float(str(threshold)) if is_share else None, str(exif))


def _aliases(raw: object, labels: Mapping[int, str]) -> dict[str, list[str]]:
    is_form = isinstance(raw, dict) and all(
        isinstance(others, list) and all(isinstance(other, str) and other.strip() for other in others)
        for others in raw.values()
    )
    if not is_form or not isinstance(raw, dict):
        raise ValueError('\'aliases\' in dataset.json must be an object like {"GTV": ["GTV_1"]}; it is not')
    unknown = len(raw.keys() - set(labels.values()))
    if unknown:
        known = f"{unknown} of {len(raw)} are none: write a name as it stands in 'labels'"
        raise ValueError(f"'aliases' in dataset.json must give other names for names in 'labels'; {known}")
    taken = [folded(name) for name in labels.values()]
    for others in raw.values():
        for other in others:
            if folded(other) in taken:
                rule = "'aliases' in dataset.json must name each alias once, and no name in 'labels'"
                raise ValueError(f"{rule} (case and surrounding spaces do not count); one is there twice: delete it")
            taken.append(folded(other))
    return {name: list(others) for name, others in raw.items()}
