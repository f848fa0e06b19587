"""Memory budgets: plans that fit, cheap results first, the same bits, and refusals that say the least possible."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.dsl.ast import Module
from tcomp.dsl.load import load, load_text
from tcomp.errors import UserError
from tcomp.machine.cpu import detect
from tcomp.machine.gpu import machine_named
from tcomp.model.build import build_step
from tcomp.model.draft import Draft, Drafter
from tcomp.model.graph import Graph
from tcomp.model.report import plan_text
from tcomp.model.request import StepRequest
from tcomp.model.step import Step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.initialise import initialise
from tests.turns import in_turns

GPT2 = Path(__file__).resolve().parents[2] / "models" / "gpt2.tc"
SMALL = {"L": 3, "H": 2, "C": 32, "V": 61, "S": 32}
SIZES = {"B": 4, "T": 32}


@pytest.fixture(scope="module")
def gpt2() -> Module:
    return load(GPT2)


def built(module: Module, limit: int | None = None, C: int = 32, B: int = 4, **more: Any) -> Step:
    if limit is not None:
        more |= {"memory_limit": limit, "recompute": "to fit"}
    request = StepRequest("gpt2", "tiny", {**SIZES, "B": B}, {**SMALL, "C": C}, **more)
    return build_step(module, request, detect())


def memory(step: Step) -> int:
    return step.arena_bytes + step.scratch_bytes + step.team_bytes


@pytest.fixture(scope="module")
def free(gpt2: Module) -> Step:
    return built(gpt2)


@pytest.fixture(scope="module")
def least(gpt2: Module) -> int:
    return least_of(gpt2)


def least_of(module: Module, **more: Any) -> int:
    """The least that the step can do with, from the refusal of an impossible budget."""
    with pytest.raises(UserError) as refusal:
        built(module, 1000, **more)
    text = refusal.value.message
    assert "at the least" in text and "the limit is" in text and "the largest tensors live there" in text
    amount, unit = text.split("needs ")[1].split()[:2]
    return int(float(amount) * {"KiB": 2**10, "MiB": 2**20}[unit])


def test_memory_beside_the_arena_is_blamed_by_kernel() -> None:
    """What lies between equations of an op without a schedule is in no tensor of the plan."""
    text = (
        "op f(x: f32[B, N], w: f32[N]) -> y: f32[]:\n  t[b, i, j] = x[b, i] * x[b, j]\n  u[b, i] = max j: t[b, i, j]\n"
        "  y = sum b, i, j: t[b, i, j] * u[b, j] * w[i]\n"
        "op sgd(inout p: f32[N], g: f32[N], rate: f32[]):\n  p[i] = p[i] - rate * g[i]\n"
        "model m(B):\n  config one: N = 200\n  param w: f32[N] = ones in all\n  input x: f32[B, N]\n"
        "  forward:\n    loss = f(x, w)\n  loss loss\n  optimizer sgd:\n    group all: rate = 0.1\n"
    )
    module = load_text(text)
    request = StepRequest("m", "one", {"B": 2}, memory_limit=1000)
    with pytest.raises(UserError, match=r"(scratch|shared by the threads or blocks) of f"):
        build_step(module, request, detect())
    step = build_step(module, StepRequest("m", "one", {"B": 2}), detect())
    assert re.search("(scratch, 1 thread|shared by the threads), most by f", plan_text(step))


def test_a_budget_that_is_met_anyway_changes_nothing(gpt2: Module, free: Step) -> None:
    step = built(gpt2, memory(free))
    assert step.recompute is None and step.programs == free.programs


def test_every_budget_down_to_the_least_is_met(gpt2: Module, free: Step, least: int) -> None:
    assert least < 0.8 * memory(free)
    shares = []
    for part in (0.95, 0.8, 0.6, 0.4, 0.2, 0.05):
        limit = round(least + part * (memory(free) - least)) + 60_000
        step = built(gpt2, limit)
        assert memory(step) <= limit
        if step.recompute:
            assert step.recompute.after == memory(step)
            assert step.recompute.before <= memory(free) <= 1.02 * step.recompute.before
            shares.append(step.recompute.share)
    assert shares == sorted(shares) and len(shares) >= 4, "less memory costs more time"


def test_what_is_computed_again_saves_memory(gpt2: Module) -> None:
    """As steps are placed: a small one may lose in placement what fewer live bytes save."""
    request = StepRequest("gpt2", "tiny", {"B": 1, "T": 8}, {"L": 2, "H": 1, "C": 7})
    found = build_step(gpt2, request, detect())
    plain = build_step(gpt2, replace(request, recompute="never"), detect())
    assert memory(found) <= memory(plain)
    assert found.recompute is None or found.recompute.before == memory(plain) > memory(found)


def test_cheap_results_go_first(gpt2: Module) -> None:
    """Normalised rows and GELUs before products and attention, where products have some size."""

    def build(limit: int | None) -> Step:
        return wide(gpt2, memory_limit=limit, recompute="to fit")

    free = build(None)
    step = build(round(memory(free) - 9 * 2**20))
    assert step.recompute is not None and step.recompute.share < 0.05
    assert {r.op for r in step.recompute.rows} <= {"layernorm", "linear_gelu", "embedding"}
    assert ("l0.u",) in [r.results for r in step.recompute.rows], "the product itself is kept"
    further = build(round(memory(free) - 30 * 2**20)).recompute
    assert further is not None and further.share > step.recompute.share
    assert {"layernorm", "linear_gelu", "attention"} <= {r.op for r in further.rows}


def wide(module: Module, machine: Any = None, **more: Any) -> Step:
    """A step whose products have some size."""
    sizes = {**SMALL, "C": 256, "S": 128}
    return build_step(module, StepRequest("gpt2", "tiny", {"B": 8, "T": 128}, dims=sizes, **more), machine or detect())


def test_without_a_budget_only_what_a_pass_over_memory_makes_is_computed_again(gpt2: Module) -> None:
    step, free = wide(gpt2, recompute="cheap"), wide(gpt2)
    assert step.recompute is not None and step.recompute.limit is None
    assert {r.results[0].removeprefix("l0.") for r in step.recompute.rows} <= {"h", "h.2", "u", "x"}
    assert step.recompute.before <= memory(free) <= 1.02 * step.recompute.before
    assert step.recompute.after == memory(step) < memory(free) - 6 * 2**20
    text = plan_text(step)
    assert "Computed again in the backward pass, since it costs next to nothing" in text
    assert "--memory unlimited" in text


def test_a_share_of_the_step_limits_what_is_computed_again_without_a_budget(gpt2: Module) -> None:
    """Of a step with little arithmetic the first layers' results, which live longest, as far as the share reaches."""
    for step in (built(gpt2, recompute="cheap"), wide(gpt2, recompute="cheap")):
        assert step.recompute is not None and 0.005 < step.recompute.share <= 0.015
        assert sum(r.share for r in step.recompute.rows) == pytest.approx(step.recompute.share)
        assert min(r.layers for r in step.recompute.rows) < 3


