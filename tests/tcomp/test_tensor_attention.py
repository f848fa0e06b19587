"""Flash attention on tensor cores: where tiles live, what is summed where, and tests of the diagonal once a tile."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from published_attention import attention_text

from tcomp.autotune import virtual_run
from tcomp.autotune.virtual_run import codes_of
from tcomp.codegen.llvm.conditions import conditions, remaining, without
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.layout import shared_layout
from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Name, Num
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load, load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.ir.print import print_kernel
from tcomp.ir.tile import Axis, Compute, Kernel, Pack, Scope, Unpack
from tcomp.ir.walk import computes, statements_in
from tcomp.machine.gpu import machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.vgpu import Options
from tcomp.schedule.fold import by_exp2
from tcomp.schedule.joining.last_turn import kept_places
from tcomp.schedule.lower import lower
from tests.reference.op_cases import stored_inputs
from tests.test_ops_gpu import execute

DIMS = {"B": 1, "T": 256, "H": 2, "D": 64}
TARGETS = pytest.mark.parametrize("target", ["sm_80", "sm_90a"])


def assert_near(got: np.ndarray, wanted: np.ndarray, what: str) -> None:
    """Each element within half a unit of bf16's last place of itself and of the largest one; nearer on the whole."""
    distance = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert distance < 2**-8, f"{what}: relative L2 distance {distance:.1e}"
    allowed = 2.0**-8 * (np.abs(wanted) + np.abs(wanted).max())
    worst = (np.abs(got - wanted) / allowed).max()
    assert worst <= 1, f"{what}: an element is {worst:.2f} times as far off as allowed"


@cache
def kernels(target: str, backward: bool) -> tuple[Kernel, ...]:
    module = load("models/gpt2.tc")
    op = backward_of("attention", module) if backward else module.ops["attention"]
    assert op is not None
    return lower(bound(op, DType.BF16), module, DIMS, machine_for_target(target)).kernels


@pytest.mark.parametrize("target", ["sm_90a", "sm_100a"])
def test_a_product_runs_beside_the_next_turn_where_there_are_three(target: str) -> None:
    """With two it would be the first one's beside the second alone, and the last one's by itself as before."""
    op, machine = load("models/ops/attention.tc"), machine_for_target(target)
    for turns in (2, 3):
        dims = {**DIMS, "T": 64 * turns}
        (kernel,) = lower(bound(op.ops["attention"], DType.BF16), op, dims, machine, chosen={"BK": 64}).kernels
        late = {c.target.tensor for c in computes(kernel.phases[0]) if c.late}
        assert late == ({"o"} if turns > 2 else set()), turns


def test_the_copy_engine_is_fenced_once_before_it_takes_a_result() -> None:
    """The barrier that the products' operands need has the fence already."""
    ptx = compile_kernel(kernels("sm_90a", True)[-1], machine_for_target("sm_90a")).ptx
    code = [line.strip() for line in ptx.splitlines() if line.strip() and not line.strip().startswith("//")]
    fences = [n for n, line in enumerate(code) if line == "fence.proxy.async.shared::cta;"]
    assert fences and not any(n + 1 in fences for n in fences)


@TARGETS
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_only_operands_and_what_is_added_in_memory_are_in_shared_memory(target: str, backward: bool) -> None:
    for kernel in kernels(target, backward):
        for tile in kernel.tiles:
            results = ".out" in tile.name  # on their way to memory
            shared = ".shared" in tile.name or results or (target == "sm_90a" and tile.name == "ds")
            words = tile.name.endswith(".turns")
            assert tile.scope is (Scope.SHARED if shared else Scope.WORDS if words else Scope.REGISTERS), tile.name


@TARGETS
def test_every_product_of_the_backward_pass_is_by_matrix_instructions(target: str) -> None:
    products = {}
    for kernel in kernels(target, True):
        found = [c for phase in kernel.phases for c in computes(phase) if c.reduced]
        products[kernel.name] = [bool(c.instruction) for c in found]
    twice = {"attention.backward.dQKV.0": [True] * 3, "attention.backward.dQKV.1+dQKV.2": [True] * 4}
    once = {"attention.backward.dQKV.0+dQKV.1+dQKV.2": [True] * 5}
    assert products == {"attention.backward.delta": [False]} | (once if target == "sm_90a" else twice)


