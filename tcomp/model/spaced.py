"""Parts of stacked tensors, spaced out: on GPUs each part that a launch is given begins where a vector of 16 bytes may.

    y = linear(x, w[l], b[l])       b: bf16[L, 20]           b.spaced: bf16[L, 24] = b, each part's end left open
                                                      -->    y = linear(x, w[l], b.spaced[l])
    db[l] = linear.backward(..)     db: f32[L, 21]           db.spaced[l] = linear.backward(..)
                                                             db = db.spaced

Kernels read and write 16 bytes at a time, and are the same for all layers, so w[l] of a [L, 20] in bf16 would lie wrong
in every other layer. A program copies such a tensor before its first launch that is given a part, and what it writes of
it back behind the last that writes. Nothing else sees the copy: parameters, gradients and checkpoints are as on CPUs.

What is copied is a run: neighbouring parts of one size. A stacked tensor is one; a flat vector, of which an update is
given matrices one by one, has one for each stacked parameter. Runs that do not begin at a vector, or that launches read
and write in other parts meanwhile, stay (and `runtime/cuda/programs.py` refuses what begins elsewhere).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from tcomp.dsl.ast import Access, Binary, Call, DType, Equation, Expr, Name, Num, Op, Operand, Target
from tcomp.model.graph import Node, Tensor, View

VECTOR = 16
"""Bytes of the widest access."""
SPACED, JOINED = "parts.spaced", "parts.joined"
"""(Names that no text can give an op.)"""

Nodes = tuple[Node, ...]


@dataclass(frozen=True)
class _Use:
    """A view that the node at `node` of a program is given."""

    node: int
    view: View
    reads: bool
    writes: bool


@dataclass(frozen=True)
class _Spaced:
    """The copy of a run, the rows of `own`, each in a row of its own; `uses` are those of its parts."""

    own: View
    copy: Tensor
    uses: tuple[_Use, ...]

    @property
    def copied(self) -> bool:
        """Is any part read that was not written before?"""
        made: set[int] = set()
        for u in self.uses:
            if u.reads and u.view.offset not in made:
                return True
            made.add(u.view.offset)
        return False

    @property
    def written(self) -> int:
        """The last node that writes a part, -1 for none."""
        return max((u.node for u in self.uses if u.writes), default=-1)

    def view(self, v: View) -> View:
        return View(self.copy, (v.offset - self.own.offset) // v.elements * self.copy.shape[1], v.shape)


def in_spaced_parts(nodes: Nodes, alone: Collection[Node]) -> tuple[Nodes, frozenset[Node]]:
    """A program's nodes on copies of the runs whose parts do not begin at multiples of `VECTOR` bytes, and those
    that a forward pass by itself needs, in the place of `alone`."""
    uses: dict[Tensor, list[_Use]] = {}
    for i, n in enumerate(nodes):
        for o in sorted(n.op.operands, key=lambda o: o in n.op.outputs):
            v, given = n.operands[o.name], o not in n.op.outputs
            uses.setdefault(v.tensor, []).append(_Use(i, v, given, o.inout or not given))
    found = [s for t, us in uses.items() for s in _spaced(t, us)]
    place = {(u.view.tensor, u.view.offset, u.view.elements): s for s in found for u in s.uses}
    first = {s.copy: _copy(SPACED, s, nodes[s.uses[0].node]) for s in found if s.copied}
    last = {s.copy: _copy(JOINED, s, nodes[s.written]) for s in found if s.written >= 0}
    out: list[Node] = []
    kept: set[Node] = set()
    for i, n in enumerate(nodes):
        out += [first[s.copy] for s in found if s.uses[0].node == i and s.copy in first]
        at = {k: place.get((v.tensor, v.offset, v.elements)) for k, v in n.operands.items()}
        new = replace(n, operands={k: v if (s := at[k]) is None else s.view(v) for k, v in n.operands.items()})
        out.append(new)
        out += [last[s.copy] for s in found if s.written == i]
        kept |= {new} if n in alone else set()
    for s in found:
        used = [u for u in s.uses if nodes[u.node] in alone]
        kept |= {first[s.copy]} if used and s.copy in first else set()
        kept |= {last[s.copy]} if any(u.writes for u in used) else set()
    return tuple(out), frozenset(kept)


def _spaced(t: Tensor, uses: Sequence[_Use]) -> Iterator[_Spaced]:
    """The copies of a tensor's runs that need one."""
    if not t.dtype.is_float:
        return
    unit = VECTOR // t.dtype.bytes
    changes = any(u.writes for u in uses)
    for elements in dict.fromkeys(u.view.elements for u in uses if u.view.offset % unit and u.view.elements > 1):
        for start, rows in _neighbours({u.view.offset for u in uses if u.view.elements == elements}, elements):
            while not changes and start % unit and start >= elements:  # what no node is given is there, too
                start, rows = start - elements, rows + 1
            own = View(t, start, (rows, elements))
            parts = range(start, start + own.elements, elements)
            ours = [u for u in uses if u.view.elements == elements and u.view.offset in parts]
            rest = [u for u in uses if u.view.elements != elements and u.view.meets(own)]
            if start % unit or rows == 1 or elements % unit == 0 or _disturbed(ours, rest):
                continue
            name = f"{t.name}.spaced" + (f".{start}" if start else "")
            copy = Tensor(name, t.dtype, (rows, -(-elements // unit) * unit), "workspace", t.name)
            yield _Spaced(own, copy, tuple(ours))


def _neighbours(offsets: Collection[int], elements: int) -> list[tuple[int, int]]:
    """Rows of parts that lie side by side: where each begins, and how many parts it has."""
    found: list[tuple[int, int]] = []
    for at in sorted(offsets):
        start, rows = found[-1] if found else (at, 0)
        if at != start + rows * elements:
            found.append((at, 1))
        else:
            found[-1:] = [(start, rows + 1)]
    return found


def _disturbed(ours: Sequence[_Use], rest: Sequence[_Use]) -> bool:
    """Are elements of a run read or written in other parts while a copy has them, and changed by the ones or the
    others?"""
    changes = any(u.writes for u in ours)
    return any((changes or u.writes) and ours[0].node <= u.node <= ours[-1].node for u in rest)


def _copy(name: str, s: _Spaced, at: Node) -> Node:
    """The node that fills the copy (`SPACED`) or writes it back (`JOINED`), beside `at`."""
    t, (rows, elements), width = s.own.tensor, s.own.shape, s.copy.shape[1]
    views = {"X": s.own, "Y": s.copy.whole()} if name == SPACED else {"X": s.copy.whole(), "Y": s.own}
    dims = {"L": rows, "N": elements, "P": width}
    label = f"{name} ({t.name}" + (f" from {s.own.offset})" if s.own.offset else ")")
    return Node(_op(name, t.dtype), dims, views, label, at.span)


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
