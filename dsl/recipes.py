"""Precision recipes: what a model's `real` tensors are stored in, and what the optimizer keeps beside them."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.dsl.ast import DType


@dataclass(frozen=True)
class Recipe:
    """`storage` is what `real` stands for in the model: parameters as forward and backward read them, activations and
    their gradients. Sums, statistics, losses and optimizer state are f32 in every recipe, and so are the gradients of
    parameters, which are sums over the batch."""

    name: str
    storage: DType

    def stored(self, dtype: DType) -> DType:
        """The type of a tensor that the model's text declares as `dtype`."""
        return self.storage if dtype is DType.REAL else dtype


RECIPES = {
    "f32": Recipe("f32", DType.F32),
}
