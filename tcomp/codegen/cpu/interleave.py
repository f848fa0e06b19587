"""bf16 vectors two registers at a time, by even and odd elements, where all that walks them in memory is bf16.

    Y[i] = f(X[i])      registers 2 j and 2 j + 1 of the vector axis, n lanes each:

    0 .. n - 1  and  n .. 2 n - 1          -->     0, 2 .. 2 n - 2  and  1, 3 .. 2 n - 1
    two loads, two shuffles, two shifts    -->     one load as n words, one shift, one mask
    two roundings, two stores              -->     one rounding of both, one shuffle, one store

Which lane has which element is nobody's business in a map or in a reduction over the lanes, as long as loads, stores
and the vector axis's own index agree. Whole pairs of registers only: what remains of an axis keeps its order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tcomp.codegen.cpu.addressing import Place
from tcomp.codegen.llvm.domain import AxisState
from tcomp.codegen.llvm.expressions import Node
from tcomp.codegen.llvm.tiles import Variant
from tcomp.dsl.ast import DType
from tcomp.ir.tile import Axis, Compute

_OWN_ORDER = {"dot", "pair", "rounded pair"}
"""operations on words that are packed already"""


def interleavable(compute: Compute, vector: Axis, value: Node, target: Place) -> bool:
    """Whether registers of the vector axis may hold even and odd elements: every access that walks it is to bf16
    elements side by side, and there is one."""
    if compute.epilogue or compute.guard is not None or not compute.distinct:
        return False
    walked = []
    for node in _nodes(value):
        if node.op in _OWN_ORDER:
            return False
        if node.op == "load" and vector.name in node.deps:
            assert isinstance(node.data, Place)
            walked.append(node.data)
    if vector.name not in compute.reduced:
        walked.append(target)
    return bool(walked) and all(_side_by_side(p, vector.name) for p in walked)


def _side_by_side(place: Place, vector: str) -> bool:
    return (
        place.buffer.dtype is DType.BF16
        and place.panel is None
        and dict(place.counters).get(vector) == 1
        and not any(vector in node.deps for node, _ in place.gathered)
    )


def _nodes(root: Node) -> Iterator[Node]:
    """All nodes of a value, each once, subscripts read from memory among them."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        waiting += node.args
        if isinstance(node.data, Place):
            waiting += [n for n, _ in node.data.gathered]


def in_pairs(axis: Axis) -> Axis:
    """The axis with whole pairs of registers in a register tile."""
    return replace(axis, unroll=axis.unroll + axis.unroll % 2)


def by_parity(state: AxisState, variant: Variant, value: Node) -> AxisState:
    """The vector axis's state in a loop over register tiles of this value: interleaved where they are whole pairs and
    nothing is read under a condition."""
    whole = variant.unroll % 2 == 0 and not variant.partial
    return replace(state, interleaved=whole and not any(_reads_under_condition(n) for n in _nodes(value)))


def _reads_under_condition(node: Node) -> bool:
    return node.op in ("select", "and") and any(a.unsafe for a in node.args[1:])
