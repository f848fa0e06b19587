"""The node lists of a model's programs: forward, backward of the first and of later micro-batches, update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tcomp.dsl.ast import DType, Module
from tcomp.dsl.errors import quoting
from tcomp.model.ahead import ahead
from tcomp.model.at_once import at_once
from tcomp.model.autodiff import Variants, differentiate
from tcomp.model.early import EarlyEquations
from tcomp.model.flat import FlatLayout, Region, flat_layout, like_parameters, master_copies, own_regions, region
from tcomp.model.graph import Graph, Node, Tensor
from tcomp.model.joins import Joins, joins
from tcomp.model.optimizer import Update, build_update, state_parts
from tcomp.model.quantised import quantised
from tcomp.model.quantised_gradient import quantised_gradients
from tcomp.model.request import Sharing


@dataclass(frozen=True)
class Programs:
    """The nodes of a model's programs and the tensors that outlive them, before anything is lowered. `forward` and
    `backward` are of a first micro-batch, the others of later ones; `ahead` are backward nodes in either `forward`,
    which a forward pass alone leaves out. `regions` are the flat vectors by the names that the optimizer's op has for
    them (`own_regions`)."""

    graph: Graph
    layout: FlatLayout
    gradients: dict[Tensor, Tensor]
    masters: dict[Tensor, Tensor]
    regions: dict[str, Region]
    news: dict[Tensor, Tensor]
    step: Tensor
    seed: Tensor
    forward: tuple[Node, ...]
    backward: tuple[Node, ...]
    forward_next: tuple[Node, ...]
    backward_next: tuple[Node, ...]
    update: Update | None
    ahead: frozenset[Node] = frozenset()
    joins: Joins | None = None
    """of what several processes share"""


def build_programs(
    graph: Graph,
    module: Module,
    training: bool = True,
    accumulation: int = 1,
    variants: Variants | None = None,
    apart: bool = False,
    targets: Sequence[str] = (),
    sharing: Sharing = Sharing(),
) -> Programs:
    """Differentiate a graph and build its update; nothing is lowered or placed. `variants` are derived ops that an
    earlier call for the same module has left. `apart`: `[at_once(OP)]` joins no call with its backward, `[early(dP)]`
    moves no equation and nothing is `quantised` where it is made, so that what they make can be held against the ops
    apart. `targets` are those of the machine, for what the text says of some targets only."""
    with quoting(module.sources):
        layout = flat_layout(graph, sharing.ranks if training else 1)
        step = Tensor("step", DType.I32, (), "scalar", "executor")
        seed = Tensor("loss_gradient", graph.loss.tensor.dtype if graph.loss else DType.F32, (), "scalar", "executor")
        optimizer = graph.model.optimizer
        if not training:
            regions = _regions(layout, own_regions(graph, {}))
            return Programs(graph, layout, {}, {}, regions, {}, step, seed, graph.nodes, (), (), (), None)
        variants = variants or Variants(module)
        early = EarlyEquations(module, tuple(targets))
        gradients = like_parameters(graph, "grad", "gradient")
        news = {t: Tensor(f"news.{t.name}", t.dtype, t.shape, "gradient", t.name) for t in graph.states}

        def passes(later: bool) -> tuple[tuple[Node, ...], tuple[Node, ...], frozenset[Node]]:
            backward = differentiate(graph, variants, gradients | news, seed, accumulate=later)
            if apart:
                return graph.nodes, backward, frozenset()
            forward, backward = at_once(graph.nodes, backward, module)
            forward = quantised(forward, backward, targets)
            backward = quantised_gradients(backward, targets, variants, news.values())
            forward, backward, moved = ahead(forward, backward)
            return forward, early(forward, backward), moved

        forward, backward, moved = passes(False)
        forward_next, backward_next, moved_next = passes(True) if accumulation > 1 else ((), (), frozenset())
        nodes = forward, backward, forward_next, backward_next
        given = {v.tensor for node in (*forward, *backward) for v in node.operands.values()}
        news = {state: new for state, new in news.items() if new in given}  # who gives none, keeps its value
        moved |= moved_next
        masters = master_copies(graph) if optimizer is not None else {}
        parts = own_regions(graph, masters) | {"g": gradients}
        if optimizer is None:
            regions = _regions(layout, parts)
            return Programs(graph, layout, gradients, {}, regions, news, step, seed, *nodes, None, moved)
        regions = _regions(layout, parts | state_parts(graph, module, layout))
        update = build_update(graph, module, layout, regions, step, news, sharing)
        join = joins(layout, update.flats["g"], news, sharing.ranks) if sharing.ranks > 1 else None
        return Programs(graph, layout, gradients, masters, regions, news, step, seed, *nodes, update, moved, join)


def _regions(layout: FlatLayout, parts: Mapping[str, dict[Tensor, Tensor]]) -> dict[str, Region]:
    """The flat vectors of these parts, where there are any."""
    return {name: region(layout, tensors) for name, tensors in parts.items() if tensors}
