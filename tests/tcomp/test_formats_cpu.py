"""Narrow floats on the CPU: every code widened, and roundings, against NumPy's meaning of them (tcomp.numeric)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.machine.cpu import BF16_DOT, detect
from tcomp.model.single import single_op_step
from tcomp.numeric import random_uniform, round_stochastic, round_to
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.values import numpy_type, values
from tcomp.schedule.lower import lower

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # every bit pattern is a value, NaNs that signal too
NARROW = [DType.BF16, DType.F16, DType.E4M3, DType.E5M2]
COUNT = 1 << 16


def runner(text: str, dims: dict[str, int], cache: Path) -> CpuExecutor:
    machine = detect()
    module = load_text(text, "formats.tc")
    return CpuExecutor(single_op_step(lower(module.ops["f"], module, dims, machine), dims), machine, 1, cache)


def special(dtype: DType) -> np.ndarray:
    """Every value of the type (of 16-bit ones too), the points half-way to its neighbours and just beside them."""
    codes = np.arange(1 << (8 * dtype.bytes), dtype=numpy_type(dtype) if dtype is not DType.F16 else np.uint16)
    every = round_to(values(codes if dtype is not DType.F16 else codes.view(np.float16), dtype), DType.F64)
    finite = np.unique(every[np.isfinite(every)])
    between = (finite[:-1] + finite[1:]) / 2
    beside = np.concatenate([np.nextafter(between.astype(np.float32), np.float32(s)) for s in (-np.inf, np.inf)])
    beyond = [1e30, 3.4e38, 464.0, 480.0, 57344.0, 61440.0, 65504.0, 65520.0, 1e-40, 1e-45, np.inf, np.nan]
    return np.concatenate([finite, between, beside, beyond, -np.array(beyond)]).astype(np.float32)


@pytest.fixture(scope="module", params=NARROW, ids=str)
def rounding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[DType, CpuExecutor]:
    """An op that rounds by storing, by a cast, and widens what it stored."""
    d = request.param
    text = f"op f(X: f32[N]) -> Y: {d}[N], Z: f32[N], W: f32[N]:\n  Y[n] = X[n]\n  Z[n] = {d}(X[n])\n  W[n] = Y[n]\n"
    return d, runner(text, {"N": COUNT}, tmp_path_factory.mktemp("kernels"))


def as_stored(x: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    """What storing x in bf16 gives: `rounded`, but zero for subnormal x where the CPU has an instruction for it."""
    flushed = BF16_DOT in detect().features and np.abs(x) < np.finfo(np.float32).tiny
    return np.where(flushed, np.copysign(np.float32(0), x), rounded)


def check(rounding: tuple[DType, CpuExecutor], x: np.ndarray) -> None:
    dtype, executor = rounding
    for start in range(0, len(x), COUNT):
        part = np.resize(x[start : start + COUNT], COUNT)
        executor.write("X", part)
        executor.run("run")
        wanted = round_to(part, dtype).astype(np.float32)
        wanted = as_stored(part, wanted) if dtype is DType.BF16 else wanted
        np.testing.assert_array_equal(executor.read("Z"), wanted)
        np.testing.assert_array_equal(executor.read("W"), wanted)
        np.testing.assert_array_equal(values(executor.read("Y"), dtype).astype(np.float32), wanted)
        np.testing.assert_array_equal(np.signbit(executor.read("Z"))[wanted == 0], np.signbit(part)[wanted == 0])


def test_every_value_tie_and_overflow(rounding: tuple[DType, CpuExecutor]) -> None:
    check(rounding, special(rounding[0]))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_any_bits(rounding: tuple[DType, CpuExecutor], some: list[int], seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**32, COUNT, dtype=np.uint32)
    bits[: len(some)] = some
    check(rounding, bits.view(np.float32))


@pytest.mark.parametrize("dtype", [DType.E4M3, DType.E5M2], ids=str)
def test_every_code_is_widened(dtype: DType, tmp_path: Path) -> None:
    executor = runner(f"op f(X: {dtype}[N]) -> Y: f32[N]:\n  Y[n] = X[n]\n", {"N": 256}, tmp_path)
    executor.write("X", np.arange(256, dtype=np.uint8))
    executor.run("run")
    np.testing.assert_array_equal(executor.read("Y"), values(np.arange(256, dtype=np.uint8), dtype).astype(np.float32))


@pytest.mark.parametrize("dtype", [DType.E4M3, DType.E5M2], ids=str)
def test_eight_bits_are_torchs(dtype: DType) -> None:
    """The reference itself, where the formats agree: within the finite range (torch does not saturate)."""
    torch = pytest.importorskip("torch")
    kind = {DType.E4M3: torch.float8_e4m3fn, DType.E5M2: torch.float8_e5m2}[dtype]
    x = special(dtype)
    x = x[np.abs(x) <= {DType.E4M3: 448.0, DType.E5M2: 57344.0}[dtype]]
    np.testing.assert_array_equal(round_to(x, dtype), torch.from_numpy(x).to(kind).double().numpy())


def test_stochastic_rounding_is_the_references_and_right_on_average(tmp_path: Path) -> None:
    text = (
        "op f(X: f32[N], seed: i32[]) -> Y: bf16[N], Z: f32[N]:\n  Y[n] = bf16(X[n], random(seed, n))\n  Z[n] = Y[n]\n"
    )
    executor = runner(text, {"N": COUNT}, tmp_path)
    bits = np.random.default_rng(0).integers(0, 2**32, COUNT, dtype=np.uint32)
    for x in (bits.view(np.float32), np.resize(special(DType.BF16), COUNT)):
        executor.write("X", x)
        executor.write("seed", 7)
        executor.run("run")
        wanted = round_stochastic(x, random_uniform(np.int64(7), np.arange(COUNT)), DType.BF16).astype(np.float32)
        np.testing.assert_array_equal(executor.read("Z"), as_stored(wanted, wanted))
    executor.write("X", np.float32(1 + 0.3 * 2**-7))
    executor.run("run")
    assert set(np.unique(executor.read("Z"))) == {np.float32(1), np.float32(1 + 2**-7)}
    assert abs(float(executor.read("Z").astype(np.float64).mean() - 1) * 2**7 - 0.3) < 4 * (0.21 / COUNT) ** 0.5
