"""benchmarks/gpu_acceptance.py: a report comes out whatever happens to its sections."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tcomp.model.request import StepRequest
from tests.turns import ALL, chosen, turn

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_acceptance.py"


def accept(folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """The exit status, the report, and its text."""
    found = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(folder), *arguments],
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert "Traceback" not in found.stderr, found.stderr
    stem = folder / ("gpu_acceptance_virtual" if "--virtual" in arguments else "gpu_acceptance")
    report = json.loads(stem.with_suffix(".json").read_text())
    return found.returncode, report, stem.with_suffix(".md").read_text()


def test_sections_are_skipped_when_the_time_is_used_up(tmp_path: Path) -> None:
    code, report, text = accept(tmp_path, "--virtual", "--budget", "1")
    assert code == 0 and {"machine", "precisions:fp8", "kernels:bf16", "torch_compile:bf16"} < report["sections"].keys()
    assert {s["state"] for s in report["sections"].values()} == {"skipped"}
    assert text.count("skipped: the time for the whole run was used up") == len(report["sections"])


@pytest.mark.slow(seconds=10)
def test_a_section_that_is_stopped_keeps_what_it_found(tmp_path: Path) -> None:
    code, report, text = accept(tmp_path, "--virtual", "--sections", "ops", "--budget", "15")
    section = report["sections"]["ops"]
    assert code == 0 and section["items"] and "| embedding |" in text, text
    if section["state"] != "ok":  # a computer that does it all in ten seconds
        assert section["state"] == "cut short" and "used up" in section["reason"]


def test_no_driver_fails_every_section_and_says_why(tmp_path: Path, no_driver: None) -> None:
    code, report, text = accept(tmp_path, "--sections", "machine,kernels:fp8,train")
    assert code == 1 and {s["state"] for s in report["sections"].values()} == {"failed"}
    assert "no NVIDIA driver: the library libcuda.so.1 was not found" in text


@pytest.mark.slow(seconds=25)
def test_correctness_sections_on_the_virtual_gpu(tmp_path: Path) -> None:
    code, report, text = accept(tmp_path, "--virtual", "--sections", "machine,step,tuning", "--gpu", "a100")
    assert code == 0 and {s["state"] for s in report["sections"].values()} == {"ok"}, text
    assert "virtual NVIDIA A100" in text and "the same bits" in text
    assert all("1 default" in row["candidates"] for row in report["sections"]["tuning"]["items"])
    # (An H100's kernels are those of the whole steps below, compiled once for both.)
    code, report, text = accept(tmp_path, "--virtual", "--sections", "kernels")
    assert code == 0 and report["sections"]["kernels:bf16"]["state"] == "ok", text
    assert len(report["sections"]["kernels:bf16"]["items"]) > 20
    assert not any("us" in item for item in report["sections"]["kernels:bf16"]["items"]), "a claim about time"


@pytest.mark.slow(seconds=10)
def test_sections_of_tensor_core_families_on_the_virtual_gpu(tmp_path: Path) -> None:
    names = ["sweep_products", "sweep_attention", "sweep_fp8", "products", "attention", "fp8"]
    code, report, text = accept(tmp_path, "--virtual", "--sections", ",".join(names))
    assert code == 0 and [report["sections"][n]["state"] for n in names] == ["ok"] * 6, text
    items = [i for s in report["sections"].values() for i in s["items"]]
    assert len(items) >= 16 and all(i["good"] and not i["faults"] for i in items)
    assert not any("us" in i for i in items), "a claim about time"


def rows(section: dict[str, Any], key: str) -> dict[str, Any]:
    """The section's rows by what they are about."""
    assert section["state"] == "ok", section
    return {i[key]: i for i in section["items"] if i["kind"] == "row"}


@pytest.mark.slow(seconds=38)
def test_whole_steps_on_the_virtual_gpu(tmp_path: Path) -> None:
    sections = ["precisions:bf16", "step_time:bf16", "train", "torch_compile", "train_large", "startup"]
    # (The last two are the command once more: each turn has one of them.)
    left = None if turn() == ALL else sections[4 + (0 in chosen(2, 2, turn()))]
    code, report, text = accept(tmp_path, "--virtual", "--sections", ",".join(s for s in sections if s != left))
    found = report["sections"]
    assert code == 0, text
    assert text.count("wgmma.mma_async") == 2, "neither model is about tensor cores"
    assert text.count("| the same bits |") == 4, "a second run of either model, and launch by launch"
    assert rows(found["step_time:bf16"], "program").keys() > {"tcomp bf16, one graph a program"}
    assert rows(found["train:bf16"], "what")["resumed from step-000001"]["result"] == "the same bits at the end"
    assert left == "train_large" or rows(found["train_large:bf16"], "what")
    assert left == "startup" or len(rows(found["startup:bf16"], "cache")) == 2
    assert found["torch_compile:bf16"]["reason"] == "there is no GPU for it"
    assert not any(word in text for word in ("tokens/s |", "ms a step", "MiB")), "a claim about time or memory"


