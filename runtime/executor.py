"""What training, checkpoints and generation ask of a device: slots read and written by name, programs run by name.

A device may have memory of its own and may work in the background, so nothing here promises a view of a slot:
`read` and `write` move values, `batch` gives host arrays that become the next run's inputs, and `fetch` asks for
a result without waiting for it. Where slots are host memory (`HostExecutor`) none of these copies anything but
what is fetched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tcomp.model.step import Slot, Step
from tcomp.runtime.values import store

Array = NDArray[Any]


def element_count(slot: Slot) -> int:
    """Elements of a slot."""
    return int(np.prod(slot.shape, dtype=np.int64))


class Reading(Protocol):
    """A value on its way from the device."""

    @property
    def ready(self) -> bool:
        """Whether `value` would return at once."""
        ...

    def value(self) -> Array:
        """The slot's values as they were when all that was asked for before `fetch` had been done; waits."""
        ...


class Executor(Protocol):
    """Runs a built step. What is asked for happens in the order of asking; only `read`, `wait` and a Reading's
    `value` wait for it. UserError when the device fails."""

    @property
    def step(self) -> Step: ...

    def read(self, name: str) -> Array:
        """The slot's elements (`values.numpy_type`) in its shape; not to be written to, good until the next write or
        run."""
        ...

    def read_part(self, name: str, start: int, stop: int) -> Array:
        """Elements start .. stop - 1 of the slot, counted in row-major order; as `read`."""
        ...

    def write(self, name: str, value: ArrayLike) -> None:
        """Set the whole slot; `value` is broadcast to its shape and converted to its type (`values.stored`)."""
        ...

    def fill(self, name: str) -> AbstractContextManager[Array]:
        """An array of the slot's shape to be filled entirely; at the end the slot holds the same elements."""
        ...

    def batch(self) -> AbstractContextManager[dict[str, Array]]:
        """Arrays for all input slots, to be filled entirely: the inputs of the runs that follow."""
        ...

    def run(self, program: str) -> None: ...

    def run_step(self, program: str) -> None:
        """Run a micro-batch's program, the last one of a step, and then the update. What the update writes is there
        when it is asked for, and for the next run; arrays of it that were given out before may not be up to date."""
        ...

    def fetch(self, name: str) -> Reading:
        """Ask for a slot's values as the runs so far leave them."""
        ...

    def wait(self) -> None:
        """Return when everything asked for has been done."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Here:
    """A reading whose value is there already."""

    values: Array
    ready: bool = True

    def value(self) -> Array:
        return self.values


class HostExecutor(ABC):
    """An executor whose slots are host memory and whose `run` returns when the program is done."""

    @property
    @abstractmethod
    def step(self) -> Step: ...

    @abstractmethod
    def array(self, name: str) -> Array:
        """The slot's memory, in its shape."""

    @abstractmethod
    def run(self, program: str) -> None: ...

    def run_step(self, program: str) -> None:
        self.run(program)
        self.run("update")

    @abstractmethod
    def close(self) -> None: ...

    def read(self, name: str) -> Array:
        found = self.array(name).view()
        found.flags.writeable = False
        return found

    def read_part(self, name: str, start: int, stop: int) -> Array:
        return self.read(name).reshape(-1)[start:stop]

    def write(self, name: str, value: ArrayLike) -> None:
        store(value, self.step.slots[name].dtype, self.array(name))

    @contextmanager
    def fill(self, name: str) -> Iterator[Array]:
        yield self.array(name)

    @contextmanager
    def batch(self) -> Iterator[dict[str, Array]]:
        yield {name: self.array(name) for name in self.step.inputs}

    def fetch(self, name: str) -> Reading:
        return Here(self.array(name).copy())

    def wait(self) -> None:  # noqa: B027  nothing runs in the background
        pass
