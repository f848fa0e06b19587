"""Steps that overlap: the same bits as programs one after the other, and nobody reads or writes what is not settled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp import models
from tcomp.dsl.load import load, load_text
from tcomp.machine.cpu import detect, helpers_of
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.model.step import Step
from tcomp.runtime.bench.build import workload_of, write_folder
from tcomp.runtime.bench.tcomp_program import TcompProgram
from tcomp.runtime.cpu import whole_steps
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.cpu.team import Team
from tcomp.runtime.cpu.whole_steps import WholeSteps
from tcomp.runtime.device import CpuDevice
from tcomp.runtime.initialise import initialise
from tcomp.runtime.scalars import set_scalars
from tests.reference.step_laws import meet, touched

MODELS = Path(models.__file__).parent
SIZES = {
    "gpt2": {"L": 5, "H": 2, "C": 66, "V": 97, "S": 32},  # (at which other tests have compiled its kernels)
    "llama": {"L": 2, "H": 4, "G": 2, "D": 16, "C": 64, "F": 96, "V": 97, "S": 32},
}
STEPS = 4
IN_TWO = """  optimizer momentum:
    hyper peak_lr = 6e-4, final_lr = 0.1, warmup = 100, total = 1000, clip = 1.0
    group matrices: beta = 0.9
    group vectors: beta = 0.5
    lr by cosine
    norm by global_norm

# Without a schedule m and p are kernels of their own, of which the second reads what the first writes.
op momentum(inout p: f32[N], g: f32[N], inout m: f32[N], lr, scale, beta: f32[]):
  m[i] = beta * m[i] + g[i] * scale
  p[i] = p[i] - lr * m[i]
