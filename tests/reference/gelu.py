"""GELU as models/ops/math.tc has it, and as it is without cancellation."""

from __future__ import annotations

import numpy as np

from tcomp.dsl.ast import Expr
from tests.reference.tile_ir import fn, op


def gelu(x: Expr) -> Expr:
    """As models/ops/math.tc has it."""
    square = fn("min", op("*", x, x), 64.0)
    turn = fn("tanh", op("*", x, op("+", 0.7978845608028654, op("*", 0.035677408136300125, square))))
    return op("+", op("*", 0.5, x), op("*", op("*", 0.5, x), turn))


def exact(x: np.ndarray) -> np.ndarray:
    """x / (1 + exp(-2 u)), the same function without cancellation."""
    with np.errstate(all="ignore"):
        return np.asarray(
            x / (1 + np.exp(-2 * x * (0.7978845608028654 + 0.035677408136300125 * np.minimum(x * x, 64))))
        )
