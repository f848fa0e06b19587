"""Small PTX modules for the assembler's tests: a frame around a body, and bodies with known faults."""

from __future__ import annotations

REGISTERS = ".reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .f32 %f<9>; .reg .pred %p<9>;"


def kernel(
    body: str = "", *, name: str = "k", target: str = "sm_90a", version: str = "8.0", bounds: str = "", before: str = ""
) -> str:
    """A module with one kernel; the first line of `body` is line 8."""
    return (
        f".version {version}\n.target {target}\n.address_size 64\n{before}\n"
        f".visible .entry {name}(.param .u64 p) {bounds}\n{{\n{REGISTERS}\n{body}\nret;\n}}\n"
    )


SPILLS = kernel(
    ".reg .f32 %v<64>; .reg .b32 %i;\nld.param.u64 %d1, [p];\nmov.u32 %i, 0;\n"
    + "\n".join(f"ld.global.f32 %v{i}, [%d1+{4 * i}];" for i in range(64))
    + "\nLOOP:\n"
    + "\n".join(f"fma.rn.f32 %v{i}, %v{i}, %v{(i + 7) % 64}, %v{(i + 31) % 64};" for i in range(64))
    + "\nadd.u32 %i, %i, 1;\nsetp.lt.u32 %p1, %i, 100;\n@%p1 bra LOOP;\n"
    + "\n".join(f"st.global.f32 [%d1+{4 * i}], %v{i};" for i in range(64))
)
"""64 values live in a loop: spills with fewer than about 70 registers."""

STACK = kernel(
    ".local .align 4 .b8 depot[256];\n.reg .b64 %l<4>;\nld.param.u64 %d1, [p];\nmov.u64 %l1, depot;\n"
    + "\n".join(f"ld.global.f32 %f1, [%d1+{4 * i}];\nst.local.f32 [%l1+{4 * i}], %f1;" for i in range(64))
    + "\nld.global.u32 %r1, [%d1];\nand.b32 %r1, %r1, 63;\nmul.wide.u32 %l2, %r1, 4;\nadd.u64 %l2, %l1, %l2;\n"
    "ld.local.f32 %f2, [%l2];\nst.global.f32 [%d1], %f2;"
)
"""An array of 256 bytes that is indexed by a value from memory."""

_LOAD = (
    "ld.param.u64 %d1, [p]; mov.u64 %d2, %d1; mov.f32 %f1, 0f00000000;\n"
    "mov.f32 %f2, %f1; mov.f32 %f3, %f1; mov.f32 %f4, %f1;\n"
)
_WGMMA = (
    "wgmma.fence.sync.aligned;\n"
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %d1, %d2, 1, 1, 1, 0, 0;\n"
    "wgmma.commit_group.sync.aligned;\n"
)
_WAIT = "wgmma.wait_group.sync.aligned 0;\n"
_STORE = "st.global.v4.f32 [%d1], {%f1, %f2, %f3, %f4};"

WGMMA = kernel(_LOAD + _WGMMA + _WAIT + _STORE)
WGMMA_WITHOUT_WAIT = kernel(_LOAD + _WGMMA + _STORE)
WGMMA_AND_PRINTF = kernel(
    _LOAD
    + _WGMMA
    + _WAIT
    + "{ .param .b64 a; .param .b64 b; .param .b32 c; st.param.b64 [a], %d1; st.param.b64 [b], %d1;\n"
    "call (c), vprintf, (a, b); }\n" + _STORE,
    before=".extern .func (.param .b32 c) vprintf(.param .b64 a, .param .b64 b);",
)
CALL_OF_NOTHING = kernel("// call nothing\ncall nowhere, ();", before=".extern .func nowhere;")
UNKNOWN_INTRINSIC = kernel(
    "{ .param .b64 q; st.param.b64 [q], %d1;\ncall llvm.nvvm.foo, (q); }",
    before=".extern .func llvm.nvvm.foo (.param .b64 z);",
)
SETMAXNREG = kernel("bar.sync 0; setmaxnreg.inc.sync.aligned.u32 240;", bounds=".maxntid 384, 1, 1")
TOO_MUCH_SHARED = kernel(
    "ld.shared.f32 %f1, [s]; ld.param.u64 %d1, [p]; st.global.f32 [%d1], %f1;",
    before=".shared .align 4 .b8 s[240000];",
)
SHARED = kernel(
    "ld.shared.f32 %f1, [s]; bar.sync 0; bar.sync 3; ld.param.u64 %d1, [p]; st.global.f32 [%d1], %f1;",
    before=".shared .align 4 .b8 s[50000];",
)


def wgmma_tile(n: int, body: str, bounds: str = "") -> str:
    """A kernel with n / 2 accumulators that start at zero and are stored in the end. In `body`, FENCE, MMA, COMMIT and
    WAIT stand for those instructions, and LOOP .. END for 64 turns."""
    registers = "{" + ", ".join(f"%a{i}" for i in range(n // 2)) + "}"
    words = {
        "FENCE": "wgmma.fence.sync.aligned;\n",
        "MMA": f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {registers}, %d1, %d2, 1, 1, 1, 0, 0;\n",
        "COMMIT": "wgmma.commit_group.sync.aligned;\n",
        "WAIT": "wgmma.wait_group.sync.aligned 0;\n",
        "LOOP": "L:\n",
        "END": "add.u32 %r1, %r1, 1;\nsetp.lt.u32 %p1, %r1, 64;\n@%p1 bra L;\n",
    }
    lines = "".join(words.get(word.strip(), f"{word.strip()}\n") for word in body.split("|"))
    start = f".reg .f32 %a<{n // 2}>;\nld.param.u64 %d1, [p]; mov.u64 %d2, %d1; mov.u32 %r1, 0;\n"
    start += "".join(f"mov.f32 %a{i}, 0f00000000;\n" for i in range(n // 2))
    stores = "".join(f"st.global.f32 [%d1+{4 * i}], %a{i};\n" for i in range(n // 2))
    return kernel(start + lines + stores, bounds=bounds)
