"""Row chunks: a large result that is never whole in memory, and the call that reads it, done part by part.

    logits = matmul(h, head) [chunks(2)]              z0 = matmul(h[rows 0..], head); losses[0..] = crossentropy(z0, ..)
    losses, _ = crossentropy(logits, targets)  -->    z1 = matmul(h[rows n..], head); losses[n..] = crossentropy(z1, ..)

Backward runs chunk by chunk from the first, computing each part again (unless its gradient is there at once,
at_once.py and ahead.py), so one part and its gradient are alive at a time. The annotation asks for it; that the calls
treat rows one by one is checked here. The sums of a weight's gradient over the rows are then added chunk by chunk: a
difference of rounding only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tcomp.dsl.ast import Access, Equation, Module, Name, Op, Reduction, accesses_in, names_in, walk
from tcomp.dsl.errors import TcError, quoting
from tcomp.dsl.infer import infer, right_expressions
from tcomp.model.graph import Graph, Node, Tensor, View

GRAIN = 8
"""Chunks begin at multiples of so many rows: even a vector of 16-bit numbers then begins where a GPU's vector may."""


def in_chunks(graph: Graph, module: Module) -> Graph:
    """The graph with annotated calls split. TcError where a call does not treat its rows one by one."""
    with quoting(module.sources):
        pending: dict[Tensor, Node] = {}
        used: set[Tensor] = set()
        nodes: list[Node] = []
        for node in graph.nodes:
            if node.chunks > 1:
                pending[node.operands[node.op.outputs[0].name].tensor] = node
                continue
            makers = {n: pending[v.tensor] for n, v in node.operands.items() if v.tensor in pending}
            if not makers:
                nodes.append(node)
                continue
            if len(makers) > 1:
                raise _error(node, f"'{node.op.name}' reads two results that are made in chunks")
            ((name, maker),) = makers.items()
            used.add(node.operands[name].tensor)
            nodes += _split(maker, node, name, module)
        for tensor, maker in pending.items():
            if tensor not in used:
                nodes.append(replace(maker, chunks=1))
        whole = None if graph.logits is not None and graph.logits.tensor in used else graph.logits
        return replace(graph, nodes=tuple(nodes), logits=whole)


def backward_order(nodes: Sequence[Node]) -> list[Node]:
    """Forward nodes in the order in which their backward runs: from the last to the first, but the parts of one split
    from the first to the last."""
    runs: list[list[Node]] = []
    for node in nodes:
        if node.part and runs and runs[-1][-1].part in (node.part, node.part - 1) and runs[-1][-1].part:
            runs[-1].append(node)
        else:
            runs.append([node])
    order = (sorted(run, key=lambda n: -n.part) for run in runs)
    return [n for run in reversed([*order]) for n in reversed(run)]


