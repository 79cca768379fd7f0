"""A DICOM export of a PACS: one site, its series with their masks (SEG, RTSTRUCT or NIfTI).

Files are grouped by series; their folders and names do not matter.  In the result, patients and series are named by
salted digests (hashes made with a secret, the salt).  The salt is stored in the destination as `.omnifm-salt`, readable
by its owner only.  With the same salt a patient gets the same name in a later export.  The split depends on the seed
and the salt only, so that it reveals nothing about the patients.  To get the same split in another destination, copy
the salt there first.
"""

import hashlib
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from omnifm.data.importers._dicom_convert import CONVERTED, Conversion, check_conversion, converted
from omnifm.data.importers._dicom_series import Index, Series, drop_other_images, join_single_slices
from omnifm.data.importers._sites import already_there
from omnifm.data.importers._splits import SplitMemory, one_patient
from omnifm.data.items import MODALITY
from omnifm.data.local_lists import LeftOut, by_reason, in_lines, in_words, on_screen, write_left_out, write_names
from omnifm.data.reader import READER
from omnifm.data.site_folder import new_folder, place, write_datalist
from omnifm.data.volume import MAX_BYTES, RefusedImage, read_label, read_volume
from omnifm.state import write_atomic

SALT_FILE = ".omnifm-salt"
SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
Labels = dict[int, str]


class Selection(NamedTuple):
    """Which series are prepared; an empty text selects everything (for `exclude`: excludes nothing)."""

    modality: str
    description: str
    exclude: str


class Masks(NamedTuple):
    """The masks that are wanted.

    Attributes:
        labels: names of their values; empty if only images are wanted.
        file: name of a NIfTI file beside the images; "" for SEG or RTSTRUCT objects.
    """

    labels: Labels
    file: str


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
    volume: str = "",
    tilt: str = "",
    convert: str = "",
    link: bool = False,
) -> None:
    """Write one site with the patients split 60/20/20 into training, validation and test, each by a hash of its own.

    Files are copied; the export is never changed, and the copies still hold its headers.  Series that cannot be read or
    have no mask are left out; `left-out.txt` in the destination lists them, and `names.txt` leads from the new names to
    the export.  Two patients with the same PatientID from
    different issuers count as one patient, so that they are in one split.  If a file that should be DICOM cannot be
    read, it may be a slice of any series in its folder.  All series with slices in that folder are then left out, until
    the file is repaired or removed.

    Args:
        source: folder of the DICOM export; files may lie in any subfolder.
        destination: folder in which the site folder is written; it is created if it does not exist.
        seed: random seed of the split; another seed, or another salt in the destination, gives another split.
        site: name of the site's folder: letters, digits, _ and -.
        modality: DICOM code such as MR or CT; only series of this modality are used. Empty: all.
        description: regular expression in a series' description or protocol, e.g. "t1.*(gd|post)". Empty: all.
        exclude: regular expression; series with it in their description or protocol are not used. Empty: none.
        labels: names of segments or structures, "liver,tumour" for mask values 1 and 2. Empty: images only.
        mask: file name of a NIfTI mask in each series' own folder, to use instead of SEG or RTSTRUCT.
        volume: which volume of a series over echoes, b values or time, e.g. "b=1000", "echo=2", "time=3" or "first".
        tilt: "shear" resamples series of a tilted CT gantry onto a straight grid. Empty: they are left out.
        convert: "mosaic" unpacks Siemens mosaics with dcm2niix in a closed process. Empty: they are left out.
        link: hard links instead of copies of the images, to save disk space; whoever edits one edits the original, too.

    Raises:
        ValueError: an option is wrong, the site folder already exists, or no series can be used.
    """
    selection, conversion = Selection(modality, description, exclude), Conversion(volume, tilt, convert)
    _check(source, site, selection, mask, labels)
    check_conversion(conversion)
    meanings = dict(enumerate(["background", *(name.strip() for name in labels.split(","))])) if labels else {}
    left_out: list[LeftOut] = []
    everything = _index(source, _salt(destination), selection, left_out)
    found = {name: series for name, series in everything.items() if series.wanted and not series.excluded}
    try:
        with new_folder(destination / site) as folder:
            items = _write_all(folder, found, Masks(meanings, mask), conversion, left_out, link)
            if not items:
                raise ValueError(_nothing_usable(everything, found, selection, left_out))
            _write_list(folder, items, meanings, SplitMemory(destination, seed))
    except FileExistsError:
        raise ValueError(already_there(site)) from None
    finally:
        write_left_out(destination, left_out)
        for line in on_screen(left_out):
            print(line)
    write_names(destination, [(f"{site}/{item['image']}", found[_series_of(item)].place) for item in items])
    counts = ", ".join(f"{len(rows)} {reason}" for reason, rows in by_reason(left_out).items()) or "nothing"
    print(f"{len(items)} of {len(found)} matching series prepared; left out: {counts}")
    for line in [*in_lines(left_out), *one_patient([item["patient"] for item in items])]:
        print(line)


