"""Which instructions a target has: least compute capability and PTX version of each ("Target ISA Notes" of the ISA).

A module says by `.target` what it may use, and a device runs modules of its own capability and below; an
architecture-specific target (sm_90a) runs on that one capability. Every rule that matches an opcode must be met.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from tcomp.errors import UserError
from tcomp.runtime.vgpu.errors import PtxError
from tcomp.runtime.vgpu.ptx import Instr


@dataclass(frozen=True)
class Rule:
    """Opcodes that match `pattern` need `sm` (exactly sm + "a" when `exact`) and PTX `version`."""

    pattern: re.Pattern[str]
    sm: int
    version: tuple[int, int]
    exact: bool = False


def _rule(pattern: str, sm: int, version: str, exact: bool = False) -> Rule:
    major, minor = version.split(".")
    return Rule(re.compile(pattern), sm, (int(major), int(minor)), exact)


RULES = [
    # matrices
    _rule(r"wgmma\.", 90, "8.0", exact=True),
    _rule(r"wgmma\..*\.(u8\.s8|s8\.u8)", 90, "8.4", exact=True),
    _rule(r"wmma\.", 70, "6.0"),
    _rule(r"wmma\..*(bf16|tf32|f64|m16n16k8)", 80, "7.0"),
    _rule(r"mma\.", 70, "6.4"),
    _rule(r"mma\..*\.(bf16|tf32|f64|m16n8k16|m16n8k32|m16n8k64|m16n8k128|m16n8k256)\b", 80, "7.0"),
    _rule(r"mma\..*\.m16n8k\d+\..*f64", 90, "7.8"),
    _rule(r"mma\..*\.(e4m3|e5m2)", 89, "8.4"),
    _rule(r"mma\..*\.m16n8k16\..*\.(e4m3|e5m2)", 89, "8.7"),
    _rule(r"mma\..*\.f16\.(e4m3|e5m2)", 89, "8.7"),
    _rule(r"mma\..*(kind::|block_scale|e2m1|e3m2|e2m3)", 120, "8.7", exact=True),
    _rule(r"ldmatrix\.", 75, "6.5"),
    _rule(r"(ld|st)matrix\..*(m16n16|m8n16|m16n8)", 100, "8.6", exact=True),
    _rule(r"stmatrix\.", 90, "7.8"),
    _rule(r"movmatrix\.", 75, "7.8"),
    # asynchronous copies, barriers, clusters
    _rule(r"cp\.async\.", 80, "7.0"),
    _rule(r"cp\.(async|reduce\.async)\.bulk", 90, "8.0"),
    _rule(r"(prefetch.*\.tensormap|cp\.async\.bulk\.prefetch)", 90, "8.0"),
    _rule(r"tensormap\.", 90, "8.3"),
    _rule(r"mbarrier\.", 80, "7.0"),
    _rule(r"mbarrier\.try_wait", 90, "7.8"),
    _rule(r"mbarrier\.(.*expect_tx|complete_tx)", 90, "8.0"),
    _rule(r"(mbarrier|barrier\.cluster)\..*\.(release|acquire|relaxed)\b", 80, "8.0"),
    _rule(r"(bar|barrier)\.cta\.", 0, "7.8"),
    _rule(r"fence\.proxy\.alias", 70, "7.5"),
    _rule(r"(barrier\.cluster|mapa|getctarank|griddepcontrol)", 90, "7.8"),
    _rule(r"elect\.", 90, "8.0"),
    _rule(r"fence\..*(proxy\.async|mbarrier_init)", 90, "8.0"),
    _rule(r"fence\..*proxy\.tensormap", 90, "8.3"),
    _rule(r"setmaxnreg\.", 90, "8.0", exact=True),
    _rule(r"(st|red)\.async", 90, "8.1"),
    _rule(r"multimem\.", 90, "8.1"),
    _rule(r".*shared::cluster", 90, "7.8"),
    _rule(r"(ld|st|atom|red|fence|mbarrier)\..*\.cluster\b", 90, "7.8"),
    _rule(r"tcgen05\.", 100, "8.6", exact=True),
    _rule(r"cp\.async\.bulk\.tensor\..*cta_group::", 100, "8.6", exact=True),
    _rule(r"(clusterlaunchcontrol\.|st\.bulk)", 100, "8.6"),
    # memory
    _rule(r".*::cta\b", 0, "7.8"),
    _rule(r"(ld|st)\.mmio", 70, "8.2"),
    _rule(r"(ld|st)\..*(L1::|L2::\d+B)", 70, "7.4"),
    _rule(r"prefetch\..*L2::evict", 80, "7.4"),
    _rule(r"(isspacep|cvta)\..*param", 0, "7.7"),
    _rule(r"(createpolicy|discard|applypriority)\.", 80, "7.4"),
    _rule(r".*L2::cache_hint", 80, "7.4"),
    _rule(r"(atom|red)\..*\.v[248]\b", 90, "8.1"),
    _rule(r"(atom|red)\..*\.b128", 90, "8.3"),
    _rule(r"(atom|red)\..*\.(bf16|bf16x2)\b", 90, "7.8"),
    _rule(r"(ld|st)\..*(v8\.[bsuf]32|v4\.[bsuf]64|L2::evict)", 100, "8.8"),
    # warps
    _rule(r"(match|shfl\.sync|vote\.sync|bar\.warp)", 30, "6.0"),
    _rule(r"redux\.", 80, "7.0"),
    _rule(r"redux\..*f32", 100, "8.6", exact=True),
    # conversion
    _rule(r"cvt\..*(e4m3x2|e5m2x2)", 89, "7.8"),
    _rule(r"cvt\..*(e4m3x2|e5m2x2)\.bf16x2", 100, "9.1"),
    _rule(r"cvt\..*(tf32|f16x2\.f32|bf16x2\.f32|relu|bf16)", 80, "7.0"),
    _rule(r"cvt\.f32\.bf16", 80, "7.1"),
    _rule(r"cvt\.ftz\.f32\.bf16", 90, "7.8"),
    _rule(r"cvt\.(rn|rz)\.(relu\.)?tf32", 90, "7.8"),
    _rule(r"cvt\..*satfinite.*\.(f16|bf16|f16x2|bf16x2|tf32)\.f32", 80, "8.1"),
    _rule(r"cvt\.(rn|rz)\..*satfinite.*tf32", 100, "8.6"),
    _rule(r"cvt\..*\.bf16\.([us]\d+|f16|f64|bf16)$", 90, "7.8"),
    _rule(r"cvt\.(.*\.)?([us]\d+|f16|f64)\.bf16$", 90, "7.8"),
    _rule(r"cvt\.(rs\.|.*(e2m1|e2m3|e3m2|ue8m0|s2f6))", 100, "8.6", exact=True),
    _rule(r"cvt\.pack", 72, "6.5"),
    # arithmetic
    _rule(r"(add|sub|mul)\.(\w+\.)*bf16(x2)?$", 90, "7.8"),
    _rule(r"fma\..*(bf16|relu)", 80, "7.0"),
    _rule(r"fma\..*oob", 90, "8.1"),
    _rule(r"(abs|neg)\.bf16", 80, "7.0"),
    _rule(r"(min|max)\.(\w+\.)*(f16|bf16)", 80, "7.0"),
    _rule(r"(min|max)\..*NaN", 80, "7.0"),
    _rule(r"(min|max)\..*xorsign", 86, "7.2"),
    _rule(r"(tanh\.|ex2\..*f16)", 75, "7.0"),
    _rule(r"(tanh|ex2)\..*bf16", 90, "7.8"),
    _rule(r"(set|setp)\..*bf16", 90, "7.8"),
    _rule(r"(add|min|max)\..*([us]16x2|relu\.s32)", 90, "8.0"),
    _rule(r"(add|sub|mul|fma)\..*f32x2", 100, "8.6"),
    _rule(r"(add|sub|fma)\.(\w+\.)*f32\.(f16|bf16)$", 100, "8.6"),
    _rule(r"(szext|bmsk)\.", 70, "7.6"),
    _rule(r"lop3\.(and|or)", 70, "8.2"),
    _rule(r"(dp4a|dp2a)\.", 61, "5.0"),
]

SINCE = re.compile(r"setmaxnreg\.")
"""of the instructions that need an architecture's own target, those that later architectures' own targets have too"""
SHARED = ((re.compile(r"tcgen05\.|cp\.async\.bulk\.tensor\..*cta_group::"), (100, 103, 110)),)
"""and those that just these have (of tcgen05.mma, integers are missing on 103; they are not executed anyway)"""


@cache
def needs(opcode: str) -> tuple[int, bool, tuple[int, int]]:
    """(least sm, whether just that one with "a", least PTX version) of an opcode; (0, False, (1, 0)) for old ones."""
    sm, exact, version = 0, False, (1, 0)
    for r in RULES:
        if r.pattern.match(opcode):
            if r.sm >= sm:
                sm, exact = r.sm, r.exact or (exact and r.sm == sm)
            version = max(version, r.version)
    return sm, exact, version


def parse_target(target: str) -> tuple[int, str]:
    """`sm_90a` -> (90, "a")."""
    found = re.fullmatch(r"sm_(\d+)([af]?)", target)
    return (int(found[1]), found[2]) if found else (0, "")


def check_module(target: str, sm: int) -> None:
    """UserError where a device of capability `sm` cannot run a module for `target`."""
    have, suffix = parse_target(target)
    if have > sm or (suffix == "a" and have != sm):
        raise UserError(
            f"this module is for {target}, the virtual GPU is sm_{sm}",
            f"use Device(sm={have})" + (": an architecture-specific target runs nowhere else" if suffix else ""),
        )


def check_instructions(code: Sequence[Instr], target: str, version: str) -> None:
    """PtxError at the first instruction that the module's own `.target` or `.version` does not have."""
    sm, suffix = parse_target(target)
    number = re.fullmatch(r"(\d+)\.(\d+)", version)
    given = (int(number[1]), int(number[2])) if number else (99, 0)
    for i in code:
        least, exact, since = needs(i.opcode)
        other = sm != least and not SINCE.match(i.opcode) and not any(p.match(i.opcode) and sm in s for p, s in SHARED)
        if sm and (sm < least or (exact and (not suffix or other))):
            name = f"sm_{least}{'a' if exact else ''}"
            raise PtxError(f"`{i.opcode}` needs {name}, this module is for {target}", i.line, f"`.target {name}`")
        if given < since:
            wanted = f"{since[0]}.{since[1]}"
            raise PtxError(f"`{i.opcode}` came with PTX {wanted}, this module says {version}", i.line,
                           f"`.version {wanted}`")  # fmt: skip
