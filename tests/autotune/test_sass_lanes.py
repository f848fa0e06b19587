"""What wide loads of shared memory cost by which lanes read the same (`autotune/sass_lanes.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from tcomp.autotune import gpu_predict
from tcomp.autotune.opcodes import shared_bytes
from tcomp.autotune.sass import Function, Instruction, functions_of
from tcomp.autotune.sass_lanes import with_paired_loads
from tcomp.machine.gpu import H100

ROW = ["SHF.R.U32.HI R2, RZ, 0x2, R0", "SGXT.U32 R2, R2, 0x3", "LEA R2, R2, R9, 0x3"]
"""lane // 4: all four lanes of a row read one address"""
COLUMN = ["LOP3.LUT R2, R0, 0x3, RZ, 0xc0, !PT", "IMAD R2, R2, 0x8, R9"]
"""lane % 4: neighbours read others"""
HALF = ["SHF.L.U32 R2, R0, 0x3, RZ", "LOP3.LUT R2, R2, 0x10, RZ, 0xc0, !PT", "IADD3 R2, R2, R9, RZ"]
"""of the two bits only lane & 2: lanes n and n ^ 1 read one address"""
UPPER = ["SHF.L.U64.HI R2, RZ, 0x3, R0"]
"""of two registers' shift the upper one: not followed"""
DATA = ["LDG.E R2, [R6]"]
UNIFORM = ["SHFL.IDX PT, R2, R0, RZ, 0x1f"]


def sass(code: list[str], opcode: str = "LDS.64") -> str:
    lines = ["S2R R0, SR_TID.X", *code, f"{opcode} R4, [R2+0x400]", "EXIT"]
    code = [f"        /*{16 * n:04x}*/                   {line} ;" for n, line in enumerate(lines)]
    return "\n".join([".text.k:", *code])


def the_load(function: Function) -> Instruction:
    return next(i for i in function.instructions if i.name == "LDS")


def load(code: list[str], opcode: str = "LDS.64") -> Instruction:
    return the_load(with_paired_loads(functions_of(sass(code, opcode))["k"]))


@pytest.mark.parametrize(
    "code, opcode, cycles",
    [(ROW, "LDS.64", 1), (COLUMN, "LDS.64", 2), (HALF, "LDS.64", 1), (UNIFORM, "LDS.64", 1), (DATA, "LDS.64", 2),
     (UPPER, "LDS.64", 2), (ROW, "LDS.128", 2), (COLUMN, "LDS.128", 4), (COLUMN, "LDS", 1), (ROW, "LDS", 1)],
)  # fmt: skip
def test_registers_come_one_a_cycle_and_two_where_lanes_in_pairs_read_the_same(
    code: list[str], opcode: str, cycles: int
) -> None:
    assert shared_bytes(load(code, opcode)) == 128 * cycles


@pytest.mark.parametrize(("opcode", "cycles"), [("STS.64", 2), ("STS.128", 4), ("STS", 1)])
def test_stores_write_one_register_a_cycle_whoever_writes_the_same(opcode: str, cycles: int) -> None:
    (store, _) = functions_of(f".text.k:\n  /*0000*/  {opcode} [R2], R4 ;\n  /*0010*/  EXIT ;")["k"].instructions
    assert shared_bytes(store) == 128 * cycles


def test_an_address_may_follow_a_lane_over_any_way_through_the_code() -> None:
    """A loop that moves an address on keeps what it depends on; another value in its register is another matter."""
    around = ["MOV R2, R9", "ISETP.NE.AND P0, PT, R8, RZ, PT", "@P0 LOP3.LUT R2, R0, 0x3, RZ, 0xc0, !PT"]
    assert not load(around).paired
    assert load([*COLUMN, "MOV R2, R9"]).paired


@pytest.mark.parametrize("code, paired", [(ROW, True), (COLUMN, False)])
def test_predictions_know_which_lanes_read_the_same(
    code: list[str], paired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kernel's launches are predicted from."""
    seen: list[Function] = []

    def launches(kernel: Any, code: Any, assembled: Any, functions: Mapping[str, Function], *_: Any) -> Iterator[Any]:
        seen.append(functions["k"])
        return iter(())

    monkeypatch.setattr(gpu_predict, "compile_all", lambda *_: {"k": SimpleNamespace(ptx="")})
    monkeypatch.setattr(gpu_predict, "assemble_all", lambda *_: [SimpleNamespace(cubin=b"")])
    monkeypatch.setattr(gpu_predict, "disassemble_all", lambda *_: [sass(code)])
    monkeypatch.setattr(gpu_predict, "_launches", launches)
    monkeypatch.setattr(gpu_predict, "_peak", lambda *_: 1.0)
    kernel: Any = SimpleNamespace(name="k", flops=0)
    gpu_predict.predict_kernel(kernel, H100)
    assert the_load(seen[0]).paired is paired
