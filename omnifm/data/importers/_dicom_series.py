"""Which files of a DICOM export are one series: scouts and screenshots are not, and some scanners split a series."""

from dataclasses import dataclass, field
from pathlib import Path

from omnifm.data.local_lists import LeftOut
from omnifm.records import Json


@dataclass
class Series:
    """One series of the export."""

    modality: str
    study: str
    patients: set[str] = field(default_factory=set)
    """Digests of the patients that its headers name; more than one means that the headers contradict each other."""
    files: list[tuple[str, Path]] = field(default_factory=list)
    """(instance, file): the header of each file says which instance of the series it is."""
    labels: list[Path] = field(default_factory=list)
    """SEG and RTSTRUCT objects that refer to this series."""
    sections: bool = False
    """Whether its files are slices, so that a missing file would leave a gap in the volume."""
    wanted: bool = False
    """Whether at least one file matches the selection; then all are used, because part of a series is no volume."""
    excluded: bool = False
    """Whether at least one file matches `exclude`; then none is used."""
    complete: bool = True
    """False if a file in the folder of its slices cannot be read: that file may be one of the slices."""
    beside: list[Path] = field(default_factory=list)
    """Scout views and screenshots under its name."""
    stack: str = ""
    """What the slices of one volume share, where each has a series of its own; "" if it cannot be such a slice."""
    numbered: bool = False
    joined: int = 1
    """Number of series of one slice each that were joined to this one."""

    @property
    def place(self) -> str:
        """Where it lies in the export, for `local_lists`: its first file, and how many files it has."""
        return f"{min(file for _, file in self.files)} ({len(self.files)} files)"

    def add(self, file: Path, facts: Json) -> None:
        """Add one file; `facts` are what the reader found in its header."""
        self.patients |= {facts["patient"]} - {""}
        self.files.append((facts["instance"], file))
        self.sections |= facts["section"] and not facts["beside"]
        self.wanted |= facts["wanted"]
        self.excluded |= facts["excluded"]
        self.beside += [file] if facts["beside"] else []
        self.stack, self.numbered = facts["stack"], facts["numbered"]

    def explained(self, message: str) -> str:
        """Why the series is refused, with what was joined before."""
        if self.joined == 1:
            return message
        joined = f"{self.joined} series of one slice each, of one study, series number and orientation, were joined"
        return f"{joined}: {message}"


Index = dict[str, Series]
"""Digest of a series -> the series."""


def drop_other_images(series: Series) -> list[Path]:
    """Take scout views and screenshots out of a series of slices; returns their files.

    Nothing is taken out if there are no slices beside them, or if the series is no stack of slices.
    """
    if not series.beside or not series.sections:
        return []
    dropped = set(series.beside)
    series.files = [(instance, file) for instance, file in series.files if file not in dropped]
    return sorted(dropped)


def join_single_slices(found: Index, left_out: list[LeftOut]) -> dict[str, str]:
    """Join series of one slice each to one volume, where a scanner gave every slice a series of its own.

    They are of one patient, study, modality, series number, orientation and frame of reference.  Without a series
    number nobody can say whether three or more such slices are one volume, so they are left out: as cases of their own,
    neighbouring slices of one patient would count as many.

    Returns:
        digest of a series that was joined to another -> that other.
    """
    stacks: dict[tuple[str, ...], list[str]] = {}
    for name, series in sorted(found.items()):
        if series.sections and series.stack and len({instance for instance, _ in series.files}) == 1:
            stacks.setdefault((series.stack, *sorted(series.patients)), []).append(name)
    aliases = {}
    for first, *others in stacks.values():
        if others and found[first].numbered:
            for name in others:
                _join(found[first], found.pop(name))
                aliases[name] = first
        elif len(others) > 1 and any(found[name].wanted and not found[name].excluded for name in (first, *others)):
            rule = f"{1 + len(others)} series of one slice each, of one study and orientation, without a series number"
            message = f"{rule}: they may be one volume; export them as one series"
            left_out += [LeftOut("several_volumes", found.pop(name).place, message) for name in (first, *others)]
    return aliases


def _join(series: Series, other: Series) -> None:
    series.files += other.files
    series.wanted |= other.wanted
    series.excluded |= other.excluded
    series.joined += 1
