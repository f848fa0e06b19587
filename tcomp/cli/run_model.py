"""The model of a run at the sizes that it keeps: its numbers and its graph, how long a text it reads, which words."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING

from tcomp.cli import common
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.cli.settings import TrainSettings
    from tcomp.dsl.ast import Model, Module
    from tcomp.dsl.dims import Number
    from tcomp.model.graph import Graph
    from tcomp.model.step import Step


def numbers_of(module: Module, settings: TrainSettings) -> dict[str, Number]:
    """All numbers of a run's model, at the run's sizes."""
    from tcomp.dsl.errors import quoting
    from tcomp.model.dimensions import model_dims

    model = common.only_model(module, settings.model)
    sizes, dims = _run_sizes(model, settings)
    with quoting(module.sources):
        return model_dims(model, settings.config, sizes, dims)


def longest_text(module: Module, settings: TrainSettings, most: int) -> int:
    """How many positions, up to `most`, a run's model has: as many as its `require` lines take for T (positions beyond
    those of a table that it learns would be read from elsewhere), and S, where it has one."""
    from tcomp.dsl.errors import TcError

    def taken(length: int) -> bool:
        try:
            numbers_of(module, replace(settings, length=length))
        except TcError:
            return False
        return True

    most = min(most, int(numbers_of(module, settings).get("S", most)))
    return most if taken(most) else max(1, bisect_left(range(1, most), True, key=lambda n: not taken(n)))


def vocabulary_of(module: Module, settings: TrainSettings) -> int:
    """What the words of a run's data must be below, as its model's inputs say: gathers would leave their tensor."""
    from tcomp.dsl.dims import evaluate_dim

    numbers = numbers_of(module, settings)
    bounds = (i.below for i in common.only_model(module, settings.model).inputs)
    return min((int(evaluate_dim(e, numbers)) for e in bounds if e is not None), default=int(numbers.get("V", 1 << 16)))


def graph_of(module: Module, settings: TrainSettings, precision: str | None = None) -> Graph:
    """The graph of a run's model, at the run's sizes, in a precision (None: that of the model's text)."""
    from tcomp.model.unroll import build_graph

    model = common.only_model(module, settings.model)
    sizes, dims = _run_sizes(model, settings)
    return build_graph(module, model.name, settings.config, sizes, dims, precision)


def _run_sizes(model: Model, settings: TrainSettings) -> tuple[dict[str, int], dict[str, Number]]:
    """The sizes and the other numbers that a run keeps; a size that it does not keep is at its smallest."""
    sizes, dims = common.own_sizes(model, settings.dims)
    given = {n: size for n, size in (("B", settings.batch), ("T", settings.length)) if n in model.dims}
    return dict.fromkeys(model.dims, 1) | given | sizes, dims


def check_writes(model: Model) -> None:
    """UserError where the model does not score the word behind its tokens, as writing and answering need."""
    if model.logits is None or all(i.name != "tokens" for i in model.inputs):
        raise _silent(model.name)


def check_step_writes(step: Step) -> None:
    """The same of its step, whose shapes are known."""
    if not step.writes:
        raise _silent(step.model)


def _silent(model: str) -> UserError:
    return UserError(
        f"the model {model} takes no tokens, or names no logits for each, so it has no scores of words",
        "a model that writes has an input `tokens` and a line `logits NAME`; `tcomp eval RUN` measures any",
    )
