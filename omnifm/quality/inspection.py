"""Quality control of a site's data before any training: the same for `omnifm check` and at the start of a run.

The task reads every case once.  Problems and warnings hold counts only, because they may be sent to the server.  The
report and the page say where, by list and position in dataset.json.  Nothing names a patient or a path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from tqdm import tqdm

from omnifm.config import Experiment, SiteConfig, read_site_file
from omnifm.data.datalist import SPLITS, Datalist, read_datalist
from omnifm.data.items import Item
from omnifm.data.refusal import REASONS
from omnifm.data.splits import all_items, settle
from omnifm.plugins import load_task, plugin
from omnifm.quality import things
from omnifm.quality.findings import Content, Findings, Place, record_reads
from omnifm.quality.page import are_pictures, page, share_in_words
from omnifm.quality.quarantine import Refusal, TooManyRefused, check_cases, write_quarantine
from omnifm.quality.records import (
    Advice,
    CheckReport,
    ImagesReport,
    LabelCount,
    PlaceRecord,
    RefusalRecord,
    SplitReport,
)
from omnifm.quality.samples import Pictures
from omnifm.quality.unlabelled import NOT_YET, CaseReader, ImagesOnly, is_unlabelled
from omnifm.records import Json
from omnifm.state import write_atomic

UNKNOWN_PATIENTS = (
    "patients unknown: every file counts as its own patient, so that one patient may be in several splits; "
    "name them, by 'patient' in dataset.json or --patient in prepare"
)
SCHEMA = 2
"""Version of the report.  A site repeats a stored check of another version."""
MAX_LEAKED = 0.01
"""Largest share of validation and test cases whose image is in another split, too.  Above it the site cannot train.
Below it a score hardly changes, and large public collections have a few such images."""
CHANGES = {
    "tilt": "of a tilted gantry were sheared: interpolation smooths them, and the noise differs from slice to slice",
    "volume ": "are one volume of a series that holds several",
    "mosaic": "were unpacked from mosaics by dcm2niix",
}
"""Word in an item's "prepared" -> what is said of such cases."""


@dataclass(frozen=True)
class Inspection:
    """The result of a check.

    Attributes:
        datalist: without the refused cases.
        refusals: cases that cannot be read, with reasons.
        report: the numbers, for JSON.
        pictures: PNG files by caption, for the site's own staff only; see `Pictures.drawn`.
        facts: `Task.case_facts` of each case that could be read.
        contents: digests of each case that could be read, by its place in dataset.json.
    """

    datalist: Datalist
    refusals: tuple[Refusal, ...]
    report: CheckReport
    pictures: dict[str, bytes]
    facts: list[Json]
    contents: dict[Place, Content]

    @property
    def problems(self) -> list[str]:
        """The reasons why the site cannot train, one line each; empty if it can."""
        return self.report["problems"]

    def save(self, folder: Path) -> None:
        """Write check.html and quarantine.json.  Only their owner can read them."""
        write_quarantine(folder / "quarantine.json", self.refusals)
        write_page(folder / "check.html", self.report, self.pictures)


def inspect(
    datalist: Datalist,
    task: CaseReader,
    max_refused_fraction: float = 0.05,
    *,
    name: str | None,
    progress: bool = False,
) -> Inspection:
    """Read every case once, as the task does, and decide whether the site can train.

    Args:
        datalist: of the site.
        task: reads the cases.
        max_refused_fraction: as for `check_cases`.
        name: of the task; None for images without labels.
        progress: whether to show a progress bar on standard error.

    Raises:
        ValueError: the fraction is out of range.
    """
    findings, pictures, facts = Findings(datalist), Pictures(datalist), list[Json]()

    def read(item: Item) -> None:
        facts.append(task.case_facts(task.read(item, datalist.labels)))

    def look(item: Item) -> None:
        bar.update()
        case = record_reads(read, item)
        findings.see(item, case)
        pictures.see(item, case, findings.kinds_of(item["origin"]))

    problems: list[str] = []
    with tqdm(total=len(findings.split_of), unit=" cases", disable=None if progress else True, leave=False) as bar:
        try:
            datalist_kept, refusals = check_cases(datalist, look, max_refused_fraction)
        except TooManyRefused as error:
            datalist_kept, refusals = datalist, error.refusals
            problems.append(str(error))
    report = _report(findings, datalist, refusals, facts, name)
    report["problems"][:0] = problems
    report["usable"] = not report["problems"]
    return Inspection(datalist_kept, refusals, report, pictures.drawn, facts, findings.contents)


