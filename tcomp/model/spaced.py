"""Parts of stacked tensors, spaced out: on GPUs each part that a launch is given begins where a vector of 16 bytes may.

    y = linear(x, w[l], b[l])       b: bf16[L, 20]           b.spaced: bf16[L, 24] = b, each part's end left open
                                                      -->    y = linear(x, w[l], b.spaced[l])
    db[l] = linear.backward(..)     db: f32[L, 21]           db.spaced[l] = linear.backward(..)
                                                             db = db.spaced

Kernels read and write 16 bytes at a time, and are the same for all layers, so w[l] of a [L, 20] in bf16 would lie wrong
in every other layer. A program copies such a tensor before its first launch that is given a part, and what it writes of
it back behind the last that writes. Nothing else sees the copy: parameters, gradients and checkpoints are as on CPUs.
Where launches are given parts of several sizes, or write some parts only, nothing changes (and
`runtime/cuda/programs.py` refuses what begins elsewhere).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from tcomp.dsl.ast import Access, Binary, Call, DType, Equation, Expr, Name, Num, Op, Operand, Target
from tcomp.model.graph import Node, Tensor, View

VECTOR = 16
"""Bytes of the widest access."""
SPACED, JOINED = "parts.spaced", "parts.joined"
"""(Names that no text can give an op.)"""

Nodes = tuple[Node, ...]


@dataclass(frozen=True)
class _Spaced:
    """The copy of a tensor whose parts of `elements` each lie in rows of their own."""

    copy: Tensor
    elements: int

    def view(self, v: View) -> View:
        return View(self.copy, v.offset // self.elements * self.copy.shape[1], v.shape)


def in_spaced_parts(nodes: Nodes, alone: Collection[Node]) -> tuple[Nodes, frozenset[Node]]:
    """A program's nodes on copies of the tensors whose parts do not begin at multiples of `VECTOR` bytes, and those
    that a forward pass by itself needs, in the place of `alone`."""
    users: dict[Tensor, list[Node]] = {}
    for n in nodes:
        for t in dict.fromkeys(v.tensor for v in n.operands.values()):
            users.setdefault(t, []).append(n)
    found = {t: s for t, ns in users.items() if (s := _spaced(t, ns)) is not None}
    first = {t: None if _written_first(t, users[t]) else users[t][0] for t in found}
    last = {t: next((n for n in reversed(users[t]) if _writes(n, t)), None) for t in found}
    out: list[Node] = []
    kept: set[Node] = set()
    for n in nodes:
        before = {t: _copy(SPACED, t, found[t], n) for t in found if first[t] is n}
        behind = {t: _copy(JOINED, t, found[t], n) for t in found if last[t] is n}
        views = {k: found[v.tensor].view(v) if v.tensor in found else v for k, v in n.operands.items()}
        new = replace(n, operands=views)
        out += [*before.values(), new, *behind.values()]
        kept |= {c for t, c in before.items() if any(u in alone for u in users[t])}
        kept |= {c for t, c in behind.items() if any(u in alone and _writes(u, t) for u in users[t])}
        kept |= {new} if n in alone else set()
    return tuple(out), frozenset(kept)


def _spaced(t: Tensor, users: Sequence[Node]) -> _Spaced | None:
    """The copy of a tensor for these launches; None where it needs none, or there is no such copy. (What is written is
    written whole: of a gradient of which some parts are nobody's, those are not there to be copied.)"""
    views = [v for n in users for v in n.operands.values() if v.tensor is t]
    elements = views[0].elements
    if not t.dtype.is_float or not any(v.offset * t.dtype.bytes % VECTOR and v.elements > 1 for v in views):
        return None
    if t.elements % elements or any(v.elements != elements or v.offset % elements for v in views):
        return None
    if any(_writes(n, t) for n in users) and len({v.offset for v in views}) * elements != t.elements:
        return None
    unit = VECTOR // t.dtype.bytes
    shape = t.elements // elements, -(-elements // unit) * unit
    return _Spaced(Tensor(f"{t.name}.spaced", t.dtype, shape, "workspace", t.name), elements)


def _writes(n: Node, t: Tensor) -> bool:
    return any(n.operands[o.name].tensor is t for o in n.op.operands if o.inout or o in n.op.outputs)


def _written_first(t: Tensor, users: Sequence[Node]) -> bool:
    """Is each part that a launch is given written, and not read, by the first of them?"""
    given: set[int] = set()
    for n in users:
        own = {o.name: n.operands[o.name].offset for o in n.op.operands if n.operands[o.name].tensor is t}
        outputs = {o.name for o in n.op.outputs}
        if any(at not in given for name, at in own.items() if name not in outputs):
            return False
        given |= set(own.values())
    return True


def _copy(name: str, t: Tensor, s: _Spaced, at: Node) -> Node:
    """The node that fills the copy (`SPACED`) or writes it back (`JOINED`), beside `at`."""
    rows, width = s.copy.shape
    own, copy = View(t, 0, (rows, s.elements)), s.copy.whole()
    views = {"X": own, "Y": copy} if name == SPACED else {"X": copy, "Y": own}
    dims = {"L": rows, "N": s.elements, "P": width}
    return Node(_op(name, t.dtype), dims, views, f"{name} ({t.name})", at.span)


def _op(name: str, dtype: DType) -> Op:
    """op parts.spaced(X: f32[L, N]; P) -> Y: f32[L, P]:
      Y[l, i] = select(i < N, X[l, min(i, N - 1)], 0.0)
    op parts.joined(X: f32[L, P]; N) -> Y: f32[L, N]:
      require N <= P
      Y[l, i] = X[l, i]"""
    row, i, last = Name("l"), Name("i"), Binary("-", Name("N"), Num(1))
    narrow, wide = Operand("X", dtype, (Name("L"), Name("N"))), Operand("Y", dtype, (Name("L"), Name("P")))
    value: Expr = Access("X", (row, i))
    if name == SPACED:
        inside = Access("X", (row, Call("min", (i, last))))
        value = Call("select", (Binary("<", i, Name("N")), inside, Num(0.0)))
    else:
        narrow, wide = replace(wide, name="X"), replace(narrow, name="Y")
    end = "P" if name == SPACED else "N"
    equation = Equation((Target("Y", (row, i)),), False, value)
    fits = (Binary("<=", Name("N"), Name("P")),) if name == JOINED else ()
    return Op(name, (narrow,), (wide,), (end,), (("l", Name("L")), ("i", Name(end))), fits, (equation,))
