"""Which activations to compute again in the backward pass: so that a step fits a memory budget, at the least cost, or
without one (`cheap`), where it costs next to nothing.

The unit of choice is a call of the model's text with some of its results, in as many layers as it takes. Greedy: of all
calls that are not yet computed again, the one with the least predicted time per byte it frees comes next, and stays if
the most bytes live at once really fall (they do not where its inputs must be kept for it, or the peak is elsewhere).
Cheap results go first that way: a GELU from what it was applied to, a normalised row from its mean; whole products and
attention only where the budget asks for them. The last call taken is computed again only in the first layers, whose
results live longest, in as few of them as suffice.

Without a budget a plan takes the same moves in the same order while they are cheap: what one pass over memory makes, by
its predicted price, and together no more than a small share of the step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from tcomp.dsl.ast import Op
from tcomp.dsl.infer import dimensions
from tcomp.model.draft import Draft, Drafter
from tcomp.model.graph import Graph, Node, Tensor
from tcomp.model.step import Recompute, Recomputed

_WORTHWHILE = 1e-3
"""A call that frees less than this share of the temporary memory is left alone."""
_CHEAP_SHARE = 0.015
"""Without a budget no more than this share of the step's predicted time goes into computing again. (Predictions are at
nominal rates; machines that were measured took half of what they said.)"""


@dataclass(frozen=True)
class Move:
    """Compute `results` again in the nodes of one call. `bytes` and `seconds` are of one node, beyond what is computed
    again there already."""

    nodes: tuple[int, ...]
    results: frozenset[str]
    bytes: int
    seconds: float

    @property
    def price(self) -> float:
        """Predicted seconds per byte."""
        return self.seconds / self.bytes


Refused = set[tuple[tuple[int, ...], frozenset[str]]]
"""moves, by nodes and results, after which no fewer bytes are live"""


class Budget:
    """A draft and what has been chosen for it; `fit` may be asked again with a smaller limit."""

    def __init__(self, drafter: Drafter, graph: Graph) -> None:
        self.drafter = drafter
        self.start = self.draft = drafter.draft(graph)
        self.chosen: dict[int, frozenset[str]] = {}
        self.costs: dict[tuple[int, frozenset[str]], float | None] = {}
        self._tried: dict[tuple[tuple[int, ...], frozenset[str]], Draft] = {}  # beyond what is chosen

    @property
    def least(self) -> int:
        return self.draft.least

    def fit(self, limit: int) -> bool:
        """Choose until the draft needs at most `limit` bytes; False when nothing more helps."""
        refused: Refused = set()
        while self.least > limit:
            move = self.cheapest(refused)
            if move is None:
                return False
            tried = self.with_move(move, len(move.nodes))
            if tried.least >= self.least:
                refused.add((move.nodes, move.results))
                continue
            self.take(move, len(move.nodes) if tried.least > limit else self.fewest(move, limit))
            refused.clear()
        return True

    def save(self, price: float, share: float = _CHEAP_SHARE) -> None:
        """Choose what costs at most `price` seconds per byte that the step then needs less, in as many layers as
        `share` of its time gives, and in no more than it takes."""
        refused: Refused = set()
        left = share * self.step_seconds
        while (move := self.cheapest(refused)) is not None and move.price <= price:
            count = len(move.nodes) if move.seconds * len(move.nodes) <= left else int(left / move.seconds)
            tried = self.with_move(move, count).least if count else self.least
            if self.least - tried < move.bytes * count:  # the peak is elsewhere by then
                count = self.fewest(replace(move, nodes=move.nodes[:count]), tried) if tried < self.least else 0
            if move.seconds * count >= price * (self.least - tried):
                refused.add((move.nodes, move.results))
                continue
            left -= move.seconds * count
            self.take(move, count)
            refused.clear()

    def cheapest(self, refused: Refused) -> Move | None:
        """The move of the least price that was not refused, None when there is none."""
        moves = [m for m in self.moves() if (m.nodes, m.results) not in refused]
        return min(moves, key=lambda m: (m.price, m.nodes), default=None)

    def take(self, move: Move, count: int) -> None:
        """Make the move in its first `count` nodes."""
        self.draft = self.with_move(move, count)
        self.chosen.update(dict.fromkeys(move.nodes[:count], move.results))
        self._tried.clear()

    def fewest(self, move: Move, limit: int) -> int:
        """The fewest first layers in which the move suffices, given that it does in all."""
        low, high = 0, len(move.nodes)
        while high - low > 1:
            middle = (low + high) // 2
            if self.with_move(move, middle).least <= limit:
                high = middle
            else:
                low = middle
        return high

    def with_move(self, move: Move, count: int) -> Draft:
        """The draft with the move made in its first `count` nodes."""
        key = move.nodes[:count], move.results
        if key not in self._tried:
            chosen = {**self.chosen, **dict.fromkeys(*key)}
            nodes = tuple(
                replace(n, recompute=chosen[i]) if i in chosen else n for i, n in enumerate(self.start.graph.nodes)
            )
            self._tried[key] = self.drafter.draft(replace(self.start.graph, nodes=nodes))
        return self._tried[key]

    def moves(self) -> list[Move]:
        """What can still be computed again and is worth it."""
        wanted = self.needed()
        temporary = self.start.temporary
        found = []
        for nodes in self.calls():
            node = self.start.graph.nodes[nodes[0]]
            for results in options(node, wanted):
                rest = tuple(i for i in nodes if not results <= self.chosen.get(i, frozenset()))
                if not rest:
                    continue
                before = self.chosen.get(rest[0], frozenset())
                size = _bytes(node, results & wanted[node]) - _bytes(node, before & wanted[node])
                cost = self.cost(rest[0], results)
                if cost is None or not before <= results or size * len(rest) < _WORTHWHILE * temporary:
                    continue
                again = self.cost(rest[0], before) if before else 0.0
                found.append(Move(rest, results, size, max(cost - (again or 0.0), 0.0)))
        return found

    def calls(self) -> list[tuple[int, ...]]:
        """The nodes of each call of the model's text, in order; those that the text itself marks are not ours, nor are
        those that give a part of a tensor (chunks.py): only whole tensors are computed again."""
        found: dict[object, list[int]] = {}
        for i, n in enumerate(self.start.graph.nodes):
            if not n.recompute and all(v.covers for v in n.results.values()):
                found.setdefault((n.op.name, n.span, tuple(n.dims.items())), []).append(i)
        return [tuple(nodes) for nodes in found.values()]

    def needed(self) -> dict[Node, frozenset[str]]:
        """The results of each forward node that the backward pass reads and that live only for the step."""
        backward = self.start.programs.backward
        read: set[Tensor] = {v.tensor for n in backward for v in n.operands.values()}
        read -= set(self.start.arena.address)
        return {n: frozenset(name for name, v in n.results.items() if v.tensor in read) for n in self.start.graph.nodes}

    def cost(self, index: int, results: frozenset[str]) -> float | None:
        """Predicted seconds of computing results of a node again; None when they cannot be."""
        node = self.start.graph.nodes[index]
        key = id(node.op), results
        if key not in self.costs:
            form = self.drafter.variants.again(node.op, results)
            self.costs[key] = None if form is None else self._seconds(node, form)
        return self.costs[key]

    def _seconds(self, node: Node, form: Op) -> float:
        dims = {d: node.dims[d] for d in dimensions(form)}
        operands = {o.name: node.operands[o.name] for o in form.operands}
        again = replace(node, op=form, dims=dims, operands=operands)
        return self.drafter.seconds(self.drafter.lowering.launches([again]))

    def report(self, limit: int | None, before: int, after: int) -> Recompute | None:
        """What was chosen, to fit `limit` or (None) because it is cheap; None when nothing was. `before` and `after`
        are the bytes that the step needs without it and with it."""
        if not self.chosen:
            return None
        again = [x for x in self.draft.main if " (again)" in x.label]
        rows: dict[tuple[object, frozenset[str]], list[int]] = {}
        for i, results in self.chosen.items():
            node = self.start.graph.nodes[i]
            rows.setdefault((node.span, results), []).append(i)
        wanted = self.needed()
        return Recompute(
            limit=limit,
            before=before,
            after=after,
            flops=sum(x.kernel.flops for x in again),
            share=self.drafter.seconds(again) / self.step_seconds,
            rows=tuple(self._row(nodes, results, wanted) for (_, results), nodes in rows.items()),
        )

    @cached_property
    def step_seconds(self) -> float:
        """Predicted time of a step that computes nothing again."""
        launches = self.start.launches
        return self.drafter.seconds([x for name in ("micro_first", "update") for x in launches.get(name, ())])

    def _row(self, nodes: list[int], results: frozenset[str], wanted: dict[Node, frozenset[str]]) -> Recomputed:
        first = self.start.graph.nodes[nodes[0]]
        size = sum(_bytes(n, results & wanted[n]) for n in (self.start.graph.nodes[i] for i in nodes))
        seconds = len(nodes) * (self.cost(nodes[0], results) or 0.0)
        names = tuple(first.operands[r].tensor.name for r in sorted(results & wanted[first]))
        return Recomputed(first.op.name, names, len(nodes), size, seconds / self.step_seconds)


def options(node: Node, wanted: dict[Node, frozenset[str]]) -> Iterable[frozenset[str]]:
    """The results that may be computed again together: each one that the backward pass reads, and all of the node's."""
    yield from (frozenset({name}) for name in sorted(wanted[node]) if len(node.op.outputs) > 1)
    if wanted[node]:
        yield frozenset(o.name for o in node.op.outputs)


def _bytes(node: Node, results: frozenset[str]) -> int:
    return sum(node.operands[name].tensor.bytes for name in results)
