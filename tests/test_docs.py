"""The documents hold together: links lead somewhere, files that they name exist, the first example trains."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.support import Tcomp, own_folders, tcomp  # noqa: F401  fixtures

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```$", re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Names that the page's headings have on GitHub."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.M)
    plain = [re.sub(r"[^\w\- ]", "", LINK.sub(lambda m: m[0].split("]")[0], h).lower()) for h in headings]
    return {h.replace(" ", "-") for h in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


FILES = [
    f"/{p.relative_to(ROOT)}"
    for f in ("dsl", "tcomp", "autotune", "runtime", "models", "tests", "benchmarks")
    for p in (ROOT / f).rglob("*.*")
]
NAMED = re.compile(r"`([\w./]+\.(?:py|tc|lark))`")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    """By their whole path, or by the end of it."""
    for name in NAMED.findall(FENCE.sub("", page.read_text())):
        assert any(f.endswith(f"/{name}") for f in FILES), name


@pytest.mark.slow(seconds=5)
def test_the_first_example_of_the_language_trains(tcomp: Tcomp) -> None:  # noqa: F811
    (text,) = re.findall(
        r"^```tc\n([^`]*\nmodel first.*?)^```$", (ROOT / "docs" / "language.md").read_text(), re.S | re.M
    )
    Path("first.tc").write_text(text)
    sizes = (
        "--config",
        "tiny",
        "-B",
        "8",
        "-T",
        "64",
        "--threads",
        "1",
        "--eval-batches",
        "1",
        "--sample",
        "1",
        "--data",
        str(ROOT / "docs"),
    )
    assert tcomp("train", "first.tc", *sizes, "--steps", "60").code == 0
    (metrics,) = Path("runs").rglob("metrics.jsonl")
    losses = [json.loads(line)["loss"] for line in metrics.read_text().splitlines() if '"loss"' in line]
    assert losses[0] > 5 and losses[-1] < 5


COMMAND = re.compile(r"^ {4,}tcomp (\w+(?: (?:prepare|check|run|report)\b)?)([^#\n]*)", re.M)


def test_commands_that_are_shown_exist_with_their_options(tcomp: Tcomp) -> None:  # noqa: F811
    shown: dict[str, set[str]] = {}
    for page in PAGES:
        for command, rest in COMMAND.findall(FENCE.sub("", page.read_text())):
            name = command if command.split()[0] in ("data", "vgpu", "tune") else command.split()[0]
            shown.setdefault(name, set()).update(re.findall(r"(?<!\w)--[a-z][\w-]*", rest))
    assert len(shown) > 12
    for command, options in shown.items():
        told = tcomp(*command.split(), "--help")
        assert told.code == 0, command
        missing = {o for o in options if not re.search(rf"{o}\b", told.out)}
        assert not missing, (command, missing)


SCRIPT = re.compile(r"^ {4,}python (benchmarks/\w+\.py)([^#\n]*)", re.M)


def test_benchmarks_that_are_shown_exist_with_their_options() -> None:
    sources = {p: p.read_text() for p in (ROOT / "benchmarks").glob("*.py")}
    found = [pair for page in PAGES for pair in SCRIPT.findall(FENCE.sub("", page.read_text()))]
    assert len(found) > 10
    for script, rest in found:
        assert ROOT / script in sources, script
        for option in re.findall(r"(?<!\w)--[a-z][\w-]*", rest):
            assert any(f'"{option}"' in text for text in sources.values()), (script, option)
