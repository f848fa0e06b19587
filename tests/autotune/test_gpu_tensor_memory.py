"""The static model reads products by tcgen05: what they multiply, how many there are, what a turn of theirs takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.autotune.gpu_copies import copies_of
from tcomp.autotune.gpu_counts import Copies
from tcomp.autotune.gpu_epilogue import behind_products, loaded
from tcomp.autotune.gpu_predict import predict_kernel
from tcomp.autotune.gpu_replay import replay, running_products
from tcomp.autotune.gpu_sample import sample_block
from tcomp.autotune.gpu_work import Known, launch_work
from tcomp.autotune.sass import functions_of
from tcomp.autotune.sass_descriptors import TENSOR_MEMORY_MATRIX, blocks_of, described
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.assembly.disassemble import disassemble
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.launch import LaunchShape
from tcomp.codegen.nvptx.products.block_pairs import in_pairs
from tcomp.dsl.load import load_text
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import MACHINES
from tcomp.schedule.lower import lower
from tests.tcomp.nvptx.test_tensor_memory import text

B200 = MACHINES["b200"]
nvdisasm = pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="nvdisasm is not installed")
SASS = """
.text.k:
        /*0000*/                   UMOV UR35, {} ;
        /*0010*/                   {} gdesc[UR8], gdesc[UR12], tmem[UR39], tmem[UR34], idesc[UR35], UP0 ;
        /*0020*/                   UMOV UR35, 0x0 ;
        /*0030*/                   EXIT ;
"""


def kernel(m: int, n: int, k: int, rows: str = "grid.y(256)") -> Kernel:
    module = load_text(text(y="bf16", rows=256, columns=128).replace("grid.y(256)", rows), "f.tc")
    return lower(module.ops["f"], module, {"M": m, "N": n, "K": k}, B200).kernels[0]


def test_the_descriptor_says_what_is_multiplied() -> None:
    for bits, opcode, wanted in (("0x8200490", "UTCHMMA", (128, 128, 16, "bf16")),
                                 ("0x4100910", "UTCHMMA", (64, 64, 8, "tf32")),
                                 ("0x8400010", "UTCQMMA", (128, 256, 32, "e4m3"))):  # fmt: skip
        function = functions_of(SASS.format(bits, opcode))["k"]
        assert described(function, function.instructions[1]) == wanted
    function = functions_of(SASS.format("UR4", "UTCHMMA"))["k"]
    with pytest.raises(ValueError, match="is no constant"):
        described(function, function.instructions[1])


def test_launches_say_how_many_columns_a_block_takes() -> None:
    """128 for each of two warpgroups' rows; a persistent block's next tile has others."""
    (launch,) = compile_kernel(kernel(512, 256, 64), B200).launches
    assert launch.tensor_columns == 512


TILES = """
.text.k:
        /*0000*/                   LDTM.16dp256bit.x1 R4, tmem[UR4] ;
        /*0010*/                   MUFU.EX2 R5, R4 ;
        /*0020*/                   STS.128 [R8], R4 ;
        /*0030*/              @!P0 BRA 0x0 ;
        /*0040*/                   EXIT ;
"""


def test_ends_of_tiles_run_beside_products_but_for_the_last() -> None:
    function = functions_of(TILES)["k"]
    assert [len(loaded(function, (0,) * n + (1,))) for n in (1, 3)] == [1, 3]
    one = behind_products(function, [(0, 1)], B200, 100.0).cycles
    assert 10 < one < 100
    assert behind_products(function, [(0, 0, 0, 1)], B200, 3000.0).cycles == pytest.approx(one, abs=1)
    short = behind_products(function, [(0, 0, 0, 1)], B200, 3.0).cycles
    assert short > 2.5 * one
    assert behind_products(function, [], B200, 3.0).cycles == 0


def test_panels_of_a_sum_are_parts_of_one_tile() -> None:
    """Blocks 0 and 1 load the first columns and the others."""
    first, rest = TILES.split("/*0030*/", 1)
    again = "".join(TILES.splitlines(True)[2:6]).replace("*00", "*10").replace("0x0", "0x1000")
    function = functions_of(first + "/*0030*/              @!P0 BRA 0x1000 ;\n" + again + rest.split("\n", 1)[1])["k"]
    loads = [n for n, b in enumerate(function.blocks) if any(i.name == "LDTM" for i in b.instructions)]
    assert len(loads) == 2
    assert [len(loaded(function, tuple(loads) * n)) for n in (1, 3)] == [1, 3]


@nvdisasm
def test_products_by_one_thread_are_counted(tmp_path: Path) -> None:
    own = kernel(1024, 512, 384)
    code = compile_kernel(own, B200)
    function = functions_of(disassemble(assemble(code.ptx, "sm_100a", tmp_path).cubin))[code.launches[0].symbol]
    sample = sample_block(function, code.launches[0], 1, {}, copies_of(own, own.phases[0]))
    assert sample.tcgen05 and not sample.wgmma
    assert [dict(c.flops) for _, c in sample.warps if c.flops] == [{("bf16", "tcgen05"): 2.0 * 256 * 128 * 384}]


@nvdisasm
def test_blocks_of_a_cluster_ask_for_less(tmp_path: Path) -> None:
    asked = []
    for number, rows in enumerate(("grid.y(128)", "grid.y(256) / cluster(128)")):
        own = kernel(1024, 512, 384, rows)
        code = compile_kernel(own, B200)
        assembled = assemble(code.ptx, "sm_100a", tmp_path)
        function = functions_of(disassemble(assembled.cubin))[code.launches[0].symbol]
        sample = sample_block(function, code.launches[0], 1, {}, copies_of(own, own.phases[0]))
        assert sample.total(lambda c: sum(c.flops.values())) == 2.0 * 128 * 128 * 384, number
        asked.append(sample.total(lambda c: c.async_bytes))
    assert asked == [6 * (2 * 128 * 128), 6 * (128 + 64) * 128]


@nvdisasm
def test_of_a_pair_of_blocks_each_keeps_and_reads_half(tmp_path: Path) -> None:
    """Of X its own rows and of W half of the columns' rows come, and each is read once for its 128 x 128 sums."""
    own = in_pairs(kernel(1024, 512, 384, "grid.y(256) / cluster(128)"), "sm_100a")
    code = compile_kernel(own, B200)
    function = functions_of(disassemble(assemble(code.ptx, "sm_100a", tmp_path).cubin))[code.launches[0].symbol]
    products = [i for i in function.instructions if i.name in TENSOR_MEMORY_MATRIX]
    assert {(described(function, i)[:2], blocks_of(i)) for i in products} == {((256, 128), 2)}
    copy = copies_of(own, own.phases[0])
    assert (copy.asked, copy.landed) == (12 * 1024, 12 * 1024)
    counts = next(c for _, c in sample_block(function, code.launches[0], 1, {}, copy).warps if c.flops)
    assert counts.tile_bytes == 6 * (128 + 64) * 128


