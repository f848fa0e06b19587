"""Reports and agreement, on measurements made up here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tcomp.errors import UserError
from tcomp.model.request import StepRequest
from tcomp.runtime.bench.measure import Comparison, Measured, check_losses, difference
from tcomp.runtime.bench.noise import Noise, processor_time
from tcomp.runtime.bench.report import as_json, markdown
from tcomp.runtime.bench.report_html import page
from tcomp.runtime.bench.report_png import draw
from tcomp.runtime.bench.workload import Parameter, Workload


def workload(**changed: Any) -> Workload:
    values: dict[str, Any] = {
        "model": "gpt2", "request": StepRequest("gpt2.tc", "tiny", precision="f32"), "dims": {"B": 2, "T": 8},
        "device": "cpu", "gpu": "", "threads": 1, "vocabulary": 9,
        "parameters": (Parameter("w", (1024, 256), "matrices"),), "hyper": {},
    }  # fmt: skip
    return Workload(**{**values, **changed})


def comparison(noise: float = 0.0, clock: str = "host") -> Comparison:
    ours = Measured("tcomp", clock, 4.0, 1.0, {"build": 1.0, "compile": 2.0, "first step": 0.1},
                    [0.01, 0.02, 0.03, 0.02], [2.0, 1.9], 6 << 20, 0, [(0.0, 1 << 20), (1.0, 6 << 20)],
                    Noise(noise, 1.0))  # fmt: skip
    theirs = Measured("compile", clock, 40.0, 8.0, {"first step": 30.04}, [0.04] * 4, [2.0, 1.9], 12 << 20, 0,
                      [(0.0, 1 << 20)], Noise(noise, 1.0))  # fmt: skip
    ceilings = [{"name": "fma", "threads": 1, "unit": "GFLOP/s", "median": 100.0, "low": 90.0, "high": 110.0},
                {"name": "triad", "threads": 1, "unit": "GB/s", "median": 10.0, "low": 9.0, "high": 11.0}]  # fmt: skip
    kernels = [
        {"kernel": "linear", "first": "l0", "launches": 4, "share": 0.75, "flops": 10**9, "bytes": 10**6},
        {"kernel": "norm", "first": "l0", "launches": 2, "share": 0.25, "flops": 10**3, "bytes": 4 * 10**7},
    ]
    plan = {"arena": 5 << 20, "lower_bound": 5 << 20, "kinds": {"parameter": 1 << 20}, "temporary": 4 << 20,
            "live": [1 << 20, 5 << 20, 2 << 20]}  # fmt: skip
    return Comparison(workload(), [ours, theirs], {"kernels": kernels, "plan": plan}, ceilings)


def test_the_report_has_medians_ratios_and_memory_beyond_the_state() -> None:
    text = markdown(comparison())
    assert "| tcomp | 20.0 | 10.0 .. 30.0 |" in text and "| compile | 40.0 | 40.0 .. 40.0 | 0% | 400 | 2.00 |" in text
    assert "| tcomp | 4.00 | 3.00 | 1.00 | 1.00 | 1.00 |" in text
    assert "| compile | 40.00 | 30.00 | 8.00 | 10.00 | 8.00 |" in text
    assert "| compile | 12 | 8 | 2.00 |" in text, "16 bytes a parameter are the model's state"


def test_the_report_holds_kernels_against_the_ceilings() -> None:
    text = markdown(comparison())
    assert "| linear | 4 | 15.00 | 75.0% | 66.7 | 0.1 | 67% |" in text
    assert "| norm | 2 | 5.00 | 25.0% | 0.0 | 8.0 | 80% |" in text


def test_a_busy_machine_is_said_to_be_one() -> None:
    assert "taken by others during the turns: 40%" in markdown(comparison(0.4))
    assert "was busy" in markdown(comparison(0.4)) and "was busy" not in markdown(comparison(0.01))


def test_the_virtual_gpu_gets_no_times() -> None:
    c = comparison(clock="")
    for r in c.programs:
        r.seconds = []
    text = markdown(c)
    assert "ms" not in text.replace("programs", "").split() and "cold" not in text
    assert "times say nothing" in text and "agree" in text


@pytest.mark.slow
def test_every_form_of_report_is_written(tmp_path: Path) -> None:
    c = comparison()
    draw(c, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    text = page(c, "tcomp bench <x>")
    assert "<table>" in text and "data:image/png;base64," in text and "tcomp bench &lt;x&gt;" in text
    again = json.loads(json.dumps(as_json(c)))
    assert again["programs"][1]["ratio"] == 2.0 and again["programs"][0]["median"] == 0.02


def test_programs_whose_losses_differ_are_not_compared() -> None:
    ours, theirs = Measured("tcomp", losses=[2.0, 1.0]), Measured("eager", losses=[2.0, 1.001])
    assert difference(ours, theirs) == pytest.approx(1e-3)
    check_losses(ours, theirs, 1e-2)
    with pytest.raises(UserError, match=r"'eager' differ from those of 'tcomp' by 1\.0e-03(.|\n)*step 1: tcomp 1, eag"):
        check_losses(ours, theirs, 1e-4)


def test_a_loss_that_is_no_number_never_agrees() -> None:
    bad = Measured("eager", losses=[math.nan])
    with pytest.raises(UserError, match="inf relative"):
        check_losses(Measured("tcomp", losses=[math.nan]), bad, 1e9)


def test_noise_is_what_others_took() -> None:
    noise = Noise()
    noise.add((10.0, 100.0), (13.0, 104.0), own=2.0)
    assert noise.share == pytest.approx(0.25)
    noise.add((0.0, 0.0), (0.0, 0.0), own=1.0)
    assert noise.share == pytest.approx(0.25)
    busy, everything = processor_time()
    assert 0 <= busy <= everything
