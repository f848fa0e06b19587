"""Parameters streamed from tensors laid out elsewhere, and back, one tensor at a time.

What is in memory at once is one layer's tensor at most (a transposed one is turned as a whole), never a shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from tcomp.model.graph import Graph
from tcomp.runtime.safetensors_file import KINDS, PIECE, Array, Entry, Stored, as_floats, as_kind
from tcomp.runtime.weights.layout import Place


def converted(piece: Array, kind: str, to: str) -> Array:
    """Elements of one type as those of another, bit for bit where they are the same."""
    return piece if kind == to else as_kind(as_floats(piece, kind), to)


def common_kind(entries: Iterable[Entry]) -> str:
    """The type that all entries have, else F32."""
    kinds = {e.kind for e in entries}
    return kinds.pop() if len(kinds) == 1 else "F32"


def parameters(
    graph: Graph, wanted: list[Place], entries: Mapping[str, Entry], kind: str | None = None
) -> dict[str, Stored]:
    """The model's parameters as tensors of type `kind` to be saved (None: each in the type that its entries have), read
    from `entries` as they are asked for."""

    def pieces(name: str, shape: tuple[int, ...], kind: str) -> Iterator[Array]:
        own = [p for p in wanted if p.parameter == name]
        layered = own[0].layer is not None
        inner = shape[1:] if layered else shape
        for layer in range(shape[0]) if layered else (None,):
            filled = 0
            for place in (p for p in own if p.layer == layer):
                entry = entries[place.name]
                held = place.shape if place.transposed else (place.rows, *inner[1:])
                yield from _streamed(entry, 0, held, place.transposed, kind)
                filled += place.rows
            for start in range(filled, inner[0], step := _at_a_time(inner)):
                yield np.zeros((min(step, inner[0] - start), *inner[1:]), KINDS[kind])

    found = {}
    for t in (p.tensor for p in graph.parameters):
        own = kind or common_kind(entries[p.name] for p in wanted if p.parameter == t.name)
        found[t.name] = Stored(own, t.shape, lambda t=t, own=own: pieces(t.name, t.shape, own))  # type: ignore[misc]
    return found


def tensors(wanted: list[Place], held: Mapping[str, Entry], kind: str | None) -> dict[str, Stored]:
    """The tensors of a layout made from parameters `held` in a checkpoint; `kind` None keeps each one's type."""

    def pieces(place: Place, to: str) -> Iterator[Array]:
        entry = held[place.parameter]
        inner = entry.shape if place.layer is None else entry.shape[1:]
        row = _row(inner)
        first = (place.layer or 0) * inner[0] * row + place.start * row
        yield from _streamed(entry, first, (place.rows, *inner[1:]), place.transposed, to)

    found = {}
    for p in wanted:
        to = kind or held[p.parameter].kind
        found[p.name] = Stored(to, p.shape, lambda p=p, to=to: pieces(p, to))  # type: ignore[misc]
    return found


def _streamed(entry: Entry, start: int, shape: tuple[int, ...], transposed: bool, to: str) -> Iterator[Array]:
    """A tensor of `shape` that begins at element `start` of an entry, in pieces; a transposed one is read whole."""
    count = int(np.prod(shape, dtype=np.int64))
    if transposed:
        whole = entry.read(start, start + count).reshape(shape)
        yield converted(np.ascontiguousarray(whole.T), entry.kind, to)
        return
    for at in range(start, start + count, step := PIECE // 4):
        yield converted(entry.read(at, min(at + step, start + count)), entry.kind, to)


def _row(shape: tuple[int, ...]) -> int:
    """Elements of a row."""
    return int(np.prod(shape[1:], dtype=np.int64))


def _at_a_time(shape: tuple[int, ...]) -> int:
    """Rows that make a piece."""
    return max(1, PIECE // max(1, 4 * _row(shape)))
