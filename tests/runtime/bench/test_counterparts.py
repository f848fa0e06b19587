"""Every PyTorch counterpart computes what the model's text does: the same losses over training steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.dsl.load import load
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.runtime.bench.build import workload_of, write_folder
from tcomp.runtime.bench.counterparts import COUNTERPARTS
from tcomp.runtime.bench.tcomp_program import TcompProgram
from tcomp.runtime.bench.workload import read_batches
from tcomp.runtime.device import CpuDevice

MODELS = Path(__file__).resolve().parents[3] / "models"
SMALL = {
    "gpt2": {"L": 2, "H": 2, "C": 16, "V": 61, "S": 16},
    "llama": {
        "L": 2, "H": 4, "G": 2, "D": 8, "C": 24, "F": 40, "V": 61, "S": 16, "factor": 8.0, "original": 4.0, "TIED": 0,
    },
}  # fmt: skip
CASES = [("gpt2", "f32", 1e-5), ("gpt2", "bf16", 1e-2), ("llama", "f32", 1e-5)]


def test_every_counterpart_is_tested() -> None:
    assert {model for model, _, _ in CASES} == set(COUNTERPARTS)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "dtype", "tolerance"), CASES)
def test_losses_are_those_of_the_model_text(model: str, dtype: str, tolerance: float, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tcomp.runtime.bench.torch_program import TorchProgram

    text = MODELS / f"{model}.tc"
    device = CpuDevice(detect(), 1, tmp_path)
    request = StepRequest(model, "tiny", {"B": 2, "T": 8}, dims=SMALL[model], precision=dtype)
    step = build_step(load(text), request, device.machine)
    workload = workload_of(step, request)
    write_folder(workload, step, tmp_path)
    programs = [TcompProgram(workload, tmp_path, lambda _: (step, device)), TorchProgram(workload, tmp_path, False)]
    losses = [[p.run(*batch, i)[0] for i, batch in enumerate(read_batches(workload, tmp_path))] for p in programs]
    for program in programs:
        program.close()
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert len(set(losses[0])) == 4
