"""Products that run beside the next turn (`overlap`), and blocks in reverse: same results, no findings, no serialised
instructions, and refusals that say why."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.values import stored, values
from tcomp.schedule.lower import LoweredOp, lower
from tests.reference.op_cases import Arrays
from tests.test_ops_gpu import execute

H100 = machine_for_target("sm_90a")
TEXT = """
op chain(X: bf16[M, K], A: bf16[N, K], B: bf16[N, P]) -> Y: f32[M, P]:
  s[m, n] = sum k: X[m, k] * A[n, k]
  t[m, n] = max(s[m, n], 0.0)
  Y[m, p] = sum n: t[m, n] * B[n, p]

schedule chain on sm_90a:
  m -> grid(64) / warpgroup(64) / mma
  n -> {n} / mma
  k -> mma
  p -> mma
  fuse s, t, Y at n
  stage X in shared at m by tma
  stage A, B in shared at n by {by}
  use wgmma for s, Y
  cast Y.t to bf16
  {flags}
"""


@cache
def lowered(flags: str, n: str = "pipe(64, 3)", by: str = "tma", columns: int = 448) -> LoweredOp:
    module = load_text(TEXT.format(flags=flags, n=n, by=by), "f.tc")
    return lower(module.ops["chain"], module, {"M": 128, "N": columns, "K": 64, "P": 64}, H100)


def inputs(columns: int = 448) -> Arrays:
    rng = np.random.default_rng(1)
    shapes = {"X": (128, 64), "A": (columns, 64), "B": (columns, 64)}
    return {n: values(stored(rng.standard_normal(s, np.float32), DType.BF16), DType.BF16) for n, s in shapes.items()}


def results(flags: str, n: str = "pipe(64, 3)", columns: int = 448) -> bytes:
    found = lowered(flags, n, columns=columns)
    op = bound(load_text(TEXT.format(flags=flags, n=n, by="tma"), "f.tc").ops["chain"], DType.F32)
    return execute(found, op, inputs(columns))["Y"].tobytes()


@pytest.mark.parametrize("n,columns", [("pipe(64, 2)", 64), ("pipe(64, 2)", 448), ("pipe(64, 3)", 100)])
def test_results_are_those_without_it(n: str, columns: int) -> None:
    module = load_text(TEXT.format(flags="", n=n, by="tma"), "f.tc")
    plain = results("", n, columns)
    assert results("overlap Y\n  reverse m", n, columns) == plain
    dims = {"M": 128, "N": columns, "K": 64, "P": 64}
    wanted = evaluate(module.ops["chain"], module, inputs(columns), dims)["Y"]
    found = np.frombuffer(plain, np.float32).reshape(wanted.shape)
    assert np.abs(found - wanted).max() < 2**-8 * np.abs(wanted).max()


def test_the_order_of_products_and_waits() -> None:
    """Without the line a turn's last product runs until the first wait of the next turn (the last one's: behind the
    loop). With it, first turn and end are apart, and the loop issues both products, then waits for the older one."""

    def order(flags: str) -> str:
        ptx = compile_kernel(lowered(flags).kernels[0], H100).ptx
        found = re.findall(r"wgmma\.(commit)_group|wgmma\.wait_group\.sync\.aligned (\d)", ptx)
        return " ".join(m[0] or m[1] for m in found)

    assert order("") == "commit 0 commit 0"
    assert order("overlap Y") == "commit 0 commit commit 1 0 commit 0"


def test_nothing_is_serialised_or_spilled() -> None:
    for flags in ("", "overlap Y"):
        assembled = assemble(compile_kernel(lowered(flags).kernels[0], H100).ptx, "sm_90a")
        assert not assembled.findings


GROUPS = """
op groups(X: bf16[G, M, K], W: bf16[G, N, K], u: f32[G, N]) -> Y: f32[M, N]:
  part[g, m, n] = sum k: X[g, m, k] * W[g, n, k]
  Y[m, n] = sum g{where}: part[g, m, n] * u[g, n]

schedule groups on sm_90a:
  m -> grid(64) / warpgroup(64) / mma
  n -> grid(64) / mma
  g -> {g}
  k -> mma
  fuse part, Y at g
  stage X, W in shared at g by tma
  use wgmma for part
  {flags}
