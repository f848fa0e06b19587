"""README.md says how much there is to read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = re.findall(r"^\| `(\w\S*)/` \| \S* ?\| ([\d,]+) \|", (ROOT / "README.md").read_text(), re.M)
WITHIN = {"tcomp": "cli", "runtime": "vgpu"}
"""Folders of which a part has a row of its own."""


def test_the_table_of_folders_counts_lines() -> None:
    assert len(ROWS) == 9
    for folder, lines in ROWS:
        files = [p for ending in ("py", "lark", "tc") for p in (ROOT / folder).rglob(f"*.{ending}")]
        own = [p for p in files if WITHIN.get(folder) not in p.relative_to(ROOT / folder).parts[:1]]
        counted = sum(p.read_bytes().count(b"\n") for p in own)
        assert int(lines.replace(",", "")) == pytest.approx(counted, rel=0.05), (folder, counted)
