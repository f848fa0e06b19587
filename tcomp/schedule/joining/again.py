"""Sums that are computed again in every block that reads them (`inline s`, on GPUs).

    s[m] = sum k: X[m, k] * X[m, k]          m -> grid.y(128)    n -> grid.x(64)    k -> pipe(32, 3)
    acc[m, n] = sum k: X[m, k] * W[n, k]     inline s
    Y[m, n] = acc[m, n] * rsqrt(s[m])

`s` has no n, and all blocks along n need it. Each sums it for itself, from tiles of X that it reads anyway. What else
is computed from `s` alone and stored is stored by the first block along n.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from tcomp.dsl.ast import Equation, Reduction
from tcomp.schedule.instance import Instance
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.normal import cannot_inline
from tcomp.schedule.tree.nest import Leaf


def summed_again(equations: Sequence[Equation], inlined: Container[str], instance: Instance) -> frozenset[str]:
    """Of the temporaries to inline the sums of one equation, which no expression can take the place of."""
    if instance.family.level != "grid":
        return frozenset()
    found = [t.name for eq in equations for t in eq.targets]
    sums = (q.target.name for q in equations if isinstance(q.value, Reduction) and not q.accumulate)
    return frozenset(n for n in sums if n in inlined and n in instance.temporaries and found.count(n) == 1)


def again_in_blocks(plan: KernelPlan, leaves: Sequence[Leaf], temporaries: frozenset[str]) -> list[Leaf]:
    """The leaves, of which those sums know the loops over blocks in which they are computed again. TcError for one that
    is needed in no more blocks than it has, or that reads what the kernel makes otherwise."""
    grid = {t.index for t in plan.sequence if t.parallel}
    sums = {n for x in leaves if x.reduced for n in x.written if n in plan.inline and n in temporaries}
    made = {n for x in leaves for n in x.written} - sums
    out = list(leaves)
    for i, leaf in reversed([*enumerate(leaves)]):
        name, read = leaf.written[0], {a.tensor for a in leaf.reads()}
        if name in sums:
            readers = [x for x in out if name in {a.tensor for a in x.reads()}]
            lacking = frozenset(i for x in readers for i in x.walked & grid) - leaf.domain
            if read & made:
                first = min(read & made)
                why = f"'{first}', which it sums, is computed here"
                hint = f"inline '{first}', too, or compute '{name}' in a kernel of its own (kernel {name}:)"
                raise cannot_inline(name, why, leaf.equation, plan.inline, hint)
            if not lacking:
                why = "it is a sum, and no further blocks read it"
                between = _between(name, leaf.domain, out, grid)
                hint = f"inline what they read of it, too: inline {', '.join([name, *between])}" if between else ""
                raise cannot_inline(name, why, leaf.equation, plan.inline, hint)
            out[i] = replace(leaf, beside=lacking, again=True)
    for i, leaf in enumerate(out):
        around = [x.beside for x in out if x.again and set(x.written) & {a.tensor for a in leaf.reads()}]
        if around and not leaf.reduced and not set(leaf.written) & temporaries:
            out[i] = replace(leaf, beside=frozenset().union(*around) - leaf.domain)
    return out


def _between(name: str, domain: frozenset[str], leaves: Sequence[Leaf], grid: set[str]) -> list[str]:
    """What maps without further blocks make of a sum, and further blocks need."""
    of_it, needed = {name}, set[str]()
    for x in leaves:
        if any(a.tensor in of_it for a in x.reads()):
            of_it |= set(x.written)
    for x in reversed(leaves):
        if x.walked & grid - domain or needed & set(x.written):
            needed |= {a.tensor for a in x.reads()}
    maps = [x.written[0] for x in leaves if not x.reduced and not x.walked & grid - domain]
    return [n for n in maps if n in of_it & needed]
