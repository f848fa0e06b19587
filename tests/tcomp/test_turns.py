"""Blocks that add to one sum take turns: one turn each at every place, in the order of their numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.assembly.disassemble import disassemble
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import Binary, Num
from tcomp.dsl.load import load_text
from tcomp.ir.tile import Kernel, Loop, Statement, Turns, Unpack
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import lower
from tests.tcomp.nvptx.support import changed
from tests.tcomp.tile_interpreter import Interpreter, OutOfTurn

TEXT = """
op product(S: f32[M, K], X: f32[K, N]) -> Y: f32[M, N]:
  p[m, k]: f32 = {factor}
  Y[m, n] = sum k{guard}: p[m, k] * X[k, n]

schedule product on sm_90a:
  k -> grid(16)
  m -> seq(16) / lane.y(4)
  n -> lane.x
  {reverse}
  stage Y in shared at m by tma
  combine Y over k by turns
"""
M, K, N = 40, 56, 64


def product(guard: str = "", reverse: str = "") -> Kernel:
    factor = "select(k <= m, S[m, k], 0)" if guard else "S[m, k]"
    module = load_text(TEXT.format(guard=guard, factor=factor, reverse=reverse), "f.tc")
    (kernel,) = lower(module.ops["product"], module, {"M": M, "K": K, "N": N}, H100).kernels
    return kernel


def run(kernel: Kernel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {o.name: np.full(o.shape, np.nan) for o in kernel.operands}
    arrays |= {"S": rng.standard_normal((M, K)), "X": rng.standard_normal((K, N))}
    Interpreter(kernel, arrays).run()
    return arrays["S"], arrays["X"], arrays["Y"]


def turns_of(kernel: Kernel) -> Turns:
    found: list[Turns] = []

    def visit(s: Statement) -> None:
        if isinstance(s, Loop):
            for x in s.body:
                visit(x)
        elif isinstance(s, Unpack) and s.turns is not None:
            found.append(s.turns)

    for p in kernel.phases:
        for s in p:
            visit(s)
    (turns,) = found
    return turns


@pytest.mark.parametrize("guard", ["", " where k <= m"], ids=["whole", "triangle"])
@pytest.mark.parametrize("reverse", ["", "reverse k"], ids=["forward", "reverse"])
def test_blocks_take_their_turns(guard: str, reverse: str) -> None:
    s, x, y = run(product(guard, reverse))
    masked = np.tril(s) if guard else s
    np.testing.assert_allclose(y, masked @ x, rtol=1e-9, atol=1e-9)


def test_a_wrong_order_is_found() -> None:
    kernel = product()
    turns = turns_of(kernel)
    wrong = Binary("+", turns.number, Num(2))  # (numbers count down to the last block's, 0)
    with pytest.raises(OutOfTurn, match=r"block 2 at Y.turns\[0\] waits for 4, but the last was 3"):
        run(changed(kernel, before=wrong))
    with pytest.raises(OutOfTurn, match=r"block 3 at Y.turns\[0\] waits for -1, but the last was nobody"):
        run(changed(kernel, met=(), before=Num(-1)))
    with pytest.raises(OutOfTurn, match=r"block 2 at Y.turns\[0\] waits for nobody, but the last was 3"):
        run(changed(kernel, met=((Num(0), Num(1), Num(0)),)))
    with pytest.raises(OutOfTurn, match=r"block 3 at Y.turns\[0\] has a second turn"):
        run(changed(kernel, flag=replace(turns.flag, subscripts=(Num(0),))))
    with pytest.raises(OutOfTurn, match=r"block 0 at Y.turns\[0\] waits for 1, but the last was nobody"):
        run(replace(product(reverse="reverse k"), blocks=kernel.blocks))


@pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="needs nvdisasm")
def test_only_passing_a_turn_on_waits_for_all_blocks_to_see_what_was_written() -> None:
    """The word's release: in the loop, before the last block reads the sums, and in the end. Fences between proxies are
    for global memory alone: one with each, one behind a wait, one before the sums are read."""
    code = compile_kernel(product(), H100)
    text = disassemble(assemble(code.ptx, H100.target).cubin)
    assert text.count("STG.E.STRONG.GPU") == text.count("MEMBAR.ALL.GPU") == 3
    assert text.count("FENCE.VIEW.ASYNC.G") == 5
