"""The decoding forms of ops (models/ops/decode.tc) on the CPU and the virtual GPU, against the oracle.

Caches are zero beyond what has been written, as they are when a text begins.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tcomp.dsl.ast import DType
from tcomp.dsl.dims import operand_shape
from tcomp.dsl.storage import bound
from tcomp.machine.cpu import detect
from tcomp.oracle import evaluate
from tests.reference.op_cases import SCALARS, Arrays, Dims, assert_close, library
from tests.test_ops_cpu import run as run_on_cpu
from tests.test_ops_gpu import run as run_on_gpu

CASES: list[tuple[str, int, Dims]] = [
    *(("attention_at", start, {"B": b, "T": t, "H": h, "D": d, "W": w})
      for start, b, t, h, d, w in [(0, 1, 1, 1, 1, 1),
          (5, 2, 3, 3, 7, 11), (63, 1, 1, 2, 16, 67), (40, 1, 8, 1, 24, 99)]),
    *(("grouped_attention_at", start, {"B": b, "T": t, "G": g, "R": r, "D": d, "W": w})
      for start, b, t, g, r, d, w in [
          (0, 1, 1, 1, 1, 1, 1), (5, 2, 3, 3, 2, 7, 11), (64, 1, 1, 2, 3, 16, 67), (40, 1, 8, 1, 4, 24, 131)]),
    ("embedding_at", 4, {"B": 2, "T": 3, "V": 7, "C": 9, "S": 8}),
    ("rotary_table_at", 90, {"T": 5, "E": 9}),
]  # fmt: skip


def inputs(name: str, start: int, dims: Dims) -> Arrays:
    rng = np.random.default_rng(len(name) + start)
    values: Arrays = {}
    for p in library().ops[name].params:
        shape = operand_shape(p, dims)
        if p.name == "start":
            values[p.name] = np.array(start, np.int32)
        elif p.dtype is DType.I32:
            values[p.name] = rng.integers(0, dims["V"], shape, dtype=np.int32)
        elif p.name in SCALARS:
            values[p.name] = np.array(SCALARS[p.name], np.float32)
        else:
            values[p.name] = rng.standard_normal(shape, dtype=np.float32)
        if p.inout:
            values[p.name][:, start:] = 0  # as caches are before their rows are written
    return values


def ids(case: tuple[str, int, Dims]) -> str:
    return f"{case[0]}-{case[1]}-" + "x".join(f"{v}{k}" for k, v in case[2].items())


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_on_the_cpu(case: tuple[str, int, Dims], objects: Path) -> None:
    name, start, dims = case
    op, given = bound(library().ops[name], DType.F32), inputs(*case)
    got = run_on_cpu(op, dims, given, detect(), 2, objects)
    assert_close(got, evaluate(op, library(), given, dims), 4 * (dims.get("W", 0) + start), "the oracle")


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_on_the_virtual_gpu(case: tuple[str, int, Dims]) -> None:
    name, start, dims = case
    op, given = bound(library().ops[name], DType.F32), inputs(*case)
    got = run_on_gpu(op, library(), dims, given)
    assert_close(got, evaluate(op, library(), given, dims), 4 * (dims.get("W", 0) + start), "the oracle")


def test_default_schedules_on_the_virtual_gpu() -> None:
    bare = replace(library(), schedules={})
    for case in CASES:
        name, start, dims = case
        op, given = bound(bare.ops[name], DType.F32), inputs(*case)
        if dims.get("W", 0) < 20:
            want = evaluate(op, bare, given, dims)
            assert_close(run_on_gpu(op, bare, dims, given), want, 4 * (dims.get("W", 0) + start), "the oracle")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_tiles_beyond_the_last_position_are_not_walked(device: str, objects: Path) -> None:
    """A reduction over a cache ends where `start` says: what lies behind counts not even as 0 * NaN."""
    dims = {"B": 1, "T": 2, "G": 1, "R": 2, "D": 16, "W": 256}
    op = bound(library().ops["grouped_attention_at"], DType.F32)
    given = inputs("grouped_attention_at", 40, dims)
    want = evaluate(op, library(), given, dims)
    for name in ("keys", "values"):
        given[name][:, 64:] = np.nan
    if device == "cpu":
        got = run_on_cpu(op, dims, given, detect(), 2, objects)
    else:
        got = run_on_gpu(op, library(), dims, given)
    assert_close({"O": got["O"]}, {"O": want["O"]}, 200, "the oracle")