def _report(
    findings: Findings, datalist: Datalist, refusals: Sequence[Refusal], facts: Sequence[Json], task: str | None
) -> CheckReport:
    """Return the report of all cases that were read."""
    across, within = findings.duplicates()
    splits = _splits(findings, refusals)
    odd: dict[str, list[PlaceRecord]] = {
        name: [{"list": at[0], "position": at[1]} for at in places] for name, places in _odd(findings).items()
    }
    images = {name: found.report() for name, found in sorted(findings.images.items())}
    leaks, is_much = _leaks(across, splits)
    problems = (leaks if is_much else []) + _mixed(images)
    warnings = ([] if is_much else leaks) + _colours(facts) + _warnings(findings, datalist, len(within), odd, task)
    return {
        "schema": SCHEMA,
        "task": task,
        "usable": not problems,
        "problems": problems,
        "warnings": warnings,
        "look_at": _look_at(findings, datalist, odd, across, within, task),
        "labels": {str(value): name for value, name in datalist.labels.items()},
        "splits": splits,
        "images": images,
        "duplicates": {"across_splits": across, "within_a_split": within},
        "odd": odd,
        "refusals": [cast("RefusalRecord", asdict(refusal)) for refusal in refusals],
    }


def _look_at(
    findings: Findings,
    datalist: Datalist,
    odd: Mapping[str, Sequence[PlaceRecord]],
    across: Sequence[object],
    within: Sequence[object],
    task: str | None,
) -> list[Advice]:
    """Return what somebody should look at, and what to do then."""
    learns_labels = task is not None and "label" in plugin("tasks", task).required
    found = set().union(*(split.label_cases for split in findings.splits.values()))
    advice = things.of_patients([item.get("patient") for item in all_items(datalist)])
    advice += (things.of_classes(datalist.labels, found) if learns_labels else []) + things.of_cases(odd)
    if across:
        advice.append(
            {"name": "leaked", "what": f"{len(across)} image(s) stand in several splits", "advice": things.LEAKED}
        )
    if within:
        advice.append({"name": "repeated", "what": _repeated(len(within)), "advice": things.REPEATED})
    return advice


def _repeated(number: int) -> str:
    return f"{number} image(s) stand more than once within a split"


def _splits(findings: Findings, refusals: Sequence[Refusal]) -> dict[str, SplitReport]:
    refused = Counter(findings.split_of[refusal.split, refusal.position] for refusal in refusals)
    splits = {name: split.report() for name, split in findings.splits.items()}
    for name, split in splits.items():
        split["refused"] = refused[name]
    return splits


def check_site(
    path: Path, task: str | None = None, site_file: Path | None = None, experiment: Experiment | None = None
) -> tuple[CheckReport, dict[str, bytes]]:
    """Inspect a site outside a run, with a progress bar.

    Args:
        path: the site's folder or its dataset.json.
        task: name of a file in `omnifm/tasks/`; None takes the experiment's, or the task that fits most items.
        site_file: the site's own configuration, for `allowed_roots` and `max_refused_fraction`.
        experiment: of a job; the task reads with its settings.  None takes the task's defaults.

    Returns:
        report and pictures, as in `Inspection`.

    Raises:
        ValueError: an argument is wrong.  What is wrong with the data is in the report.
    """
    if not (path / "dataset.json" if path.is_dir() else path).is_file():
        raise ValueError("path must be a dataset.json or a folder that holds one; it is neither")
    if task is not None:
        plugin("tasks", task)
    config = SiteConfig(str(path), "") if site_file is None else read_site_file(site_file)
    roots = tuple(Path(root) for root in config.allowed_roots)
    if experiment is not None and task not in (None, experiment.task["name"]):
        raise ValueError(f"task must be the job's, {experiment.task['name']}; got {task}")
    task = task if experiment is None else experiment.task["name"]
    try:
        if task is None:
            listed = settle(read_datalist(path, required=(), allowed_roots=roots))
            task = kind_of_data(listed)
            if task is None:
                found = inspect(listed, ImagesOnly(), config.max_refused_fraction, name=None, progress=True)
                return found.report, found.pictures
        seed = 0 if experiment is None else experiment.seed
        datalist = read_datalist(path, required=plugin("tasks", task).required, allowed_roots=roots, seed=seed)
        datalist = settle(datalist, seed)
    except ValueError as error:
        return _unusable(task, str(error)), {}
    kind = plugin("tasks", task)
    work = kind(kind.Settings(), kind.Model()) if experiment is None else load_task(experiment)
    found = inspect(datalist, work, config.max_refused_fraction, name=task, progress=True)
    if not found.problems:
        try:
            work.facts(found.facts, datalist.labels)  # what the site would send to the server
        except ValueError as error:
            found.problems.append(str(error))
            found.report["usable"] = False
    return found.report, found.pictures


