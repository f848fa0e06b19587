"""Trained parameters of more than one type in one model: norms and a router in f32 under every precision.

Forward and backward against PyTorch in float64 and its own AdamW; that f32 parameters have no copies, that steps which
overlap, resume, or run on a GPU give the same; what is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tcomp.dsl.ast import DType
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.programs import build_programs
from tcomp.model.report import plan_text
from tcomp.model.request import StepRequest
from tcomp.model.step import Step
from tcomp.model.unroll import build_graph
from tcomp.numeric import round_to
from tcomp.runtime.cpu import whole_steps
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.initialise import initialise
from tcomp.runtime.values import values
from tests.reference.step_laws import faults_of_plan, faults_of_waits
from tests.turns import in_turns

TEXT = (Path(__file__).parent / "reference" / "mixed_types.tc").read_text(encoding="utf-8")
WIDE = ("norm_w", "router", "last_w")
B, T = 2, 12
SIZES = {"B": B, "T": T}
Array = NDArray[np.floating]
Arrays = dict[str, Array]


def built(precision: str, threads: int = 1, accumulation: int = 1) -> Step:
    request = StepRequest("mixed", "tiny", SIZES, precision=precision, accumulation=accumulation)
    return build_step(load_text(TEXT, "mixed.tc"), request, detect(), threads)


@contextmanager
def running(step: Step, threads: int, objects: Path) -> Iterator[CpuExecutor]:
    executor = CpuExecutor(step, detect(), threads, objects)
    try:
        initialise(executor, 3, 1)
        for name, value in step.scalars.items():
            executor.write(name, value)
        yield executor
    finally:
        executor.close()


def give(executor: CpuExecutor, number: int) -> tuple[Array, Array]:
    random = np.random.default_rng([7, number])
    tokens, targets = (random.integers(0, 61, (B, T)).astype(np.int32) for _ in range(2))
    executor.write("tokens", tokens)
    executor.write("targets", targets)
    return tokens, targets


def kept(executor: CpuExecutor) -> Arrays:
    slots = executor.step.slots
    kinds = ("parameter", "master", "state")
    return {n: np.array(values(executor.read(n), s.dtype)) for n, s in slots.items() if s.kind in kinds}


def theirs(p: dict[str, torch.Tensor], tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The model's loss as PyTorch has it."""

    def norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), w, 1e-5)

    x = p["wte"][tokens.reshape(-1)]
    for layer in range(2):
        q, k, v = (norm(x, p["norm_w"][layer]) @ p["qkv"][layer].T).reshape(B, T, 3, 2, 12).permute(2, 0, 3, 1, 4)
        a = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + a.transpose(1, 2).reshape(B * T, 24) @ p["out"][layer].T + p["bias"][layer]
        h = norm(x, p["norm_w"][layer])
        g = torch.softmax(h @ p["router"][layer].T, -1)
        x = x + (g[:, :, None] * (h @ p["up"][layer].T).reshape(B * T, 3, 24)).sum(1)
    logits = norm(x, p["last_w"]) @ p["wte"].T
    return torch.nn.functional.cross_entropy(logits[:, :61], targets.reshape(-1).long())


@in_turns(2)
@pytest.mark.parametrize(
    "precision", ["bf16", *(pytest.param(x, marks=pytest.mark.slow) for x in ("f32", "bf16_stochastic"))]
)
def test_a_step_is_that_of_torch(precision: str, objects: Path) -> None:
    step = built(precision)
    assert not list(faults_of_plan(step))
    with running(step, 1, objects) as executor:
        for number in range(2):
            one_step(executor, number, 1e-4 if precision == "f32" else 3e-2)


def one_step(executor: CpuExecutor, number: int, tolerance: float) -> None:
    step, before = executor.step, kept(executor)
    tokens, targets = give(executor, number)
    executor.run("micro_first")
    p = {q.slot: torch.tensor(before[q.slot].astype(np.float64), requires_grad=True) for q in step.parameters}
    loss = theirs(p, torch.from_numpy(tokens).long(), torch.from_numpy(targets))
    loss.backward()
    assert float(executor.read("loss")) == pytest.approx(float(loss.detach()), rel=tolerance)
    gradients = {n: np.array(executor.read(f"grad.{n}")) for n in p}
    for name, q in p.items():
        assert q.grad is not None
        want = q.grad.numpy()
        assert np.linalg.norm(gradients[name] - want) <= tolerance * np.linalg.norm(want), name
    executor.write("step", number)
    executor.run("update")
    check_update(step, before, gradients, kept(executor), number)


