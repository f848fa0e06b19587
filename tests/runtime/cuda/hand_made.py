"""A step of five small kernels in PTX, for tests of the runtime alone: what it computes is easy to say in NumPy.

micro_first:  w[i] += lr * tokens[i % 4]      (add: one block of 64)
              loss = sum i: w[i]              (total: two launches, partial sums in the team region)
update:       w[i] = w[63 - i]                (reverse: through dynamic shared memory)
fault:        writes through a null pointer after `add`
careless:     reads memory that nothing wrote (a finding, not an error)
"""

from __future__ import annotations

import numpy as np

from tcomp.codegen.nvptx.launch import GpuKernel, LaunchShape
from tcomp.dsl.ast import DType
from tcomp.ir.tile import Buffer, Kernel, Scope
from tcomp.model.step import Launch, Slot, Step

N = 64
_HEAD = ".version 8.0\n.target {target}\n.address_size 64\n"


def _entry(name: str, parameters: int, body: str) -> str:
    listed = ", ".join(f".param .u64 p{i}" for i in range(parameters))
    loads = "\n".join(
        f"  ld.param.u64 %rd{i}, [p{i}];\n  cvta.to.global.u64 %rd{i}, %rd{i};" for i in range(parameters)
    )
    return f"""
.visible .entry {name}({listed})
{{
  .reg .b32 %r<10>; .reg .b64 %rd<20>; .reg .f32 %f<10>; .reg .pred %p<4>;
{loads}
  mov.u32 %r0, %tid.x;
  mov.u32 %r1, %ctaid.x;
{body}
  ret;
}}
"""


ADD = """
  mul.wide.u32 %rd10, %r0, 4;
  add.s64 %rd10, %rd0, %rd10;
  and.b32 %r2, %r0, 3;
  mul.wide.u32 %rd11, %r2, 4;
  add.s64 %rd11, %rd1, %rd11;
  ld.global.u32 %r3, [%rd11];
  cvt.rn.f32.s32 %f0, %r3;
  ld.global.f32 %f1, [%rd2];
  ld.global.f32 %f2, [%rd10];
  fma.rn.f32 %f2, %f0, %f1, %f2;
  st.global.f32 [%rd10], %f2;
"""
PARTIAL = """
  setp.ne.u32 %p0, %r0, 0;
  @%p0 ret;
  mul.wide.u32 %rd10, %r1, 128;
  add.s64 %rd10, %rd0, %rd10;
  mov.f32 %f0, 0f00000000;
  mov.u32 %r2, 0;
more:
  ld.global.f32 %f1, [%rd10];
  add.f32 %f0, %f0, %f1;
  add.s64 %rd10, %rd10, 4;
  add.u32 %r2, %r2, 1;
  setp.lt.u32 %p1, %r2, 32;
  @%p1 bra more;
  mul.wide.u32 %rd11, %r1, 4;
  add.s64 %rd11, %rd2, %rd11;
  st.global.f32 [%rd11], %f0;
"""
COMBINE = """
  ld.global.f32 %f0, [%rd2];
  ld.global.f32 %f1, [%rd2+4];
  add.f32 %f0, %f0, %f1;
  st.global.f32 [%rd1], %f0;
"""
REVERSE = """
  mul.wide.u32 %rd10, %r0, 4;
  add.s64 %rd10, %rd0, %rd10;
  ld.global.f32 %f0, [%rd10];
  mov.u64 %rd11, tile;
  mul.wide.u32 %rd12, %r0, 4;
  add.s64 %rd12, %rd11, %rd12;
  st.shared.f32 [%rd12], %f0;
  bar.sync 0;
  sub.u32 %r2, 63, %r0;
  mul.wide.u32 %rd13, %r2, 4;
  add.s64 %rd13, %rd11, %rd13;
  ld.shared.f32 %f1, [%rd13];
  st.global.f32 [%rd10], %f1;
"""
FAULT = """
  mov.u64 %rd10, 0;
  st.global.u32 [%rd10], %r0;
"""
CARELESS = """
  mul.wide.u32 %rd10, %r0, 4;
  add.s64 %rd10, %rd1, %rd10;
  ld.global.f32 %f0, [%rd10];
  add.f32 %f0, %f0, %f0;
  mul.wide.u32 %rd11, %r0, 4;
  add.s64 %rd11, %rd0, %rd11;
  st.global.f32 [%rd11], %f0;
"""


def kernels(target: str = "sm_90a", shared_bytes: int = 256) -> dict[str, GpuKernel]:
    """The compiled kernels; `reverse` takes `shared_bytes` of dynamic shared memory."""
    head = _HEAD.format(target=target)

    def one(name: str, parameters: int, body: str, shared: int = 0, before: str = "") -> GpuKernel:
        return GpuKernel(name, head + before + _entry(name, parameters, body), (LaunchShape(name, 1, N, shared),), 0)

    total = head + _entry("total_0", 3, PARTIAL) + _entry("total_1", 3, COMBINE)
    return {
        "add": one("add", 3, ADD),
        "total": GpuKernel("total", total, (LaunchShape("total_0", 2, 32, 0), LaunchShape("total_1", 1, 1, 0)), 64),
        "reverse": one("reverse", 1, REVERSE, shared_bytes, ".extern .shared .align 16 .b8 tile[];\n"),
        "fault": one("fault", 1, FAULT),
        "careless": one("careless", 2, CARELESS),
    }


def step(arena_bytes: int = 8192) -> Step:
    shapes: dict[str, tuple[str, DType, tuple[int, ...]]] = {
        "w": ("parameter", DType.F32, (N,)),
        "tokens": ("input", DType.I32, (2, 2)),
        "targets": ("input", DType.I32, (2, 2)),
        "lr": ("scalar", DType.F32, ()),
        "step": ("scalar", DType.I32, ()),
        "loss": ("output", DType.F32, ()),
        "half": ("state", DType.BF16, (5, 3)),
        "never": ("workspace", DType.F32, (N,)),
    }
    slots = {
        n: Slot(n, kind, dtype, shape, 512 * i, int(np.prod(shape)) * dtype.bytes, 0, 9)
        for i, (n, (kind, dtype, shape)) in enumerate(shapes.items())
    }

    def launch(kernel: str, *names: str) -> Launch:
        return Launch(kernel, tuple(slots[n].offset for n in names), f"the {kernel}")

    def kernel(launched: Launch, written: str) -> Kernel:
        operands = tuple(
            Buffer(s.name, s.dtype, s.shape, Scope.OPERAND)
            for at in launched.offsets
            for s in slots.values()
            if s.offset == at
        )
        return Kernel(launched.kernel, operands, (), (), frozenset(), frozenset({written}))

    add, total = launch("add", "w", "tokens", "lr"), launch("total", "w", "loss")
    reverse, fault, careless = launch("reverse", "w"), launch("fault", "w"), launch("careless", "w", "never")
    written = {"add": "w", "total": "loss", "reverse": "w", "fault": "", "careless": "w"}
    return Step(
        "hand made", "tiny", {"N": N}, slots, arena_bytes, arena_bytes, 0, 64,
        {x.kernel: kernel(x, written[x.kernel]) for x in (add, total, reverse, fault, careless)},
        {
            "micro_first": (add, total),
            "update": (reverse,),
            "fault": (add, fault, total),
            "careless": (careless,),
            "nothing": (),
        },
        (), {"tokens": 10, "targets": 10}, scalars={"lr": 0.5},
    )  # fmt: skip
