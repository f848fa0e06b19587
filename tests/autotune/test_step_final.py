"""Finals within whole steps: programs side by side in one arena, and who wins by planted times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tcomp.autotune.backend_cpu import CpuBackend
from tcomp.autotune.child import Failure, Rejected
from tcomp.autotune.instances import Instance, facts_of, instances_of, schedule_of
from tcomp.autotune.judge import Choice, Job
from tcomp.autotune.space import Values, spaces_of
from tcomp.autotune.step_bench import Choices, Part, StepBench, StepSubject, Turn, TurnsRequest, together
from tcomp.autotune.step_final import EFFORTS, SHARE, StepFinal
from tcomp.dsl.ast import Module
from tcomp.dsl.load import load_text
from tcomp.machine.cpu import detect
from tcomp.model.request import StepRequest
from tcomp.runtime.roofline import ready
from tests.autotune.support import SHAPE, gpt2, gpt2_instance


def jobs_of(op: str, module: Module) -> list[Job]:
    instance = gpt2_instance(op, module)
    schedule = schedule_of(instance.op, module, instance.dims, detect(), 1)
    spaces = spaces_of(schedule, facts_of(instance, detect(), 1))
    return [Job(instance, instance.key, s, i, "", "", 1e-3) for i, s in enumerate(spaces)]


def other(job: Job, **values: int) -> Values:
    return {**job.space.default, **values}


@pytest.fixture(scope="module")
def module() -> Module:
    return gpt2()


JOINED = """import ops.crossentropy
import ops.linear
import ops.optim

op halved(w: f32[C]) -> s: f32[C]:
  s[c] = 0.5 * w[c]

schedule halved on cpu:
  tune BC = 16 from 8, 16
  c -> core(BC) / vec

op scaled(X: f32[M, C], s: f32[C]) -> Y: f32[M, C]:
  Y[m, c] = X[m, c] * s[c]

model own(B):
  config small: L = 3, C = 16, V = 8
  param w: f32[L, C] = normal(1.0) in all
  param o: f32[V, C] = normal(0.1) in all
  input tokens: i32[B] below V
  input label: i32[B] below V
  forward:
    y = looked_up(tokens, o)
    for l in L:
      s = halved(w[l])
      y = scaled(y, s)
    logits = matmul(y, o)
    losses, _ = crossentropy(logits, label, V = V)
    loss = mean(losses)
  loss loss
  optimizer adamw:
    hyper peak_lr = 1e-3, final_lr = 0.1, warmup = 10, total = 100
    hyper beta1 = 0.9, beta2 = 0.95, eps = 1e-8, clip = 1.0
    group all: weight_decay = 0.1
    lr by cosine
    norm by global_norm

op looked_up(t: i32[B], W: f32[V, C]) -> X: f32[B, C]:
  X[b, c] = W[t[b], c]