def test_no_choice_is_drafted_twice(gpt2: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    drafted: list[tuple[frozenset[str], ...]] = []
    draft = Drafter.draft

    def noted(drafter: Drafter, graph: Graph) -> Draft:
        drafted.append(tuple(n.recompute for n in graph.nodes))
        return draft(drafter, graph)

    monkeypatch.setattr(Drafter, "draft", noted)
    assert built(gpt2, recompute="cheap").recompute is not None
    assert len(drafted) == len(set(drafted)) > 1


def test_a_gpu_computes_nothing_again_without_a_budget(gpt2: Module) -> None:
    machine = machine_named("h100")
    step, free = (wide(gpt2, machine, precision="bf16", recompute=r) for r in ("cheap", "never"))
    assert step.recompute is None and step.programs == free.programs


def test_only_as_many_layers_as_needed(gpt2: Module, free: Step) -> None:
    step = built(gpt2, memory(free) - 1)
    assert step.recompute is not None
    assert [r.layers for r in step.recompute.rows] == [1]


@pytest.mark.slow
def test_the_step_is_bitwise_the_same_without_a_budget(gpt2: Module, objects: Path) -> None:
    step = built(gpt2, C=128, recompute="cheap")
    assert step.recompute is not None
    expected = trained(built(gpt2, C=128), objects)
    for name, values in trained(step, objects).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("precision,parts", [("f32", (0.6, 0.0)), ("bf16", (0.3,))])
def test_the_step_is_bitwise_the_same(precision: str, parts: tuple[float, ...], gpt2: Module, objects: Path) -> None:
    wide: dict[str, Any] = {"C": 128, "precision": precision, "B": 8}
    free, least = built(gpt2, **wide), least_of(gpt2, **wide)
    expected = trained(free, objects)
    alone = set()
    for part in parts:
        limit = round(least + part * (memory(free) - least)) + 60_000
        step = built(gpt2, limit, **wide)
        assert step.recompute is not None
        alone |= {r.results for r in step.recompute.rows}
        for name, values in trained(step, objects).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=f"{name} at {limit}")
    assert any(len(r) == 1 and r[0].endswith(".u") for r in alone), "a GELU without its product is among them"


def test_the_step_is_bitwise_the_same_with_accumulation(gpt2: Module, objects: Path) -> None:
    whole = built(gpt2, accumulation=2)
    tight = built(gpt2, round(0.8 * memory(whole)), accumulation=2)
    assert tight.recompute is not None and memory(tight) <= round(0.8 * memory(whole))
    expected = trained(whole, objects)
    for name, values in trained(tight, objects).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def trained(step: Step, cache: Path) -> dict[str, Any]:
    """Losses, gradients of the last step, and parameters after three steps."""
    executor = CpuExecutor(step, detect(), 1, cache)
    try:
        initialise(executor, 1, 1)
        rng = np.random.default_rng(5)
        losses = []
        for number in range(3):
            executor.write("step", number)
            for program in ("micro_first", "micro_next"):
                if program in step.programs:
                    with executor.batch() as inputs:
                        for array in inputs.values():
                            array[...] = rng.integers(0, 61, array.shape)
                    executor.run(program)
                    losses.append(float(executor.read("loss")))
            executor.run("update")
        names = [n for n, s in step.slots.items() if s.kind in ("parameter", "gradient", "state")]
        return {"losses": np.array(losses), **{n: executor.read(n).copy() for n in names}}
    finally:
        executor.close()


def test_what_the_text_marks_itself_is_left_to_it() -> None:
    call = "a, _ = attention(qkv as [B, T, 3, H, D])"
    text = GPT2.read_text()
    assert call in text
    module = load_text(text.replace(call, f"{call} [recompute]"), str(GPT2))
    plain = built(module)
    assert any("attention (again)" in launch.label for launch in plain.programs["micro_first"])
    step = built(module, round(0.9 * memory(plain)))
    assert step.recompute is not None and "attention" not in {r.op for r in step.recompute.rows}


def test_without_recompute_the_refusal_says_that_there_is_another_way(gpt2: Module, free: Step) -> None:
    with pytest.raises(UserError, match=r"(.|\n)*or --memory with a budget"):
        build_step(gpt2, StepRequest("gpt2", "tiny", SIZES, dims=SMALL, memory_limit=memory(free) - 1), detect())
