"""The abstract syntax of schedules: how loops are mapped to a machine, and what is staged, fused, combined, tuned."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.dsl.expressions import Call, DType, Expr, Name, Span, no_span

CONDITION = "when"
"""The option of a `stage` line that says where it holds"""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a loop's mapping: `core`, `seq(64)`, `unroll(8)`, `vec`, `grid.y(BM)`, `mma`, ..."""

    kind: str
    args: tuple[Expr, ...] = ()
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class MapLoops:
    """`b, h -> core` or `n of Y, P -> vec 128`: the levels of each named loop, outermost first. With a condition, as in
    `k of s -> unroll(4) when(T <= 64)`, the line stands where it holds."""

    loops: tuple[str, ...]
    of: tuple[str, ...]
    levels: tuple[Level, ...]
    condition: Expr | None = None
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Order:
    """`order n, m, k`: the order of the loops' tile levels, outermost first. A loop with several tile
    levels may be named several times, once per level."""

    loops: tuple[str, ...]
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Fuse:
    """`fuse s, m, l, o at k`: compute these equations in one loop over k."""

    names: tuple[str, ...]
    at: str
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Stage:
    """`stage W in packed at k by tma`: copy a tile of the tensor into a faster space inside loop `at`.

    `space` is shared | registers | packed | cache; `by` is copy | prefetch | widening | cp.async | tma;
    `options` such as swizzle, pad, and `when(condition)`: without it, nothing is staged.
    """

    tensors: tuple[str, ...]
    space: str
    at: str
    by: str | None = None
    options: tuple[Level, ...] = ()
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Use:
    """`use wgmma for acc`: compute these equations with that instruction."""

    instruction: str
    names: tuple[str, ...]
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Cast:
    """`cast o.weight to bf16`."""

    what: str
    dtype: DType
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Combine:
    """`combine dg over i by partials | sorted | atomic | turns | private`: how a reduction over blocks
    or tiles is joined. With a condition, as in `by turns when(parts == 2)`, the line stands where it holds."""

    names: tuple[str, ...]
    over: str
    by: str
    condition: Expr | None = None
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Tune:
    """`tune BM = 128 from 64, 128, 256`: a schedule parameter, its default and its choices.

    `choices` is empty when only the default is allowed; a range `64..512 step 64` is expanded.
    """

    name: str
    default: Expr
    choices: tuple[Expr, ...]
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Where:
    """`where MC * KC * 4 <= l2`: a condition on the tuned parameters and machine facts."""

    conditions: tuple[Expr, ...]
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Flag:
    """A directive of one word with arguments and no loop: `persistent`, `raster hilbert`, `perfect`."""

    name: str
    args: tuple[Expr, ...] = ()
    span: Span = no_span()


Directive = MapLoops | Order | Fuse | Stage | Use | Cast | Combine | Tune | Where | Flag


@dataclass(frozen=True, slots=True)
class KernelSchedule:
    """The directives of one kernel: of the whole op when `outputs` is empty, else of `kernel dW, db:`."""

    outputs: tuple[str, ...]
    directives: tuple[Directive, ...]
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Schedule:
    """`schedule linear on cpu:`. `shared` are directives before any `kernel` line and hold for all. A text for several
    ops or targets is a schedule for each (dsl/schedule_blocks.py), whose lines share their spans."""

    op: str
    target: str
    shared: tuple[Directive, ...]
    kernels: tuple[KernelSchedule, ...]
    span: Span = no_span()


def named_tensor(flag: str, argument: Expr) -> str:
    """The tensor that an argument of `inline t`, `overlap o` or `promote acc(128)` names; "" where it names none."""
    match argument:
        case Name(name) if flag in ("inline", "overlap", "promote"):
            return name
        case Call(name, _) if flag in ("overlap", "promote"):
            return name
    return ""