def check(path: str | Path, task: str | None = None, *, job: str | Path | None = None) -> CheckReport:
    """Check a site's data before training, as `omnifm check` does.

    >>> from omnifm import check
    >>> check("data/site-1")["usable"]  # doctest: +SKIP
    True

    Args:
        path: the site's folder or its dataset.json.
        task: the task that the data are for; None takes the job's, or the task that fits most items.
        job: read the data as this job does: a job folder, an experiment.json or a shipped job's name.

    Raises:
        ValueError: an argument is wrong.  What is wrong with the data is in the report.
    """
    experiment = None if job is None else Experiment.from_job(job)
    return check_site(Path(path), task, experiment=experiment)[0]


def write_page(path: Path, report: CheckReport, pictures: Mapping[str, bytes]) -> None:
    """Write the page.  Only its owner can read it."""
    write_atomic(path, page(report, pictures))


def _unusable(task: str | None, problem: str) -> CheckReport:
    """Return the report of a site whose dataset.json breaks a rule, so that no case was read."""
    return {
        "schema": SCHEMA,
        "task": task,
        "usable": False,
        "problems": [problem],
        "warnings": [],
        "look_at": [],
        "labels": {},
        "splits": {},
        "images": {},
        "odd": {},
        "duplicates": {"across_splits": [], "within_a_split": []},
        "refusals": [],
    }


def in_words(report: CheckReport) -> Iterator[str]:
    """Return the report as lines for a terminal."""
    yield _verdict(report)
    for name, split in report["splits"].items():
        yield _split_in_words(name, split, report["labels"])
    for modality, images in report["images"].items():
        yield _images_in_words(modality, images)
    for refusal in report["refusals"]:
        yield f"refused: item {refusal['position']} of '{refusal['split']}': {refusal['reason']}: {refusal['message']}"
    for reason in sorted({refusal["reason"] for refusal in report["refusals"]}):
        yield f"what to do about {reason}: {REASONS[reason].advice}"
    duplicates = report["duplicates"]
    yield from (f"duplicate across splits: {_group_in_words(group)}" for group in duplicates["across_splits"])
    yield from (f"duplicate within a split: {_group_in_words(group)}" for group in duplicates["within_a_split"])
    said = {advice["what"] for advice in report["look_at"]}
    yield from (f"warning: {warning}" for warning in report["warnings"] if warning not in said)
    yield from (f"look at: {advice['what']}. {advice['advice']}" for advice in report["look_at"])
    yield from (f"problem: {problem}" for problem in report["problems"])


def _verdict(report: CheckReport) -> str:
    """Return the first line, which says for what the data can be used."""
    if report["task"] is None:
        return f"usable. {NOT_YET}" if report["usable"] else "NOT usable"
    return f"{'usable' if report['usable'] else 'NOT usable'} for {report['task']}"


def _split_in_words(name: str, split: SplitReport, names: Mapping[str, str]) -> str:
    words = [f"{name}: {split['cases']} cases"]
    words += [f"{split['patients']} patients"] if split["patients"] else []
    labels = [f"{names.get(value, value)} {count['cases']}{_share(count)}" for value, count in split["labels"].items()]
    return ", ".join(words) + (f"; cases per label: {', '.join(labels)}" if labels else "")


def _share(count: LabelCount) -> str:
    """The share of voxels in brackets; nothing for classes of whole images."""
    return f" ({share_in_words(count['share'])} of the voxels)" if "share" in count else ""


def _images_in_words(modality: str, images: ImagesReport) -> str:
    shape, spacing = (" x ".join(f"{x:g}" for x in one["median"]) for one in (images["shape"], images["spacing_mm"]))
    size = f"{shape.removesuffix(' x 1')} pixels" if are_pictures(images) else f"{shape} voxels of {spacing} mm"
    low, high = images["intensity"]["1"], images["intensity"]["99"]
    return f"{modality}: {images['num_images']} images, median {size}, 98 % of intensities in {low:g} to {high:g}"


def _group_in_words(group: Sequence[PlaceRecord]) -> str:
    return " = ".join(f"item {at['position']} of '{at['list']}' ({at['split']})" for at in group)


def kind_of_data(datalist: Datalist) -> str | None:
    """Return the shipped task that the items of a list are for; None for images without labels."""
    items = datalist.training or all_items(datalist)
    return None if is_unlabelled(items) else _task_of(items)