def _split(maker: Node, reader: Node, name: str, module: Module) -> list[Node]:
    """The maker and its reader in turn for each chunk of rows."""
    made, rows_made = row_operands(maker, maker.op.outputs[0].name, module)
    read, rows_read = row_operands(reader, name, module)
    if rows_made != rows_read:
        raise _error(reader, f"'{reader.op.name}' reads the chunks in another shape than they are made in")
    if reader.recompute:
        raise _error(reader, "a call that reads chunks cannot be recomputed itself")
    whole = maker.operands[maker.op.outputs[0].name].tensor
    step = -(-rows_made // (maker.chunks * GRAIN)) * GRAIN
    count = -(-rows_made // step)
    nodes: list[Node] = []
    for i in range(count):
        start = i * step
        rows = min(step, rows_made - start)
        part = Tensor(f"{whole.name}.{i}", whole.dtype, (rows, *whole.shape[1:]), whole.kind, whole.owner)
        first = _rows(maker, made, start, rows) | {maker.op.outputs[0].name: part.whole()}
        second = _rows(reader, read, start, rows) | {name: part.whole()}
        label = f"chunk {i + 1} of {count}"
        nodes.append(_part(maker, first, made, rows, label, i + 1, frozenset({maker.op.outputs[0].name})))
        nodes.append(_part(reader, second, read, rows, label, i + 1, frozenset()))
    return nodes


def _part(
    node: Node, operands: dict[str, View], names: set[str], rows: int, label: str, part: int, recompute: frozenset[str]
) -> Node:
    first = node.op.operand(next(iter(names)))
    assert first is not None and isinstance(first.shape[0], Name)
    dims = {**node.dims, first.shape[0].id: rows}
    label = f"{node.label} ({label})"
    return replace(node, dims=dims, operands=operands, label=label, recompute=recompute, chunks=1, part=part)


def _rows(node: Node, names: set[str], start: int, rows: int) -> dict[str, View]:
    """The node's operands, those in `names` narrowed to some of their rows."""

    def narrowed(v: View) -> View:
        inner = v.elements // v.shape[0]
        return View(v.tensor, v.offset + start * inner, (rows, *v.shape[1:]))

    return {n: narrowed(v) if n in names else v for n, v in node.operands.items()}


def row_operands(node: Node, name: str, module: Module) -> tuple[set[str], int]:
    """The operands that share the first axis of operand `name`, and its extent. TcError where the op's equations do
    not compute each of those rows from the same row alone."""
    op = node.op
    operand = op.operand(name)
    assert operand is not None
    axis = operand.shape[0] if operand.shape else None
    if not isinstance(axis, Name):
        raise _error(node, f"'{name}' of '{op.name}' has no axis of rows")
    rows = {o.name for o in op.operands if o.shape and o.shape[0] == axis}
    reason = _mixes_rows(op, axis, rows, module)
    if reason is not None:
        raise _error(node, f"'{op.name}' does not treat the rows of '{name}' one by one: {reason}")
    return rows, node.dims[axis.id]


def _mixes_rows(op: Op, axis: Name, rows: set[str], module: Module) -> str | None:
    """Why rows depend on each other or on their number, or None when each stands alone."""
    info = infer(op, module)
    by_row = rows | {t.name for t in info.temporaries.values() if t.indices and info.ranges.get(t.indices[0]) == axis}
    for o in op.operands:
        if any(axis.id in names_in(e) for e in (o.shape[1:] if o.name in rows else o.shape)):
            return f"the shape of '{o.name}' depends on their number"
    for o in op.outputs:
        if o.name not in rows:
            return f"'{o.name}' is of all rows"
    for q in op.equations:
        reason = _equation(q, axis, by_row)
        if reason is not None:
            return reason
    return None


def _equation(q: Equation, axis: Name, by_row: set[str]) -> str | None:
    reduced = q.value.indices if isinstance(q.value, Reduction) else ()
    expressions = right_expressions(q)
    accesses = [Access(t.name, t.subscripts) for t in q.targets]
    accesses += [a for e in expressions for a in accesses_in(e)]
    of_rows = [a for a in accesses if a.tensor in by_row]
    own = {a.subscripts[0] for a in of_rows}
    if any(t.name not in by_row for t in q.targets):
        return f"'{q.target.name}' is of all rows"
    if len(own) != 1 or not isinstance(row := next(iter(own)), Name) or row.id in reduced:
        return f"the equation of '{q.target.name}' reads other rows"
    everywhere = [*expressions, *(s for t in q.targets for s in t.subscripts)]
    if sum(n == row for e in everywhere for n in walk(e)) != len(of_rows):
        return f"the equation of '{q.target.name}' depends on which row it is"
    if any(axis.id in names_in(e) for e in (*expressions, *(s for t in q.targets for s in t.subscripts[1:]))):
        return f"the equation of '{q.target.name}' depends on their number"
    return None


def _error(node: Node, message: str) -> TcError:
    return TcError(message, node.span, "remove the annotation `[chunks(...)]`")
