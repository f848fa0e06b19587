"""What the training loop asks of a device: arrays by slot name, and programs run by name."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from tcomp.model.step import Step


class Executor(Protocol):
    """`array` is a view of the slot's memory: writing to it is how inputs and scalars are given."""

    @property
    def step(self) -> Step: ...

    def array(self, name: str) -> NDArray[Any]: ...

    def run(self, program: str) -> None: ...

    def close(self) -> None: ...