@TARGETS
def test_blocks_add_up_in_memory_in_turns_or_not_at_all(target: str) -> None:
    for kernel in kernels(target, True):
        operands = {o.name for o in kernel.operands}
        for phase in kernel.phases:
            assert not any(c.accumulate and c.target.tensor in operands for c in computes(phase))
            added = [s for s in statements_in(phase) if isinstance(s, Unpack) and s.add]
            assert all(s.turns is not None and s.turns.stores for s in added)


def test_no_tensor_of_scores_is_planned() -> None:
    """At any length: what blocks add up in memory is as large as the gradient, in f32, and a word for each tile."""
    module = load("models/gpt2.tc")
    op = backward_of("attention", module)
    assert op is not None
    for tokens in (1024, 16384):
        dims = {"B": 1, "T": tokens, "H": 16, "D": 128}
        found = lower(bound(op, DType.BF16), module, dims, machine_for_target("sm_90a"))
        sizes = {w.name: w.elements for w in found.workspaces}
        rows = tokens * 16
        assert sizes == {"delta": rows, "dQKV.0.joined": rows * 128}
        words = {b.name: b.elements for k in found.kernels for b in k.tiles if b.scope is Scope.WORDS}
        assert words == {"dQKV.0.turns": rows // 64}


def test_one_exponential_a_weight_and_one_a_row_for_sums_of_other_maxima() -> None:
    (kernel,) = kernels("sm_80", False)
    ptx = compile_kernel(kernel, machine_for_target("sm_80")).ptx
    weights, rows = 64 * 64 // 128, 2  # of a tile, per thread
    # The tile's code is there with and without the test of its points, and for tiles of which no point counts.
    assert ptx.count("ex2.approx.ftz.f32") == 2 * (weights + rows) + rows
    assert "ex2.approx.f32" not in ptx


# ------------------------------------------------------------------------------------------- results and machine code

SHORT = {"B": 1, "T": 48, "H": 1, "D": 128}
WIDE = {"B": 1, "T": 196, "H": 1, "D": 128}
"""heads at which a producer issues the copies"""
ODD = {"B": 2, "T": 65, "H": 2, "D": 64}
"""rows of L and delta that start at any multiple of 4 bytes"""
MULTI_HEAD, GROUPED = {"B": 1, "T": 260, "H": 2, "D": 64}, {"B": 1, "T": 332, "G": 1, "R": 2, "D": 128}


@pytest.mark.parametrize(
    "name,dims,target",
    [
        ("attention", MULTI_HEAD, "sm_90a"),
        pytest.param("attention.backward", MULTI_HEAD, "sm_90a", marks=pytest.mark.slow),
        ("attention.backward", ODD, "sm_90a"),
        pytest.param("attention", WIDE, "sm_90a", marks=pytest.mark.slow),
        pytest.param("attention.backward", WIDE, "sm_90a", marks=pytest.mark.slow),
        pytest.param("attention.backward", MULTI_HEAD, "sm_80", marks=pytest.mark.slow),
        pytest.param("grouped_attention", GROUPED, "sm_90a", marks=pytest.mark.slow),
        pytest.param("grouped_attention.backward", GROUPED, "sm_90a", marks=pytest.mark.slow),
        pytest.param("attention.backward", WIDE | {"T": 131}, "sm_90a", marks=pytest.mark.slow),
        pytest.param("attention.backward", WIDE | {"T": 131}, "sm_80", marks=pytest.mark.slow),
        pytest.param("attention.backward", SHORT | {"D": 80}, "sm_90a", marks=pytest.mark.slow),
        pytest.param("attention", SHORT | {"T": 70, "D": 256}, "sm_90a", marks=pytest.mark.slow),
    ],
)
def test_several_turns_against_the_oracle_and_bitwise_again(name: str, dims: dict[str, int], target: str) -> None:
    """Ragged, so that the last tiles are cut; all checks of the virtual GPU are on, and no warp meets a bank twice.
    Where blocks add to dQ in turns, another order of them gives the same bits."""
    module, machine = load("models/ops/attention.tc"), machine_for_target(target)
    op = backward_of(name.removesuffix(".backward"), module) if name.endswith(".backward") else module.ops[name]
    assert op is not None
    op = bound(op, DType.BF16)
    inputs = stored_inputs(op, module, dims)
    found = lower(op, module, dims, machine)
    codes = codes_of(found, machine)
    got = execute(found, op, inputs, machine, conflicts=0, codes=codes)
    for result, wanted in evaluate(op, module, inputs, dims).items():
        if result in got:
            assert_near(got[result], wanted, result)
    apart = "setmaxnreg" in "".join(code.ptx for code in codes.values())
    forward = not name.endswith(".backward")
    tile = 128 if forward and dims["D"] <= 128 else 64  # (with one tile of keys or queries there is no producer)
    producer = dims["D"] >= (128 if forward else 0)
    assert apart == (target == "sm_90a" and producer and dims["T"] > tile)
    if name.endswith(".backward") and target == "sm_90a" and dims in (ODD, GROUPED):
        again = virtual_run.execute(op, found, inputs, machine, Options(order=3), codes)
        assert all(again[n].tobytes() == a.tobytes() for n, a in got.items())


@pytest.mark.parametrize("width", [64, 128])
def test_the_output_leaves_from_the_place_of_the_queries_where_there_is_no_room_for_both(width: int) -> None:
    module, machine = load("models/ops/attention.tc"), machine_for_target("sm_90a")
    op = bound(module.ops["attention"], DType.BF16)
    (kernel,) = lower(op, module, {"B": 1, "T": 512, "H": 1, "D": width}, machine).kernels
    layout = shared_layout(kernel.phases[0], kernel, machine.shared_per_block)
    (output,) = (u.buffer for u in statements_in(kernel.phases[0]) if isinstance(u, Unpack))
    queries = next(p.buffer for p in statements_in(kernel.phases[0]) if isinstance(p, Pack))
    apart = shared_layout(kernel.phases[0], kernel, 2**20)
    assert apart.offsets[output] != apart.offsets[queries] and not apart.successors
    assert (layout.offsets[output] == layout.offsets[queries]) == (width == 128)
    barriers = [
        compile_kernel(kernel, m).ptx.count("bar.sync") for m in (machine, replace(machine, shared_per_block=2**18))
    ]
    assert barriers[0] == barriers[1] + (width == 128)  # nobody writes before all have read


def backward_kernels(dims: dict[str, int], producer: int) -> tuple[Kernel, ...]:
    module, machine = load("models/ops/attention.tc"), machine_for_target("sm_90a")
    op = backward_of("attention", module)
    assert op is not None
    chosen = {"dQKV.0+dQKV.1+dQKV.2.P": producer}
    return lower(bound(op, DType.BF16), module, dims, machine, chosen=chosen).kernels


def test_a_warp_of_the_producer_takes_the_turns_and_no_thread_that_computes_waits_for_one() -> None:
    machine = machine_for_target("sm_90a")
    apart, together = (compile_kernel(backward_kernels(MULTI_HEAD, p)[1], machine).ptx for p in (24, 0))
    deliverer = apart[apart.index("setmaxnreg.dec") :].split("setmaxnreg.inc")[0]
    assert apart.count("ld.acquire.gpu") == apart.count("st.release.gpu") == deliverer.count("ld.acquire.gpu") == 1
    assert deliverer.count("cp.reduce.async.bulk") == 2  # panels of 32 columns
    assert together.count("st.release.gpu") == 3  # in the loop, where the sums are read, and in the end


def test_gradients_of_scores_go_to_their_tile_by_stmatrix() -> None:
    """Two rows of 128 queries, shared by four lanes, are 8 instructions of 4 words; so are the gradients that leave."""
    ptx = compile_kernel(
        backward_kernels({"B": 1, "T": 1024, "H": 1, "D": 64}, 24)[-1], machine_for_target("sm_90a")
    ).ptx
    assert ptx.count("stmatrix.sync.aligned.m8n8.x4.shared.b16") == 8 + 2 * 4


@pytest.mark.slow
def test_dq_is_the_same_bits_whoever_adds_it() -> None:
    module, machine = load("models/ops/attention.tc"), machine_for_target("sm_90a")
    op = backward_of("attention", module)
    assert op is not None
    op = bound(op, DType.BF16)
    inputs = stored_inputs(op, module, MULTI_HEAD)
    results = []
    for producer in (0, 24):
        chosen = {"dQKV.0+dQKV.1+dQKV.2.P": producer}
        results.append(execute(lower(op, module, MULTI_HEAD, machine, chosen=chosen), op, inputs, machine)["dQKV"])
    assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.parametrize("tokens,parts", [(1024, 8), (200, 2), (64, 1)])
def test_the_block_whose_turn_is_last_writes_dq(tokens: int, parts: int) -> None:
    """With `reverse k` the keys that all queries see come last. Else some queries have no last turn in common."""
    last_tile = "seq q.dQKV.0.0 in 0 .. max(0, 1 - k.0)"
    dims, machine = {"B": 1, "T": tokens, "H": 1, "D": 64}, machine_for_target("sm_90a")
    text = Path("models/ops/attention.tc").read_text()
    for changed in (text, text.replace("      reverse k\n", "")):
        module = load_text(changed, "models/ops/attention.tc")
        op = backward_of("attention", module)
        assert op is not None
        kernel = lower(bound(op, DType.BF16), module, dims, machine).kernels[-1]
        together = changed == text or parts == 1
        if parts > 1:
            assert (last_tile in print_kernel(kernel)) == together
        # (Else words are cleared first, and dQ is written last, by launches of their own.)
        assert len(kernel.phases) == (1 if together else 3)
        assert any(b.scope is Scope.WORDS for b in kernel.tiles) == together


def test_an_output_of_the_last_block_takes_no_place_that_others_still_read() -> None:
    module, machine = load("models/ops/attention.tc"), machine_for_target("sm_90a")
    op = backward_of("grouped_attention", module)
    assert op is not None
    kernel = lower(bound(op, DType.BF16), module, GROUPED, machine).kernels[-1]
    assert ("dQ", "Q") in kernel.inplace  # read in the turn in which it is added for
    pairs = frozenset({("dQ", "Q"), ("dQ", "K"), ("dK", "K")})
    assert kept_places(kernel.phases, {"dQ"}, pairs) == {("dQ", "Q"), ("dK", "K")}


@pytest.mark.slow
@pytest.mark.parametrize("order", ["", "      reverse k\n      persistent\n"], ids=["forward", "persistent"])
def test_without_a_last_block_a_launch_writes_dq(order: str) -> None:
    """Also where blocks take tile after tile: the last one of a head has others before and behind it."""
    text = Path("models/ops/attention.tc").read_text().replace("      reverse k\n", order)
    module, machine = load_text(text, "models/ops/attention.tc"), replace(machine_for_target("sm_90a"), sms=2)
    op = backward_of("attention", module)
    assert op is not None
    op = bound(op, DType.BF16)
    inputs = stored_inputs(op, module, MULTI_HEAD)
    got, wanted = (
        execute(lower(op, module, MULTI_HEAD, machine), op, inputs, machine),
        evaluate(op, module, inputs, MULTI_HEAD),
    )
    assert_near(got["dQKV"], wanted["dQKV"], "dQKV")


@pytest.mark.slow
@pytest.mark.parametrize("head", [64, 128])
def test_attention_without_a_mask(head: int) -> None:
    """What docs/gpu-kernels.md calls full: the same schedule on the equations without their guards."""
    module, machine = load_text(attention_text(causal=False), "ops/attention.tc"), machine_for_target("sm_90a")
    dims = {"B": 1, "T": 130, "H": 1, "D": head}
    for op in (module.ops["attention"], backward_of("attention", module)):
        assert op is not None
        op = bound(op, DType.BF16)
        inputs = stored_inputs(op, module, dims)
        got = execute(lower(op, module, dims, machine), op, inputs, machine, conflicts=0)
        for result, wanted in evaluate(op, module, inputs, dims).items():
            if result in got:
                assert_near(got[result], wanted, result)


@pytest.mark.slow
def test_backward_with_dq_added_in_any_order_is_as_near_to_the_oracle() -> None:
    """`by atomic` in the place of `by turns`: the same kernel, whose blocks wait for nobody; runs may differ."""
    text = attention_text(causal=True).replace("by turns", "by atomic")
    module, machine = load_text(text, "ops/attention.tc"), machine_for_target("sm_90a")
    op = backward_of("attention", module)
    assert op is not None
    op, dims = bound(op, DType.BF16), {"B": 1, "T": 196, "H": 1, "D": 64}
    inputs = stored_inputs(op, module, dims)
    with pytest.raises(TcError, match="depend on the order"):
        lower(op, module, dims, machine)
    found = lower(op, module, dims, machine, deterministic=False)
    assert "ld.acquire" not in compile_kernel(found.kernels[-1], machine).ptx
    got, wanted = execute(found, op, inputs, machine, conflicts=0)["dQKV"], evaluate(op, module, inputs, dims)["dQKV"]
    assert_near(got, wanted, "dQKV")


@pytest.mark.slow
@TARGETS
@pytest.mark.parametrize("head", [64, 128])
@pytest.mark.parametrize("name", ["attention", "grouped_attention"])
def test_shipped_schedules_assemble_without_a_finding(name: str, head: int, target: str) -> None:
    module, machine = load("models/ops/attention.tc"), machine_for_target(target)
    dims = {"B": 1, "T": 1024, "H": 4, "G": 1, "R": 4, "D": head}
    for op in (module.ops[name], backward_of(name, module)):
        assert op is not None
        for kernel in lower(bound(op, DType.BF16), module, dims, machine).kernels:
            assert not assemble(compile_kernel(kernel, machine).ptx, target).findings, kernel.name


@pytest.mark.slow
@pytest.mark.parametrize("tokens,head", [(65, 128), (130, 64), (257, 64), (1025, 64), (1023, 128)])
def test_backward_of_any_length_runs_on_wgmma_without_a_spill(tokens: int, head: int) -> None:
    module, machine = load("models/ops/attention.tc"), machine_for_target("sm_90a")
    op = backward_of("attention", module)
    assert op is not None
    kernel = lower(bound(op, DType.BF16), module, {"B": 1, "T": tokens, "H": 4, "D": head}, machine).kernels[-1]
    ptx = compile_kernel(kernel, machine).ptx
    assert "wgmma" in ptx and "cp.async.bulk.tensor.1d" in ptx
    assert not assemble(ptx, "sm_90a").findings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "tokens"),
    [
        ("sm_80", 67),
        ("sm_80", 131),
        ("sm_80", 257),
        ("sm_80", 1001),
        ("sm_89", 131),
        ("sm_100a", 67),
        ("sm_120a", 1001),
    ],
)
@pytest.mark.parametrize("name", ["attention", "attention.backward", "grouped_attention"])
def test_short_last_turns_of_wide_heads_spill_nothing(name: str, target: str, tokens: int) -> None:
    """Every register of a thread is in use there, and addresses of a cut turn are kept inside of their tensors."""
    module, machine = load("models/ops/attention.tc"), machine_for_target(target)
    op = backward_of(name.removesuffix(".backward"), module) if name.endswith(".backward") else module.ops[name]
    assert op is not None
    dims = {"B": 1, "T": tokens, "H": 4, "G": 1, "R": 2, "D": 128}
    for kernel in lower(bound(op, DType.BF16), module, dims, machine).kernels:
        assert not assemble(compile_kernel(kernel, machine).ptx, target).findings, kernel.name


