"""Sums over tiles in a tile of their own, in f32 (f64, i32), which is written once.

    Y[m, n] = sum k: X[m, k] * W[n, k]           k tiled inside m and n
    -->
    Y.sum[m, n] = sum k: X[m, k] * W[n, k]
    Y[m, n] = Y.sum[m, n]

The sum stays in registers until it is complete. So it is for every output on a GPU, wherever an output is narrower than
f32, and where `combine Y over k by private` asks for it. On a CPU k may also be tiled outside m or n: the private tile
then spans their loops.
"""

from __future__ import annotations

from dataclasses import replace

from tcomp.dsl.ast import Access, Name, Reduction
from tcomp.dsl.errors import TcError
from tcomp.ir.reducers import IDENTITY
from tcomp.schedule.instance import Instance
from tcomp.schedule.joining.joining_loops import into
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.normal import called, part_of
from tcomp.schedule.tree.nest import Leaf


def private_sum(instance: Instance, plan: KernelPlan, leaf: Leaf) -> list[Leaf]:
    """The equation, or its two where it has a private sum."""
    eq, value = leaf.equation, leaf.equation.value
    name, symbols, everywhere = eq.target.name, instance.symbols, instance.family.private_sums
    narrow = symbols.dtypes[name].bytes < 4
    asked = [c for c in plan.combine if c.by == "private" and c.over in leaf.reduced and called(eq, c.names)]
    if not narrow and not everywhere and not asked:
        return [leaf]
    passing = name in instance.temporaries and name not in plan.outputs
    if passing or not isinstance(value, Reduction) or value.reducer not in IDENTITY:
        return [leaf]
    inside = [t.index in leaf.reduced for t in plan.sequence if t.index in leaf.domain and not t.parallel]
    tiled = [t.index in leaf.reduced for t in plan.sequence if t.index in leaf.domain]
    in_order = tiled == sorted(tiled) or not everywhere
    scattered = bool(leaf.gathered) and everywhere
    if not any(inside) or not in_order or scattered or leaf.partial_over is not None:
        if asked and not any(inside):
            raise TcError(
                f"{name} has no sum over tiles of {asked[0].over} to be collected",
                asked[0].span,
                "tile the loop, as in seq(64)",
            )
        return [leaf]
    own = f"{name}.sum{leaf.number}"
    subs = tuple(Name(i) for i in leaf.parallel)
    symbols.add(own, symbols.sum_type(name), leaf.parallel)
    first = into(eq, own, subs)
    second = replace(eq, value=Access(own, subs))
    known = tuple(dict.fromkeys((name, part_of(eq.target))))
    collected = Leaf(first, leaf.number, leaf.parallel, leaf.reduced, sums_for=known)
    copy = Leaf(second, leaf.number, leaf.parallel, (), leaf.gathered, copies=True)
    return [replace(x, beside=leaf.beside, dealt=leaf.dealt) for x in (collected, copy)]