"""


def test_sets_of_choices_share_an_arena_and_give_the_same_loss(objects: Path) -> None:
    module, request = load_text(JOINED), StepRequest("own", "small", {"B": 64})
    key = next(i.key for i in instances_of(module, request, detect()) if i.op.name == "matmul")
    choices = {key: Choice({"MR": 6, "NV": 1})}
    bench = StepBench(StepSubject(module, request, CpuBackend(detect(), 1, objects)))
    (own, parts), (step, _) = bench._step({}), bench._step(choices)
    both, names = together([own, step])
    assert both.arena_bytes == own.arena_bytes
    assert len(both.kernels) == len(own.kernels) + 1, "only the kernel that differs is there twice"
    assert names[0]["update"] == "update" and names[1]["update"] in both.programs
    assert (key, 0) in {p for ps in parts.values() for p in ps}
    losses = []
    executor = bench.subject.backend.open(both)
    for n in names:
        ready(executor, 1)
        executor.run(n["micro_first"])
        losses.append(float(executor.read("loss")))
    executor.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    turns = bench.answer(TurnsRequest(({}, choices), 2))
    assert [len(t) for t in turns] == [2, 2]
    for t in (t for ts in turns for t in ts):
        assert 0 < t.kernels[key, 0] < t.whole
    moved = {**step.slots, "o": replace(step.slots["o"], offset=64)}
    with pytest.raises(Rejected, match="a choice needs other memory than the schedules' own values for o"):
        together([own, replace(step, slots=moved)])


def test_a_choice_may_change_which_launches_are_joined(objects: Path) -> None:
    """A kernel of one core's work is one launch for all layers, with two cores' work one for each: activations then
    lie elsewhere."""
    module, request = load_text(JOINED), StepRequest("own", "small", {"B": 64})
    bench = StepBench(StepSubject(module, request, CpuBackend(detect(), 2, objects)))
    key = next(i.key for i in instances_of(module, request, detect()) if i.op.name == "halved")
    steps = [bench._step(choices)[0] for choices in ({}, {key: Choice({"BC": 8})})]
    launches = [sum("halved w" in x.label for x in s.programs["micro_first"]) for s in steps]
    assert launches == [1, 3] and steps[0].slots.keys() != steps[1].slots.keys()
    for order in (steps, steps[::-1]):
        both, names = together(order)
        executor = bench.subject.backend.open(both)
        ready(executor, 1)
        losses = []
        for _ in range(2):
            for n in names:
                executor.run(n["micro_first"])
                losses.append(float(executor.read("loss")))
        executor.close()
        assert len(set(losses)) == 1 and losses[0] > 0
    turns = bench.answer(TurnsRequest(({}, {key: Choice({"BC": 8})}), 2))
    assert all(t.kernels[key, 0] > 0 for ts in turns for t in ts)


def test_a_launch_for_many_layers_counts_for_the_kernel_of_one(module: Module, tmp_path: Path) -> None:
    shape = replace(SHAPE, precision="fp8", dims={"L": 2})
    bench = StepBench(StepSubject(module, shape, CpuBackend(detect(), 1, tmp_path)))
    step, parts = bench._step({})
    joined = [n for n, k in step.kernels.items() if k.of]
    assert joined and step.kernels.keys() == parts.keys()
    assert all("fp8" in key for n in joined if "uW" in n for key, _ in parts[n])


class Planted(StepFinal):
    """Kernels take what `time` says of their values, everything else nothing."""

    time: Mapping[tuple[str, int], float] = {}
    together_slow = False

    def _turns(
        self, sets: Sequence[Choices], rounds: int, seconds: float, patience: float
    ) -> list[list[Turn]] | Failure:
        self.asked = [*getattr(self, "asked", []), len(sets)]
        return [[self._turn(s, len(self.asked) > 1) for _ in range(rounds)] for s in sets]

    def _turn(self, choices: Choices, again: bool) -> Turn:
        parts: dict[Part, float] = {}
        for key, at in self.parts:
            values = choices.get(key, Choice()).values
            taken = min((self.time.get((n, v), 1.0) for n, v in values.items()), default=1.0)
            parts[key, at] = 1.01 if again and self.together_slow and values else taken
        return Turn(parts, sum(parts.values()))

    parts: Sequence[Part] = ()


@pytest.fixture
def planted(module: Module, tmp_path: Path) -> tuple[Planted, Job]:
    final = Planted(module, SHAPE, CpuBackend(detect(), 1, tmp_path))
    (job,) = jobs_of("linear", module)
    final.parts, final.seconds, final.effort = [(job.instance.key, 0)], 1e-3, EFFORTS[0]
    return final, job


def right(instance: Instance, choice: Choice) -> str:
    return ""


def test_what_is_better_in_the_step_wins_whatever_its_trial_said(planted: tuple[Planted, Job]) -> None:
    final, job = planted
    final.time = {("MR", 6): 1.2, ("MR", 8): 0.9, ("MR", 12): 0.995}
    ranked = [other(job, MR=mr, NV=1) for mr in (6, 8, 12)]
    found = final.decide([job], {job.instance.key: Choice()}, lambda _: ranked, right, 100.0)
    assert not isinstance(found, Failure)
    assert found.choices[job.instance.key].values["MR"] == 8
    assert found.step.value == pytest.approx(0.9)


@pytest.mark.parametrize("why", ["no better", "wrong", "slower together", "worse than what there is"])
def test_what_loses_changes_nothing(why: str, planted: tuple[Planted, Job]) -> None:
    final, job = planted
    final.time = {("MR", 8): 0.995 if why == "no better" else 0.9}
    final.together_slow = why == "slower together"
    now = Choice()
    if why == "worse than what there is":
        final.time = {**final.time, ("MR", 6): 0.8}
        now = Choice(job.space.chosen(other(job, MR=6, NV=1)))
    refused = (lambda i, c: "wrong: far off") if why == "wrong" else right
    found = final.decide([job], {job.instance.key: now}, lambda _: [other(job, MR=8, NV=1)], refused, 100.0)
    assert not isinstance(found, Failure)
    assert found.choices == {job.instance.key: now} and not found.own


@pytest.mark.parametrize(("step", "budget"), [(1.0, 30.0), (1.0, 200.0), (10.0, 200.0), (1e-3, 1e9)])
def test_a_final_takes_no_more_than_its_share(
    step: float, budget: float, planted: tuple[Planted, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    final, _ = planted
    final.effort = None
    monkeypatch.setattr(final, "_turns", lambda *_: [[Turn({}, step)] * 3])
    final.prepare(budget)
    assert final.reserved <= SHARE * budget
    assert (final.effort is None) == bool(final.reason)
    assert (final.effort is None) == (budget == 30.0 or step == 10.0)


def test_what_is_tuned_of_a_step_in_row_chunks_is_its_chunks(module: Module) -> None:
    shape = replace(SHAPE, dims={"L": 1, "K": 2})
    products = [i for i in instances_of(module, shape, detect()) if i.op.name == "matmul"]
    assert {i.dims["M"] for i in products} == {16, 8}, "24 rows in two parts, at multiples of eight"
