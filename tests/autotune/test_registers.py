"""Register tiles that would spill are refused before anything is compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.autotune.backend_cpu import CpuBackend
from tcomp.autotune.instances import Instance, facts_of, op_hash, schedule_hash, schedule_of
from tcomp.autotune.judge import Job
from tcomp.autotune.judge_measured import MeasuredJudge
from tcomp.autotune.registers import pressure
from tcomp.autotune.space import spaces_of
from tcomp.machine.cpu import detect
from tcomp.schedule.lower import lower
from tests.autotune.support import module_of

GEMM = """op product(X: f32[M, K], W: f32[N, K]) -> Y: f32[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule product on cpu:
  tune MR = 4 from 1, 3, 4, 5, 6, 7, 14
  tune NV = 2 from 1, 2, 3, 4
  m -> core / seq(84) / unroll(MR)
  n -> seq(96) / unroll(NV) / vec
  k -> seq(64)
  stage W in packed at k
"""


def job_and_judge(folder: Path) -> tuple[Job, MeasuredJudge]:
    module = module_of(GEMM)
    instance = Instance(module.ops["product"], {"M": 84, "N": 192, "K": 64})
    schedule = schedule_of(instance.op, module, instance.dims, detect(), 1)
    (space,) = spaces_of(schedule, facts_of(instance, detect(), 1))
    job = Job(instance, instance.key, space, 0, op_hash(instance.op, module), schedule_hash(schedule), 1.0)
    return job, MeasuredJudge(module, CpuBackend(detect(), 1, folder), 0)


@pytest.mark.parametrize(
    ("tile", "needed"), [((4, 3), 16), ((6, 2), 15), ((14, 1), 16), ((3, 4), 17), ((7, 2), 17), ((1, 4), 6)]
)
def test_a_tile_needs_accumulators_one_operand_s_vectors_and_a_broadcast(tile: tuple[int, int], needed: int) -> None:
    module = module_of(GEMM)
    chosen = {"MR": tile[0], "NV": tile[1]}
    (kernel,) = lower(module.ops["product"], module, {"M": 84, "N": 192, "K": 64}, detect(), 1, chosen).kernels
    assert pressure(kernel) == needed


@pytest.mark.skipif(detect().vector_registers != 16, reason="tiles of a machine with 16 vector registers")
def test_what_spills_is_refused_before_it_is_compiled(tmp_path: Path) -> None:
    job, judge = job_and_judge(tmp_path)
    for mr, nv in ((7, 2), (3, 4)):
        verdict = judge.evaluate(job, {"MR": mr, "NV": nv}, 10.0)
        assert verdict.kind == "spill" and "needs 17 vector registers" in verdict.reason
        assert judge.predict(job, {"MR": mr, "NV": nv}) is None
    assert judge.predict(job, {"MR": 6, "NV": 2}) is not None
    assert judge._evaluator is None, "no process was started, nothing was built"
