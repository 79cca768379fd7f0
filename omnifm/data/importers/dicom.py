"""A folder tree of DICOM, as a PACS exports it: one site, its series paired with their SEG, RTSTRUCT or NIfTI masks.

Files are grouped by series whatever their folders and names.  Folders and files of the result are named by salted
digests; the salt stays beside them in `.omnifm-salt`, readable by its owner only, and links a patient who comes again.
The split follows seed and salt: nothing else about a patient may order them, and a copy of the salt in another
destination gives the same split there.
"""

import hashlib
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from omnifm.data.items import MODALITY
from omnifm.data.partition import three_way
from omnifm.data.reader import READER
from omnifm.data.site_folder import link_or_copy, new_folder, write_datalist
from omnifm.data.volume import MAX_BYTES, RefusedImage, read_label, read_volume
from omnifm.state import write_atomic

SALT_FILE = ".omnifm-salt"
SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
Labels = dict[int, str]


@dataclass
class Series:
    """One series found in the tree."""

    modality: str
    study: str
    patients: set[str] = field(default_factory=set)
    """One in the end, or several where the headers contradict each other."""
    files: list[tuple[str, Path]] = field(default_factory=list)
    """With the instance that each says it is."""
    labels: list[Path] = field(default_factory=list)
    """SEG and RTSTRUCT objects that name this series as their image."""
    sections: bool = False
    """Whether its files are slices, of which one may be missing."""
    wanted: bool = False
    excluded: bool = False
    """What one file of it says of both counts for all: a part of a series is no volume."""
    whole: bool = True
    """False for slices beside a file that cannot be read: it may be one of them."""


def prepare(
    source: Path,
    destination: Path,
    *,
    seed: int = 0,
    site: str = "site-1",
    modality: str = "",
    description: str = "",
    exclude: str = "",
    labels: str = "",
    mask: str = "",
) -> None:
    """Write one site, split 60/20/20 by patient; what cannot be read or has no mask is counted and left out.

    A patient is a PatientID whatever its issuer: two people of two issuers who share a number stay in one split.
    A file that should be DICOM and cannot be read may be a slice of any volume in its folder: they are left out with
    it, until it is mended or taken away.

    Args:
        source: folder tree with DICOM files in any order.
        destination: folder for the site; made if needed.
        seed: of the split, with the destination's salt: another salt splits otherwise.
        site: name of the site's folder: letters, digits, _ and -.
        modality: DICOM code such as MR or CT that a series must have; empty takes all.
        description: pattern that a series' description or protocol must hold, e.g. "t1.*(gd|post)"; empty takes all.
        exclude: pattern that it must not hold.
        labels: names of structures or segments, e.g. "liver,tumour" for values 1 and 2; empty prepares images only.
        mask: name of a NIfTI mask in a series' own folder, used where no SEG or RTSTRUCT is wanted.

    Raises:
        ValueError: an option is wrong, the site is already there, or nothing usable is found.
    """
    _check(source, site, modality, (description, exclude), mask, labels)
    meanings: Labels = dict(enumerate(["background", *[name.strip() for name in labels.split(",")]])) if labels else {}
    left_out: Counter[str] = Counter()
    found = _index(source, _salt(destination), (modality, description, exclude), left_out)
    try:
        with new_folder(destination / site) as folder:
            items = _write_all(folder, found, meanings, mask, left_out)
            counts = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "nothing"
            if not items:
                raise ValueError(f"source must hold a usable series; {len(found)} matched, left out: {counts}")
            _write_list(folder, items, meanings, seed)
    except FileExistsError:
        raise ValueError(f"destination must not hold {site!r} yet; it does") from None
    print(f"{len(items)} of {len(found)} matching series prepared; left out: {counts}")


def _check(source: Path, site: str, modality: str, patterns: Sequence[str], mask: str, labels: str) -> None:
    if not source.is_dir():
        raise ValueError("source must be an existing folder; it is not")
    if not SITE.fullmatch(site):
        raise ValueError(f"site must be 1 to 64 letters, digits, _ or -; got {site!r}")
    if modality and not MODALITY.fullmatch(modality):
        raise ValueError(f"modality must be a DICOM code such as MR; got {modality!r}")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"description and exclude must be regular expressions; {error}") from None
    if mask and (Path(mask).name != mask or not mask.endswith((".nii", ".nii.gz"))):
        raise ValueError(f"mask must be the plain name of a NIfTI file; got {mask!r}")
    if mask and not labels:
        raise ValueError("labels must name what the mask's values mean; got none")


def _salt(destination: Path) -> str:
    """The site's secret, made on first use; hexadecimal."""
    destination.mkdir(parents=True, exist_ok=True)
    file = destination / SALT_FILE
    if not file.exists() or file.stat().st_size == 0:  # earlier versions left it empty when they were killed
        write_atomic(file, secrets.token_hex(32).encode())
    text = file.read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"{SALT_FILE} must hold 64 hexadecimal digits; it does not")
    return text