@nvdisasm
def test_a_product_is_predicted_below_what_the_machine_can_do(tmp_path: Path) -> None:
    found = predict_kernel(own := kernel(4096, 4096, 1024), B200, tmp_path)
    assert found.counted
    assert 0.2 < own.flops / found.seconds / B200.tensor_rate("bf16") < 0.9


@nvdisasm
def test_a_tile_is_not_over_with_its_products(tmp_path: Path) -> None:
    own = kernel(1024, 512, 384)
    code = compile_kernel(own, B200)
    assembled = assemble(code.ptx, "sm_100a", tmp_path)
    function = functions_of(disassemble(assembled.cubin))[code.launches[0].symbol]
    known = Known(0.0, copy=copies_of(own, own.phases[0]))
    work = launch_work(function, code.launches[0], assembled.resources[0], B200, known).work
    assert 500 < work.stores < 10_000


TESTED = """
.text.k:
        /*0000*/                   S2UR UR4, SR_TID.X ;
        /*0010*/                   ULOP3.LUT UP0, UR5, UR4, 0x60, URZ, 0xc0, !UPT ;
        /*0020*/                   BRA.U UP0, `(.L_x_0) ;
        /*0030*/                   UMOV UR35, 0x8100490 ;
        /*0040*/                   UTCHMMA tmem[UR8], gdesc[UR12], tmem[UR39], tmem[UR34], idesc[UR35], !UPT ;
.L_x_0:
        /*0050*/                   SYNCS.ARRIVE.TRANS64 RZ, [UR5+0x38000], R0 ;
        /*0060*/                   EXIT ;
"""


def test_one_warp_of_four_multiplies_and_reads_one_operand_from_shared_memory() -> None:
    """Of the others it is known that they go around: the uniform unit tests bits, too."""
    function = functions_of(TESTED)["k"]
    sample = sample_block(function, LaunchShape("k", 1, 128, 0), 0, {}, Copies())
    assert sample.total(lambda c: sum(c.flops.values())) == 2 * 128 * 64 * 16
    assert sample.total(lambda c: c.tile_bytes) == 64 * 16 * 2


TURN = """
.text.k:
        /*0000*/                   UMOV UR35, 0x8100490 ;
.L_x_0:
        /*0010*/                   UTCHMMA gdesc[UR8], gdesc[UR12], tmem[UR39], tmem[UR34], idesc[UR35], !UPT ;
        /*0020*/                   UTCBAR [UR42], URZ ;
        /*0030*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR39+0x38100], R0 ;
        /*0040*/                   LDTM.16dp256bit.x8 R36, tmem[UR43] ;
        /*0050*/               @P1 BRA `(.L_x_0) ;
        /*0060*/                   EXIT ;
"""


def test_warpgroups_wait_for_their_own_products_while_others_multiply() -> None:
    """A product takes 48 cycles of shared memory, its load 32 of tensor memory and some until the values are there."""
    function = functions_of(TURN)["k"]
    way = [0, *[1] * 12, 2]
    one, two = replay(function, [way], 1, B200), replay(function, [way, way], 1, B200)
    assert one is not None and two is not None
    assert one.turns == two.turns == 12
    assert 48 + 62 < one.cycles <= two.cycles < 1.5 * one.cycles
    without = functions_of(TURN.replace("SYNCS.PHASECHK", "SYNCS.ARRIVE"))["k"]
    freely = replay(without, [way], 1, B200)
    assert freely is not None and freely.cycles < one.cycles - 40


def test_products_that_run_when_a_loop_is_entered_are_known() -> None:
    function = functions_of(TURN)["k"]
    without = functions_of(TURN.replace("SYNCS.PHASECHK", "SYNCS.ARRIVE"))["k"]
    assert running_products(function, [0, 1, 1]) == 0
    assert running_products(without, [0, 1, 1]) == 2
