"""A short form for kernels with mbarriers, bulk copies and clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tcomp.runtime.vgpu import Device, Report

HEAD = ".version 8.6\n.target sm_90a\n.address_size 64\n"
REGISTERS = (".reg .pred %p<30>; .reg .b16 %h<10>; .reg .b32 %r<60>; .reg .f32 %f<60>; .reg .b64 %rd<40>;\n"
             ".shared .align 1024 .b8 buf[{shared}]; .shared .align 8 .b64 bar[8];\n")  # fmt: skip
START = """
mov.u32 %r0, %tid.x; setp.eq.u32 %p0, %r0, 0; mov.u32 %r1, buf; mov.u32 %r2, bar; shr.u32 %r3, %r0, 5;
"""


def kernel(body: str, pointers: int, maps: int = 0, shared: int = 4096, directives: str = "") -> str:
    """Kernel `k`: pointers in %rd0.., tensor maps m0.. (their addresses in %rd20..), thread in %r0, warp in %r3,
    %p0 for thread 0, `buf` in %r1 and eight mbarriers `bar` in %r2."""
    parameters = [f".param .u64 a{n}" for n in range(pointers)]
    parameters += [f".param .align 64 .b8 m{n}[128]" for n in range(maps)]
    text = HEAD + f".visible .entry k({', '.join(parameters)}) {directives}\n{{\n" + REGISTERS.format(shared=shared)
    text += "".join(f"ld.param.u64 %rd{n}, [a{n}];\n" for n in range(pointers))
    text += "".join(f"mov.b64 %rd{20 + n}, m{n};\n" for n in range(maps))
    return text + START + body + "\nret;\n}\n"


def launch(
    body: str, *arrays: Any, block: int = 32, grid: int = 1, cluster: int | None = None, shared: int = 4096,
    maps: Sequence[Any] = (), directives: str = "", registers: int | None = None,
) -> tuple[Report, list[Any]]:  # fmt: skip
    """Runs `body`; `maps` are functions of the arrays' addresses that give tensor maps. The report and the arrays."""
    gpu = Device()
    addresses = [gpu.upload(np.asarray(a)) for a in arrays]
    text = kernel(body, len(arrays), len(maps), shared, directives)
    report = gpu.load(text).launch(
        "k", grid, block, [*addresses, *(m(addresses) for m in maps)], cluster=cluster, registers=registers
    )
    return report, [gpu.download(p, a.dtype, a.size) for p, a in zip(addresses, arrays, strict=True)]


def init(*counts: int) -> str:
    """Thread 0 initialises the first mbarriers with these counts; then a barrier."""
    each = "".join(f"@%p0 mbarrier.init.shared::cta.b64 [%r2+{8 * n}], {c}; " for n, c in enumerate(counts))
    return each + "bar.sync 0;\n"


def wait(offset: int, parity: str, label: str, form: str = "try_wait") -> str:
    """Loops until the phase of this parity of the mbarrier at `offset` is complete."""
    return (f"{label}: mbarrier.{form}.parity.shared::cta.b64 %p9, [%r2+{offset}], {parity}; "
            f"@!%p9 bra {label};\n")  # fmt: skip


LOAD = """@%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {tx};
@%p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd0], {bytes}, [%r2];
"""
THREAD_OUT = "mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd1, %rd8; st.global.u32 [%rd9], %r10;\n"
THREAD_BUF = "shl.b32 %r4, %r0, 2; add.u32 %r5, %r1, %r4;\n"