@pytest.mark.slow
def test_predictions_are_of_kernels_by_name(tmp_path: Path) -> None:
    import gpu_predictions as script

    from tcomp.cli.build_gpu import TargetDevice
    from tcomp.cli.common import build_step
    from tcomp.machine.gpu import machine_named

    machine = machine_named("h100")
    sizes = {"L": 1, "H": 2, "C": 32}
    step = build_step(
        StepRequest("gpt2", "tiny", {"B": 2, "T": 16}, dims=sizes, precision="bf16"),
        TargetDevice(machine),
    ).step
    found = script.predicted(step, machine, workers=2)
    assert found["kernels"].keys() == step.kernels.keys()
    assert found["seconds"] == pytest.approx(sum(k["seconds"] * k["launches"] for k in found["kernels"].values()))
    name = script.key("h100", "tiny", 2, 16, "bf16")
    (tmp_path / "said.json").write_text(json.dumps({name: found}))
    assert script.load(tmp_path / "said.json", name) == found
    assert script.load(tmp_path / "said.json", "other") is None and script.load(tmp_path / "none.json", name) is None


def test_sections_are_named_with_or_without_a_precision() -> None:
    import gpu_acceptance as script

    def names(sections: str, precisions: str = "") -> list[tuple[str, str]]:
        return [(s.name, p) for s, p in script.chosen(sections, precisions)]

    assert names("kernels,machine") == [("machine", ""), ("kernels", "bf16")]
    assert names("kernels,step,train:f32", "fp8,bf16") == [
        ("step", ""), ("kernels", "fp8"), ("kernels", "bf16"), ("train", "f32"),
    ]  # fmt: skip
    assert len(names("precisions")) == 5
    for wrong, said in (("steps", "no section 'steps'"), ("step:bf16", "no precisions"), ("kernels:f64", "'f64'")):
        with pytest.raises(ValueError, match=said):
            names(wrong)


def test_other_bits_are_told_by_where_they_begin() -> None:
    from gpu_steps import Run, _same

    first = Run((5.0, 4.0), (1.0, 1.0), {"w": "a", "b": "b"})
    assert _same("again", Run(first.losses, first.norms, dict(first.digests)), first)["good"]
    for run, said in (
        (Run((5.0, 4.5), (1.0, 1.0), {"w": "c", "b": "b"}), "from step 2: loss 4.5000000 and 4.0000000"),
        (Run((5.0, 4.0), (float("nan"), 1.0), first.digests), "from step 1: .* norm nan and 1.0000000"),
        (Run((5.0, 4.0), (1.0, 1.0), {"w": "c", "b": "b"}), "at the end 1 of 2 slots differ, w"),
    ):
        found = _same("again", run, first)
        assert not found["good"] and re.search(said, found["GPU"]), found


AS_ON_A_GPU = """
import gc, sys, time
from dataclasses import replace

def main():
    gc.set_threshold(100_000, 50, 10)
    import gpu_step_times as times
    from gpu_job import Job
    from gpu_torch import run_torch
    from tcomp.cli.common import device_for

    class Real(Job):
        real = True

    device = device_for("virtual", gpu="h100")
    device = replace(device, machine=replace(device.machine, l2_bytes=1 << 10))  # what is flushed
    small = Job(device, "tiny", 2, 16, time.monotonic() + 300)
    job = Real(device, "tiny", 2, 16, time.monotonic() + 300)
    with times.workload_folder(small, {"V": 64, "H": 1}) as (built, workload, folder):
        times.timed_build, times.REPEATS, times.TURNS = lambda job, dims=None: built, 2, 1
        rows = [row for row in times.kernels(job) if row["kind"] == "row"]
        assert len(rows) == 1 + len(built.step.kernels), rows
        for row in rows:
            assert row["us"] > 0 and row["us in their turn"] > 0 and row["predicted us"] > 0, row
        assert rows[-1]["kernel"] == "the whole step" and rows[0]["times"] > 1
        ours = []
        rows = list(times._ours(job, built, workload, folder, ours))
        assert sum("tokens/s" in row for row in rows) == 2 and "arena, MiB" in rows[-1], rows
        run = run_torch(job, replace(workload, device="cpu"), folder, compiled=False)
        agreed = list(times._agree(job, ours, run.steps))
        assert len(agreed) == 2 and all(row.get("good", True) for row in rows + run.rows + agreed), (rows, run, agreed)
        ours[1] = (ours[1][0], 1.1 * ours[1][1])
        assert [row["good"] for row in times._agree(job, ours, run.steps)] == [True, False]
        lost = run_torch(job, replace(workload, model="none", device="cpu"), folder, compiled=False)
        assert not lost.steps and "KeyError" in lost.rows[0]["program"]

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow(seconds=20)
def test_times_are_taken_as_on_a_gpu(tmp_path: Path) -> None:
    """The virtual GPU taken for a real one, PyTorch on the processors: all that a GPU's run does, at tiny sizes."""
    pytest.importorskip("torch")
    (tmp_path / "run.py").write_text(AS_ON_A_GPU)
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "TCOMP_VGPU_QUIET": "1"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py")], capture_output=True, text=True, env=environment, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