def _series_of(item: Mapping[str, str]) -> str:
    return Path(item["image"]).name.removesuffix(CONVERTED)


def _nothing_usable(everything: Index, found: Index, selection: Selection, left_out: list[LeftOut]) -> str:
    """Why no series is prepared, and what to do."""
    if left_out and (found or not everything):
        return f"source must hold a usable series; {len(found)} matched, and none can be used. {in_words(left_out)}"
    if not everything:
        return "source must hold DICOM images; it holds none: give the folder of an export"
    known = {series.modality for series in everything.values() if MODALITY.fullmatch(series.modality)}
    codes = sorted(known) or ["none"]
    if selection.modality and selection.modality not in codes:
        nearest = get_close_matches(selection.modality, codes, n=1, cutoff=0)[0]
        return f"no series has modality {selection.modality}; here are {' and '.join(codes)}: use --modality {nearest}"
    return (
        f"no series matches; here are {len(everything)}, of {' and '.join(codes)}: "
        "change or leave out --modality, --description and --exclude"
    )


def _check(source: Path, site: str, selection: Selection, mask: str, labels: str) -> None:
    if not source.is_dir():
        raise ValueError("source must be an existing folder; it is not")
    if not SITE.fullmatch(site):
        raise ValueError(f"site must be 1 to 64 letters, digits, _ or -; got {site!r}")
    if selection.modality and not MODALITY.fullmatch(selection.modality):
        raise ValueError(f"modality must be a DICOM code such as MR; got {selection.modality!r}")
    for pattern in (selection.description, selection.exclude):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"description and exclude must be regular expressions; {error}") from None
    if mask and (Path(mask).name != mask or not mask.endswith((".nii", ".nii.gz"))):
        raise ValueError(f"mask must be the plain name of a NIfTI file; got {mask!r}")
    if mask and not labels:
        raise ValueError("labels must name what the mask's values mean; got none: add --labels")


def _salt(destination: Path) -> str:
    """The destination's secret, 64 hexadecimal digits; created at the first import."""
    destination.mkdir(parents=True, exist_ok=True)
    file = destination / SALT_FILE
    if not file.exists() or file.stat().st_size == 0:  # earlier versions could leave it empty
        write_atomic(file, secrets.token_hex(32).encode())
    text = file.read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"{SALT_FILE} must hold 64 hexadecimal digits; it does not")
    return text


def _index(source: Path, salt: str, selection: Selection, left_out: list[LeftOut]) -> Index:
    """All series of the export, with the SEG and RTSTRUCT objects that refer to them."""
    found: Index = {}
    labels: list[tuple[Path, list[str]]] = []
    files = sorted(file for file in source.rglob("*") if file.is_symlink() or not file.is_dir())
    unread: set[Path] = set()
    for file in tqdm(files, unit="file", desc="indexing", disable=None):
        try:
            facts, _ = READER.ask(file, what="header", max_bytes=MAX_BYTES, salt=salt, **selection._asdict())
        except RefusedImage as refusal:
            left_out.append(LeftOut(refusal.reason, str(file), str(refusal)))
            unread.add(file.parent)
            continue
        if facts["kind"] == "label":
            labels.append((file, facts["refers"]))
        elif facts["kind"] == "image":
            series = found.setdefault(facts["series"], Series(facts["modality"], facts["study"]))
            series.add(file, facts)
    _add_missing_patients(found)
    for series in found.values():
        left_out += [LeftOut("not_a_slice", str(file)) for file in drop_other_images(series)]
    aliases = join_single_slices(found, left_out)
    for file, refers in labels:
        for name in {aliases.get(name, name) for name in refers} & found.keys():
            found[name].labels.append(file)
    for series in found.values():
        series.complete = not (series.sections and unread & {file.parent for _, file in series.files})
    return found


