"""Distribute a data set's cases over sites and splits, and write one folder per site."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

from tqdm import tqdm

from omnifm.data.importers._splits import SplitMemory
from omnifm.data.items import Item
from omnifm.data.local_lists import write_names
from omnifm.data.partition import PARTITIONS, deal, split_sites
from omnifm.data.refusal import RefusedImage
from omnifm.data.site_folder import new_folder, place, write_datalist
from omnifm.data.volume import read_volume

MAX_SITES = 1000


@dataclass(frozen=True)
class Case:
    """One case of a data set, before it is assigned to a site.

    Attributes:
        item: the case as it will stand in dataset.json, without "modality".
        patient: the patient, or whatever must stay in one split (for example an image with all its questions).
        modality: DICOM code.
        label: the property that the partition "dirichlet" distributes unevenly.
        files: path inside the site's folder -> file of the source.
        home: the institution (or subset) of the data set that the case comes from; "" if it has none.
        split: "training", "validation" or "test" if the data set has an official split; otherwise "".
    """

    item: Item
    patient: str
    modality: str
    label: str | int
    files: Mapping[str, Path] = field(default_factory=dict)
    home: str = ""
    split: str = ""


@dataclass(frozen=True)
class Plan:
    """How cases become sites.  Every importer offers these options.

    Attributes:
        partition: one of `partition.PARTITIONS`.
        sites: number of sites, 1 to `MAX_SITES`, for "dirichlet" and "count" only; None means `usual`.
        gamma: for "dirichlet" only, > 0: small values make the sites very different; None means 0.5.
        seed: random seed of the partition and of the splits, >= 0.
        first: number of the first site, 1 to `MAX_SITES`; lets several data sets share one destination.
        usual: the importer's own default for `sites`.
        link: whether images become hard links to the source's files instead of copies.

    Raises:
        ValueError: a value is out of range, or an option does not belong to the partition.
    """

    partition: str
    sites: int | None
    gamma: float | None
    seed: int
    first: int
    usual: int = 3
    link: bool = False

    def __post_init__(self) -> None:
        if self.partition not in PARTITIONS:
            raise ValueError(f"partition must be one of {', '.join(PARTITIONS)}; got {self.partition!r}")
        if not 1 <= self.num_sites <= MAX_SITES or not 1 <= self.first <= MAX_SITES:
            raise ValueError(f"sites and first must be 1 to {MAX_SITES}; got {self.num_sites} and {self.first}")
        if not self.skew > 0 or self.seed < 0:
            raise ValueError(f"gamma must be > 0 and seed >= 0; got {self.skew} and {self.seed}")
        if self.sites is not None and self.partition not in ("dirichlet", "count"):
            raise ValueError(f"sites can only be set for the partitions dirichlet and count; got {self.partition!r}")
        if self.gamma is not None and self.partition != "dirichlet":
            raise ValueError(f"gamma can only be set for the partition dirichlet; got {self.partition!r}")

    @property
    def num_sites(self) -> int:
        """Number of sites for "dirichlet" and "count"."""
        return self.usual if self.sites is None else self.sites

    @property
    def skew(self) -> float:
        """Gamma for "dirichlet"."""
        return 0.5 if self.gamma is None else self.gamma


class Head(TypedDict):
    """The entries of dataset.json that all sites of a data set share."""

    name: str
    labels: NotRequired[dict[str, str]]
    """Label value or class number (as text) -> name."""


def read_files(case: Case) -> None:
    """Read all images of a case, to see whether they can be read.

    Raises:
        RefusedImage: an image is missing or cannot be read.
    """
    for file in case.files.values():
        if not file.is_file():  # cheaper than starting the reader: a data set without its images has thousands of these
            raise RefusedImage("missing_file", "image file must exist and be a regular file; it is not")
        read_volume(file)


Fill = Callable[[Path, Sequence[Case]], Sequence[Item]]
"""Writes the files of cases into a site's folder and returns the cases' items, in the same order."""


def place_files(folder: Path, cases: Sequence[Case], *, link: bool = False) -> list[Item]:
    """Copy the files of the cases into a site's folder; returns the cases' items.

    Args:
        folder: of the site.
        cases: with their files.
        link: link images instead.  Masks are always copied, because people draw in them.
    """
    files = {target: file for case in cases for target, file in case.files.items()}
    masks = {case.item.get("label") for case in cases}
    for target, file in tqdm(files.items(), desc="copying", unit="file", disable=None, leave=False):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        place(file, folder / target, link=link and target not in masks)
    return [dict(case.item) for case in cases]


def write_sites(destination: Path, plan: Plan, cases: Sequence[Case], head: Head, fill: Fill | None = None) -> None:
    """Write the folders `site-<first>`, `site-<first + 1>`, ...; each is written completely or not at all.

    Files that get another name are listed in `names.txt`.

    Args:
        destination: folder for the sites; created if it does not exist.
        plan: how cases become sites.
        cases: at least one.
        head: the shared entries of dataset.json.  "modality" is added: the most frequent one of each site.
        fill: writes the files of a site; None copies each case's own files, or links them if the plan says so.

    Raises:
        ValueError: a site folder already exists, the cases do not fit the plan, a site has no training case, or two
            files of the source would be written to the same path.
    """
    _reject_shared_paths(cases)
    patients = [case.patient for case in cases]
    sites = deal(
        plan.partition,
        patients,
        homes=[case.home for case in cases],
        modalities=[case.modality for case in cases],
        labels=[case.label for case in cases],
        num_sites=plan.num_sites,
        gamma=plan.skew,
        seed=plan.seed,
    )
    names = [f"site-{number}" for number, _ in enumerate(sites, plan.first)]
    for name in names:
        if (destination / name).exists():
            raise ValueError(already_there(name))
    memory = SplitMemory(destination, plan.seed)
    official = [case.split for case in cases]
    splits, num_cut = split_sites(sites, patients, official, plan.seed, memory.known(set(patients)))
    if num_cut:
        print(f"the official split puts {num_cut} patients or images into several splits: a new split is made")
    for name, split in zip(names, splits, strict=True):
        if not split["training"]:
            raise ValueError(f"{name!r} must have a training case; it has none: try another seed or fewer sites")
    fill = fill or partial(place_files, link=plan.link)
    for name, split in zip(names, splits, strict=True):
        _write_site(destination / name, cases, split, head, fill)
        write_names(destination, _renamed(name, [cases[i] for part in split.values() for i in part]))
    if num_cut or not all(official):
        memory.keep({patients[i]: name for split in splits for name, part in split.items() for i in part})


def _renamed(site: str, cases: Sequence[Case]) -> list[tuple[str, str]]:
    """(file in the site's folder, file in the source) of all files whose names differ."""
    files = {f"{site}/{target}": file for case in cases for target, file in case.files.items()}
    return [(target, str(file)) for target, file in files.items() if Path(target).name != file.name]


def already_there(site: str) -> str:
    """The message that refuses to overwrite a site folder."""
    return f"destination must not hold {site!r} yet; it does: remove it or choose another destination"


def _reject_shared_paths(cases: Sequence[Case]) -> None:
    files = {placed for case in cases for placed in case.files.items()}  # a set: several questions share one image
    num_paths = len({target for target, _ in files})
    if num_paths < len(files):
        rule = "source must hold each image once: keep one copy of the data set"
        raise ValueError(f"{rule}; {len(files) - num_paths} of {len(files)} images have the path of another image")


def _write_site(site: Path, cases: Sequence[Case], split: Mapping[str, Sequence[int]], head: Head, fill: Fill) -> None:
    own = {part: [cases[i] for i in indices] for part, indices in split.items()}
    all_own = [case for part in own.values() for case in part]
    modality = Counter(case.modality for case in all_own).most_common(1)[0][0]
    homes = {case.home for case in all_own}
    ending = f", {homes.pop()}" if len(homes) == 1 and "" not in homes else ""
    content: dict[str, object] = {**head, "name": head["name"] + ending, "modality": {"0": modality}}
    try:
        with new_folder(site) as folder:
            items = iter(fill(folder, all_own))
            for part, part_cases in own.items():
                content[part] = [_with_modality(next(items), case.modality, modality) for case in part_cases]
            write_datalist(folder, content)
    except FileExistsError:
        raise ValueError(already_there(site.name)) from None


def _with_modality(item: Item, own: str, of_site: str) -> Item:
    return item if own == of_site else {**item, "modality": own}
