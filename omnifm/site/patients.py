"""What a site remembers of a job's patients, so that nobody whom a run trained on is ever in its test split.

It is kept in `patients.state` in the job's folder, which stays at the site: of every patient and of every image only a
salted digest, and the split.  Patients who are gone stay remembered, because they may come back.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

from omnifm.data.datalist import Datalist, Group
from omnifm.data.items import Item
from omnifm.data.splits import all_items, groups_of
from omnifm.quality.findings import Content, Place
from omnifm.records import ListFacts
from omnifm.state import StateError, decode, encode, write_atomic

FILE = "patients.state"
Contents = Mapping[Place, Content]


class Changes(NamedTuple):
    """How a list differs from the one that the site used before; counts of patients, or of images without one.

    Attributes:
        new: not known before.
        gone: no longer listed.
        changed: with another image, mask or class than before.
        moved: whom dataset.json now puts into another split than the run's; they keep that of the run.
    """

    new: int = 0
    gone: int = 0
    changed: int = 0
    moved: int = 0


def fingerprint(datalist: Datalist, contents: Contents) -> str:
    """SHA-256 of the patients, of their splits, and of what their files hold; not of names and times of files."""
    items = all_items(datalist)
    split_of = {item["origin"]: split for split, own in datalist.splits().items() for item in own}
    rows = []
    for group in groups_of(datalist):
        origins = [items[position]["origin"] for position in group.positions]
        cases = sorted(contents[origin].whole for origin in origins if origin in contents)
        rows.append([group.patients or group.images, split_of[origins[0]], cases])
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


def list_facts(patients: Patients, changes: Changes, *, is_known: bool) -> ListFacts:
    """What the server is told: counts, and a digest that depends on the run, so that runs cannot be compared by it.

    Args:
        is_known: whether the site still knows which patients this run has used.
    """
    digest = hmac.new(patients.run_id.encode(), patients.fingerprint.encode(), "sha256").hexdigest()
    new, gone, changed, moved = changes
    return {"digest": digest, "known": is_known, "new": new, "gone": gone, "changed": changed, "moved": moved}


class PatientRecord(TypedDict):
    """A patient, or an image that has none, by a salted digest."""

    split: str
    cases: list[str]
    """Digests of the cases as they were last used; empty for any but the first image of a group without a patient."""
    images: list[str]
    """Salted digests of all images that were ever used."""
    is_listed: bool
    """Whether the last list held it; always False for any but the first image of a group without a patient."""


class Patients:
    """What is remembered of a job.

    Args:
        folder: the job's folder in the site's state folder.
        seed: of the job.  What was remembered under another seed is forgotten.

    Attributes:
        run_id: the run that used the list last; "" if there was none.
        fingerprint: of that list.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.file = folder / FILE
        self.seed = seed
        self.salt, self.run_id, self.fingerprint = secrets.token_hex(16), "", ""
        self.patients: dict[str, PatientRecord] = {}
        try:
            record = decode(self.file.read_bytes())[1]
        except (OSError, StateError):
            return
        if record["seed"] == seed:
            self.salt, self.run_id, self.fingerprint = record["salt"], record["run_id"], record["fingerprint"]
            self.patients = record["patients"]

    def splits(self, datalist: Datalist, contents: Contents, *, is_same_run: bool) -> dict[str, str]:
        """The split of every known patient, by the name of the group; for `splits.settle`.

        A patient is known by name, and by an image, because a hospital may give its patients new names.

        Args:
            contents: digests of the cases; may be empty, if they were not read yet.
            is_same_run: whether the splits that dataset.json itself says are overruled as well.  A new run, which
                starts from an untrained model, takes those as they are.
        """
        items, of_image = all_items(datalist), self._split_of_image()
        found: dict[str, str] = {}
        for group in groups_of(datalist):
            if not is_same_run and not self._is_automatic(datalist, items[group.positions[0]]["origin"]):
                continue
            used = {self.patients[key]["split"] for key in self._keys(group) if key in self.patients}
            used |= {of_image[key] for key in self._images(group, items, contents) if key in of_image}
            if used:  # whoever was trained on trains; who has chosen the checkpoint is no test case either
                found[group.name] = min(used, key=("training", "validation", "test").index)
        return found

    def changes(self, datalist: Datalist, contents: Contents) -> Changes:
        """Compare a list with the one that was used last, if there is any."""
        if not self.fingerprint:
            return Changes()
        items = all_items(datalist)
        split_of = {item["origin"]: split for split, own in datalist.splits().items() for item in own}
        listed: set[str] = set()
        new = changed = moved = 0
        for group in groups_of(datalist):
            keys, origin = self._keys(group), items[group.positions[0]]["origin"]
            listed |= set(keys)
            record = self.patients.get(keys[0])
            new += not any(key in self.patients for key in keys)
            changed += record is not None and record["cases"] != self._cases(group, items, contents)
            moved += not self._is_automatic(datalist, origin) and origin[0] != split_of[origin]
        gone = sum(record["is_listed"] and key not in listed for key, record in self.patients.items())
        return Changes(new, gone, changed, moved)

    def are_others(self, datalist: Datalist, contents: Contents) -> bool:
        """Whether no image of the list was ever used, although there are some to compare: it is another data set."""
        items, known = all_items(datalist), self._split_of_image(unambiguous=False)
        here = {key for group in groups_of(datalist) for key in self._images(group, items, contents)}
        return bool(known and here) and not known.keys() & here

    def remember(self, run_id: str, datalist: Datalist, contents: Contents) -> None:
        """Write the splits of this list down, before a run uses them."""
        items = all_items(datalist)
        split_of = {item["origin"]: split for split, own in datalist.splits().items() for item in own}
        for record in self.patients.values():
            record["is_listed"] = False
        for group in groups_of(datalist):
            split = split_of[items[group.positions[0]]["origin"]]
            cases = self._cases(group, items, contents)
            images = set(self._images(group, items, contents))
            for number, key in enumerate(self._keys(group)):
                before = self.patients[key]["images"] if key in self.patients else []
                self.patients[key] = {
                    "split": split,
                    "cases": [] if number else cases,
                    "images": sorted(images.union(before)),
                    "is_listed": number == 0,
                }
        self.run_id, self.fingerprint = run_id, fingerprint(datalist, contents)
        names = ("seed", "salt", "run_id", "fingerprint", "patients")
        write_atomic(self.file, encode({}, {name: getattr(self, name) for name in names}))

    def _keys(self, group: Group) -> list[str]:
        """Of each patient; of each image if there is no patient.  The name of a patient's image may be reused."""
        names = [("patient", name) for name in group.patients] or [("image", name) for name in group.images]
        return [self._salted(*name) for name in names or [("item", group.name)]]

    def _images(self, group: Group, items: list[Item], contents: Contents) -> Iterator[str]:
        for position in group.positions:
            if content := contents.get(items[position]["origin"]):
                yield from (self._salted("voxels", image) for image in content.images)

    def _cases(self, group: Group, items: list[Item], contents: Contents) -> list[str]:
        found = (contents.get(items[position]["origin"]) for position in group.positions)
        return sorted(self._salted("case", content.whole) for content in found if content)

    def _split_of_image(self, *, unambiguous: bool = True) -> dict[str, str]:
        """Split by image; without images that several splits hold, of which large public collections have a few."""
        found: dict[str, set[str]] = {}
        for record in self.patients.values():
            for image in record["images"]:
                found.setdefault(image, set()).add(record["split"])
        return {image: min(splits) for image, splits in found.items() if len(splits) == 1 or not unambiguous}

    def _is_automatic(self, datalist: Datalist, origin: Place) -> bool:
        return bool(datalist.automatic) and origin[0] == "training"

    def _salted(self, kind: str, text: str) -> str:
        return hmac.new(self.salt.encode(), f"{kind} {text}".encode("utf-8", "surrogatepass"), "sha256").hexdigest()[
            :32
        ]
