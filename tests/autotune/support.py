"""What the tests of tuning share: a small model, searches on it, and a child with planted faults."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import optuna

from tcomp.autotune import bench, storage
from tcomp.autotune.backend_cpu import CpuBackend
from tcomp.autotune.evaluator import Serve, Subject, serve
from tcomp.autotune.instances import Instance, facts_of, instances_of, schedule_of
from tcomp.autotune.judge import Judge
from tcomp.autotune.judge_measured import MeasuredJudge
from tcomp.autotune.plan import Plan, Summary
from tcomp.autotune.sass import Function, functions_of
from tcomp.autotune.search import Search, Shown
from tcomp.autotune.space import Space, spaces_of
from tcomp.dsl.ast import Module, Op
from tcomp.dsl.load import load, load_text
from tcomp.machine.cpu import detect
from tcomp.model.request import StepRequest

GPT2 = Path(__file__).resolve().parents[2] / "models" / "gpt2.tc"
SHAPE = StepRequest("gpt2", "tiny", {"B": 1, "T": 24}, {"L": 1})

SCALE = """op scale(X: f32[M, N]) -> Y: f32[M, N]:
  Y[m, n] = X[m, n] * 2.0

schedule scale on cpu:
  tune A = 8 from 4, 8, 16, 32
  tune U = 2 from 1, 2, 3
  m -> core / seq(A)
  n -> unroll(U) / vec
"""


def module_of(text: str) -> Module:
    return load_text(text)


def scale(dims: tuple[int, int] = (37, 67), text: str = SCALE) -> tuple[Module, Instance, Space]:
    """A one-kernel instance with a space of 12 points."""
    module = module_of(text)
    instance = Instance(module.ops["scale"], {"M": dims[0], "N": dims[1]})
    (space,) = spaces_of(schedule_of(instance.op, module, instance.dims, detect(), 1), facts_of(instance, detect(), 1))
    return module, instance, space


def gpt2() -> Module:
    return load(GPT2)


def gpt2_instance(op: str, module: Module) -> Instance:
    return next(i for i in instances_of(module, SHAPE, detect()) if i.op.name == op)


def search_on(
    folder: Path, plan: Plan, target: Serve = serve, module: Module | None = None, patience: float = 60.0,
    judge: Judge | None = None,
) -> Search:  # fmt: skip
    """A search on gpt2's small step with one thread; trials and lockfile in the folder. With a judge of its own its
    trials are in memory."""
    module = module or gpt2()
    kept = optuna.storages.InMemoryStorage() if judge else storage.open_storage(folder / "trials.sqlite3")
    backend = CpuBackend(detect(), 1, folder / "kernels")
    measured = MeasuredJudge(module, backend, plan.seed, None, target, patience)
    judge = judge or measured
    return Search(module, backend, plan, judge, kept, folder / "gpt2.lock", Shown(lambda _: None))


def tune(folder: Path, plan: Plan) -> tuple[Summary, Path]:
    """Such a search, run."""
    search = search_on(folder, plan)
    return search.run(), search.lock


def planted(pipe: Connection, subject: Subject) -> None:
    """A child in which three values of MR go wrong: 6 computes without the bias, 8 crashes, 12 hangs. All are fast."""
    lower = bench.lower

    def faulty(op: Op, module, dims, machine, threads, chosen, schedule):  # type: ignore[no-untyped-def]
        match chosen.get("MR"):
            case 6:
                wrong = replace(op, equations=(op.equations[0], replace(op.equations[1], value=_without_bias(op))))
                return lower(wrong, module, dims, machine, threads, {"MR": 4, "NV": 1}, schedule)
            case 8:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 12:
                time.sleep(1000)
        return lower(op, module, dims, machine, threads, chosen, schedule)

    bench.lower = faulty
    serve(pipe, subject)


def sluggish(pipe: Connection, subject: Subject) -> None:
    """A child in which every candidate takes most of a second to build."""
    lower = bench.lower

    def slow(op: Op, module, dims, machine, threads, chosen, schedule):  # type: ignore[no-untyped-def]
        time.sleep(0.7 if chosen else 0)
        return lower(op, module, dims, machine, threads, chosen, schedule)

    bench.lower = slow
    serve(pipe, subject)


def _without_bias(op: Op):  # type: ignore[no-untyped-def]
    """acc[m, n] + b[n] --> acc[m, n] + b[n] - b[n] + 0.001: every operand is still read."""
    from tcomp.dsl.ast import Binary, Num

    value = op.equations[1].value
    assert isinstance(value, Binary)
    return Binary("+", Binary("-", value, value.right), Num(0.001))


def code(*lines: str) -> Function:
    """A function of these lines; those that end in a colon are labels."""
    text = [x if x.endswith(":") else f"        /*{16 * n:04x}*/ {x} ;" for n, x in enumerate(lines)]
    return functions_of("\n".join([".text.k:", *text]))["k"]
