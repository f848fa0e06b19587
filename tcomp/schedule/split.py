"""An op's equations divided among its kernels, in an order that keeps what each equation reads.

    kernel dP:  kernel dX:  -->  dP's equations first; dX's equations with the temporaries that they alone need

Kernels run one after the other, so an equation may have come earlier or later than the text says. That is
refused when it would read a tensor before an equation above it wrote it, or after one below it did. An output may be
written part by part: kernel dQKV.1: computes the equations whose target has 1 as its first constant subscript.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcomp.dsl.ast import Access, Equation, accesses_in
from tcomp.dsl.errors import TcError
from tcomp.schedule.instance import Instance
from tcomp.schedule.joining.again import summed_again
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.normal import expressions, inline_tensors, needed, part_of
from tcomp.schedule.tree.nest import disjoint


@dataclass(frozen=True)
class Part:
    """One kernel: its plan, the tensors it is asked for, its equations and their positions in the op."""

    plan: KernelPlan
    names: frozenset[str]
    positions: tuple[int, ...]
    equations: tuple[Equation, ...]


def split(plans: Sequence[KernelPlan], instance: Instance) -> list[Part]:
    """The parts in launch order. Raises TcError when their order would change a result."""
    equations = instance.equations
    operands = frozenset(o.name for o in instance.op.operands)
    defined = {t.name for eq in equations for t in eq.targets}
    parts: list[Part] = []
    made: frozenset[str] = frozenset()
    for plan in plans:
        asked = frozenset(o for o in plan.outputs if o.partition(".")[0] in defined)
        wanted = asked if plan.outputs else instance.outputs
        names = frozenset(o.partition(".")[0] for o in wanted)
        if not names:
            continue
        again = summed_again(equations, plan.inline, instance)
        named = {n: span for n, span in plan.inline.items() if n in defined - again}
        inlined = inline_tensors(equations, named, instance.temporaries, instance.symbols)
        positions = needed(inlined, wanted, (operands | made) - names)
        kept = tuple(eq for i in positions if (eq := inlined[i]) is not None)
        parts.append(Part(plan, names, positions, kept))
        made |= names
    _check_complete(instance, parts)
    _check_order(parts, equations, operands | made)
    return parts


def _check_complete(instance: Instance, parts: Sequence[Part]) -> None:
    """TcError where no kernel computes an output, or a part of one."""
    equations, outputs = instance.equations, instance.outputs
    defined = {t.name for eq in equations for t in eq.targets}
    done = {i for part in parts for i in part.positions}
    missing = sorted((outputs & defined).difference(*(part.names for part in parts))) or [
        part_of(t) for i, eq in enumerate(equations) if i not in done for t in eq.targets if t.name in outputs
    ]
    if missing:
        raise TcError(
            f"no kernel of this schedule computes '{missing[0]}'", instance.schedule.span, f"add: kernel {missing[0]}:"
        )


def _check_order(parts: list[Part], equations: tuple[Equation, ...], shared: frozenset[str]) -> None:
    writers: dict[str, list[tuple[int, Access]]] = {}
    for i, eq in enumerate(equations):
        for t in eq.targets:
            writers.setdefault(t.name, []).append((i, Access(t.name, t.subscripts)))
    before: set[int] = set()
    for part in parts:
        done: set[int] = set()
        for position, eq in zip(part.positions, part.equations, strict=True):
            touched = [a for e in expressions(eq) for a in accesses_in(e)] + [
                Access(t.name, t.subscripts) for t in eq.targets
            ]
            for a in touched:
                for w, written in writers.get(a.tensor, ()) if a.tensor in shared else ():
                    if disjoint(a, written):
                        continue
                    if w < position and w not in before | done:
                        raise _wrong_order(part, eq, a.tensor, "before it is computed")
                    if w > position and w in before:
                        raise _wrong_order(part, eq, a.tensor, "after it was overwritten")
            done.add(position)
        before |= done


def _wrong_order(part: Part, eq: Equation, tensor: str, when: str) -> TcError:
    own = ", ".join(sorted(part.names))
    return TcError(
        f"kernel {own} would use '{tensor}' {when}: '{eq.target.name}' needs it as it stands in the equations' order",
        part.plan.span,
        f"reorder the kernels, or put '{eq.target.name}' and '{tensor}' in one: kernel {eq.target.name}, {tensor}:",
    )