@pytest.mark.slow
@pytest.mark.parametrize("head", [160, 256])
def test_heads_wider_than_128_have_a_schedule_on_hopper(head: int) -> None:
    """Forward on wgmma, in smaller tiles; backward on mma.sync, as its sums do not fit a warpgroup's registers."""
    module, machine = load("models/ops/attention.tc"), machine_for_target("sm_90a")
    dims = {"B": 1, "T": 1024, "H": 1, "D": head}
    forward, backward = module.ops["attention"], backward_of("attention", module)
    assert backward is not None
    (kernel,) = lower(bound(forward, DType.BF16), module, dims, machine).kernels
    ptx = compile_kernel(kernel, machine).ptx
    assert "wgmma" in ptx and not assemble(ptx, "sm_90a").findings
    for kernel in lower(bound(backward, DType.BF16), module, dims, machine).kernels[1:]:
        ptx = compile_kernel(kernel, machine).ptx
        assert "mma.sync" in ptx and (head > 160 or not assemble(ptx, "sm_90a").findings)
    op, dims = bound(backward, DType.BF16), {**dims, "T": 70}
    inputs = stored_inputs(op, module, dims)
    got = execute(lower(op, module, dims, machine), op, inputs, machine)
    assert_near(got["dQKV"], evaluate(op, module, inputs, dims)["dQKV"], "dQKV")


