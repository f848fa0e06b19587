"""What the PyTorch counterparts share: parameters named and laid out as in the .tc text, filled from its weights."""

from __future__ import annotations

import importlib
from typing import ClassVar

import torch
from torch import Tensor, nn

from tcomp.runtime.bench.counterparts import COUNTERPARTS
from tcomp.runtime.bench.workload import Weights, Workload


class Counterpart(nn.Module):  # type: ignore[misc]
    """A model with `forward(tokens, targets) -> mean loss`.

    A parameter that has one value per layer becomes one nn.Parameter per layer, named `qkv_w_3`: that is how PyTorch
    models are written, and whole-model tensors would give it slicing to do. `whole` are the others; of those in
    `padded` only the first V rows are kept (the .tc texts pad the vocabulary to whole tiles, PyTorch code does not).
    """

    whole: ClassVar[tuple[str, ...]] = ()
    padded: ClassVar[tuple[str, ...]] = ()

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.dims = workload.dims
        self.tables = nn.ParameterDict()
        self.parts: dict[str, list[str]] = {}
        for p in workload.parameters:
            if p.name in self.whole:
                rows = int(self.dims["V"]) if p.name in self.padded else p.shape[0]
                self.parts[p.name] = [p.name]
                self.tables[p.name] = nn.Parameter(torch.empty(rows, *p.shape[1:]))
                continue
            self.parts[p.name] = [f"{p.name}_{i}" for i in range(p.shape[0])]
            for part in self.parts[p.name]:
                self.tables[part] = nn.Parameter(torch.empty(p.shape[1:]))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def read_weights(self, weights: Weights) -> None:
        """Fill the parameters from the workload's file, with no copy in between."""
        for name, parts in self.parts.items():
            weights.read(name, [self.tables[part].numpy() for part in parts])

    def integer(self, name: str) -> int:
        return int(self.dims[name])

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError


def counterpart(workload: Workload) -> Counterpart:
    """The counterpart of the workload's model, its parameters not yet filled."""
    module, _, name = COUNTERPARTS[workload.model].partition(":")
    found: Counterpart = getattr(importlib.import_module(module), name)(workload)
    return found
