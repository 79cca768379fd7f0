"""How the server reaches the sites.  The two drivers, one process and FLARE, differ only in their `Transport`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from omnifm.method import Tensors
from omnifm.update import Payload, Update

Accept = Callable[[Update], str | None]
"""Takes one reply and returns why it is refused, or None if it is accepted."""


class Transport(ABC):
    """Delivers payloads to sites and brings their updates back."""

    @abstractmethod
    def sites(self) -> list[str]:
        """Return the names of the sites that are connected now."""

    @abstractmethod
    def exchange(self, payloads: Mapping[str, Payload], accept: Accept) -> dict[str, str]:
        """Deliver each payload to its site and hand every reply to `accept`.

        Args:
            payloads: by name of the site.
            accept: called once for each reply, with one reply at a time.

        Returns:
            The reason by site for each site from which nothing was accepted.
        """

    def opened(self, round_number: int, shared: Tensors) -> None:
        """Called when a training round begins, with the shared part that it begins with."""

    def aggregate(self, combine: Callable[[], Tensors]) -> Tensors:
        """Combine the accepted updates of the round; a driver may notify other components before and after."""
        return combine()

    def closed(self, round_number: int, shared: Tensors) -> None:
        """Called when a training round has ended, with the shared part that it ended with."""
