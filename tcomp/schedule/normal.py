"""One op instance in normal form: functions expanded, dimensions bound, marked tensors inlined.

xhat[m, c] = (X[m, c] - mean[m]) * rstd[m]
dw[c] = sum m: dY[m, c] * xhat[m, c]    -->    dw[c] = sum m: dY[m, c] * ((X[m, c] - mean[m]) * rstd[m])

Readers compute a narrow tensor again as it was rounded, which gives the same bits; a result of the op is still stored:

P[m, n] = acc[m, n] + b[n]                     P[m, n] = acc[m, n] + b[n]
Y[m, n] = gelu(P[m, n])                 -->    Y[m, n] = gelu(bf16(acc[m, n] + b[n]))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tcomp.dsl.ast import (
    Access,
    Call,
    DType,
    Equation,
    Expr,
    Module,
    Name,
    Num,
    Op,
    Reduction,
    Span,
    Target,
    accesses_in,
    map_children,
    substitute,
)
from tcomp.dsl.errors import TcError
from tcomp.dsl.inline import inline_functions
from tcomp.grad.parts import map_equation
from tcomp.schedule.fold import bind_dims
from tcomp.schedule.symbols import Symbols


def expressions(eq: Equation) -> list[Expr]:
    """Every expression an equation evaluates, target subscripts included."""
    out: list[Expr] = [s for t in eq.targets for s in t.subscripts]
    v = eq.value
    if isinstance(v, Reduction):
        return [*out, *v.values, *(x for x in (v.key, v.guard) if x is not None)]
    return [*out, v]


def normalise(op: Op, module: Module, dims: dict[str, int]) -> tuple[Equation, ...]:
    """The op's equations with user functions expanded and dimensions replaced by numbers."""
    return tuple(map_equation(eq, lambda e: bind_dims(inline_functions(e, module), dims)) for eq in op.equations)


def inline_tensors(
    equations: tuple[Equation, ...], names: Mapping[str, Span], temporaries: frozenset[str], symbols: Symbols
) -> tuple[Equation | None, ...]:
    """Substitute the pointwise tensors `names` into their readers; temporaries' own equations become None.

    Refused where a tensor that one of them reads is overwritten before it is read, and where an equation leaves
    elements of its tensor out (those are zero, whatever the equation would give there).
    """
    bodies: dict[str, tuple[Target, Expr]] = {}
    stale: dict[str, str] = {}
    out: list[Equation | None] = []
    for eq in equations:
        used = {a.tensor for e in expressions(eq) for a in accesses_in(e)} & bodies.keys()
        for n in sorted(used & stale.keys()):
            raise cannot_inline(n, f"'{stale[n]}', which it reads, is overwritten before this use", eq, names)
        eq = map_equation(eq, lambda e: _expand(e, bodies))
        written = {t.name: t.subscripts for t in eq.targets}
        for a in [a for e in expressions(eq) for a in accesses_in(e)] if used else []:
            if a.tensor in written and (a.subscripts != written[a.tensor] or isinstance(eq.value, Reduction)):
                raise cannot_inline(min(used), f"this equation overwrites '{a.tensor}', which it reads", eq, names)
        name = eq.target.name
        for n, (_, body) in bodies.items():
            overwritten = {a.tensor for a in accesses_in(body)} & written.keys()
            if overwritten:
                stale.setdefault(n, min(overwritten))
        if name in names:
            axes = [s.id for s in eq.target.subscripts if isinstance(s, Name)]
            plain = len(axes) == len(eq.target.subscripts) and not eq.accumulate
            if plain and tuple(symbols.extents[a] for a in axes) != symbols.shapes[name]:
                raise cannot_inline(name, "its equation writes only a part of it", eq, names)
            once = plain and name not in bodies
            if not once or isinstance(eq.value, Reduction) or any(a.tensor == name for a in accesses_in(eq.value)):
                raise cannot_inline(name, "only what is defined once, point by point, can", eq, names)
            bodies[name] = (eq.target, _rounded(eq.value, symbols.dtypes[name], symbols.dtypes))
            out.append(None if name in temporaries else eq)
        else:
            out.append(eq)
    return tuple(out)


def _rounded(value: Expr, dtype: DType, dtypes: Mapping[str, DType]) -> Expr:
    """The value as a tensor of that type holds it; a copy of one needs no rounding."""
    copied = isinstance(value, Access) and dtypes.get(value.tensor) is dtype
    if copied or not dtype.is_float or dtype.bytes >= 4:
        return value
    return Call(dtype.value, (value,))


def cannot_inline(name: str, why: str, eq: Equation, lines: Mapping[str, Span], hint: str = "") -> TcError:
    """The refusal, where the schedule names the tensor (`lines`), of what its equation says, or that where it would be
    expanded."""
    hint, span = hint or f"remove '{name}' from the line", lines[name]
    return TcError(f"'{name}' cannot be inlined: {why}", span, hint, (f"the equation is at {eq.span}",))


def _expand(e: Expr, bodies: dict[str, tuple[Target, Expr]]) -> Expr:
    e = map_children(e, lambda x: _expand(x, bodies))
    if isinstance(e, Access) and e.tensor in bodies:
        target, body = bodies[e.tensor]
        names = {t.id: s for t, s in zip(target.subscripts, e.subscripts, strict=True) if isinstance(t, Name)}
        return substitute(body, names)
    return e


def part_of(t: Target | Access) -> str:
    """The part of a tensor that is written or read, by its first constant subscript: dQKV.1 of dQKV[b, k, 1, h, d]. The
    tensor's name where there is none."""
    name = t.name if isinstance(t, Target) else t.tensor
    constant = next((s.value for s in t.subscripts if isinstance(s, Num)), None)
    return name if constant is None else f"{name}.{constant}"


def means(name: str, a: Access) -> bool:
    """Does a line of a schedule that names a tensor, or a part of one, mean this access?"""
    return name in (a.tensor, part_of(a))


def called(eq: Equation, names: tuple[str, ...]) -> bool:
    """Is the equation's output among these names, whole or by its part (dQKV.0)?"""
    return eq.target.name in names or part_of(eq.target) in names


def parts_of(targets: Iterable[Target]) -> dict[str, tuple[str, int, Num]]:
    """The parts of tensors that are written: of each the tensor, and which subscript says so by which value."""
    found = {}
    for t in targets:
        at = next((i for i, s in enumerate(t.subscripts) if isinstance(s, Num)), None)
        if at is not None:
            value = t.subscripts[at]
            assert isinstance(value, Num)
            found[part_of(t)] = t.name, at, value
    return found


def needed(
    equations: tuple[Equation | None, ...], outputs: frozenset[str], available: frozenset[str]
) -> tuple[int, ...]:
    """Positions of the equations that compute `outputs` (whole, or parts of them: `dQKV.1`), and the temporaries they
    need that are not `available`."""
    wanted = set(outputs)
    keep: list[int] = []
    for i, eq in reversed(list(enumerate(equations))):
        if eq is not None and any(t.name in wanted or part_of(t) in wanted for t in eq.targets):
            keep.append(i)
            wanted |= {a.tensor for e in expressions(eq) for a in accesses_in(e)} - available
    return tuple(reversed(keep))
