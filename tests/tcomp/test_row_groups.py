"""Products whose rows go through the same registers in turns (`gpu/row_groups.py`): what tile IR says of them, and
that the assembler keeps to it. Results: tests/test_fp8_tensor_cores.py."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.load import library, load, load_text
from tcomp.dsl.printer import print_expression
from tcomp.dsl.storage import bound
from tcomp.ir.tile import Compute, Kernel, Loop, Scope
from tcomp.ir.walk import computes, loops_in, reads_of
from tcomp.machine.gpu import machine_for_target
from tcomp.schedule.gpu import registers as gpu_registers
from tcomp.schedule.gpu.row_groups import in_row_groups
from tcomp.schedule.lower import lower

H100 = machine_for_target("sm_90a")


@pytest.fixture
def registers_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowering takes kernels whose sums no thread has the registers for."""
    monkeypatch.setattr(gpu_registers, "limit", lambda *_: 1000)


def product(text: str = "", rows: int = 512) -> Kernel:
    """The product of 8-bit values with block scales, two warpgroups with tiles of 256 rows."""
    file = library() / "ops" / "fp8_block.tc"
    module = load_text(text or file.read_text(), str(file))
    op = bound(module.ops["matmul_fp8_block"], DType.BF16)
    lowered = lower(op, module, {"M": rows, "N": 128, "K": 384}, H100, chosen={"BM": 256, "S": 3})
    return next(k for k in lowered.kernels if k.name.endswith(".Y"))


@pytest.mark.parametrize("backward, tile", [("", "Xr"), (".backward", "Dr")])
def test_tiles_have_256_rows_whatever_the_number_of_rows(backward: str, tile: str) -> None:
    """Rows of scales are whole blocks long, so a copy of 256 of them begins at a multiple of 16 bytes."""
    module = load(library() / "ops" / "fp8_block.tc")
    op = bound(module.ops["matmul_fp8_block" + backward], DType.BF16)
    for rows in (16384, 16385):
        kernels = lower(op, module, {"M": rows, "N": 1536, "K": 1536}, H100).kernels
        assert {b.shape[0] for k in kernels for b in k.tiles if b.name.startswith(f"{tile}.shared")} == {256}


def weight_gradient(rows: int = 512, text: str = "") -> Kernel:
    """The product whose columns have scales of their own."""
    file = library() / "ops" / "fp8_block.tc"
    module = load_text(text or file.read_text(), str(file))
    op = bound(module.ops["matmul_fp8_block.backward"], DType.BF16)
    dims = {"M": 384, "N": rows, "K": 128}
    lowered = lower(op, module, dims, H100, chosen={"dW.BM": 256, "dW.S": 3})
    return next(k for k in lowered.kernels if k.name.endswith(".dW"))


def test_what_is_the_same_for_all_rows_is_loaded_once_behind_the_first_product() -> None:
    kernel = weight_gradient()
    names = [s.target.tensor.rstrip("0123456789") for s in turn_of(kernel)]
    assert names == ["partW", "vX.registers", "accW", "partW", "accW"]
    code = assemble(compile_kernel(weight_gradient(4096), H100).ptx, "sm_90a")
    assert not code.findings and all(r.spill_store_bytes == 0 for r in code.resources)
    loads = re.findall(r"ld\.shared\.b32", compile_kernel(kernel, H100).ptx)
    assert len(loads) == 16 + 4, "two columns each, once for both groups, and two rows of each group"


@pytest.mark.usefixtures("registers_without_end")
def test_what_has_a_value_for_each_row_keeps_rows_together() -> None:
    """Its registers are those of all rows: groups of them are not made."""
    text = (library() / "ops" / "fp8_block.tc").read_text().replace("stage vX in registers", "stage vD in registers")
    kernel = weight_gradient(text=text)
    assert kernel.buffer("partW").shape == (256, 128)


def turn_of(kernel: Kernel) -> list[Compute]:
    (pipe,) = [x for x in loops_in(kernel.phases[0]) if isinstance(x, Loop) and x.level == "pipe"]
    return [s for s in pipe.body if isinstance(s, Compute)]


def test_each_group_of_rows_is_read_before_the_next_is_made() -> None:
    kernel = product()
    names = [s.target.tensor for s in turn_of(kernel)]
    assert names == ["part", "acc", "part", "acc"]
    blocks = [next(a.block for a in s.axes if a.name == "m") for s in turn_of(kernel)]
    assert blocks == [128] * 4
    assert kernel.buffer("part").shape == (128, 128) and kernel.buffer("acc").shape == (256, 128)


def test_rows_past_the_end_belong_to_no_group() -> None:
    first, _, second, _ = (next(a for a in s.axes if a.name == "m") for s in turn_of(product(rows=200)))
    assert [print_expression(e) for e in (first.stop, second.start, second.stop)] == [
        "min(m.0 + 128, 200)",
        "m.0 + 128",
        "min(m.0 + 256, 200)",
    ]


def overlapping() -> Kernel:
    """The product of two turns at once: the results of both are needed whole."""
    text = (library() / "ops" / "fp8_block.tc").read_text()
    return product(text.replace("overlap part(BM < 256)", "overlap part"))


@pytest.mark.usefixtures("registers_without_end")
def test_products_of_two_turns_at_once_keep_all_their_registers() -> None:
    kernel = overlapping()
    assert kernel.buffer("part").shape == (256, 128) and len(turn_of(kernel)) == 2


@pytest.mark.usefixtures("registers_without_end")
def test_an_operand_in_registers_is_of_all_rows_at_once() -> None:
    """Its registers are numbered from the first row on: each group would multiply the first one's."""
    kernel = overlapping()
    turn = tuple(replace(s, late=False) for s in turn_of(kernel))
    (left,) = {a.tensor for a in reads_of(turn[0]) if a.tensor.startswith("Xr")}
    for scope, statements in ((Scope.SHARED, 4), (Scope.REGISTERS, 2)):
        tiles = {**kernel.buffers, left: replace(kernel.buffers[left], scope=scope)}
        _, (body,) = in_row_groups(tiles, [turn])
        assert len(body) == statements


def test_the_assembler_takes_the_same_registers_for_both_groups() -> None:
    """It would start the second group's product before it has read the first's result, and spill."""
    kernel = product(rows=4096)
    found = assemble(compile_kernel(kernel, H100).ptx, "sm_90a")
    assert not found.findings and all(r.spill_store_bytes == 0 for r in found.resources)
    products = [c for c in computes(kernel.phases[0]) if c.instruction]
    assert len(products) == 2 and len(re.findall(r"nanosleep\.u32 1; @p bra", compile_kernel(kernel, H100).ptx)) == 1