@pytest.mark.slow
@pytest.mark.parametrize("head", [33, 72, 80, 96, 100, 104, 112])
def test_heads_of_any_width_spill_nothing_on_hopper(head: int) -> None:
    module, machine = load("models/ops/attention.tc"), machine_for_target("sm_90a")
    for op in (module.ops["attention"], backward_of("attention", module)):
        assert op is not None
        for kernel in lower(bound(op, DType.BF16), module, {"B": 1, "T": 1024, "H": 2, "D": head}, machine).kernels:
            assert not assemble(compile_kernel(kernel, machine).ptx, "sm_90a").findings, kernel.name


@pytest.mark.parametrize("head,steps", [(80, 5), (96, 6), (128, 8)])
def test_no_scores_are_multiplied_past_the_end_of_a_head(head: int, steps: int) -> None:
    """The gradient of queries has tiles of 128 channels, so all products have; scores sum over the head's alone."""
    module, machine = load("models/ops/attention.tc"), machine_for_target("sm_90a")
    op = backward_of("attention", module)
    assert op is not None
    kernel = lower(bound(op, DType.BF16), module, {"B": 1, "T": 256, "H": 1, "D": head}, machine).kernels[-1]
    scores = 2 * steps  # (qk and dp, 16 channels at a time; the third of the shape sums over 128 keys)
    assert compile_kernel(kernel, machine).ptx.count("wgmma.mma_async.sync.aligned.m64n64k16") == scores + 128 // 16


