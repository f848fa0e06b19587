"""A step's scalars in an executor: constants of the plan, and hyperparameters, some of them as the user says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tcomp.errors import UserError
from tcomp.runtime.executor import Executor

_HYPER = "hyper."


def set_scalars(executor: Executor, overrides: dict[str, float]) -> dict[str, float]:
    """Write the step's scalars, some hyperparameters overridden by name; the hyperparameters' values."""
    step = executor.step
    hyper = {slot.removeprefix(_HYPER): value for slot, value in step.hyper.items()}
    for name, value in overrides.items():
        if name not in hyper:
            raise UserError(f"unknown hyperparameter {name!r}", f"this model has: {', '.join(sorted(hyper))}")
        hyper[name] = value
    for slot, value in {**step.scalars, **{_HYPER + name: value for name, value in hyper.items()}}.items():
        executor.write(slot, value)
    return hyper


@contextmanager
def evaluating(executor: Executor) -> Iterator[None]:
    """The step's scalars as they are in evaluation; behind it, as they are in training. (An error ends the run.)"""
    step = executor.step
    for name, value in step.evaluation.items():
        executor.write(name, value)
    yield
    for name in step.evaluation:
        executor.write(name, step.scalars[name])
