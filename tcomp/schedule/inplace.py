"""Which outputs of a kernel may take the memory of one of its inputs.

Legal when every read of the input is at the very point the output is written at, happens no later than that
write, and no loop around both repeats the read after the write. An equation before the writer may read other points of
the same rows, where the loops around both are those of the rows:

    z[m] = sum v: exp(X[m, v]); dX[m, p] = exp(X[m, p]) / z[m]      m: (v: z) (p: dX)      dX may be written over X

On a GPU a block's threads meet between the two (`codegen/nvptx/sync.py` knows that they share memory).
"""

from __future__ import annotations

from tcomp.dsl.ast import Access, Name
from tcomp.ir.tile import Buffer
from tcomp.schedule.tree.nest import Leaf, Node, ancestors, leaves_of


def inplace_pairs(roots: list[Node], operands: dict[str, Buffer]) -> frozenset[tuple[str, str]]:
    """(output, input) pairs of operands that may share memory."""
    leaves = [x for r in roots for x in leaves_of(r)]
    written = {t for x in leaves for t in x.written if t in operands}
    read = {a.tensor for x in leaves for a in x.reads() if a.tensor in operands} - written
    return frozenset((o, i) for o in written for i in read if _legal(o, i, leaves, operands))


def _legal(out: str, source: str, leaves: list[Leaf], operands: dict[str, Buffer]) -> bool:
    a, b = operands[out], operands[source]
    if a.shape != b.shape or a.dtype is not b.dtype or not a.shape:
        return False
    writers = [x for x in leaves if out in x.written]
    if len(writers) != 1 or writers[0].equation.accumulate or writers[0].reduced:
        return False
    writer = writers[0]
    at = next(w for w in writer.writes() if w.tensor == out)
    if not all(isinstance(s, Name) for s in at.subscripts):
        return False
    indices = {s.id for s in at.subscripts if isinstance(s, Name)}
    around = ancestors(writer)
    for n, leaf in enumerate(leaves):
        for r in leaf.reads():
            if r.tensor != source:
                continue
            shared = [x for x in ancestors(leaf) if x in around]
            if n > leaves.index(writer):
                return False
            if r.subscripts != at.subscripts:
                rows = {
                    x.id for x, y in zip(r.subscripts, at.subscripts, strict=True) if x == y and isinstance(x, Name)
                }
                if leaf is writer or any(x.level.index not in rows for x in shared):
                    return False
                continue
            if any(x.level.index not in indices for x in shared):
                return False
            if leaf is writer and set(leaf.parallel) - indices:
                return False
    return not any(isinstance(r, Access) and r.tensor == out for x in leaves for r in x.reads())
