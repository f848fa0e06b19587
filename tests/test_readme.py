"""README.md says how much there is to read, and its taste of the language does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.support import Tcomp, own_folders, tcomp  # noqa: F401  fixtures

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "README.md").read_text()
ROWS = re.findall(r"^\| `(\w\S*)/` \| \S* ?\| ([\d,]+) \|", PAGE, re.M)
WITHIN = {"tcomp": "cli", "runtime": "vgpu"}
"""Folders of which a part has a row of its own."""
SIZES = ["--dim", "B=1", "--dim", "H=2", "--dim", "T=130", "--dim", "D=64"]


def test_the_table_of_folders_counts_lines() -> None:
    assert len(ROWS) == 9
    for folder, lines in ROWS:
        files = [p for ending in ("py", "lark", "tc") for p in (ROOT / folder).rglob(f"*.{ending}")]
        own = [p for p in files if WITHIN.get(folder) not in p.relative_to(ROOT / folder).parts[:1]]
        counted = sum(p.read_bytes().count(b"\n") for p in own)
        assert int(lines.replace(",", "")) == pytest.approx(counted, rel=0.05), (folder, counted)


def test_the_first_paragraphs_count_them_too() -> None:
    said = [
        float(n.replace(",", ""))
        for n in re.findall(r"([\d,]{6}) (?:lines )?(?:of language|that tune|of a virtual)", " ".join(PAGE.split()))
    ]
    lines = {folder: float(n.replace(",", "")) for folder, n in ROWS}
    compiler, vgpu = lines["dsl"] + lines["tcomp"], lines["runtime/vgpu"]
    assert said == pytest.approx([compiler, lines["tcomp/cli"] + lines["autotune"] + lines["runtime"], vgpu], rel=0.02)
    (text,), (gpt2,) = re.findall(r"from ([\d,]+) lines of text", PAGE), re.findall(r"`gpt2.tc` is (\d+) lines", PAGE)
    assert float(text.replace(",", "")) == lines["models"]
    assert int(gpt2) == (ROOT / "models" / "gpt2.tc").read_bytes().count(b"\n")


def test_the_taste_is_right_and_divided_among_cores_is_refused(tcomp: Tcomp) -> None:  # noqa: F811
    (text,) = re.findall(r"^```tc\n(.*?)^```$", PAGE, re.S | re.M)
    (shown,) = re.findall(r"^ +(flash\.tc:\d.*\n(?: +\w+: .*\n)+)", PAGE, re.M)
    Path("flash.tc").write_text(text)
    assert tcomp("fmt", "--check", "flash.tc").code == 0
    assert tcomp("check", "flash.tc", "attention", "--trials", "1", "--threads", "1").code == 0
    assert (
        tcomp("show", "flash.tc", "attention", "--tile", *SIZES, "--target", "sm_90a", "--precision", "bf16").code == 0
    )
    Path("flash.tc").write_text(text.replace("k -> seq(64) /", "k -> core(64) /"))
    refusal = tcomp("check", "flash.tc", "attention", "--trials", "1", "--threads", "1")
    assert refusal.code == 2
    for line in shown.splitlines():
        assert line.strip() in refusal.out + refusal.error, line
