"""Register tiles that are certain to spill on a GPU are refused before anything is compiled, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.autotune import judge_predicted
from tcomp.autotune.apply import Applied
from tcomp.autotune.backend_cuda import CudaBackend
from tcomp.autotune.gpu_registers import registers_of, spill_of
from tcomp.autotune.instances import Instance, facts_of, instances_of, op_hash, parse_step, schedule_hash, schedule_of
from tcomp.autotune.judge import Job
from tcomp.autotune.judge_measured import MeasuredJudge
from tcomp.autotune.judge_predicted import PredictedJudge
from tcomp.autotune.lockfile import read_lock
from tcomp.autotune.space import spaces_of
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.dsl.load import load
from tcomp.machine.gpu import H100, machine_named
from tcomp.runtime.cuda.kernels import compile_all
from tcomp.schedule.gpu.registers import limit
from tcomp.schedule.lower import lower
from tests.autotune.support import module_of

MODELS = Path(__file__).resolve().parents[2] / "models"
GATED = """op gated(X: bf16[M, K], V: bf16[N, K], W: bf16[N, K]) -> Y: f32[M, N]:
  a[m, n]: f32 = sum k: X[m, k] * V[n, k]
  b[m, n]: f32 = sum k: X[m, k] * W[n, k]
  Y[m, n] = a[m, n] * b[m, n]

schedule gated on sm_90a:
  tune BN = 128 from 64, 128, 240
  m -> grid.y(128) / warpgroup(64) / mma
  n -> grid.x(BN) / mma
  k -> pipe(64, 2) / mma
  fuse a, b at k
  stage X, V, W in shared at k by tma
  use wgmma for a, b
"""
DIMS = {"M": 256, "N": 480, "K": 128}


def test_two_accumulators_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(GATED)
    instance = Instance(module.ops["gated"], DIMS)
    schedule = schedule_of(instance.op, module, DIMS, H100, 1)
    (space,) = spaces_of(schedule, facts_of(instance, H100, 1))
    job = Job(instance, instance.key, space, 0, op_hash(instance.op, module), schedule_hash(schedule), 1e-3)
    monkeypatch.setattr(judge_predicted, "predict_kernels", lambda *_: pytest.fail("it was compiled"))
    measured = MeasuredJudge(module, CudaBackend(H100, "", tmp_path), 0)
    for judge in (PredictedJudge(module, H100, tmp_path, 0), measured):
        verdict = judge.evaluate(job, {"BN": 240}, 10.0)
        assert (
            verdict.kind == "spill"
            and verdict.reason == "its tiles need 264 registers a thread at least; there are 255"
        )
        assert judge.predict(job, {"BN": 240}) is None and judge.predict(job, {"BN": 128}) is not None
    assert measured._evaluator is None, "no process was started"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "spills"), [(128, False), (240, True)])
def test_the_assembler_says_the_same(width: int, spills: bool, tmp_path: Path) -> None:
    module = module_of(GATED)
    (kernel,) = lower(module.ops["gated"], module, DIMS, H100, 1, {"BN": width}).kernels
    assert bool(spill_of(kernel, H100)) == spills
    code = compile_all({kernel.name: kernel}, H100, tmp_path)[kernel.name]
    (found,) = [r for r in assemble(code.ptx, H100.target, tmp_path).resources if r.entry]
    assert found.spills == spills and (spills or registers_of(kernel) <= found.registers <= limit(kernel, H100))


@pytest.mark.parametrize("machine", ["h100", "a100", "rtx4090"])
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_nothing_that_is_shipped_or_has_won_is_refused(model: str, machine: str) -> None:
    lock, gpu = read_lock(MODELS / f"{model}.{machine}.lock"), machine_named(machine)
    step = parse_step(lock.steps[0], model)
    module = load(MODELS / f"{model}.tc", step.precision)
    applied = Applied(lock, module, gpu, 1)
    found = []
    for instance in instances_of(module, step, gpu):
        choice = applied.choice(instance)
        for values in ({}, choice.values):
            kernels = lower(instance.op, module, dict(instance.dims), gpu, 1, values).kernels
            assert [spill_of(k, gpu) for k in kernels] == [""] * len(kernels), instance.key
            found += [registers_of(k) for k in kernels]
    assert applied.used and max(found) >= 120, "there are kernels with large tiles among them"
