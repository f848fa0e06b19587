"""Attention by tcgen05: products of a turn by way of tensor memory, weights as their left operand there, on the virtual
GPU with every check on, and through the assembler."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcomp.autotune.virtual_run import codes_of, reported
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.assembly.occupancy import occupancy
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.products import tensor_memory
from tcomp.dsl.ast import DType, Module, Op
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.ir.walk import computes
from tcomp.machine.gpu import machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.vgpu import Options
from tcomp.runtime.vgpu.report import KernelFault
from tcomp.schedule.lower import lower
from tests.reference.op_cases import library, stored_inputs
from tests.tcomp.nvptx import support

B200 = machine_for_target("sm_100a")
SMALL = {"BQ": 128, "BK": 64}
GROUPED = {"B": 1, "T": 136, "G": 1, "R": 2, "D": 128}


def agrees(name: str, dims: dict[str, int], chosen: dict[str, int | float], real: DType = DType.BF16,
           order: int = 0, units: int = 2) -> None:  # fmt: skip
    """With the oracle, within the rounding of the result and of the weights; without a finding or a bank conflict."""
    module = library()
    found_op = backward_of(name.removesuffix(".backward"), module) if "." in name else module.ops[name]
    assert found_op is not None
    op = bound(found_op, real)
    inputs = stored_inputs(op, module, dims, real)
    found, reports = reported(op, lower(op, module, dims, B200, chosen=chosen), inputs, B200, Options(order=order))
    assert all(r.ok and not ("shared" in r.traffic and r.traffic["shared"].bank_conflicts) for r in reports)
    for result, wanted in evaluate(op, module, inputs, dims).items():
        unit = {DType.BF16: 2.0**-8, DType.F16: 2.0**-11}[real]
        if result in found:
            assert np.max(np.abs(found[result] - wanted)) < units * unit * np.abs(wanted).max(), result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dims", "chosen"),
    [
        ("attention", {"B": 1, "T": 130, "H": 1, "D": 64}, SMALL),
        ("attention", {"B": 1, "T": 300, "H": 1, "D": 64}, {"BQ": 256, "BK": 112}),
        ("grouped_attention", GROUPED, {"BQ": 256, "BK": 64}),
        ("attention", {"B": 2, "T": 5, "H": 1, "D": 64}, SMALL),
        ("attention", {"B": 1, "T": 130, "H": 1, "D": 40}, SMALL),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_shapes(name: str, dims: dict[str, int], chosen: dict[str, int | float]) -> None:
    """Two warpgroups, one and several turns, ends of sequences and heads, queries that share keys."""
    agrees(name, dims, chosen, DType.F16 if dims["D"] == 64 else DType.BF16, order=1)


def test_the_backward_pass_adds_up_in_tensor_memory() -> None:
    """Two turns of queries, the last of them short, heads that do not fill their columns: dK and dV stay, dQ leaves in
    every turn, by products of 64 rows."""
    agrees("attention.backward", {"B": 1, "T": 70, "H": 1, "D": 8}, {}, units=4)


def backward() -> tuple[Module, Op]:
    """The library, and attention's backward pass in bf16."""
    module = library()
    found = backward_of("attention", module)
    assert found is not None
    return module, bound(found, DType.BF16)