def _task_of(items: Sequence[Item]) -> str:
    """Return the task that fits most items: one item without its label must not decide for all of them."""
    told = [item for item in items if {"image_a", "question", "label"} & item.keys()]
    return Counter(map(_kind_of, told)).most_common(1)[0][0]


def _kind_of(item: Item) -> str:
    if "image_a" in item:
        return "image_fusion"
    if "question" in item:
        return "vqa"
    return "segmentation" if isinstance(item["label"], Path) else "classification"


def _odd(findings: Findings) -> dict[str, list[tuple[str, int]]]:
    found = {name: list(places) for name, places in findings.odd.items()} | {
        "intensity": [place for images in findings.images.values() for place in images.odd_scales()],
        "spacing": [place for images in findings.images.values() for place in images.odd_spacings()],
    }
    return {name: sorted(found[name], key=_in_file) for name in things.THINGS if found.get(name)}


def _in_file(place: Place) -> tuple[int, int]:
    """The key that sorts places as they stand in dataset.json."""
    return SPLITS.index(place[0]), place[1]


def _leaks(across: Sequence[Sequence[PlaceRecord]], splits: Mapping[str, SplitReport]) -> tuple[list[str], bool]:
    """Return a message about images in several splits, and whether there are too many of them."""
    where = Counter(" and ".join(sorted({at["split"] for at in group})) for group in across)
    shown = ", ".join(f"{count} in {names}" for names, count in sorted(where.items()))
    num_leaked = sum(at["split"] != "training" for group in across for at in group)
    num_held = sum(split["cases"] for name, split in splits.items() if name != "training")
    words = [f"an image must be in one split only; got {shown}"] if across else []
    return words, num_leaked > MAX_LEAKED * num_held


def _mixed(images: Mapping[str, ImagesReport]) -> list[str]:
    """Return a message if the images do not fit one network.  `Task.facts` checks the number of channels."""
    dims = sum((Counter(found["dims"]) for found in images.values()), Counter[str]())
    return [f"images must be all 2-D or all 3-D; got {dict(dims)}"] if len(dims) > 1 else []


def _colours(facts: Sequence[Json]) -> list[str]:
    """Return a message if some pictures are in colour: one of them makes the network's input colour at all sites."""
    channels = Counter(fact["channels"] for fact in facts if "channels" in fact)
    some = 0 < channels[3] < channels.total()
    return [f"{channels[3]} of {channels.total()} images are in colour: grey ones become colour"] if some else []


def _warnings(
    findings: Findings, datalist: Datalist, num_within: int, odd: Mapping[str, Sequence[PlaceRecord]], task: str | None
) -> list[str]:
    warnings = [found["what"] for found in things.of_cases(odd)]
    warnings += [f"'{name}' holds no usable case" for name, split in findings.splits.items() if not split.cases]
    read = [split for split in findings.splits.values() if split.cases]
    if read and not any(split.patients for split in read):
        warnings.append(UNKNOWN_PATIENTS)
    if min(findings.num_2d[True], findings.num_2d[False]):
        kinds = f"{findings.num_2d[True]} of {findings.num_2d.total()} 2-D images are pictures without patient axes"
        warnings.append(f"{kinds}: the others, in RAS, may lie another way round")
    if num_within:
        warnings.append(_repeated(num_within))
    nameless = sum(split.nameless for split in read)
    if nameless and any(split.patients for split in read):
        warnings.append(f"{nameless} case(s) name no patient: each counts as its own; name them by 'patient'")
    warnings += _changes(datalist)
    if task is not None and "label" in plugin("tasks", task).required:
        warnings += _label_warnings(findings, datalist)
    return warnings


def _changes(datalist: Datalist) -> list[str]:
    """Return what `omnifm prepare dicom` changed in the images, by kind of change."""
    said = [str(item.get("prepared", "")) for split in datalist.splits().values() for item in split]
    counts = {words: sum(word in change for change in said) for word, words in CHANGES.items()}
    return [f"{number} case(s) {words}" for words, number in counts.items() if number]


def _label_warnings(findings: Findings, datalist: Datalist) -> list[str]:
    warnings: list[str] = []
    numbers = set(datalist.labels)
    taught = set(findings.splits["training"].label_cases)
    found = set().union(*(split.label_cases for split in findings.splits.values()))
    if unknown := found - taught:
        warnings.append(f"{len(unknown)} label(s) occur in validation or test but never in training")
    if numbers and (nameless := found - numbers):
        warnings.append(f"{len(nameless)} class number(s) are none of the {len(numbers)} declared in 'labels'")
    return warnings
