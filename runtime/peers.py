"""The processes that train one model together, as the training loop sees them; by itself a process is `ALONE`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tcomp.errors import UserError


class PeerFailed(UserError):
    """Another process has ended, or failed at what all wait for. It has said why, if it could."""


class LeadFailed(PeerFailed):
    """Rank 0 has failed at what all wait for, and is there still: all may go on."""


class Peers(Protocol):
    """What all processes must do in the same order. `rank` 0 of `size` writes files and speaks to the user. PeerFailed
    when another one is gone. At most the results of `ahead` steps may be out when they are asked for the next one."""

    @property
    def ahead(self) -> int: ...

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def agree(self, loss: float, stop: bool) -> tuple[float, bool]:
        """The mean of all losses; whether any process is to stop."""
        ...

    def joined(self, values: Sequence[float]) -> list[float]:
        """The values of all processes, the first of each rank, then the second ones. Each must have as many."""
        ...

    def check_alike(self) -> None:
        """UserError on all where they have not the same parameters, and state as far as each has all of it."""
        ...

    def lead(self, work: Callable[[], None]) -> None:
        """Rank 0 works, the others give it what it reads of them; LeadFailed there when it fails by a UserError."""
        ...


@dataclass(frozen=True)
class Alone:
    """No other process."""

    rank: int = 0
    size: int = 1
    ahead: int = 1

    def agree(self, loss: float, stop: bool) -> tuple[float, bool]:
        return loss, stop

    def joined(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def check_alike(self) -> None:
        pass

    def lead(self, work: Callable[[], None]) -> None:
        work()


ALONE = Alone()
