"""benchmarks/gpu_acceptance.py: a report comes out whatever happens to its sections."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu_acceptance.py"


def accept(folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """The exit status, the report, and its text."""
    found = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(folder), *arguments],
        capture_output=True, text=True, check=False, timeout=400,
        env={**os.environ, "TCOMP_CACHE": str(folder / "cache")},
    )  # fmt: skip
    assert "Traceback" not in found.stderr, found.stderr
    stem = folder / ("gpu_acceptance_virtual" if "--virtual" in arguments else "gpu_acceptance")
    report = json.loads(stem.with_suffix(".json").read_text())
    return found.returncode, report, stem.with_suffix(".md").read_text()


def test_sections_are_skipped_when_the_time_is_used_up(tmp_path: Path) -> None:
    code, report, text = accept(tmp_path, "--virtual", "--budget", "1")
    assert code == 0 and len(report["sections"]) == 13
    assert {s["state"] for s in report["sections"].values()} == {"skipped"}
    assert text.count("skipped: the time for the whole run was used up") == 13


@pytest.mark.slow
def test_a_section_that_is_stopped_keeps_what_it_found(tmp_path: Path) -> None:
    code, report, text = accept(tmp_path, "--virtual", "--sections", "ops", "--budget", "15")
    section = report["sections"]["ops"]
    assert code == 0 and section["items"] and "| embedding |" in text
    if section["state"] != "ok":  # a computer that does it all in ten seconds
        assert section["state"] == "cut short" and "used up" in section["reason"]


def test_no_driver_fails_every_section_and_says_why(tmp_path: Path, no_driver: None) -> None:
    code, report, text = accept(tmp_path, "--sections", "machine,kernels")
    assert code == 1 and {s["state"] for s in report["sections"].values()} == {"failed"}
    assert "no NVIDIA driver: the library libcuda.so.1 was not found" in text


@pytest.mark.slow
def test_correctness_sections_on_the_virtual_gpu(tmp_path: Path) -> None:
    code, report, text = accept(tmp_path, "--virtual", "--sections", "machine,step,kernels,tuning", "--gpu", "a100")
    assert code == 0 and {s["state"] for s in report["sections"].values()} == {"ok"}, text
    assert "virtual NVIDIA A100" in text and "the same bits" in text
    assert len(report["sections"]["kernels"]["items"]) > 20
    assert all("1 default" in row["candidates"] for row in report["sections"]["tuning"]["items"])
    assert not any("microseconds" in item for item in report["sections"]["kernels"]["items"]), "a claim about time"


@pytest.mark.slow
def test_sections_of_tensor_core_families_on_the_virtual_gpu(tmp_path: Path) -> None:
    names = ["sweep_products", "sweep_attention", "sweep_fp8", "products", "attention", "fp8"]
    code, report, text = accept(tmp_path, "--virtual", "--sections", ",".join(names))
    assert code == 0 and [report["sections"][n]["state"] for n in names] == ["ok"] * 6, text
    items = [i for s in report["sections"].values() for i in s["items"]]
    assert len(items) >= 16 and all(i["good"] and not i["faults"] for i in items)
    assert not any("us" in i for i in items), "a claim about time"