BACKWARD = [
    ("attention.backward", {"B": 1, "T": 300, "H": 1, "D": 64}),
    ("attention.backward", {"B": 1, "T": 65, "H": 1, "D": 96}),
    ("grouped_attention.backward", {"B": 1, "T": 136, "G": 1, "R": 2, "D": 128}),
    ("attention.backward", {"B": 2, "T": 1, "H": 2, "D": 40}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dims"), BACKWARD, ids=lambda x: x if isinstance(x, str) else "")
def test_shapes_of_the_backward_pass(name: str, dims: dict[str, int]) -> None:
    agrees(name, dims, {}, DType.F16 if dims["D"] == 64 else DType.BF16, order=1, units=6)


def test_columns_are_shared_by_what_a_turn_needs_one_after_the_other() -> None:
    """256 for 64 queries and heads of 64: scores, dP, dK and dV. Weights lie in the scores' once those are loaded, dQ
    in those of dP. Two such blocks are to share a multiprocessor."""
    module, op = backward()
    dims = {"B": 1, "T": 256, "H": 1, "D": 64}
    gpu = compile_kernel(lower(op, module, dims, B200).kernels[1], B200)
    assert gpu.launches[0].tensor_columns == 256
    assert ".minnctapersm 2" in gpu.ptx and "setmaxnreg.inc.sync.aligned.u32 \t232" in gpu.ptx


@pytest.mark.slow
@pytest.mark.parametrize("head", [64, 128])
def test_two_blocks_of_the_backward_pass_share_a_multiprocessor_or_nothing_spills(head: int) -> None:
    """At heads of 64 the weights lie in scores' columns and dQ in those of dP, and dK and dV leave from where keys and
    values were: then columns, shared memory and registers are enough for two."""
    module, op = backward()
    dims = {"B": 16, "T": 1024, "H": 768 // head, "D": head}
    kernel = lower(op, module, dims, B200).kernels[1]
    gpu = compile_kernel(kernel, B200)
    (used,) = assemble(gpu.ptx, "sm_100a").resources
    assert used.spill_store_bytes == used.spill_load_bytes == used.stack_bytes == 0
    launch = gpu.launches[0]
    blocks = occupancy(B200, used.registers, launch.threads, launch.shared_bytes, launch.tensor_columns).blocks
    assert blocks == (2 if head == 64 else 1)


def test_outputs_of_wide_heads_do_not_fit_registers_when_they_leave() -> None:
    """They would be spilled; other instructions take narrower tiles of queries."""
    module = library()
    op = bound(module.ops["attention"], DType.BF16)
    for head, taken in ((192, True), (256, False)):
        (kernel,) = lower(op, module, {"B": 1, "T": 256, "H": 1, "D": head}, B200).kernels
        instructions = {c.instruction for phase in kernel.phases for c in computes(phase) if c.instruction}
        assert instructions == {"tcgen05" if taken else "mma.sync"}


FULL = """
monoid expsum by m:
  m = max(a.m, b.m)
  x = a.x * exp(a.m - m) + b.x * exp(b.m - m)

op f(Q, K, V: bf16[T, D]) -> O: f32[T, D]:
  qk[q, k] = sum d: Q[q, d] * K[k, d]
  m[q], l[q], o[q, e] = expsum k by qk[q, k]: 1, V[k, e]
  O[q, e] = o[q, e] / l[q]

schedule f on sm_100a:
  q -> grid(128) / warpgroup(128) / mma
  k -> pipe(32, 2) / mma
  d, e -> mma
  fuse qk, m, l, o at k
  cast o.weight to real
  stage Q in shared at q by tma
  stage K, V in shared at k by tma
  use tcgen05 for qk, o
  overlap o
"""
DIMS = {"T": 128, "D": 16}


PLAIN = """
op f(Q, K, V: bf16[T, D]) -> O: f32[T, D]:
  qk[q, k] = sum d: Q[q, d] * K[k, d]
  o[q, e] = sum k: qk[q, k] * V[k, e]
  O[q, e] = o[q, e] * 0.5
"""


def test_a_sum_that_is_only_scaled_stays_in_tensor_memory() -> None:
    """It is loaded where a maximum has grown, and stored again. One that is only added to is never stored."""
    stays = compile_kernel(support.lowered(FULL, DIMS, B200), B200).ptx
    added_to = compile_kernel(support.lowered(plain(), DIMS, B200), B200).ptx
    assert "tcgen05.st.sync.aligned.16x256b" in stays
    assert "tcgen05.st.sync.aligned.16x256b" not in added_to


def plain() -> str:
    return PLAIN + FULL[FULL.index("\nschedule") :].replace("qk, m, l, o", "qk, o").replace("o.weight", "o.qk")


def test_a_sum_that_may_not_stay_is_added_up_in_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one is that a statement of its turn reads, for which no op is shipped."""
    monkeypatch.setattr(tensor_memory, "factor_of_sum", lambda *_: None)
    holds(FULL)


def test_warpgroups_may_have_64_rows() -> None:
    """Each warp 16 of them, in half of its lanes: of the result and of the weights, a left operand there."""
    text = FULL.replace("grid(128) / warpgroup(128)", "grid(128) / warpgroup(64)").replace("overlap o", "")
    holds(text)


AHEAD = FULL.replace("pipe(32, 2)", "pipe(32, 3)")
"""with room for the next turn's keys beside this one's values: its scores are computed a turn ahead"""


@pytest.mark.parametrize(
    "text", [AHEAD, FULL, FULL.replace("overlap o", ""), plain()], ids=["ahead", "overlap", "alone", "plain"]
)
def test_products_overlap_the_next_turn_or_end_in_their_own(text: str) -> None:
    holds(text)


def holds(text: str) -> None:
    """The oracle's result, without a finding."""
    module = load_text(text, "f.tc")
    op = module.ops["f"]
    inputs = stored_inputs(bound(op, DType.BF16), module, DIMS, DType.BF16)
    found, reports = reported(op, lower(op, module, DIMS, B200), inputs, B200, Options())
    assert all(r.ok for r in reports)
    wanted = evaluate(op, module, inputs, DIMS)["O"]
    assert np.max(np.abs(found["O"] - wanted)) < 2.0**-7 * np.abs(wanted).max()


BETWEEN = """
op f(Q, K, W, V: bf16[T, D]) -> O: f32[T, D]:
  qk[q, k] = sum d: Q[q, d] * K[k, d]
  s[q, k] = qk[q, k] * 0.5
  o[q, e] = sum k: s[q, k] * V[k, e]
  p[q, e] = sum k: s[q, k] * W[k, e]
  r[q, e] = sum k: s[q, k] * V[k, e]
  O[q, e] = o[q, e] + p[q, e] + r[q, e]

schedule f on sm_100a:
  q -> grid(128) / warpgroup(128) / mma
  k -> seq(64) / mma
  d, e -> mma
  fuse qk, s, o, p, r at k
  cast o.s to real
  cast p.s to real
  cast r.s to real
  stage Q in shared at q by copy swizzle
  stage K, W, V in shared at k by copy swizzle
  use tcgen05 for o, r
  use mma.sync for qk, p
"""


def test_threads_meet_again_behind_a_product_of_their_own() -> None:
    """All have read W's tile when r's product is issued: the next turn writes it without another barrier."""
    holds(BETWEEN)


@pytest.mark.parametrize(
    ("without", "finding"),
    [
        ("tcgen05.fence::after_thread_sync;", "missing tcgen05.fence"),
        ("tcgen05.fence::before_thread_sync;", "missing tcgen05.fence"),
        ("tcgen05.wait::ld.sync.aligned;", "missing tcgen05.wait"),
        ("tcgen05.wait::st.sync.aligned;", "missing tcgen05.wait"),
    ],
)
def test_what_a_kernel_may_not_leave_out_is_found(without: str, finding: str) -> None:
    """The tests above would notice."""
    kernel = support.lowered(FULL, DIMS, B200)
    gpu = compile_kernel(kernel, B200)
    broken = replace(gpu, ptx=gpu.ptx.replace(without, ""))
    assert broken.ptx != gpu.ptx
    with pytest.raises(KernelFault, match=finding):
        support.launch(kernel, broken, support.given(kernel, np.random.default_rng(1)), 100)


@pytest.mark.slow
def test_what_the_backward_pass_may_not_leave_out_is_found() -> None:
    """Scores' gradients that threads store for products, what they load and store in tensor memory, where they meet."""
    module, op = backward()
    dims = {"B": 1, "T": 70, "H": 1, "D": 16}
    lowered, inputs = lower(op, module, dims, B200), stored_inputs(op, module, dims, DType.BF16)
    codes = codes_of(lowered, B200)
    (name,) = (n for n, c in codes.items() if "tcgen05.mma" in c.ptx)
    for without in ("tcgen05.fence::after_thread_sync;", "tcgen05.fence::before_thread_sync;", "bar.sync \t1, 128;",
                    "tcgen05.wait::ld.sync.aligned;", "tcgen05.wait::st.sync.aligned;",
                    "fence.proxy.async.shared::cta;"):  # fmt: skip
        assert without in codes[name].ptx
        broken = codes | {name: replace(codes[name], ptx=codes[name].ptx.replace(without, ""))}
        with pytest.raises(KernelFault, match=r"tensor memory|tcgen05|proxy fence|race"):
            reported(op, lowered, inputs, B200, codes=broken)


REFUSED = {
    "has 128 rows for each warpgroup": ("grid(128) / warpgroup(128)", "grid(256) / warpgroup(128, 1)", 32),
    "columns of 128 rows in tensor memory": ("grid(128)", "grid(256)", 224),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_it_cannot_do_is_refused(why: str) -> None:
    old, new, head = REFUSED[why]
    kernel = support.lowered(FULL.replace(old, new), {"T": 512, "D": head}, B200)
    with pytest.raises(Unsupported, match=why):
        compile_kernel(kernel, B200)


@pytest.mark.slow
@pytest.mark.parametrize("head", [64, 128])
def test_the_assembler_takes_it_without_spills(head: int) -> None:
    module = library()
    op = bound(module.ops["attention"], DType.BF16)
    (kernel,) = lower(op, module, {"B": 16, "T": 1024, "H": 768 // head, "D": head}, B200).kernels
    (used,) = assemble(compile_kernel(kernel, B200).ptx, "sm_100a").resources
    assert used.spill_store_bytes == used.spill_load_bytes == used.stack_bytes == 0
