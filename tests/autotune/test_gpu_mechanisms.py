"""Mechanisms of the static model that what GPUs measured asked for (tests/benchmarks/test_gpu_measured.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tcomp.autotune.gpu_conditions import DIRTY, Moves, clock_of_step, clock_under_load, flushed, left_in_cache, settled
from tcomp.autotune.gpu_model import BEGINNING, HBM_EFFICIENCY, LAUNCH, BlockWork, LaunchWork, Ring, predict
from tcomp.autotune.gpu_predict import predict_kernel
from tcomp.autotune.gpu_traffic import phase_moves, phase_traffic
from tcomp.autotune.sass import functions_of
from tcomp.autotune.sass_walk import Walk
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.dsl.ast import DType
from tcomp.dsl.load import library, load, load_text
from tcomp.dsl.storage import bound
from tcomp.grad.accumulate import restricted
from tcomp.machine.gpu import A100, H100, H200
from tcomp.model.programs import build_programs
from tcomp.model.unroll import build_graph
from tcomp.schedule.lower import lower

nvdisasm = pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="needs nvdisasm")
MB = 1e6


def test_the_clock_falls_under_the_load_of_the_matrix_units() -> None:
    assert clock_under_load(H100, 0.0) == H100.max_clock_hz > clock_under_load(H100, 0.5) > clock_under_load(H100, 1.0)
    assert clock_under_load(A100, 0.0) == clock_under_load(A100, 1.0)  # (of others it is not known)
    ring = Ring(1000, 0.0, 4, tensor=1000.0)
    busy, idle = (predict(LaunchWork("x", 132, 1, BlockWork(rings=(ring,), tensor=t), 0.0), H100) for t in (1e6, 1.0))
    assert 1.15 < busy.seconds / idle.seconds < 1.35


def test_a_step_has_one_clock_at_most_for_all_its_launches() -> None:
    assert clock_of_step(H100, 0.0) == H100.max_clock_hz > clock_of_step(H100, 0.5) > clock_of_step(H100, 1.0)
    assert clock_of_step(A100, 0.0) == clock_of_step(A100, 1.0) == clock_under_load(A100, 0.5)
    idle = LaunchWork("x", 132, 1, BlockWork(issue=4e6), 0.0)
    slow, fast = (predict(idle, H100, most=m).seconds for m in (H100.max_clock_hz / 2, 2 * H100.max_clock_hz))
    assert slow - LAUNCH == pytest.approx(2 * (fast - LAUNCH)) and fast == predict(idle, H100).seconds


def test_products_take_a_while_to_begin_and_to_end_whatever_there_is_of_them() -> None:
    works = [Ring(turns, 0.0, 4, tensor=1000.0) for turns in (1.0, 100.0)]
    for sides in (1, 2):
        found = [
            predict(LaunchWork("x", 132, 1, BlockWork(rings=(replace(r, sides=sides),)), 0.0), H100) for r in works
        ]
        assert all(p.seconds > LAUNCH + BEGINNING / H100.max_clock_hz for p in found)
        assert found[1].seconds < 20 * found[0].seconds
    copies = replace(works[0], tensor=0.0)
    assert predict(LaunchWork("x", 132, 1, BlockWork(rings=(copies,)), 0.0), H100).seconds < BEGINNING / 1.9e9


def test_what_a_fill_of_l2_leaves_is_more_and_stays_where_nothing_drives_it_out() -> None:
    full = flushed(H100)
    assert full > 2 * DIRTY * H100.l2_bytes
    assert left_in_cache(full, Moves(1e4, 0.0), H100) == full - 1e4
    assert left_in_cache(full, Moves(100 * MB, 100 * MB), H100) == DIRTY * H100.l2_bytes
    passes = LaunchWork("x", 132, 1, BlockWork(), 60 * MB, moves=Moves(60 * MB, 0.0))
    assert predict(passes, H100, full).hbm_bytes == 60 * MB + full


def test_what_a_launch_leaves_in_l2_the_next_one_writes() -> None:
    full = DIRTY * H100.l2_bytes
    assert left_in_cache(full, Moves(100 * MB, 0.0), H100) == 0.0
    assert left_in_cache(0.0, Moves(100 * MB, 100 * MB), H100) == full
    assert left_in_cache(full, Moves(1000.0, 0.0), H100) == full - 1000.0  # (a short one drives little out)
    writer, reader = Moves(50 * MB, 50 * MB), Moves(50 * MB, 0.0)
    assert settled([writer, reader], H100) == [0.0, full]
    passes = LaunchWork("x", 132, 1, BlockWork(), 50 * MB, moves=reader)
    behind, alone = (predict(passes, H100, before) for before in (full, 0.0))
    assert behind.hbm_bytes - alone.hbm_bytes == full and behind.seconds > 1.25 * alone.seconds
    assert predict(replace(passes, hbm_bytes=0.0, moves=Moves(0.0, 0.0)), H100, full).hbm_bytes == 0.0


def test_memory_overlaps_less_with_the_rest_than_units_with_each_other() -> None:
    cycles = 1e6
    two = BlockWork(fma=cycles * H100.f32_per_clock / 32, special=cycles * H100.special_per_clock / 32, start=0.0)
    alone = predict(LaunchWork("x", 132, 1, replace(two, special=0.0), 0.0), H100).seconds - LAUNCH
    units = predict(LaunchWork("x", 132, 1, two, 0.0), H100).seconds - LAUNCH
    moved = alone * H100.memory_bandwidth * HBM_EFFICIENCY
    memory = predict(LaunchWork("x", 132, 1, replace(two, special=0.0), moved), H100).seconds - LAUNCH
    assert units / alone == pytest.approx(2 ** (1 / 8), rel=0.01) and memory / alone == pytest.approx(
        2 ** (1 / 4), rel=0.01
    )


@pytest.mark.slow
@nvdisasm
def test_of_two_tiles_by_two_sides_the_one_that_was_faster_is_predicted_so() -> None:
    """GELU's derivative in the product before it, 144.4 and 137.3 us on an H200. Both sides' loops replayed at once,
    though one multiplies at a time, had made the first the faster."""
    module = load(library() / "gpt2.tc")
    graph = build_graph(module, "gpt2", "tiny", {"B": 2, "T": 16}, {"L": 1}, "bf16")
    backward = build_programs(graph, module, targets=("gpu",)).backward
    op = restricted(next(n.op for n in backward if n.op.operand("P") is not None), frozenset({"dX"}))
    dims = {"M": 16384, "N": 768, "K": 3072}
    square, wide = (
        predict_kernel(lower(op, module, dims, H200, chosen=chosen).kernels[0], H200).seconds
        for chosen in ({"dX.BN": 128, "dX.KC": 64, "dX.S": 5}, {})
    )
    assert 0.85 * square < wide < 0.97 * square


def test_a_warp_that_hands_results_over_in_turn_bounds_the_loop() -> None:
    ring = Ring(1000, 0.0, 4, tensor=1000.0, delivery=3000.0)
    slow, fast = (
        predict(LaunchWork("x", 132, 1, BlockWork(rings=(r,)), 0.0), H100) for r in (ring, replace(ring, delivery=0.0))
    )
    assert slow.seconds - LAUNCH > 2.5 * (fast.seconds - LAUNCH)


def test_a_jump_through_a_table_is_followed() -> None:
    text = [
        "S2R R0, SR_TID.X", "MOV R1, 0x2", "VIADDMNMX.U32 R0, R0, 0xfffffffe, R1, PT", "SHF.L.U32 R0, R0, 0x2, RZ",
        "LDC R2, c[0x2][R0]", 'BRX R2 -0x60 (*"BRANCH_TARGETS .L_x_0,.L_x_1,.L_x_2"*)',
        ".L_x_1:", "EXIT", ".L_x_0:", "STG.E [R4.64], R24", "EXIT", ".L_x_2:", "EXIT",
    ]  # fmt: skip
    lines = [x if x.endswith(":") else f"        /*{16 * n:04x}*/ {x} ;" for n, x in enumerate(text)]
    function = functions_of("\n".join([".text.k:", *lines]))["k"]
    ways = [Walk(function, {"SR_TID.X": thread}, {}).run() for thread in (2, 3, 4, 9)]
    assert [w.path for w in ways] == [(0, 2), (0, 1), (0, 3), (0, 3)] and not any(w.unknown for w in ways)


def test_of_a_tensor_whose_parts_are_named_those_parts_move() -> None:
    module = load_text("op pick(Q: real[3, N]) -> Y: real[N]:\n  Y[n] = Q[1, n] + Q[2, n]\n", "pick.tc")
    n = 1 << 24
    (kernel,) = lower(bound(module.ops["pick"], DType.BF16), module, {"N": n}, H100).kernels
    assert phase_moves(kernel, kernel.phases[0]) == Moves(4 * n, 2 * n)
    assert phase_traffic(kernel, kernel.phases[0], H100, 1) == pytest.approx(6 * n, rel=0.01)
