"""From a data set's cases to one folder per site: deal, split, link, write."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnifm.data.items import Item
from omnifm.data.partition import PARTITIONS, deal, split_sites
from omnifm.data.refusal import RefusedImage
from omnifm.data.site_folder import link_or_copy, new_folder, write_datalist
from omnifm.data.volume import read_volume

MAX_SITES = 1000


@dataclass(frozen=True)
class Case:
    """One item of a data set before it goes to a site.

    Attributes:
        item: as it will stand in dataset.json, without "modality".
        patient: whom it belongs to, or what else must not be cut apart (an image and its questions).
        modality: DICOM code.
        label: what a Dirichlet partition skews.
        files: path in the site's folder -> the source's file.
        home: the data set's own site it comes from; "" where it has none.
        split: "training", "validation" or "test" where the data set says so.
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
    """How cases become sites; every importer offers these options.

    Attributes:
        partition: one of `partition.PARTITIONS`.
        sites: number of sites of "dirichlet" and "count"; None is the usual one.
        gamma: skew of "dirichlet", > 0; None is 0.5.
        seed: of the partition and of the splits.
        first: number of the first site, so that several data sets can share a destination.
        usual: number of sites where none is named.
    """

    partition: str
    sites: int | None
    gamma: float | None
    seed: int
    first: int
    usual: int = 3

    def __post_init__(self) -> None:
        if self.partition not in PARTITIONS:
            raise ValueError(f"partition must be one of {list(PARTITIONS)}; got {self.partition!r}")
        if not 1 <= self.num_sites <= MAX_SITES or not 1 <= self.first <= MAX_SITES:
            raise ValueError(f"sites and first must be 1 to {MAX_SITES}; got {self.num_sites} and {self.first}")
        if not self.skew > 0 or self.seed < 0:
            raise ValueError(f"gamma must be > 0 and seed >= 0; got {self.skew} and {self.seed}")
        if self.sites is not None and self.partition not in ("dirichlet", "count"):
            raise ValueError(f"sites must go with the partition dirichlet or count; got {self.partition!r}")
        if self.gamma is not None and self.partition != "dirichlet":
            raise ValueError(f"gamma must go with the partition dirichlet; got {self.partition!r}")

    @property
    def num_sites(self) -> int:
        """Number of sites of "dirichlet" and "count"."""
        return self.usual if self.sites is None else self.sites

    @property
    def skew(self) -> float:
        """Gamma of "dirichlet"."""
        return 0.5 if self.gamma is None else self.gamma


def read_files(case: Case) -> None:
    """Read a case's images and drop them.

    Raises:
        RefusedImage: one cannot be read.
    """
    for file in case.files.values():
        if not file.is_file():  # a data set without its images costs thousands of these
            raise RefusedImage("missing_file", "image file must exist and be a regular file; it is not")
        read_volume(file)


Fill = Callable[[Path, Sequence[Case]], list[Item]]


def link_files(folder: Path, cases: Sequence[Case]) -> list[Item]:
    """Give the cases' files a place in the site's folder; returns their items."""
    for target, file in {target: file for case in cases for target, file in case.files.items()}.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(file, folder / target)
    return [dict(case.item) for case in cases]


def write_sites(
    destination: Path, plan: Plan, cases: Sequence[Case], head: Mapping[str, Any], fill: Fill = link_files
) -> None:
    """Write `site-<first>`, `site-<first + 1>`, ...; each is written whole or not at all.

    Args:
        destination: folder for the sites; made if needed.
        plan: of the sites.
        cases: at least one.
        head: of dataset.json: "name" and "labels"; "modality" is each site's most frequent one.
        fill: writes a site's files and returns the cases' items, in their order.

    Raises:
        ValueError: a site is already there, the cases do not fit the plan, a site has no case to train on, or two
            files of the source would take one place.
    """
    _check_places(cases)
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
            raise ValueError(f"destination must not hold {name!r} yet; it does")
    splits, num_cut = split_sites(sites, patients, [case.split for case in cases], plan.seed)
    if num_cut:
        print(f"the official split cuts through {num_cut} patients or images: dealt anew, each in one split")
    for name, split in zip(names, splits, strict=True):
        if not split["training"]:
            raise ValueError(f"{name!r} must have a case to train on; it has none: take another seed or fewer sites")
    for name, split in zip(names, splits, strict=True):
        _write_site(destination / name, cases, split, head, fill)


def _check_places(cases: Sequence[Case]) -> None:
    files = {placed for case in cases for placed in case.files.items()}  # questions share their image
    num_places = len({target for target, _ in files})
    if num_places < len(files):
        rule = "source must hold each image once: keep one copy of the data set"
        raise ValueError(f"{rule}; {len(files) - num_places} of {len(files)} have the place of another")


def _write_site(
    site: Path, cases: Sequence[Case], split: Mapping[str, Sequence[int]], head: Mapping[str, Any], fill: Fill
) -> None:
    mine = {part: [cases[i] for i in indices] for part, indices in split.items()}
    everyone = [case for part in mine.values() for case in part]
    modality = Counter(case.modality for case in everyone).most_common(1)[0][0]
    homes = {case.home for case in everyone}
    home = f", {homes.pop()}" if len(homes) == 1 and "" not in homes else ""
    content = {**head, "name": head["name"] + home, "modality": {"0": modality}}
    try:
        with new_folder(site) as folder:
            items = iter(fill(folder, everyone))
            for part, own in mine.items():
                content[part] = [_with_modality(next(items), case.modality, modality) for case in own]
            write_datalist(folder, content)
    except FileExistsError:
        raise ValueError(f"destination must not hold {site.name!r} yet; it does") from None


def _with_modality(item: Item, own: str, of_site: str) -> Item:
    return item if own == of_site else {**item, "modality": own}
