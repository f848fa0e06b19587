"""Ranks in threads of one process: their messages, their step, and an arena in which nothing runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tcomp.cli.common import load_module
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import Sharing, StepRequest
from tcomp.model.step import Slot, Step
from tcomp.runtime.distributed.exchange import Array, HostExchange
from tcomp.runtime.distributed.executor import Inner, RankExecutor
from tcomp.runtime.executor import HostExecutor
from tcomp.runtime.values import numpy_type

LENGTH = 16


class Links:
    """A rank's messages to others in threads of this process."""

    def __init__(self, ways: dict[tuple[int, int], queue.Queue[Array]], rank: int, size: int) -> None:
        self.ways, self.rank, self.size = ways, rank, size

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        for other, array in sends:
            self.ways[self.rank, other].put(array.copy())
        for other, array in receives:
            array[...] = self.ways[other, self.rank].get(timeout=60)


def on_ranks(size: int, work: Callable[[Links], Any]) -> list[Any]:
    """What `work` gives on each rank, all at the same time; the first error of any."""
    ways: dict[tuple[int, int], queue.Queue[Array]] = {(a, b): queue.Queue() for a in range(size) for b in range(size)}
    found: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = work(Links(ways, rank, size))
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return found


def ranked(inner: Inner, links: Links) -> RankExecutor:
    """One rank's executor, whose memory the host can address."""
    return RankExecutor(inner, links, HostExchange(links, inner.region))


def step_for(sharing: Sharing, precision: str = "f32", accumulation: int = 1, model: str = "gpt2") -> Step:
    request = StepRequest(
        "gpt2", "tiny", {"B": 2, "T": LENGTH}, {"L": 1, "C": 16, "H": 2}, precision, accumulation, sharing=sharing
    )
    return build_step(load_module(model, precision), request, detect(), 1)


class Memory(HostExecutor):
    """An arena in which nothing runs."""

    def __init__(self, step: Step) -> None:
        self._step, self.bytes = step, np.zeros(step.arena_bytes, np.uint8)

    @property
    def step(self) -> Step:
        return self._step

    def array(self, name: str) -> Array:
        return self.at(self._step.slots[name])

    def at(self, slot: Slot) -> Array:
        return self.bytes[slot.offset : slot.offset + slot.bytes].view(numpy_type(slot.dtype)).reshape(slot.shape)

    @contextmanager
    def region(self, slot: Slot, write: bool) -> Iterator[Array]:
        yield self.at(slot)

    def run(self, program: str) -> None:
        raise AssertionError

    def close(self) -> None:
        pass
