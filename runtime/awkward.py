"""Sizes at which an op is checked: small and awkward, as its `require` lines want them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from tcomp.dsl.ast import Binary, Expr, Module, Name, Op, names_in
from tcomp.dsl.dims import evaluate_dim, operand_shape
from tcomp.dsl.errors import TcError
from tcomp.dsl.infer import dimensions

EXTENTS = (1, 2, 3, 5, 7, 13, 17, 19, 33, 37, 67)


def awkward_dims(
    op: Op, module: Module, random: np.random.Generator, tries: int = 2000, given: Mapping[str, int] | None = None
) -> dict[str, int] | None:
    """Random small extents, primes mostly, that satisfy the op's requirements (for a backward also those of its
    forward); None when none were found. Those that are `given` stay as they are, whatever their size; one that a
    requirement says in full (`require N == H + 2 * G`) is as it says."""
    given = given or {}
    names = dimensions(op)
    forward = module.ops.get(op.backward_of or "")
    requires = op.requires + (tuple(r for r in forward.requires if names_in(r) <= set(names)) if forward else ())
    said = {n: e for n, e in _equalities(requires) if n in names and n not in given}
    wrong: TcError | None = None
    for _ in range(tries):
        dims = {n: given[n] if n in given else int(random.choice(EXTENTS)) for n in names}
        try:
            for _ in said:  # (one may be said by another that is said below it)
                for n, e in said.items():
                    dims[n] = int(evaluate_dim(e, {**dims}))
            if all(evaluate_dim(r, {**dims}) for r in requires) and (_largest(op, dims) <= 200_000 or given):
                return dims
        except TcError as e:  # no extent of a tensor: N - K + 1 where K is larger
            wrong = e
    if given and wrong is not None:
        raise wrong
    return None


def _equalities(conditions: Iterable[Expr]) -> Iterator[tuple[str, Expr]]:
    """`N == H + 2 * G and D == 2 * E` --> (N, H + 2 * G), (D, 2 * E)"""
    for e in conditions:
        if isinstance(e, Binary) and e.op == "and":
            yield from _equalities((e.left, e.right))
        elif isinstance(e, Binary) and e.op == "==":
            for one, other in ((e.right, e.left), (e.left, e.right)):
                if isinstance(one, Name) and one.id not in names_in(other):
                    yield one.id, other


def _largest(op: Op, dims: Mapping[str, int]) -> int:
    """Elements of the op's largest tensor."""
    return max((math.prod(operand_shape(o, dims)) for o in op.operands), default=1)
