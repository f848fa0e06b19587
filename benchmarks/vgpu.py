"""Speed of the virtual GPU in million thread-instructions a second, on one core, for plain f32 kernels.

    python benchmarks/vgpu.py [--threads 65536] [--json FILE]

Each kernel runs once to warm up and then three times; the fastest run counts. Every check is on.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from tcomp.runtime.vgpu import Device, Options

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"
INDEX = """
  ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y]; ld.param.u32 %r1, [n];
  mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x;
  mad.lo.s32 %r5, %r2, %r3, %r4; setp.ge.s32 %p1, %r5, %r1; @%p1 bra DONE;
  mul.wide.s32 %rd3, %r5, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
"""


def kernel(name: str, body: str) -> str:
    return (
        f".visible .entry {name}(.param .u64 x, .param .u64 y, .param .u32 n)\n{{\n"
        ".reg .pred %p<4>; .reg .b32 %r<20>; .reg .f32 %f<20>; .reg .b64 %rd<20>;\n"
        f"{INDEX}{body}\nDONE: ret;\n}}\n"
    )


LOOP = """
  ld.global.f32 %f1, [%rd4]; mov.f32 %f2, 0f00000000; mov.u32 %r6, 0;
LOOP: {work}
  add.s32 %r6, %r6, 1; setp.lt.s32 %p2, %r6, 64; @%p2 bra LOOP;
  st.global.f32 [%rd5], %f2;
"""
KERNELS = {
    "axpy": "ld.global.f32 %f1, [%rd4]; ld.global.f32 %f2, [%rd5]; fma.rn.f32 %f3, %f1, 0f40000000, %f2;"
    " st.global.f32 [%rd5], %f3;",
    "multiply_add": LOOP.format(work="mul.rn.f32 %f3, %f1, 0f3F7FF000; add.rn.f32 %f2, %f2, %f3; mov.f32 %f1, %f3;"),
    "fma_chain": LOOP.format(work="fma.rn.f32 %f2, %f2, 0f3F000000, %f1; fma.rn.f32 %f2, %f2, 0f3F7FF000, %f1;"),
    "load_loop": LOOP.format(work="ld.global.f32 %f3, [%rd4]; add.rn.f32 %f2, %f2, %f3;"),
    "exponential": LOOP.format(work="ex2.approx.f32 %f3, %f1; add.rn.f32 %f2, %f2, %f3;"),
}


def measure(threads: int) -> dict[str, float]:
    gpu = Device(options=Options())
    module = gpu.load(HEAD + "".join(kernel(n, b) for n, b in KERNELS.items()))
    x, y = (gpu.upload(np.random.default_rng(s).standard_normal(threads).astype(np.float32)) for s in (1, 2))
    rates = {}
    for name in KERNELS:
        best = 0.0
        for _ in range(4):
            report = module.launch(name, (threads + 255) // 256, 256, [x, y, threads]).check()
            best = max(best, report.instructions / report.seconds / 1e6)
        rates[name] = round(best, 1)
    return rates


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=65536)
    parser.add_argument("--json")
    options = parser.parse_args()
    found = measure(options.threads)
    for kernel_name, rate in found.items():
        print(f"{kernel_name:14} {rate:8.1f} million thread-instructions a second")
    if options.json:
        with open(options.json, "w") as out:
            json.dump({"threads": options.threads, "rates": found}, out, indent=1)