# --------------------------------------------------------------------------------------------------------- rewrites


def test_exp_of_a_scaled_difference_becomes_one_multiply_add() -> None:
    a, m = Access("a", (Name("i"),)), Access("m", ())
    scaled = by_exp2(Call("exp", (Binary("-", Binary("*", a, Num(0.125)), m),)))
    assert isinstance(scaled, Call) and scaled.function == "exp2"
    difference = scaled.args[0]
    assert isinstance(difference, Binary) and difference.op == "-"
    assert difference.left == Binary("*", a, Num(0.125 * 1.4426950408889634))
    assert difference.right == Binary("*", m, Num(1.4426950408889634))


def test_exp_of_a_difference_without_a_factor_is_one_where_there_is_none() -> None:
    old, new = Access("m", ()), Access("m.new", ())
    scaled = by_exp2(Call("exp", (Binary("-", old, new),)))
    assert scaled == Call("exp2", (Binary("*", Binary("-", old, new), Num(1.4426950408889634)),))


def causal(value: Expr, guard: Expr | None) -> Compute:
    axes = (Axis("q", Name("q.0"), Num(64), 64), Axis("k", Name("k.0"), Num(64), 64))
    return Compute(Access("p", (Name("q"), Name("k"))), value, axes, guard=guard)


def test_conditions_on_axes_are_lifted_out_of_guards_and_selects() -> None:
    below, data = Binary("<=", Name("k"), Name("q")), Binary("<", Access("x", (Name("k"),)), Num(0.0))
    chosen = Call("select", (below, Name("k"), Num(0.0)))
    node = causal(chosen, Binary("and", below, data))
    assert conditions(node) == [below]
    assert without(node.value, [below]) == Name("k")
    assert remaining(node.guard, [below]) == data
    # What depends on memory, or on no axis, stays.
    assert conditions(causal(Call("select", (data, Name("k"), Num(0.0))), None)) == []


@pytest.mark.parametrize("length", [65, 96, 128])
def test_a_block_with_one_turn_stores_what_it_would_add(length: int) -> None:
    """Nothing is added to memory that was never written."""
    module, machine = load("models/gpt2.tc"), machine_for_target("sm_90a")
    op = bound(backward_of("attention", module), DType.BF16)  # type: ignore[arg-type]
    dims = {"B": 1, "T": length, "H": 2, "D": 64}
    inputs = stored_inputs(op, module, dims, DType.BF16)
    got = execute(lower(op, module, dims, machine), op, inputs, machine)
    assert_near(got["dQKV"], evaluate(op, module, inputs, dims)["dQKV"], "dQKV")
