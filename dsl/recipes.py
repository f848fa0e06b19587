"""Precision recipes: what a model's `real` tensors are stored in, and what the optimizer keeps beside them."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.dsl.ast import DType


@dataclass(frozen=True)
class Recipe:
    """`storage` is what `real` stands for in the model: parameters as forward and backward read them, activations and
    their gradients. With `master`, the optimizer updates an f32 copy of each parameter and writes the stored one from
    it. Sums, statistics, losses, optimizer state and the gradients of parameters (sums over the batch, and over
    micro-batches) are f32 in every recipe. An `annotated` recipe is what the model's own annotations make of it: a
    model that has none for it is refused.

    `unit` is the relative size of the last place of what tensors are stored in: where two exact computations of a
    step differ by f32's rounding, some values fall to the other side of a tie, and the results differ by a fraction
    of it. (8-bit copies add none: a bf16 value times its scale is exact.) `copies` is that of 8-bit copies of
    gradients: where a schedule rounds a value otherwise (a `cast`), its copy may be a neighbour, and a gradient moves
    by part of this (by 13 to 19% where one weight matrix moves by its last place, in the step of `tcomp check`).
    """

    name: str
    storage: DType
    master: bool
    unit: float
    summary: str
    annotated: bool = False
    copies: float = 0.0

    def stored(self, dtype: DType) -> DType:
        """The type of a tensor that the model's text declares as `dtype`."""
        return self.storage if dtype is DType.REAL else dtype


_ALL = (
    Recipe("f32", DType.F32, False, 0.0, "everything in f32"),
    Recipe("bf16", DType.BF16, True, 2.0**-7, "tensors in bf16, with f32 master weights"),
    Recipe(
        "bf16_stochastic", DType.BF16, False, 2.0**-7, "tensors and weights in bf16, updated with stochastic rounding"
    ),
    Recipe(
        "fp8",
        DType.BF16,
        True,
        2.0**-7,
        "bf16, and annotated linear layers in e4m3 and e5m2, scales delayed",
        True,
        2.0**-2,
    ),
    Recipe(
        "fp8_block",
        DType.BF16,
        True,
        2.0**-7,
        "bf16, and annotated linear layers in e4m3 and e5m2 by blocks",
        True,
        2.0**-2,
    ),
)
RECIPES = {r.name: r for r in _ALL}


def kept(dtype: DType) -> DType:
    """What master weights, optimizer state and gradients of a parameter stored as `dtype` are held in: f32 at least."""
    return dtype if dtype.bytes >= 4 else DType.F32
