"""Which split every patient of a site is in: the one of earlier runs, else that of dataset.json, else one by hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from omnifm.data.datalist import SPLITS, Datalist, Group, groups
from omnifm.data.items import Item
from omnifm.data.partition import fill_empty


def all_items(datalist: Datalist) -> list[Item]:
    """The items of all splits, in the order of the file."""
    items = [item for split in datalist.splits().values() for item in split]
    return sorted(items, key=lambda item: (SPLITS.index(item["origin"][0]), item["origin"][1]))


def groups_of(datalist: Datalist) -> list[Group]:
    """The groups of `all_items`: what must stay together, mostly one patient each."""
    return groups(all_items(datalist), datalist.root)


def settle(datalist: Datalist, seed: int = 0, known: Mapping[str, str] | None = None) -> Datalist:
    """Give known patients their split again, and fill the splits of a small site that are empty.

    Args:
        datalist: as `read_datalist` returns it.
        seed: decides which patient fills an empty split.
        known: split by name of a group, of an earlier run; these patients keep theirs.

    Returns:
        the same items.  No split among `Datalist.automatic` is empty if three new patients are there to fill them.
    """
    known, items, found = known or {}, all_items(datalist), groups_of(datalist)
    listed = {item["origin"]: split for split, own in datalist.splits().items() for item in own}
    before = {group.name: listed[items[group.positions[0]]["origin"]] for group in found}
    splits = {name: known.get(name, split) for name, split in before.items()}
    if datalist.automatic:
        splits = fill_empty(splits, [name for name in splits if name not in known], seed, datalist.automatic)
    if splits == before:
        return datalist
    split_of_item = {position: splits[group.name] for group in found for position in group.positions}
    training, validation, test = (
        tuple(item for position, item in enumerate(items) if split_of_item[position] == split) for split in SPLITS
    )
    return replace(datalist, training=training, validation=validation, test=test)