def _add_missing_patients(found: Index) -> None:
    """Give a series without PatientID the patient of its study, or the study itself as its patient.

    Otherwise the images of one patient could be in two splits.
    """
    named = {series.study: patient for series in found.values() for patient in series.patients}
    for series in found.values():
        if not series.patients:
            series.patients = {named.get(series.study, series.study)}


def _write_all(
    folder: Path, found: Index, masks: Masks, conversion: Conversion, left_out: list[LeftOut], link: bool
) -> list[dict[str, str]]:
    """Write the series that can be read, and note the others; returns the items of dataset.json."""
    items = []
    for name, series in tqdm(sorted(found.items()), unit="series", desc="reading", disable=None):
        if not series.complete:
            left_out.append(LeftOut("beside_unreadable", series.place))
            continue
        try:
            items.append(_write_series(folder, name, series, masks, conversion, link))
        except RefusedImage as refusal:
            left_out.append(LeftOut(refusal.reason, series.place, series.explained(str(refusal))))
            shutil.rmtree(folder / "images" / name, ignore_errors=True)
            (folder / "images" / f"{name}{CONVERTED}").unlink(missing_ok=True)
    return items


def _write_series(
    folder: Path, name: str, series: Series, masks: Masks, conversion: Conversion, link: bool
) -> dict[str, str]:
    """Copy one series into the site's folder and read it as training will; returns its item."""
    if len(series.patients) > 1:
        raise RefusedImage("corrupt", f"a series must be of one patient; got {len(series.patients)}")
    target = folder / "images" / name
    target.mkdir(parents=True)
    for number, file in enumerate(_distinct(series.files)):
        place(file, target / f"{number:05d}.dcm", link=link)
    changes = converted(target, conversion) if any(conversion) else ""
    where = f"images/{name}{CONVERTED}" if changes else f"images/{name}"
    image = read_volume(folder / where)
    (patient,) = series.patients
    item = {"image": where, "patient": patient, "modality": series.modality or "OT"}
    if changes:
        item["prepared"] = changes
    if masks.labels:
        label = _label_of(series, masks.file)
        ending = ".dcm" if label in series.labels else "".join(Path(masks.file).suffixes[-2:])
        (folder / "labels").mkdir(exist_ok=True)
        item["label"] = f"labels/{name}{ending}"
        read_label(label, image, masks.labels)
        place(label, folder / item["label"])
    return item


def _distinct(files: Sequence[tuple[str, Path]]) -> list[Path]:
    """The files without exact copies: an instance that was exported twice is used once.

    Files with the same instance but different content are all kept, and the reader decides about them: some
    anonymisers give all slices the same instance.
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
    """The only mask of a series.

    Raises:
        RefusedImage: there is none, or more than one.
    """
    if mask:
        folders = {file.parent for _, file in series.files}
        found = [folder / mask for folder in sorted(folders) if (folder / mask).is_file()]
    else:
        found = series.labels
    if len(found) != 1:
        kind = "NIfTI mask" if mask else "SEG or RTSTRUCT"
        reason = "several_labels" if found else "missing_label"
        raise RefusedImage(reason, f"a series must have one {kind}; got {len(found)}")
    return found[0]


def _write_list(folder: Path, items: list[dict[str, str]], labels: Labels, memory: SplitMemory) -> None:
    modality = Counter(item["modality"] for item in items).most_common(1)[0][0]
    content: dict[str, object] = {"name": "DICOM export", "modality": {"0": modality}}
    if labels:
        content["labels"] = {str(value): name for value, name in labels.items()}
    parts = memory.three_way([item["patient"] for item in items])
    write_datalist(folder, content | {split: [items[i] for i in part] for split, part in parts.items()})