"""


@cache
def step_of(model: str, precision: str, threads: int, accumulation: int) -> Step:
    return build_step(
        load(MODELS / f"{model}.tc"),
        StepRequest(
            model, "tiny", {"B": 2, "T": 24}, dims=SIZES[model], precision=precision, accumulation=accumulation
        ),
        detect(),
        threads=threads,
    )


@pytest.fixture(autouse=True)
def short_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_steps, "SHARE", 512)
    monkeypatch.setattr(whole_steps, "ARITHMETIC", 3)  # so small products are as much memory's as arithmetic's


def trained(step: Step, threads: int, objects: Path, whole: bool, look: bool = False) -> Iterator[Any]:
    """Results of each step, and in the end all that outlives it; with `look` some of that between steps, too."""
    executor = CpuExecutor(step, detect(), threads, objects)
    try:
        initialise(executor, 3, 1)
        set_scalars(executor, {"peak_lr": 1e-2, "clip": 0.5})
        rng = np.random.default_rng(1)
        micros = ["micro_first"] + ["micro_next"] * ("micro_next" in step.programs)
        for number in range(STEPS):
            executor.write("step", number)
            for program in micros:
                for name, bound in step.inputs.items():
                    executor.write(name, rng.integers(0, bound, step.slots[name].shape, dtype=np.int32))
                if not whole or program != micros[-1]:
                    executor.run(program)
                else:
                    executor.run_step(program)
                    if threads > 1 and executor._team is not None:
                        executor._team.spread = True  # as if there were a core for each
            if not whole:
                executor.run("update")
            yield [float(executor.read(name)) for name in ("loss", "lr", "norm")]
            if look:
                yield executor.read(step.parameters[number].slot).copy()
                if number == 1:
                    executor.run("forward")
                    yield float(executor.read("loss"))
        for name, slot in step.slots.items():
            if slot.kind in ("parameter", "master", "state", "gradient"):
                yield executor.read(name).copy()
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("model", "precision", "threads", "accumulation"),
    [
        ("gpt2", "f32", 2, 1),
        pytest.param("llama", "bf16", 3, 2, marks=pytest.mark.slow),
        pytest.param("gpt2", "f32", 1, 1, marks=pytest.mark.slow),
        pytest.param("gpt2", "bf16_stochastic", 3, 1, marks=pytest.mark.slow),
        pytest.param("llama", "bf16", 9, 1, marks=pytest.mark.slow),
        pytest.param("llama", "f32", 2, 3, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("look", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_overlapping_steps_have_the_same_bits(
    model: str, precision: str, threads: int, accumulation: int, look: bool, objects: Path
) -> None:
    step = step_of(model, precision, threads, accumulation)
    apart = list(trained(step, threads, objects, whole=False, look=look))
    whole = list(trained(step, threads, objects, whole=True, look=look))
    assert len(apart) == len(whole)
    for a, b in zip(apart, whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_of_launches_of_an_update_that_read_each_other_only_the_last_is_left_for_later() -> None:
    text = (MODELS / "gpt2.tc").read_text(encoding="utf-8")
    module = load_text(text[: text.index("  optimizer adamw:")] + IN_TWO)
    request = StepRequest("gpt2", "tiny", {"B": 2, "T": 24}, SIZES["gpt2"] | {"L": 1})
    step = build_step(module, request, detect(), threads=2)
    whole, update = WholeSteps(step, -(1 << 20)), [x.label for x in step.programs["update"]]
    assert [x.label for x in whole.now] == update[:-1] and len(update) == 6, update


def asked(executor: CpuExecutor, number: int) -> None:
    """The inputs of a step of that number."""
    rng = np.random.default_rng(number)
    executor.write("step", number)
    for name, bound in executor.step.inputs.items():
        executor.write(name, rng.integers(0, bound, executor.step.slots[name].shape, dtype=np.int32))


@pytest.fixture
def executor(objects: Path) -> Iterator[CpuExecutor]:
    """Two threads as if there were a core for each, and a step to run."""
    made = CpuExecutor(step_of("gpt2", "f32", 2, 1), detect(), 2, objects)
    try:
        initialise(made, 3, 1)
        set_scalars(made, {"peak_lr": 1e-2})
        asked(made, 0)
        made._ready().spread = True
        yield made
    finally:
        made.close()


def test_waiting_finishes_the_update(executor: CpuExecutor) -> None:
    seen = {p.slot: executor.array(p.slot) for p in executor.step.parameters}
    before = {name: array.copy() for name, array in seen.items()}
    executor.run_step("micro_first")
    assert any((seen[name] == before[name]).all() for name in seen), "some of it is left for the next run"
    executor.wait()
    assert all((seen[name] != before[name]).any() for name in seen)


@pytest.mark.parametrize("when", ["before", "behind"])
def test_an_interrupt_loses_no_update(when: str, executor: CpuExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step either was done, and what its update left will be, or it was not, and the one before is whole."""

    def weights() -> dict[str, Any]:
        return {p.slot: executor.read(p.slot).copy() for p in executor.step.parameters}

    start = weights()
    executor.run_step("micro_first")
    one = weights()
    asked(executor, 1)
    executor.run_step("micro_first")
    two = weights()
    for slot in executor.step.slots.values():
        if slot.kind in ("parameter", "state"):
            executor.write(slot.name, start.get(slot.name, 0.0))
    asked(executor, 0)
    executor.run_step("micro_first")
    asked(executor, 1)
    run = Team.run

    def interrupted(self: Team, *arguments: Any) -> None:
        if when == "behind":
            run(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Team, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            executor.run_step("micro_first")
    for name, value in weights().items():
        np.testing.assert_array_equal(value, (two if when == "behind" else one)[name])


def test_a_benchmarks_first_step_has_its_update_and_later_steps_one_each(
    objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = step_of("gpt2", "f32", 2, 1)
    workload = workload_of(step, StepRequest("gpt2", "tiny"), threads=2)
    write_folder(workload, step, tmp_path)
    program = TcompProgram(workload, tmp_path, lambda _: (step, CpuDevice(detect(), 2, objects)))
    try:
        program.executor._ready().spread = True
        seen = {p.slot: program.executor.array(p.slot) for p in step.parameters}
        tokens, targets = (program.executor.read(name).copy() for name in ("tokens", "targets"))
        now = {name: array.copy() for name, array in seen.items()}
        program.run(tokens, targets, 0)
        assert all((seen[name] == program.executor.read(name)).all() for name in seen)
        assert any((seen[name] != now[name]).any() for name in seen)
        program.run(tokens, targets, 1)  # not timed
        ran: list[tuple[bool, bool]] = []
        behind = CpuExecutor._behind

        def counted(self: CpuExecutor, team: Team, native: Any, update: bool = False) -> None:
            ran.append((self._pending, update))
            behind(self, team, native, update)

        monkeypatch.setattr(CpuExecutor, "_behind", counted)
        for number in (2, 3, 4):
            program.run(tokens, targets, number)
        assert ran == [(True, True)] * 3, "each does what one update left, and leaves as much"
    finally:
        program.close()


@pytest.mark.parametrize(("model", "precision"), [("gpt2", "bf16"), ("llama", "f32")])
def test_a_launch_waits_for_the_shares_that_it_needs(model: str, precision: str) -> None:
    step = step_of(model, precision, 2, 1)
    program = WholeSteps(step, -(1 << 20)).program("micro_first", pending=True, update=True)
    assert 0 < program.fork < len(program.entries) - 1 and len(program.side) > 50
    launched = [e for e in program.entries if e.region < 0]
    assert [e.launch for e in launched if e.phase == 0] == list(step.programs["micro_first"])
    beside = [(touched(step, e, written=False), touched(step, e, written=True)) for e in program.side]
    waiting = 0
    for i, e in enumerate(program.entries[program.fork :], program.fork):
        reads, writes = touched(step, e, written=False), touched(step, e, written=True)
        own = e.region >= 0 and not e.parts
        for k, (other_reads, other_writes) in enumerate(beside):
            if meet(writes, other_reads) or meet(reads, other_writes):
                assert e.needs > k, (i, e.launch.label, program.side[k])
                waiting += 1
            assert not own or e.needs > k  # an update's launches share memory with its shares
    assert waiting > 50


def test_rows_that_inputs_choose_come_first() -> None:
    """Of the table only the shares with those rows: 64 elements a row, 512 a share."""
    step = step_of("gpt2", "f32", 2, 1)
    program = WholeSteps(step, -(1 << 20)).program("micro_first", pending=True, update=True)
    (chosen,) = program.chosen
    assert (chosen.at, chosen.count, chosen.row, chosen.base) == (step.slots["tokens"].offset, 48, 66, 0)
    starts = chosen.starts
    for numbers in ([0], [5, 96, 5], [40, 41, 42], list(range(97))):
        found = chosen.among(np.array(numbers)).tolist()
        assert found == [
            j
            for j in range(len(starts) - 1)
            if any(starts[j] < 64 * n + 64 and 64 * n < starts[j + 1] for n in numbers)
        ]
        assert all(program.side[chosen.places[j]].first == j for j in found)


def test_each_share_is_done_once() -> None:
    step = step_of("gpt2", "f32", 2, 1)
    whole = WholeSteps(step, -(1 << 20))
    program = whole.program("micro_first", pending=True, update=False)
    for d, launch in enumerate(whole.later):
        mine = [e for e in (*program.entries, *program.side) if e.region == len(whole.now) + d]
        done = sorted(j for e in mine for j in range(e.first, e.last))
        assert done == list(range(mine[0].parts)), launch.label


@pytest.mark.parametrize("program", ["micro_first", "micro_next"])
def test_squares_are_summed_when_gradients_are_final(program: str) -> None:
    step = step_of("gpt2", "f32", 2, 2)
    whole = WholeSteps(step, -(1 << 20))
    entries = whole.program(program, pending=False, update=True).entries
    blocks = [(i, e) for i, e in enumerate(entries) if e.launch.label == "global_norm" and e.phase == 0]
    done = sorted(j for _, e in blocks for j in range(e.first, e.last))
    assert done == list(range(blocks[0][1].parts)) and len(done) > 2
    last = next(i for i, e in enumerate(entries) if e.launch.label == "global_norm" and e.phase == 1)
    assert blocks[0][0] < last - 20  # not all behind the last launch
    for i, e in blocks:
        assert i < last
        for later in entries[i:]:
            assert not meet(touched(step, later, written=True), touched(step, e, written=False)), later.launch.label


@pytest.mark.parametrize(("precision", "threads"), [("fp8_block", 2), ("fp8", 3)])
def test_kernels_have_room_for_the_shares_of_the_threads_that_stay(precision: str, threads: int, objects: Path) -> None:
    """While some threads are at the update, shares of the others are larger: those alone compute the same bits."""
    step = step_of("gpt2", precision, threads, 1)
    launches = step.programs["micro_first"]
    alone = replace(step, programs={str(i): (x,) for i, x in enumerate(launches)}, threads=1)
    few, all_ = (CpuExecutor(alone, detect(), n, objects) for n in (threads - helpers_of(threads), threads))
    try:
        for executor in (few, all_):
            initialise(executor, 3, 1)
            asked(executor, 0)
        for i, launch in enumerate(launches):
            for executor in (few, all_):
                executor.run(str(i))
            one, other = (np.frombuffer(x._arena.buffer, np.int64, step.arena_bytes // 8) for x in (few, all_))
            assert np.array_equal(one, other), launch.label
            del one, other  # (memory with views of it is not given back)
    finally:
        few.close()
        all_.close()


def test_fewer_threads_than_kernels_have_room_for_are_refused(objects: Path) -> None:
    step = step_of("gpt2", "f32", 4, 1)
    with pytest.raises(ValueError, match="3 threads, not of 2 of 3"):  # one may be at the update
        CpuExecutor(step, detect(), 3, objects)
