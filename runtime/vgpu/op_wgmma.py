"""wgmma (PTX ISA 9.7.15): the four warps of a warpgroup multiply 64 x N tiles from shared memory.

All instructions of the family wait until their whole warpgroup has come. mma_async multiplies at once, for all
warpgroups of the wave that stand here; its results reach the registers at the wait_group that retires it
(wgmma_state.py), and what may not be touched until then is watched.

Arithmetic: products are exact and summed in f32, in an order that PTX leaves open; f16 accumulators are rounded
after each instruction; fp8 operands accumulate with 14 significant bits (matrix_numbers.truncated_sum).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction, watcher
from tcomp.runtime.vgpu.flow import uses_and_definitions
from tcomp.runtime.vgpu.lanes import Array, Sel, compact, every, ids, indices, one_each, some
from tcomp.runtime.vgpu.matrix_numbers import INTEGERS, saturate32, truncated_sum, wrap32
from tcomp.runtime.vgpu.ptx import Imm, Instr, Vec
from tcomp.runtime.vgpu.types import SCALARS
from tcomp.runtime.vgpu.wgmma_operands import SharedOperand, a_from_registers, uniform
from tcomp.runtime.vgpu.wgmma_registers import fragments
from tcomp.runtime.vgpu.wgmma_state import Fragment, Held, warpgroups

FP8 = ("e4m3", "e5m2")
FP8_BITS = 14
_DEPTH = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32, "b1": 256}


@dataclass(frozen=True)
class Form:
    """One spelling of mma_async: N, element types, and whether s32 sums saturate."""

    shape: str
    n: int
    d: str
    a: str
    b: str
    saturate: bool


def form_of(d: Decoder, i: Instr) -> Form:
    """Reads and checks the opcode; UnknownInstruction says what is not allowed."""
    parts = i.parts
    if "sp" in parts:
        raise d.unknown(i, "sparse wgmma is not executed")
    if parts[1:4] != ["mma_async", "sync", "aligned"]:
        raise d.unknown(i, "wgmma.mma_async needs .sync.aligned")
    found = next((re.fullmatch(r"m64n(\d+)k(\d+)", p) for p in parts if p.startswith("m64n")), None)
    rest = [p for p in parts[4:] if not p.startswith("m64n") and p not in ("satfinite", "and", "popc")]
    if found is None or len(rest) != 3:
        raise d.unknown(i, "expected a shape m64nNkK and three types")
    td, ta, tb = rest
    n, k = int(found[1]), int(found[2])
    mixed = {ta, tb} <= set(FP8) or {ta, tb} <= {"s8", "u8"}
    if ta not in _DEPTH or tb not in _DEPTH or (ta != tb and not mixed) or k != _DEPTH[ta]:
        raise d.unknown(i, f"no mma_async multiplies .{ta} by .{tb} with k = {k}")
    allowed = ("s32",) if ta in INTEGERS else ("f32", "f16") if ta in ("f16", *FP8) else ("f32",)
    if td not in allowed:
        raise d.unknown(i, f".{ta} accumulates in .{' or .'.join(allowed)}")
    few = ta in INTEGERS and n > 32
    if not 8 <= n <= 256 or n % (16 if few else 8):
        rule = "multiples of 8 to 32, then of 16," if ta in INTEGERS else "multiples of 8"
        raise d.unknown(i, f"N = {n}: .{ta} takes {rule} up to 256")
    if ta == "b1" and "popc" not in parts:
        raise d.unknown(i, "b1 multiplies with .and.popc")
    if "satfinite" in parts and ta not in ("s8", "u8"):
        raise d.unknown(i, "satfinite belongs to integer types")
    return Form(found[0], n, td, ta, tb, "satfinite" in parts)


@watcher
def watch_registers(d: Decoder, i: Instr, run: Run) -> Run:
    """Wraps ordinary instructions that touch registers which some mma_async uses."""
    if not d.m.options.checks or not d.m.program.uses_wgmma or i.parts[0] == "wgmma":
        return run
    state = warpgroups(d.m)
    used, defined = d.m.flow.facts.get(id(i)) or uses_and_definitions(i, d.m.program.registers)
    touched: list[Fragment] = []
    for r in (*used, *defined):
        touched += [f for f in state.of_register.get(r, ()) if f not in touched]
    if not touched:
        return run

    def watched(sel: Sel) -> Any:
        state.touch(i, touched, sel)
        return run(sel)

    return watched


def together(d: Decoder, i: Instr, act: Callable[[Sel, Array], None]) -> Run:
    """Runs `act` (lanes, warpgroup numbers) for the warpgroups that are here whole; the other lanes wait.

    A warpgroup that can never be whole (warps missing from the block, or gone) is a finding, and goes on alone.
    """
    m, state = d.m, warpgroups(d.m)
    m.explain[i.line, i.opcode] = lambda lane: f"waits in `{i.opcode}` for the other warps of its warpgroup"

    def run(sel: Sel) -> Any:
        if sel.__class__ is slice and not m.stride % 128 and not sel.start % 128 and not sel.stop % 128:
            act(sel, np.arange(sel.start // 128, sel.stop // 128))
            return None
        lanes = ids(sel)
        number = state.number[lanes]
        here = np.bincount(number, minlength=len(state.first_lane))
        alive = np.bincount(state.number, m.alive, len(state.first_lane)).astype(np.int64)
        broken = (here == alive) & (here > 0) & (here < 128)
        if some(broken):
            m.finding("partial warpgroup", i, lanes[broken[number]],
                      "wgmma needs all 128 threads of four warps whose first has a number divisible by 4")  # fmt: skip
        whole = indices(here == 128)
        if len(whole):
            act(state.lanes_of(whole), whole)
        go = (here == alive)[number]
        return None if every(go) else lanes[go]

    return run


@instruction("wgmma")
def warpgroup_instruction(d: Decoder, i: Instr) -> Run:
    state, what = warpgroups(d.m), i.parts[1]
    if what == "mma_async":
        return multiply(d, i)
    if i.parts[2:] != ["sync", "aligned"]:
        raise d.unknown(i, "expected .sync.aligned")
    if what == "fence":
        return together(d, i, lambda sel, groups: state.fence(sel))
    if what == "commit_group":
        return together(d, i, lambda sel, groups: state.commit(sel))
    if what == "wait_group":
        keep = i.operands[0]
        if not isinstance(keep, Imm):
            raise d.unknown(i, "the number of groups must be a constant")
        newest = int(keep.value)
        return together(d, i, lambda sel, groups: state.wait(sel, groups, newest))
    raise d.unknown(i)


def multiply(d: Decoder, i: Instr) -> Run:
    form = form_of(d, i)
    m, state = d.m, warpgroups(d.m)
    names_d, names_a = fragments(i)
    per = 4 if form.d == "f16" else 2
    if len(names_d) != form.n // per:
        raise d.unknown(i, f"D has {len(names_d)} registers, {form.shape} with .{form.d} takes {form.n // per}")
    from_registers = isinstance(i.operands[1], Vec)
    if from_registers and len(names_a) != 4:
        raise d.unknown(i, "A in registers takes four of them")
    for name in (*names_d, *names_a):
        d.view(name, SCALARS["b32"])
    scale_a, scale_b, trans_a, trans_b = immediates(d, i, form, from_registers)
    scale_d = d.source(i.operands[3], "pred")
    out, sign = state.fragments[names_d], scale_a * scale_b
    dtype = np.dtype(np.int32 if form.d == "s32" else np.float32)
    left = None if from_registers else SharedOperand(d, i, i.operands[1], 64, form.a, trans_a)
    right = SharedOperand(d, i, i.operands[2], form.n, form.b, trans_b)
    held = state.fragments[names_a] if from_registers else None

    def act(sel: Sel, groups: Array) -> None:
        if m.options.checks:
            state.check_fence(i, out, sel, form.shape)
            if held is not None:
                state.check_fence(i, held, sel, held.shape)
        add = uniform(m, i, one_each(scale_d(sel), 128 * len(groups)), sel, "scale-d")
        reading: list[Held] = []
        if left is None:
            assert held is not None
            a = a_from_registers(state.registers(held, sel), form.a)
        else:
            a, reading = left.load(sel, groups)
        b, more = right.load(sel, groups)
        state.reads += [*reading, *more]
        product = np.matmul(a, b.swapaxes(1, 2))
        if sign < 0:
            product = -product
        accumulate(out, sel, groups, add, product)
        if held is not None:
            state.hold(held, sel, "")
        state.hold(out, sel, form.shape)

    def accumulate(f: Fragment, sel: Sel, groups: Array, add: Array, product: Array) -> None:
        if f.values is None or f.values.shape[2] != form.n or f.values.dtype != dtype:
            f.values = np.zeros((len(state.first_lane), 64, form.n), dtype)
        f.kind = form.d
        idle = f.group[state.first_lane[groups]] < 0
        fresh = idle & add
        if some(fresh):
            which = groups[fresh]
            lanes = state.lanes_of(which)
            state.check_defined(i, f, lanes)
            f.values[which] = state.gather(f, lanes)
        if some(idle):
            state.poison(f, state.lanes_of(groups[idle]))
        at: Any = compact(groups)
        old = f.values[at]
        if not every(add):
            old = np.where(add[:, None, None], old, 0)
        f.values[at] = combine(old, product)

    def combine(old: Array, product: Array) -> Array:
        if form.d == "s32":
            total = old.astype(np.int64) + product.astype(np.int64)
            return saturate32(total) if form.saturate else wrap32(total)
        total = truncated_sum(old, product, FP8_BITS) if form.a in FP8 else old + product
        return total.astype(np.float16).astype(np.float32) if form.d == "f16" else total

    return together(d, i, act)


def immediates(d: Decoder, i: Instr, form: Form, from_registers: bool) -> tuple[int, int, bool, bool]:
    """(imm-scale-a, imm-scale-b, imm-trans-a, imm-trans-b), each checked against what the types allow."""
    given = list(i.operands[4:])
    sixteen = form.a in ("f16", "bf16")
    want = 0 if form.a in INTEGERS else 2 + (1 if from_registers else 2) * sixteen
    if len(given) != want:
        raise d.unknown(i, f"{want} immediates follow scale-d for .{form.a}, not {len(given)}")
    numbers = []
    for o in given:
        if not isinstance(o, Imm):
            raise d.unknown(i, "scales and transposes are immediates")
        numbers.append(int(o.value))
    scales, transposes = numbers[:2] or [1, 1], numbers[2:]
    if any(s not in (-1, 1) for s in scales) or any(t not in (0, 1) for t in transposes):
        raise d.unknown(i, "scales are 1 or -1, transposes 0 or 1")
    trans_a = bool(transposes[0]) if len(transposes) == 2 else False
    trans_b = bool(transposes[-1]) if transposes else False
    return scales[0], scales[1], trans_a, trans_b