def _index(source: Path, salt: str, wanted: tuple[str, str, str], left_out: Counter[str]) -> dict[str, Series]:
    """Every matching series of the tree, its labels attached."""
    found: dict[str, Series] = {}
    labels: list[tuple[Path, list[str]]] = []
    keys: dict[str, Any] = dict(zip(("modality", "description", "exclude"), wanted, strict=True))
    files = sorted(file for file in source.rglob("*") if file.is_symlink() or not file.is_dir())
    unread: set[Path] = set()
    for file in tqdm(files, unit="file", desc="indexing", disable=None):
        try:
            facts, _ = READER.ask(file, what="header", max_bytes=MAX_BYTES, salt=salt, **keys)
        except RefusedImage as refusal:
            left_out[f"file {refusal.reason}"] += 1
            unread.add(file.parent)
            continue
        if facts["kind"] == "label":
            labels.append((file, facts["refers"]))
        elif facts["kind"] == "image":
            series = found.setdefault(facts["series"], Series(facts["modality"], facts["study"]))
            series.patients |= {facts["patient"]} - {""}
            series.files.append((facts["instance"], file))
            series.sections |= facts["section"]
            series.wanted |= facts["wanted"]
            series.excluded |= facts["excluded"]
    _name_by_study(found)
    found = {name: series for name, series in found.items() if series.wanted and not series.excluded}
    for file, refers in labels:
        for name in set(refers) & found.keys():
            found[name].labels.append(file)
    for series in found.values():
        series.whole = not (series.sections and unread & {file.parent for _, file in series.files})
    return found


def _name_by_study(found: dict[str, Series]) -> None:
    """Give series without a PatientID their study's, or the study itself: nobody may be in two splits."""
    named = {series.study: patient for series in found.values() for patient in series.patients}
    for series in found.values():
        if not series.patients:
            series.patients = {named.get(series.study, series.study)}


def _write_all(
    folder: Path, found: dict[str, Series], labels: Labels, mask: str, left_out: Counter[str]
) -> list[dict[str, Any]]:
    """Write the series that can be read; returns their items."""
    items = []
    for name, series in tqdm(sorted(found.items()), unit="series", desc="reading", disable=None):
        if not series.whole:
            left_out["series beside a file left out"] += 1
            continue
        try:
            items.append(_write_series(folder, name, series, labels, mask))
        except RefusedImage as refusal:
            left_out[refusal.reason] += 1
            shutil.rmtree(folder / "images" / name, ignore_errors=True)
    return items


def _write_series(folder: Path, name: str, series: Series, labels: Labels, mask: str) -> dict[str, Any]:
    """Link one series into the site and read it as training will."""
    if len(series.patients) > 1:
        raise RefusedImage("corrupt", f"a series must be of one patient; got {len(series.patients)}")
    target = folder / "images" / name
    target.mkdir(parents=True)
    for number, file in enumerate(_distinct(series.files)):
        link_or_copy(file, target / f"{number:05d}.dcm")
    image = read_volume(target)
    (patient,) = series.patients
    item = {"image": f"images/{name}", "patient": patient, "modality": series.modality or "OT"}
    if labels:
        label = _label_of(series, mask)
        ending = ".dcm" if label in series.labels else "".join(Path(mask).suffixes[-2:])
        (folder / "labels").mkdir(exist_ok=True)
        item["label"] = f"labels/{name}{ending}"
        read_label(label, image, labels)
        link_or_copy(label, folder / item["label"])
    return item


def _distinct(files: Sequence[tuple[str, Path]]) -> list[Path]:
    """The files without copies of one: an instance exported twice counts once.

    Of an instance whose files differ all are kept, for the reader to judge: some anonymisers call all slices the same.
    """
    counts = Counter(instance for instance, _ in files)
    kept: dict[tuple[str, str], Path] = {}
    for instance, file in files:
        content = _digest_of(file) if counts[instance] > 1 else ""
        kept.setdefault((instance, content), file)
    return list(kept.values())


def _digest_of(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _label_of(series: Series, mask: str) -> Path:
    if mask:
        folders = {file.parent for _, file in series.files}
        found = [folder / mask for folder in sorted(folders) if (folder / mask).is_file()]
    else:
        found = series.labels
    if len(found) != 1:
        kind = "NIfTI mask" if mask else "SEG or RTSTRUCT"
        raise RefusedImage(
            "missing_label" if not found else "several_labels", f"a series must have one {kind}; got {len(found)}"
        )
    return found[0]


def _write_list(folder: Path, items: list[dict[str, Any]], labels: Labels, seed: int) -> None:
    modality = Counter(item["modality"] for item in items).most_common(1)[0][0]
    content: dict[str, Any] = {"name": "DICOM export", "modality": {"0": modality}}
    content |= {"labels": {str(value): name for value, name in labels.items()}} if labels else {}
    parts = three_way([item["patient"] for item in items], seed)
    write_datalist(folder, content | {split: [items[i] for i in part] for split, part in parts.items()})
