"""Judging by events on a GPU, with the virtual GPU for the driver and times that the test plants: a virtual GPU has
none of its own. What runs, what is checked, in what order and what wins is the code that a real GPU would see.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tcomp.autotune.backend_cuda import CudaBackend
from tcomp.autotune.bench import rotated
from tcomp.autotune.contest import Ratio, beats_by_prediction, winner
from tcomp.autotune.evaluator import Subject, serve
from tcomp.autotune.instances import Instance, facts_of, op_hash, schedule_hash, schedule_of
from tcomp.autotune.judge import Choice, Job
from tcomp.autotune.judge_measured import MeasuredJudge
from tcomp.autotune.space import spaces_of
from tcomp.codegen.nvptx.launch import GpuKernel
from tcomp.machine.gpu import A100
from tcomp.model.single import single_op_step
from tcomp.schedule.lower import lower
from tests.autotune.support import module_of

MACHINE = replace(A100, l2_bytes=16 << 10)
"""A virtual A100 whose L2 takes a simulator no time to flush."""
SCALE = """op scale(X: f32[M, N]) -> Y: f32[M, N]:
  Y[m, n] = X[m, n] * 3.0

schedule scale on gpu:
  tune BM = 8 from 1, 2, 4, 8, 16, 32
  m -> grid(BM) / warp.y(1)
  n -> lane / vec
"""
ROWS = 64
MILLISECONDS = {1: 1.0, 2: 0.2, 4: 0.2, 8: 1.0, 16: 0.8, 32: 0.998}
"""Planted, by BM. 2 is wrong and 4 faults: both would win. 32 is faster by less than its noise."""


def virtual(pipe: Connection, subject: Subject) -> None:
    """The candidates' process with a virtual GPU, planted times, faults, and a note of each driver call."""
    from tcomp.autotune import backend_cuda
    from tcomp.runtime.cuda import executor as executors, programs, timing
    from tcomp.runtime.vgpu.shim import install

    install("a100")
    log = open(os.environ["CALLS"], "a", buffering=1)  # noqa: SIM115  until the process ends
    noise = random.Random(0)
    compile_all, call, measured = executors.compile_all, timing.call, backend_cuda._Clock.seconds

    def noted(function: Any, *arguments: Any) -> Any:
        if timing_now:
            log.write(json.dumps(function.__name__) + "\n")
        return call(function, *arguments)

    def compiled(*given: Any) -> dict[str, GpuKernel]:
        return {n: replace(k, ptx=_planted(k)) for n, k in compile_all(*given).items()}

    def seconds(self: Any, executor: Any, names: Sequence[str]) -> float:
        timing_now.append(1)
        real = measured(self, executor, names)
        timing_now.clear()
        assert real >= 0
        rows = ROWS // executor.programs[names[0]][0].shape.blocks
        log.write(json.dumps([rows, list(names)]) + "\n")
        return MILLISECONDS[rows] * 1e-3 * noise.uniform(0.97, 1.03)

    timing_now: list[int] = []
    executors.compile_all = compiled  # type: ignore[attr-defined]
    timing.call = programs.call = noted  # type: ignore[attr-defined]
    backend_cuda._Clock.seconds = seconds  # type: ignore[method-assign]
    serve(pipe, subject)


def _planted(kernel: GpuKernel) -> str:
    """The kernel of BM = 2 multiplies by 4, that of BM = 4 writes to where nothing is."""
    blocks = kernel.launches[0].blocks
    if blocks == ROWS // 2:
        assert "0f40400000" in kernel.ptx
        return kernel.ptx.replace("0f40400000", "0f40800000")
    if blocks == ROWS // 4:
        head, ret, tail = kernel.ptx.rpartition("\tret;")
        return f"{head}\t{{ .reg .b64 %bad; mov.u64 %bad, 16; st.global.u64 [%bad], %bad; }}\n{ret}{tail}"
    return kernel.ptx


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A judge of `scale` on the virtual GPU, its job, and what the candidates' process noted."""
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("TCOMP_VGPU_QUIET", "1")
    module = module_of(SCALE)
    instance = Instance(module.ops["scale"], {"M": ROWS, "N": 32})
    schedule = schedule_of(instance.op, module, instance.dims, MACHINE, 1)
    (space,) = spaces_of(schedule, facts_of(instance, MACHINE, 1))
    backend = CudaBackend(MACHINE, "", tmp_path / "kernels")
    judge = MeasuredJudge(module, backend, 0, tmp_path / "measuring", virtual)
    (seconds,) = judge.start(instance)
    job = Job(instance, instance.key, space, 0, op_hash(instance.op, module), schedule_hash(schedule), seconds)

    def calls() -> list[Any]:
        return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    yield judge, job, calls
    judge.close()