def check_update(step: Step, before: Arrays, gradients: Arrays, after: Arrays, number: int) -> None:
    """All of it, from our own gradients, is PyTorch's AdamW with the norm of all gradients clipped."""
    norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    lr = 1e-3 * (number + 1) / 2
    for q in step.parameters:
        place = q.master or q.slot
        p = torch.nn.Parameter(torch.tensor(before[place].astype(np.float64)))
        decay = 0.1 if q.group == "matrices" else 0.0
        torch_step = torch.optim.AdamW([p], lr, betas=(0.9, 0.95), weight_decay=decay)
        names = {"exp_avg": f"state.m.{q.slot}", "exp_avg_sq": f"state.v.{q.slot}"}
        torch_step.state[p] = {n: torch.tensor(before[s].astype(np.float64)) for n, s in names.items()}
        torch_step.state[p]["step"] = torch.tensor(float(number))
        p.grad = torch.tensor(gradients[q.slot] * min(1.0, 1.0 / (norm + 1e-6)))
        torch_step.step()
        want = p.detach().numpy()
        narrow = step.slots[place].dtype is DType.BF16
        np.testing.assert_allclose(after[place], want, rtol=2.0**-7 if narrow else 1e-5, atol=1e-7, err_msg=place)
        if q.master:
            np.testing.assert_array_equal(after[q.slot], round_to(after[place].astype(np.float32), DType.BF16))


@pytest.mark.parametrize("precision", ["f32", "bf16", "bf16_stochastic"])
def test_who_has_a_copy_and_where_all_lie(precision: str) -> None:
    graph = build_graph(load_text(TEXT, "mixed.tc"), "mixed", "tiny", SIZES, None, precision)
    p = build_programs(graph, load_text(TEXT, "mixed.tc"))
    names = [q.tensor.name for q in graph.parameters]
    copied = [n for n in names if n not in WIDE] if precision == "bf16" else []
    assert [t.name for t in p.masters] == copied
    assert {q.tensor.name: q.tensor.dtype for q in graph.parameters} == {
        n: DType.F32 if n in WIDE or precision == "f32" else DType.BF16 for n in names
    }
    assert p.update is not None
    calls = [n for n in p.update.nodes if n.op.name.startswith("adamw")]
    assert [n.label.split(maxsplit=1)[1] for n in calls] == (
        ["matrices", "vectors"]
        if precision == "f32"
        else ["matrices bf16", "vectors bf16", "matrices f32", "vectors f32"]
    )
    assert ["w" in n.operands for n in calls] == (
        [True, True, False, False] if precision == "bf16" else [False] * len(calls)
    )
    # `g` of the calls are neighbours, from the first element to the last, and `first` counts them.
    ends = [(n.operands["g"].offset, n.operands["g"].offset + n.operands["g"].elements) for n in calls]
    assert [0, *(b for _, b in ends)] == [*(a for a, _ in ends), p.layout.elements]
    if precision == "bf16_stochastic":
        assert [p.update.scalars[n.operands["first"].tensor] for n in calls] == [a for a, _ in ends]


