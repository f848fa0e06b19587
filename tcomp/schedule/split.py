"""An op's equations divided among its kernels, in an order that keeps what each equation reads.

    kernel dP:  kernel dX:  -->  dP's equations first; dX's equations with the temporaries that they alone need

Kernels run one after the other, so an equation may have come earlier or later than the text says. That is
refused when it would read a tensor before an equation above it wrote it, or after one below it did. An output may be
written part by part: kernel dQKV.1: computes the equations whose target has 1 as its first constant subscript.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tcomp.dsl.ast import Access, DType, Equation
from tcomp.dsl.errors import TcError
from tcomp.schedule.fold import reads
from tcomp.schedule.nest import disjoint
from tcomp.schedule.normal import expressions, inline_tensors, needed
from tcomp.schedule.resolve import KernelPlan


@dataclass(frozen=True)
class Part:
    """One kernel: its plan, the tensors it is asked for, its equations and their positions in the op."""

    plan: KernelPlan
    names: frozenset[str]
    positions: tuple[int, ...]
    equations: tuple[Equation, ...]


def split(
    plans: Sequence[KernelPlan],
    equations: tuple[Equation, ...],
    operands: frozenset[str],
    outputs: frozenset[str],
    temporaries: frozenset[str],
    dtypes: Mapping[str, DType],
    extents: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    text: str,
) -> list[Part]:
    """The parts in launch order. Raises TcError when their order would change a result."""
    defined = {t.name for eq in equations for t in eq.targets}
    parts: list[Part] = []
    made: frozenset[str] = frozenset()
    for plan in plans:
        wanted = frozenset(o for o in plan.outputs if o.partition(".")[0] in defined) if plan.outputs else outputs
        names = frozenset(o.partition(".")[0] for o in wanted)
        if not names:
            continue
        inlined = inline_tensors(equations, plan.inline & defined, temporaries, dtypes, extents, shapes, text)
        positions = needed(inlined, wanted, (operands | made) - names)
        kept = tuple(eq for i in positions if (eq := inlined[i]) is not None)
        parts.append(Part(plan, names, positions, kept))
        made |= names
    _check_order(parts, equations, operands | made, text)
    return parts


def _check_order(parts: list[Part], equations: tuple[Equation, ...], shared: frozenset[str], text: str) -> None:
    writers: dict[str, list[tuple[int, Access]]] = {}
    for i, eq in enumerate(equations):
        for t in eq.targets:
            writers.setdefault(t.name, []).append((i, Access(t.name, t.subscripts)))
    before: set[int] = set()
    for part in parts:
        done: set[int] = set()
        for position, eq in zip(part.positions, part.equations, strict=True):
            touched = [a for e in expressions(eq) for a in reads(e)] + [
                Access(t.name, t.subscripts) for t in eq.targets
            ]
            for a in touched:
                for w, written in writers.get(a.tensor, ()) if a.tensor in shared else ():
                    if disjoint(a, written):
                        continue
                    if w < position and w not in before | done:
                        raise _wrong_order(part, eq, a.tensor, "before it is computed", text)
                    if w > position and w in before:
                        raise _wrong_order(part, eq, a.tensor, "after it was overwritten", text)
            done.add(position)
        before |= done


def _wrong_order(part: Part, eq: Equation, tensor: str, when: str, text: str) -> TcError:
    own = ", ".join(sorted(part.names))
    return TcError(
        f"kernel {own} would use '{tensor}' {when}: '{eq.target.name}' needs it as it stands in the equations' order",
        part.plan.span,
        text,
        f"reorder the kernels, or put '{eq.target.name}' and '{tensor}' in one: kernel {eq.target.name}, {tensor}:",
    )
