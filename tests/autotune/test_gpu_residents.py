"""Blocks beside each other on an SM: what the ends of their tiles cost, and what of that others hide."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.autotune.gpu_epilogue import STORES, WARPS, epilogue
from tcomp.autotune.gpu_predict import predict_kernel
from tcomp.autotune.gpu_replay import pace
from tcomp.autotune.gpu_residents import WAIT, Residents, residents
from tcomp.autotune.opcodes import matrix_cycles
from tcomp.autotune.sass import Function
from tcomp.autotune.sass_registers import all_read, all_written
from tcomp.autotune.sass_walk import Walk
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.dsl.ast import DType
from tcomp.dsl.storage import bound
from tcomp.machine.gpu import A100, H100, MACHINES
from tcomp.schedule.lower import lower
from tests.autotune.support import code, gpt2

nvdisasm = pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="needs nvdisasm")
TURNS, PRODUCTS, RESULTS = 24, 8, 40


def product(tiles: int = 1) -> Function:
    """A loop of mma.sync behind a barrier, and stores of its results; `tiles` of that one after the other."""
    loop: list[str] = []
    for t in range(tiles):
        loop += [
            "MOV R1, RZ", f".L_x_{t}:", "BAR.SYNC.DEFER_BLOCKING 0x0", "LDSM.16.M88.4 R8, [R2]",
            *(f"HMMA.16816.F32.BF16 R{40 + 4 * n}, R8, R12, R{40 + 4 * n}" for n in range(PRODUCTS)),
            "IADD3 R1, R1, 0x1, RZ", f"ISETP.GE.U32.AND P0, PT, R1, {hex(TURNS)}, PT", f"@!P0 BRA `(.L_x_{t})",
            *("STG.E.128 [R4.64], R40" for _ in range(RESULTS)),
        ]  # fmt: skip
    return code(*loop, "EXIT")


def side_by_side(function: Function, blocks: int) -> Residents | None:
    return residents(function, (Walk(function, {}, {}).run().path,), blocks, A100)


def test_a_block_alone_multiplies_nothing_while_it_starts_and_ends() -> None:
    alone = side_by_side(product(), 1)
    assert alone is not None and alone.turns == TURNS
    assert alone.cycles > PRODUCTS * 8.0  # (an m16n8k16 takes 8 cycles of an A100's partition)
    assert alone.beyond > WAIT + (RESULTS - 1) * WARPS * STORES["STG"] and alone.ends == 0.0


def test_others_hide_a_part_of_it_and_the_unit_is_shared() -> None:
    alone, two = (side_by_side(product(), n) for n in (1, 2))
    assert alone is not None and two is not None
    times = [r.turns * r.cycles + r.beyond for r in (alone, two)]
    assert times[0] <= times[1] < 2 * times[0]
    assert two.cycles > 1.999 * PRODUCTS * 8.0
    assert two.beyond + two.ends == pytest.approx(max(alone.beyond, two.beyond))


def test_of_a_block_with_several_tiles_nothing_is_said() -> None:
    assert side_by_side(product(tiles=2), 1) is None


def test_turns_are_counted_while_all_are_at_theirs() -> None:
    """One gets on twice as fast while it is there: together three turns in 20 cycles, so one in 13.3 of a warp."""
    assert pace([[0.0, 10.0, 20.0, 30.0, 40.0], [0.0, 20.0, 40.0, 45.0, 50.0]]) == pytest.approx(40.0 / 3)
    assert pace([[0.0], [0.0, 1.0]]) is None


def test_results_stored_in_the_last_product_s_own_block_count() -> None:
    together = code(
        "HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x0",
        *("STG.E [R4.64], R24" for _ in range(RESULTS)), "EXIT",
    )  # fmt: skip
    found = epilogue(together, [(0,)], True, H100)
    assert found.cycles > (RESULTS - 1) * WARPS * STORES["STG"]


def test_of_warpgroups_a_turn_apart_one_multiplies_while_the_other_stores() -> None:
    def end(passing: str) -> Function:
        return code(
            "HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x0", passing,
            *("STG.E [R4.64], R24" for _ in range(RESULTS)), "EXIT",
        )  # fmt: skip

    def idle(function: Function, turn: float) -> float:
        return epilogue(function, [(0,), (0,)], True, H100, turn).cycles

    one = RESULTS * WARPS * STORES["STG"]
    together, apart = end("NOP"), end("BAR.ARV R7, 0x100")
    assert idle(together, 500.0) == idle(together, 0.0) == pytest.approx(2 * one, rel=0.1)
    assert idle(apart, 500.0) == pytest.approx(2 * (one - 500.0), rel=0.1)
    assert idle(apart, one + 100.0) < 2.0


def test_wide_operands_are_all_their_registers() -> None:
    (load, multiply, tf32, store) = code(
        "LDSM.16.M88.2 R8, [R2]", "HMMA.1688.F32.BF16 R40, R8, R12, R44",
        "HMMA.1688.F32.TF32 R40, R8.reuse, R12, R44", "STS.128 [R3], R60",
    ).instructions  # fmt: skip
    assert set(all_written(load)) == {"R8", "R9"}
    assert set(all_written(multiply)) == {f"R{n}" for n in range(40, 44)}
    assert set(all_read(multiply)) == {"R8", "R9", "R12", "R44", "R45", "R46", "R47"}
    assert {"R11", "R13"} <= set(all_read(tf32)) and {"R3", "R60", "R63"} <= set(all_read(store))
    assert matrix_cycles(tf32, A100) == pytest.approx(8.0, rel=0.01)
    assert matrix_cycles(load, A100) == 0.0


PUBLISHED = (
    ("a100", 4096, 267.0),  # cuBLAS, f16 (github.com/triton-lang/triton/issues/4876)
    ("rtx4090", 4096, 0.93 * 165.2),  # cuBLAS and the best hand-written kernel, "a fast matmul on the Ada architecture"
    ("rtx5090", 8192, 203.0),  # cuBLAS, bf16, the upper end of 191 to 203 (gau-nernst, learn-cuda)
)


@pytest.mark.slow
@nvdisasm
@pytest.mark.parametrize(("gpu", "size", "published"), PUBLISHED)
def test_products_by_mma_sync_are_not_predicted_beyond_cublas(
    gpu: str, size: int, published: float, tmp_path: Path
) -> None:
    """Simpler kernels than cuBLAS's, so a prediction beyond its published rate would be a flattering one."""
    module, machine = gpt2(), MACHINES[gpu]
    op = bound(module.ops["matmul"], DType.BF16)
    (kernel,) = lower(op, module, {"M": size, "N": size, "K": size}, machine).kernels
    found = predict_kernel(kernel, machine, tmp_path)
    assert 0.5 * published < found.launches[0].tflops < published and not found.assembled.findings
