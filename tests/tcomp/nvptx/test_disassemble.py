"""Machine code as text: read by nvdisasm once, kept by content."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from tcomp.codegen.nvptx.assembly import disassemble as reader
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
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