"""


@cache
def in_groups(flags: str, count: int, where: str = "", g: str = "pipe(1, 3)") -> LoweredOp:
    module = load_text(GROUPS.format(flags=flags, where=where, g=g), "f.tc")
    return lower(module.ops["groups"], module, {"G": count, "M": 192, "N": 64, "K": 64}, H100)


@pytest.mark.parametrize(
    "count,where,flags",
    [(1, "", ""), (2, "", ""), (5, "", "producer warp"), (3, " where g <= m // 64", "")],
    ids=["a turn", "a pair", "pairs and a turn", "a number of turns that blocks differ in"],
)
def test_turns_in_pairs(count: int, where: str, flags: str) -> None:
    """A product that opens its turn: two turns at a time give the bits of one turn after the other."""
    module = load_text(GROUPS.format(flags="", where=where, g="pipe(1, 3)"), "f.tc")
    op, rng = bound(module.ops["groups"], DType.F32), np.random.default_rng(1)
    shapes = {"X": (count, 192, 64), "W": (count, 64, 64)}
    given = {n: values(stored(rng.standard_normal(s, np.float32), DType.BF16), DType.BF16) for n, s in shapes.items()}
    given["u"] = rng.standard_normal((count, 64), np.float32)
    found = [execute(in_groups(f, count, where), op, given)["Y"] for f in (flags, f"{flags}\n  overlap part")]
    assert found[0].tobytes() == found[1].tobytes()
    wanted = evaluate(module.ops["groups"], module, given, {"G": count, "M": 192, "N": 64, "K": 64})["Y"]
    assert np.abs(found[1] - wanted).max() < 2**-8 * np.abs(wanted).max()


def test_a_pair_issues_both_products_before_it_waits() -> None:
    kernel = in_groups("overlap part", 5).kernels[0]
    ptx = compile_kernel(kernel, H100).ptx
    found = re.findall(r"wgmma\.(commit)_group|wgmma\.wait_group\.sync\.aligned (\d)", ptx)
    assert " ".join(m[0] or m[1] for m in found) == "commit commit 1 0 commit 0"
    assert not assemble(ptx, "sm_90a").findings


def test_blocks_in_reverse() -> None:
    kernel: Kernel = lowered("reverse m").kernels[0]
    assert kernel.gpu.order.reversed == {"m.0"}
    ptx = compile_kernel(kernel, H100).ptx
    assert ptx != compile_kernel(lowered("").kernels[0], H100).ptx


@pytest.mark.parametrize(
    "flags,n,by,message",
    [
        ("overlap s", "pipe(64, 2)", "tma", "a later statement of the turn needs its result"),
        ("overlap t", "pipe(64, 2)", "tma", "'t' is not a matrix product of this kernel"),
        ("overlap Y", "pipe(64, 1)", "tma", "its pipe loop keeps one copy of its tiles"),
        ("overlap Y", "pipe(64, 2)", "cp.async swizzle", "it is not in a pipe loop of tensor copies"),
        ("overlap", "pipe(64, 2)", "tma", "`overlap` takes the products to overlap"),
        ("overlap 3", "pipe(64, 2)", "tma", "`overlap` takes the products to overlap"),
        ("reverse n", "pipe(64, 2)", "tma", "loop 'n' is not divided among blocks"),
        ("reverse", "pipe(64, 2)", "tma", "`reverse` takes the loops to reverse"),
    ],
)
def test_refused(flags: str, n: str, by: str, message: str) -> None:
    with pytest.raises(TcError) as e:
        lowered(flags, n, by)
    assert message in e.value.message and e.value.hint


def test_turns_in_pairs_do_not_pass_tiles_through_shared_memory() -> None:
    text = TEXT.replace("for s, Y", "for s").replace("  cast Y.t to bf16\n", "").replace("  p -> mma", "  p -> lane.x")
    text = text.format(flags="overlap s", n="pipe(64, 2)", by="tma")
    module = load_text(text, "f.tc")
    with pytest.raises(TcError) as e:
        lower(module.ops["chain"], module, {"M": 128, "N": 448, "K": 64, "P": 64}, H100)
    assert "'t' goes through shared memory in the same turn" in e.value.message and "overlap s" in str(e.value)
