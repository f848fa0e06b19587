"""Holds an op's own `backward` against the derivative of its equations, on random inputs through the oracle.

Both are float64, so they agree to about 1e-12 or one of them is wrong. Used by `tcomp check` and the tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.dsl.ast import Access, Call, DType, Expr, Module, Op, Operand, Target, accesses_in, bottom_up
from tcomp.dsl.dims import evaluate_dim, operand_shape
from tcomp.dsl.infer import dimensions
from tcomp.grad.derive import derive
from tcomp.grad.parts import expressions, map_equation
from tcomp.numeric import NARROW
from tcomp.oracle import evaluate

Array = NDArray[Any]
_NARROW = frozenset(d.value for d in NARROW)
SIZES = (3, 5, 2, 7, 4, 1)


def compare_backward(
    op_name: str, module: Module, dims: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, float]:
    """The largest error of each result of `backward <op>` relative to the largest derived value, over three choices of
    small dimensions where none are given: in one alone a gradient may be nothing but rounding (a window of one key).

    Both are taken without roundings to narrow types: a backward may round otherwise than its forward op does, but
    before rounding it is the derivative. The own backward may use only some of the output gradients; the others (of
    auxiliary results such as a mean) are then taken as not existing. Infinite where one has a value that is not
    finite. Raises TcError when the op cannot be differentiated, KeyError when it has no backward of its own.
    """
    op, own = unrounded(module.ops[op_name]), unrounded(module.ops[f"{op_name}.backward"])
    given = frozenset(o.name for o in op.outputs if own.operand(f"d{o.name}") in own.params)
    derived = derive(op, module, given)
    gaps: dict[str, float] = {}
    scales: dict[str, float] = {}
    for sizes in [dict(dims)] if dims is not None else [small_dims(op, n) for n in range(3)]:
        mine, theirs = _both(op, own, derived, module, sizes, given, seed)
        for name in mine.keys() & theirs.keys():
            gaps[name] = max(gaps.get(name, 0.0), _largest(mine[name] - theirs[name]))
            scales[name] = max(scales.get(name, 0.0), _largest(theirs[name]))
    return {name: gap / (scales[name] or 1.0) if math.isfinite(gap) else math.inf for name, gap in gaps.items()}


def _both(
    op: Op, own: Op, derived: Op, module: Module, sizes: Mapping[str, int], given: frozenset[str], seed: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The gradients by the op's own backward, and by the derived one. Where these are not finite (the root of an `eps`
    below zero), inputs become positive, but as few as it takes: of what has two cases by the sign of another both are
    compared."""

    def gradients(of: Op, inputs: Mapping[str, Array]) -> dict[str, Array]:
        values = {**inputs, **evaluate(op, module, inputs, sizes)}
        random = np.random.default_rng(seed + 1)
        for name in sorted(given):
            values[f"d{name}"] = random.standard_normal(np.shape(values[name]))
        return evaluate(of, module, {p.name: values[p.name] for p in of.params}, sizes)

    def finite(inputs: Mapping[str, Array]) -> bool:
        return all(np.isfinite(v).all() for v in gradients(derived, inputs).values())

    inputs = drawn = random_inputs(op, sizes, seed)
    if not finite(drawn):
        inputs = {n: np.abs(v) + 0.1 if v.dtype.kind == "f" else v for n, v in drawn.items()}
        for name, values in drawn.items():
            if finite(inputs | {name: values}):
                inputs = inputs | {name: values}
    return gradients(own, inputs), gradients(derived, inputs)


def unrounded(op: Op) -> Op:
    """The op with its temporaries and its narrow operands in f32, and its casts to narrow types dropped."""

    def wide(e: Expr) -> Expr:
        return e.args[0] if isinstance(e, Call) and e.function in _NARROW else e

    def target(t: Target) -> Target:
        return replace(t, dtype=None if t.dtype in NARROW else t.dtype)

    def operand(o: Operand) -> Operand:
        return replace(o, dtype=DType.F32) if o.dtype in NARROW else o

    equations = tuple(map_equation(q, lambda e: bottom_up(e, wide)) for q in op.equations)
    return replace(
        op,
        params=tuple(map(operand, op.params)),
        outputs=tuple(map(operand, op.outputs)),
        equations=tuple(replace(q, targets=tuple(map(target, q.targets))) for q in equations),
    )


def small_dims(op: Op, number: int = 0) -> dict[str, int]:
    """Small unequal extents that satisfy the op's requirements, the first such, or one behind it: `number` (the last
    where there are fewer). ValueError when none were found."""
    fit = (d for d in _candidates(dimensions(op)) if all(evaluate_dim(r, d) for r in op.requires) and _shaped(op, d))
    found = list(islice(fit, number + 1))
    if found:
        return found[-1]
    raise ValueError(f"no small dimensions satisfy the requirements of op '{op.name}'")


def _shaped(op: Op, dims: Mapping[str, int]) -> bool:
    """Whether each axis of the operands has an extent."""
    return all(evaluate_dim(e, dims) >= 0 for o in op.operands for e in o.shape)


def _candidates(names: tuple[str, ...]) -> Iterator[dict[str, int]]:
    yield {n: SIZES[i % len(SIZES)] for i, n in enumerate(names)}
    random = np.random.default_rng(0)
    for _ in range(2000):
        yield {n: int(random.integers(2, 9)) for n in names}


def random_inputs(op: Op, dims: Mapping[str, int], seed: int) -> dict[str, Array]:
    """Normal floats; integers that stay inside every axis they subscript (and below every static dim)."""
    random = np.random.default_rng(seed)
    out: dict[str, Array] = {}
    for p in op.params:
        shape = operand_shape(p, dims)
        if p.dtype.is_float:
            out[p.name] = random.standard_normal(shape)
        else:
            out[p.name] = random.integers(0, integer_bound(op, p.name, dims), shape)
    return out


def integer_bound(op: Op, name: str, dims: Mapping[str, int]) -> int:
    """The exclusive bound of an integer operand's values."""
    bounds = [dims[d] for d in op.dims]
    for eq in op.equations:
        places: list[Expr] = [Access(t.name, t.subscripts) for t in eq.targets]
        for e in (*places, *expressions(eq.value)):
            for a in accesses_in(e):
                operand = op.operand(a.tensor)
                if operand is None:
                    continue
                for s, extent in zip(a.subscripts, operand_shape(operand, dims), strict=True):
                    if any(a.tensor == name for a in accesses_in(s)):
                        bounds.append(extent)
    return max(1, min(bounds, default=4))


def _largest(values: Array) -> float:
    """The largest magnitude, infinite where one is not finite."""
    return float(np.abs(values).max(initial=0.0)) if np.isfinite(values).all() else math.inf
