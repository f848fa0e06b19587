"""f32 arithmetic with 16-bit operands and on pairs (sm_100 and later), against exact rational arithmetic."""

from __future__ import annotations

import re
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tcomp.dsl.ast import DType
from tcomp.numeric import round_to
from tcomp.runtime.values import stored
from tcomp.runtime.vgpu import Device, PtxError, UnknownInstruction
from tests.runtime.vgpu.conftest import entry, find_nvcc
from tests.runtime.vgpu.test_arithmetic import correctly_rounded

RNG = np.random.default_rng(5)
N = 64
FORMS = [
    f"{name}.{mode}.f32.{t}"
    for name in ("add", "sub", "fma")
    for mode in ("rn", "rz", "rm", "rp")
    for t in ("f16", "bf16")
] + ["add.f32.f16", "sub.f32.bf16", "add.rn.sat.f32.f16", "fma.rz.sat.f32.bf16"]
LOAD = (
    "mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd0, %rd8; add.s64 %rd10, %rd1, %rd8; add.s64 %rd11, %rd2, %rd8;\n"
    "ld.global.u16 %h1, [%rd9]; ld.global.u16 %h2, [%rd9+2]; ld.global.f32 %f3, [%rd10];\n"
)


def run(body: str, *arrays: np.ndarray, sm: int = 120) -> np.ndarray:
    """The last array after the kernel; a thread for each of N elements, on an sm_120 device."""
    text = entry(body, "x,y,z").replace(".target sm_90a", f".target sm_{sm}")
    device = Device(sm)
    pointers = [device.upload(a) for a in arrays]
    device.load(text).launch(re.search(r"\.entry (\w+)", text)[1], 1, N, pointers).check()  # type: ignore[index]
    found: np.ndarray = device.download(pointers[-1], arrays[-1].dtype, arrays[-1].size)
    return found


@pytest.mark.parametrize("opcode", FORMS)
def test_16_bit_operands_are_widened_and_the_result_rounded_once(opcode: str) -> None:
    kind = DType.F16 if opcode.endswith(".f16") else DType.BF16
    raw = RNG.standard_normal((N, 2)) * 2.0 ** RNG.integers(-8, 8, (N, 2))
    narrow, c = round_to(raw, kind), (RNG.standard_normal(N) * 2.0 ** RNG.integers(-12, 12, N)).astype(np.float32)
    fma = opcode.startswith("fma")
    body = LOAD + f"{opcode} %f4, %h1, {'%h2, ' if fma else ''}%f3; st.global.f32 [%rd11], %f4;"
    got = run(body, stored(narrow.astype(np.float32), kind), c, np.zeros(N, np.float32))
    mode = next((m for m in ("rz", "rm", "rp") if f".{m}." in opcode), "rn")
    for (a, b), z, r in zip(narrow, c, got, strict=True):
        exact = Fraction(float(a)) * (Fraction(float(b)) if fma else 1)
        exact += -Fraction(float(z)) if opcode.startswith("sub") else Fraction(float(z))
        exact = min(max(exact, Fraction(0)), Fraction(1)) if ".sat" in opcode else exact
        assert correctly_rounded(exact, r, mode, np.float32), (a, b, z, r)


@pytest.mark.parametrize("opcode", ["add.rn.f32x2", "sub.f32x2", "mul.rz.ftz.f32x2", "fma.rp.f32x2"])
def test_pairs_are_two_operations(opcode: str) -> None:
    a, b = (RNG.standard_normal((N, 2)).astype(np.float32) for _ in range(2))
    fma = opcode.startswith("fma")
    body = (
        "mul.wide.u32 %rd8, %r0, 8; add.s64 %rd9, %rd0, %rd8; add.s64 %rd10, %rd1, %rd8; add.s64 %rd11, %rd2, %rd8;\n"
        "ld.global.u64 %rd12, [%rd9]; ld.global.u64 %rd13, [%rd10];\n"
        f"{opcode} %rd14, %rd12, %rd13{', %rd12' if fma else ''}; st.global.u64 [%rd11], %rd14;"
    )
    got = run(body, a, b, np.zeros((N, 2), np.float32)).reshape(N, 2)
    mode = next((m for m in ("rz", "rp") if f".{m}." in opcode), "rn")
    for x, y, r in zip(a.ravel(), b.ravel(), got.ravel(), strict=True):
        fx, fy = Fraction(float(x)), Fraction(float(y))
        exact = {"add": fx + fy, "sub": fx - fy, "mul": fx * fy, "fma": fx * fy + fx}[opcode[:3]]
        assert correctly_rounded(exact, r, mode, np.float32)


def test_nan_is_canonical_or_saturates_to_zero() -> None:
    a = stored(np.full(2 * N, np.nan, np.float32), DType.BF16)
    for opcode, bits in (("add.f32.bf16", 0x7FFFFFFF), ("add.sat.f32.bf16", 0)):
        body = LOAD + f"{opcode} %f4, %h1, %f3; st.global.f32 [%rd11], %f4;"
        got = run(body, a, np.ones(N, np.float32), np.zeros(N, np.float32))
        assert got.view(np.uint32).tolist() == [bits] * N


def test_what_the_isa_does_not_have_is_refused() -> None:
    for opcode, registers in (
        ("mul.rn.f32.f16", "%f1, %h1, %f2"),
        ("fma.f32.f16", "%f1, %h1, %h2, %f2"),
        ("add.rn.sat.f32x2", "%rd1, %rd2, %rd3"),
    ):
        with pytest.raises(UnknownInstruction, match=re.escape(opcode)):
            run(
                f"mov.b16 %h1, 0; mov.b16 %h2, 0; mov.f32 %f2, 0f00000000; {opcode} {registers};",
                *[np.zeros(2 * N)] * 3,
            )
    with pytest.raises(PtxError, match="needs sm_100"):
        run("add.rn.f32.f16 %f1, %h1, %f2;", *[np.zeros(2 * N)] * 3, sm=89)


@pytest.mark.slow
def test_ptxas_takes_the_same_forms(tmp_path: Path) -> None:
    nvcc = find_nvcc()
    ptxas = Path(nvcc).with_name("ptxas") if nvcc else None
    if ptxas is None or not ptxas.exists():
        pytest.skip("no ptxas")
    body = "mov.b16 %h1, 0; mov.b16 %h2, 0; mov.f32 %f3, 0f00000000; mov.b64 %rd2, 0;\n"
    for f in FORMS:
        body += f"{f} %f4, %h1, {'%h2, ' if f.startswith('fma') else ''}%f3; st.global.f32 [%rd0], %f4;\n"
    for f in ("add.rn.f32x2", "sub.f32x2", "mul.rz.ftz.f32x2", "fma.rp.f32x2"):
        body += f"{f} %rd4, %rd2, %rd2{', %rd2' if f.startswith('fma') else ''}; st.global.u64 [%rd0], %rd4;\n"
    source = tmp_path / "forms.ptx"
    source.write_text(entry(body).replace(".target sm_90a", ".target sm_100"))
    done = subprocess.run([ptxas, "-arch=sm_100", "-c", source, "-o", tmp_path / "o"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
