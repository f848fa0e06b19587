"""Batches of examples, token windows above all, drawn in an order that only the seed decides.

Each epoch visits every example of the training part once, in the order of a permutation that is computed element by
element (a Feistel network over the examples' numbers), so the whole state is (epoch, position), whatever the size of
the data. A window is T + 1 tokens: T inputs and, one later, T targets. From the second epoch on, window boundaries are
shifted by a random offset.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tcomp.errors import UserError
from tcomp.runtime.token_file import Tokens

_MASK = (1 << 64) - 1


def mix(*values: int) -> int:
    """A 64-bit hash of integers (splitmix64's finaliser, applied in turn)."""
    h = 0x9E3779B97F4A7C15
    for v in values:
        h = (h ^ (v & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB & _MASK
        h ^= h >> 31
    return h


def permuted(position: int, count: int, key: int) -> int:
    """Where a random permutation of range(count), chosen by `key`, sends `position`; O(1) memory."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:  # walk the cycle of the larger, power-of-four domain until it falls inside
        left, right = position >> half, position & low
        for turn in range(4):
            left, right = right, left ^ (mix(key, turn, right) & low)
        position = left << half | right
        if position < count:
            return position


@dataclass(frozen=True)
class Segment:
    """A stretch of one file that windows do not cross: tokens[start:stop]."""

    tokens: Tokens
    start: int
    stop: int


def split(tokens: Tokens, length: int, fraction: float = 0.05) -> tuple[Segment, Segment]:
    """Training and validation parts: the last `fraction`, and at least one window of each."""
    need = length + 1
    if len(tokens) < 2 * need:
        raise UserError(
            f"the data has {len(tokens)} tokens; T = {length} needs at least {2 * need} "
            "(one window to train on, one to validate on)",
            "give more data, or a smaller -T",
        )
    cut = len(tokens) - max(need, int(len(tokens) * fraction))
    return Segment(tokens, 0, cut), Segment(tokens, cut, len(tokens))


class Stream(ABC):
    """An endless, resumable stream of examples, `count` an epoch. `state` is (epoch, position)."""

    count: int

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.epoch, self.position = 0, 0
        self._lay_out()

    @abstractmethod
    def _lay_out(self) -> None:
        """Count the examples of this epoch."""

    @abstractmethod
    def _put(self, number: int, inputs: Mapping[str, NDArray[Any]], row: int) -> None:
        """Make an example a row of all inputs."""

    @property
    def state(self) -> tuple[int, int]:
        return self.epoch, self.position

    @state.setter
    def state(self, value: tuple[int, int]) -> None:
        self.epoch, self.position = value
        self._lay_out()

    def fill(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Make the next examples the rows of the input arrays, which all have as many."""
        for row in range(len(next(iter(inputs.values())))):
            self._begin()
            self._put(permuted(self.position, self.count, mix(self.seed, self.epoch)), inputs, row)
            self.position += 1

    def skip(self, rows: int) -> None:
        """Go past so many examples, which others read."""
        for _ in range(rows):
            self._begin()
            self.position += 1

    def _begin(self) -> None:
        """Where an epoch is at its end, begin the next one."""
        if self.position >= self.count:
            self.epoch, self.position = self.epoch + 1, 0
            self._lay_out()


class Batches(Stream):
    """Windows of `segments`, for inputs `tokens` and `targets`, int32 [B, T]."""

    def __init__(self, segments: list[Segment], length: int, seed: int) -> None:
        self.segments, self.length = segments, length
        super().__init__(seed)
        if self.count == 0:
            raise UserError(
                f"the data has {sum(s.stop - s.start for s in segments)} tokens, too few for one window of "
                f"T + 1 = {length + 1}",
                "give more data, or a smaller -T",
            )

    def _put(self, number: int, inputs: Mapping[str, NDArray[Any]], row: int) -> None:
        window = self._window(number)
        inputs["tokens"][row], inputs["targets"][row] = window[:-1], window[1:]

    def _lay_out(self) -> None:
        self._offset = mix(self.seed, self.epoch, 1) % self.length if self.epoch else 0
        self._counts = self._windows(self._offset)
        if not sum(self._counts):
            self._offset, self._counts = 0, self._windows(0)
        self.count = sum(self._counts)

    def _windows(self, offset: int) -> list[int]:
        return [max(0, s.stop - s.start - offset - 1) // self.length for s in self.segments]

    def _window(self, number: int) -> Tokens:
        for segment, count in zip(self.segments, self._counts, strict=True):
            if number < count:
                at = segment.start + self._offset + number * self.length
                return segment.tokens[at : at + self.length + 1]
            number -= count
        raise IndexError(number)