def test_the_plan_says_types_and_bytes() -> None:
    step = built("bf16")
    f32, bf16 = 2 * 24 + 2 * 3 * 24 + 24, 64 * 24 + 2 * (72 * 24 + 24 * 24 + 24 + 72 * 24)
    slots = [s for s in step.slots.values() if s.kind == "parameter"]
    assert sum(s.bytes for s in slots) == 4 * f32 + 2 * bf16
    assert sum(s.bytes for s in step.slots.values() if s.kind == "master") == 4 * bf16
    text = plan_text(step, largest=50)
    assert "f32[2, 3, 24]" in text and "bf16[64, 24]" in text


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "bf16_stochastic"])
@pytest.mark.parametrize(("threads", "accumulation"), [(1, 2), (2, 1)])
def test_steps_that_overlap_or_resume_give_the_same_bits(
    precision: str, threads: int, accumulation: int, objects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_steps, "SHARE", 512)
    monkeypatch.setattr(whole_steps, "ARITHMETIC", 3)
    step = built(precision, threads, accumulation)
    assert not list(faults_of_waits(step))

    def steps(executor: CpuExecutor, first: int, last: int, whole: bool) -> None:
        for number in range(first, last):
            executor.write("step", number)
            for micro in range(accumulation):
                give(executor, number * accumulation + micro)
                program = "micro_next" if micro else "micro_first"
                if whole and micro == accumulation - 1:
                    executor.run_step(program)
                    executor._ready().spread = threads > 1
                else:
                    executor.run(program)
            if not whole:
                executor.run("update")

    with running(step, threads, objects) as executor:
        steps(executor, 0, 4, False)
        apart = kept(executor)
    with running(step, threads, objects) as executor:
        steps(executor, 0, 4, True)
        same(kept(executor), apart)
    with running(step, threads, objects) as executor, running(step, threads, objects) as other:
        steps(executor, 0, 2, True)
        for name, slot in step.slots.items():
            if slot.kind in ("parameter", "master", "state"):
                other.write(name, executor.read(name))
        steps(other, 2, 4, True)
        same(kept(other), apart)


def same(found: Arrays, wanted: Arrays) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def changed(*pairs: tuple[str, str]) -> str:
    text = TEXT
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


def refused(text: str, precision: str, *words: str) -> None:
    module = load_text(text, "mixed.tc")
    with pytest.raises(TcError) as caught:
        build_programs(build_graph(module, "mixed", "tiny", SIZES, None, precision), module)
    for word in words:
        assert word in str(caught.value), str(caught.value)


NARROW_OP = """
op narrow(inout p: bf16[N], g: f32[N], lr, weight_decay, beta1, beta2, eps: f32[]):
  p[i] = p[i] - lr * (g[i] + weight_decay * p[i] + beta1 * beta2 * eps)
"""
NORM_OF_ALL = """
op norm_of_all(g, p: {}[N], clip: f32[]) -> norm: f32[], scale: f32[]:
  s = sum i: g[i] * g[i] + p[i] * p[i]
  norm = sqrt(s)
  scale = clip / (norm + 1.0)
"""


def test_an_op_that_takes_one_type_only_is_refused() -> None:
    text = changed(("by adamw_stochastic", "by narrow")) + NARROW_OP
    refused(text, "bf16_stochastic", "mixed.tc:", "'p' of 'narrow' is bf16", "it is f32 for matrices in f32", "`real`")


def test_a_norm_that_reads_parameters_of_several_types_is_refused() -> None:
    text = changed(("norm by global_norm", "norm by norm_of_all")) + NORM_OF_ALL.format("f32")
    refused(text, "bf16_stochastic", "'p' of all parameters, which are of several types")
    module = load_text(text, "mixed.tc")  # f32 masters and f32 parameters are one vector
    build_programs(build_graph(module, "mixed", "tiny", SIZES, None, "bf16"), module)


def test_two_narrow_types_with_copies_are_refused() -> None:
    """One vector has all parameters that f32 copies are rounded to."""
    pairs = (
        ("op norm(x: real[M, N], w: f32[N]", "op norm(x: real[M, N], w: f16[N]"),
        ("norm_w: f32", "norm_w: f16"),
        ("last_w: f32", "last_w: f16"),
    )
    text = changed(*pairs)
    refused(text, "bf16", "mixed.tc:", "parameter 'norm_w' is f16, 'wte' is bf16", "master copies all are of one type")


def test_gradients_of_two_types_are_refused() -> None:
    pairs = (
        ("op norm(x: real[M, N], w: f32[N]", "op norm(x: real[M, N], w: f64[N]"),
        ("* r[m] * w[n]", "* r[m] * f32(w[n])"),
    )
    text = changed(*pairs, ("norm_w: f32", "norm_w: f64"), ("last_w: f32", "last_w: f64"))
    refused(text, "bf16", "mixed.tc:", "parameter 'norm_w' is f64, 'wte' is bf16", "are all f64, or none is")