@pytest.mark.slow
def test_candidates_on_a_gpu(judged: Any) -> None:
    from tcomp.runtime.cuda.timing import FILLS

    judge, job, calls = judged
    assert judge.basis == "measured" and abs(job.seconds - 1e-3) < 5e-5
    verdicts = {bm: judge.evaluate(job, {"BM": bm}, 60.0) for bm in (2, 4, 16, 32)}
    assert verdicts[2].kind == "wrong" and "from the oracle" in verdicts[2].reason
    assert verdicts[4].kind == "crash" and "ILLEGAL_ADDRESS" in verdicts[4].reason
    assert not verdicts[16].kind and abs(verdicts[16].value - 0.8) < 0.05
    assert verdicts[16].facts["margin"] > 0
    assert judge.best(job, {"BM": 8}, [{"BM": 32}]) == {"BM": 8}, "a tie keeps the incumbent"
    assert judge.best(job, {"BM": 8}, [{"BM": 4}, {"BM": 32}, {"BM": 16}]) == {"BM": 16}
    before = len(calls())
    outcome = judge.confirm(job.instance, Choice(), Choice({"BM": 16}))
    assert outcome.better and abs(outcome.seconds / outcome.default_seconds - 0.8) < 0.05
    noted = calls()[before:]
    flushed = [*["cuMemsetD8Async"] * FILLS, "cuEventRecord", "cuLaunchKernel", "cuEventRecord"]
    assert noted[: 4 * len(flushed) + 4] == [*flushed * 4, *["cuEventElapsedTime"] * 4], (
        "each copy of the operands on a cold L2"
    )
    turns = [n for n in noted if isinstance(n, list)]
    assert {tuple(copies) for _, copies in turns} == {("run", "run@1", "run@2", "run@3")}
    assert [rows for rows, _ in turns] == [16, 8, 8, 8, 8, 16] * 12 + [16, 8, 8], "default, incumbent, choice in turns"


def test_copies_of_a_step_lie_behind_one_another() -> None:
    module = module_of(SCALE)
    step = single_op_step(lower(module.ops["scale"], module, {"M": 5, "N": 3}, MACHINE, 1), {"M": 5, "N": 3}, 64)
    made = rotated(step, 3)
    assert len(made.slots) == 3 * len(step.slots) and set(made.programs) == {"run", "run@1", "run@2"}
    spans = sorted((s.offset, s.offset + s.bytes) for s in made.slots.values())
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)) and spans[-1][1] <= made.arena_bytes
    assert made.programs["run@2"][0].offsets == tuple(made.slots[n].offset for n in ("X@2", "Y@2"))
    backend = CudaBackend(replace(A100, l2_bytes=1 << 20), "", None)
    assert [backend.copies(n) for n in (1 << 10, 1 << 20, 3 << 20, 4 << 20)] == [8, 4, 2, 1]


def test_the_incumbent_stays_unless_it_is_beaten_beyond_noise() -> None:
    noise = random.Random(1)
    old, same, faster = ([f * noise.uniform(0.97, 1.03) for _ in range(25)] for f in (1.0, 0.995, 0.95))
    assert winner([old]) == winner([old, same]) == 0 and winner([old, same, faster]) == 2
    assert Ratio(0.98, 0.98, 0.98).beats and not Ratio(0.995, 0.995, 0.995).beats
    assert beats_by_prediction(0.89, 1.0) and not beats_by_prediction(0.91, 1.0)
