"""Attention at scores whose neighbours in f32 are far apart: right, or NaN, which stops a run; never a wrong number."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tcomp.dsl.ast import DType
from tcomp.dsl.load import library, load
from tcomp.dsl.storage import bound
from tcomp.machine.cpu import detect
from tcomp.model.single import single_op_step
from tcomp.oracle import evaluate
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import lower

DIMS = {"B": 1, "T": 6, "H": 1, "D": 32}
"""A head whose scale, 32 ** -0.5, is no power of two: maxima are rounded."""


def test_scores_of_any_size_give_the_right_result_or_none(objects: Path) -> None:
    module = load(library() / "ops" / "attention.tc")
    op = bound(module.ops["attention"], DType.F32)
    executor = CpuExecutor(single_op_step(lower(op, module, DIMS, detect()), DIMS), detect(), 1, objects)
    start = np.random.default_rng(0).standard_normal((1, 6, 3, 1, 32)).astype(np.float32)
    largest = np.abs(start[0, :, 0, 0] @ start[0, :, 1, 0].T).max() * 32**-0.5
    try:
        for score in (1e3, 1e6, 1e9, 2e9, 1e10, 1e12, 1e20):
            given = start.copy()
            given[:, :, :2] *= np.sqrt(score / largest)
            executor.write("QKV", given)
            executor.run("run")
            ours, right = executor.read("O"), evaluate(op, module, {"QKV": given}, DIMS)["O"]
            known = np.isfinite(ours)
            assert known.all() or score > 2e9
            np.testing.assert_allclose(ours[known], right[known], rtol=1e-5, atol=1e-5)
    finally:
        executor.close()
