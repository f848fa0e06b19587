"""Run nodes on float64 arrays through the oracle: the meaning of a step, with no schedule and no plan.

Takes nodes and the values of some tensors, gives the values of all tensors the nodes touch. Slow and exact:
the tests compare everything else with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.dsl.ast import Module
from tcomp.model.graph import Node, Tensor, View
from tcomp.oracle import evaluate

Array = NDArray[Any]


class Memory:
    """The values of tensors, each a flat array: float64 for every float dtype, int64 for i32.

    A tensor that nothing has written holds NaN (integers: the most negative one), so a read too early shows.
    """

    def __init__(self, values: Mapping[Tensor, Array] | None = None) -> None:
        self.flat: dict[Tensor, Array] = {}
        for t, v in (values or {}).items():
            self.write(t.whole(), v)

    def read(self, v: View) -> Array:
        """The elements of a view, in its shape."""
        return self._of(v.tensor)[v.offset : v.offset + v.elements].reshape(v.shape)

    def write(self, v: View, value: Array) -> None:
        """Replace the elements of a view."""
        self._of(v.tensor)[v.offset : v.offset + v.elements] = np.asarray(value).reshape(-1)

    def _of(self, t: Tensor) -> Array:
        if t not in self.flat:
            if t.dtype.is_float:
                self.flat[t] = np.full(t.elements, np.nan)
            else:
                self.flat[t] = np.full(t.elements, np.iinfo(np.int64).min, np.int64)
        return self.flat[t]


def run(nodes: Iterable[Node], module: Module, memory: Memory) -> None:
    """Evaluate the nodes in order, in place in `memory`."""
    for node in nodes:
        inputs = {p.name: memory.read(node.operands[p.name]).copy() for p in node.op.params}
        results = evaluate(node.op, module, inputs, node.dims)
        for o in node.op.operands:
            if o.inout or o in node.op.outputs:
                memory.write(node.operands[o.name], results[o.name])
