"""Each declared instruction on the virtual GPU against its own equation, operands placed by its own layouts."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.load import load_text
from tcomp.instructions import MMA_SYNC, FragmentLayout, Instruction
from tcomp.machine.targets import target_named
from tcomp.oracle import evaluate
from tcomp.runtime.values import stored, values
from tcomp.runtime.vgpu import Device


def packed(x: np.ndarray, layout: FragmentLayout) -> np.ndarray:
    """A matrix of raw elements as the registers of every thread: (threads, registers) of 32 bits."""
    threads, elements = 1 << len(layout.threads), 1 << len(layout.elements)
    found = np.array([[x[layout.place(t, e)] for e in range(elements)] for t in range(threads)])
    return np.ascontiguousarray(found).view(np.uint32)


def kernel(i: Instruction, target: str) -> str:
    """PTX that loads A, B and C by registers, executes the instruction, and stores D."""
    names = [f"%f{x}" for x in range(4)] + [f"%r{x}" for x in range(6)] + [f"%f{x}" for x in range(4, 8)]
    text = i.ptx
    for x in reversed(range(14)):
        text = text.replace(f"${x}", names[x])
    loads = [f"ld.global.u32 %r{x}, [%a+{4 * x}];" for x in range(4)]
    loads += [f"ld.global.u32 %r{4 + x}, [%b+{4 * x}];" for x in range(2)]
    loads += [f"ld.global.f32 %f{4 + x}, [%c+{4 * x}];" for x in range(4)]
    stores = [f"st.global.f32 [%c+{4 * x}], %f{x};" for x in range(4)]
    body = "\n".join([*loads, text, *stores])
    version = "{}.{}".format(*target_named(target).ptx_version(["fp8.mma"] if i.a.bytes == 1 else []))
    return f"""
.version {version}
.target {target}
.address_size 64
.visible .entry k(.param .u64 pa, .param .u64 pb, .param .u64 pc) .reqntid 32 {{
  .reg .b32 %r<8>; .reg .f32 %f<8>; .reg .u64 %a, %b, %c, %o; .reg .u32 %t;
  ld.param.u64 %a, [pa]; ld.param.u64 %b, [pb]; ld.param.u64 %c, [pc];
  mov.u32 %t, %tid.x;
  mul.wide.u32 %o, %t, 16; add.u64 %a, %a, %o; add.u64 %c, %c, %o;
  mul.wide.u32 %o, %t, 8; add.u64 %b, %b, %o;
  {body}
  ret;
}}
"""


@pytest.mark.parametrize("i", MMA_SYNC, ids=lambda i: i.name)
def test_an_instruction_computes_its_equation(i: Instruction) -> None:
    rng = np.random.default_rng(7)
    n = i.n[0]
    # Few bits, so that every type (tf32 too) holds the factors exactly.
    a = values(stored(rng.integers(-8, 9, (i.m, i.k)).astype(np.float32) / 4, i.a), i.a)
    b = values(stored(rng.integers(-8, 9, (i.k, n)).astype(np.float32) / 4, i.b), i.b)
    c = rng.standard_normal((i.m, n)).astype(np.float32)
    target = "sm_80" if "sm_80" in i.targets else "sm_89"
    device = Device(int(target[3:]))
    operands = [packed(stored(a, i.a), i.left.layout), packed(stored(b, i.b), i.right.layout), packed(c, i.result)]
    addresses = [device.upload(x) for x in operands]
    device.load(kernel(i, target)).launch("k", 1, 32, addresses).check()
    raw = device.download(addresses[2], np.float32, i.m * n).reshape(32, 4)
    found = np.zeros((i.m, n), np.float32)
    for t in range(32):
        for e in range(4):
            found[i.result.place(t, e)] = raw[t, e]
    text = f"op f(A: f32[M, K], B: f32[K, N], inout D: f32[M, N]):\n  {i.body}\n"
    module = load_text(text, "body.tc")
    dims = {"M": i.m, "N": n, "K": i.k}
    wanted = evaluate(module.ops["f"], module, {"A": a, "B": b, "D": c}, dims)["D"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
