"""A round's accepted updates, kept on disk until they are combined."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omnifm.state import decode, encode
from omnifm.update import Update


class Spool:
    """A round's accepted updates on disk: memory does not grow with the number of sites, and they come back in
    the order of the sites' names, not of arrival, so that sums do not depend on who was faster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Path] = {}

    def add(self, update: Update) -> None:
        """Keep one site's update."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / f"{len(self.files)}.state"  # nothing is dropped while others still arrive
        path.write_bytes(encode(*update.pack()))
        self.files[update.site] = path

    def drop(self, site: str) -> None:
        """Forget one site's update, which turned out not to belong."""
        self.files.pop(site).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[Update]:
        for site in sorted(self.files):
            yield Update.unpack(*decode(self.files[site].read_bytes()))

    def __contains__(self, site: str) -> bool:
        return site in self.files

    def __len__(self) -> int:
        return len(self.files)

    def clear(self) -> None:
        """Forget the round."""
        for path in self.folder.glob("*.state"):  # also what a killed predecessor left
            path.unlink(missing_ok=True)
        self.files = {}
