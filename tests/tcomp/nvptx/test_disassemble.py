"""Machine code as text: read by nvdisasm once, kept by content."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from tcomp.codegen.nvptx.assembly import disassemble as reader
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.errors import UserError
from tests.tcomp import ptx_samples as samples

pytestmark = pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="needs nvdisasm")


class Started(Exception):
    """nvdisasm."""


def test_the_same_code_is_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(command: list[str]) -> NoReturn:
        raise Started(command)

    cubin, other = (assemble(samples.kernel(f"bar.sync {n};"), "sm_90a", tmp_path).cubin for n in (0, 1))
    found = [reader.disassemble(cubin, encoded, tmp_path) for encoded in (False, True)]
    assert "BAR.SYNC" in found[0] and len(found[1]) > len(found[0])
    monkeypatch.setattr(reader, "_run", start)
    assert [reader.disassemble(cubin, encoded, tmp_path) for encoded in (False, True)] == found
    with pytest.raises(Started):
        reader.disassemble(other, cache_dir=tmp_path)
    for kept in tmp_path.glob("*.sass"):
        kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(Started):
        reader.disassemble(cubin, cache_dir=tmp_path)


LOADED = "ld.param.u64 %d1, [p]; ld.global.v2.f32 {%f1, %f2}, [%d1]; ld.global.u32 %r1, [%d1+8];\n"
DIVISION = LOADED + "div.rn.f32 %f3, %f1, %f2; st.global.f32 [%d1], %f3;"
LOOP = LOADED + "L: add.f32 %f1, %f1, %f2; setp.lt.f32 %p1, %f1, 9.0; @%p1 bra L; st.global.f32 [%d1], %f1;"
JUMPS = (
    LOADED + "T: .branchtargets A, B, C, D, E;\nbrx.idx.uni %r1, T;\n"
    + "\n".join(f"{x}: bar.sync {n}; st.global.f32 [%d1+{64 * n}], %f1;" for n, x in enumerate("ABCDE"))
)  # fmt: skip


def test_several_are_read_in_one_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With calls (their relocations name symbols), labels, the same names: each is as it is by itself."""
    bodies = [LOOP, DIVISION, "bar.sync 0;", LOOP + "bar.sync 1;", DIVISION.replace("%f1, %f2;", "%f2, %f1;"), LOOP]
    cubins = [assemble(samples.kernel(body), "sm_90a", tmp_path).cubin for body in bodies]
    alone = [reader.disassemble(cubin, cache_dir=tmp_path / "alone") for cubin in cubins]
    assert any("CALL" in text for text in alone) and any("`(.L_x_1)" in text for text in alone)
    starts: list[list[str]] = []
    run = reader._run
    monkeypatch.setattr(reader, "_run", lambda command: starts.append(command) or run(command))  # type: ignore[func-returns-value]
    assert reader.disassemble_all(cubins, tmp_path / "together") == alone and len(starts) == 1
    assert reader.disassemble_all(cubins[::-1], tmp_path / "together") == alone[::-1] and len(starts) == 1


def test_jumps_through_a_table_and_what_cannot_be_merged_are_read_alone(tmp_path: Path) -> None:
    jumps, loop = (assemble(samples.kernel(body), "sm_90a", tmp_path).cubin for body in (JUMPS, LOOP))
    other = assemble(samples.kernel(LOOP, target="sm_80"), "sm_80", tmp_path).cubin
    alone = [reader.disassemble(cubin, cache_dir=tmp_path / "alone") for cubin in (jumps, loop, other)]
    assert reader.disassemble_all([jumps, loop], tmp_path / "a") == alone[:2]
    assert reader.disassemble_all([loop, other], tmp_path / "b") == alone[1:]
    with pytest.raises(UserError, match="nvdisasm fails"):
        reader.disassemble_all([loop, b"no cubin"], tmp_path / "c")
