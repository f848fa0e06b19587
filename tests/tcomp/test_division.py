"""A step that ranks divide, as it is planned: what is divided, what differs from rank to rank, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tcomp.cli.common import load_module
from tcomp.dsl.elementwise import elementwise
from tcomp.dsl.errors import TcError
from tcomp.dsl.files import library
from tcomp.dsl.load import load
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.report import launch_label, plan_text
from tcomp.model.request import Sharing, StepRequest
from tcomp.model.sharing import in_parts
from tcomp.model.step import FLAT
from tcomp.runtime import train as training
from tcomp.runtime.distributed.shares import step_of
from tests.reference.ranks import LENGTH, step_for
from tests.reference.step_laws import faults_of_plan

OPS = """
op norm_of(g: f32[N], clip: f32[]) -> norm: f32[], scale: f32[]:
  s = sum i: g[i] * g[i]
  norm = sqrt(s)
  scale = clip / norm

op mean_of(g: f32[N]) -> norm: f32[]:
  s = sum i: g[i]
  norm = s / N

op largest_of(g: f32[N]) -> norm: f32[]:
  s = max i: g[i]
  norm = s

op first_of(g: f32[N]) -> norm: f32[]:
  index i: N - 1
  s = sum i: g[i] * g[i]
  norm = sqrt(s)

op wide_of(g: f64[N]) -> norm: f64[]:
  s = sum i: g[i] * g[i]
  norm = sqrt(s)

op plain(inout p: f32[N], g: f32[N], lr: f32[], step: i32[], first: i32[]):
  d[i] = g[i] * lr
  p[i] = p[i] - d[i] + random(step, first + i)

op by_place(inout p: f32[N], g: f32[N]):
  p[i] = p[i] - g[i] * i

op by_number(inout p: f32[N], g: f32[N], first: i32[]):
  p[i] = p[i] - g[i] * first

op neighbour(inout p: f32[N], g: f32[N]):
  p[i] = g[N - 1 - i]

op some(inout p: f32[N], g: f32[N]):
  index i: N - 1
  p[i] = p[i] - g[i]

op whole(inout p: f32[N], g: f32[N]):
  s = sum i: g[i] * g[i]
  p[i] = p[i] - g[i] / s
"""


def test_only_what_a_share_suffices_for_is_divided(tmp_path: Path) -> None:
    file = tmp_path / "ops.tc"
    file.write_text(OPS)
    ops = load(file).ops
    split = in_parts(ops["norm_of"])
    assert split is not None and split.sums == ("s",)
    assert [o.name for o in split.part.operands] == ["g", "s"]
    assert [o.name for o in split.rest.operands] == ["clip", "s", "norm", "scale"]
    assert not any(in_parts(ops[name]) for name in ("mean_of", "largest_of", "first_of", "wide_of"))
    updates = ("plain", "by_place", "by_number", "neighbour", "some", "whole")
    assert [n for n in updates if elementwise(ops[n])] == ["plain"]


def test_a_share_of_the_state_is_all_that_zero_1_places() -> None:
    plain, zero = (step_for(Sharing(4, z), "bf16") for z in (0, 1))
    sizes = [
        {k: sum(s.bytes for s in x.slots.values() if s.kind == k) for k in ("state", "master")} for x in (plain, zero)
    ]
    for kind in ("state", "master"):
        whole = sizes[0][kind]
        assert 0 < whole / 4 <= sizes[1][kind] <= whole / 4 * 1.2
    saved = sum(sizes[0].values()) - sum(sizes[1].values())
    assert plain.arena_bytes - zero.arena_bytes >= saved > 0


def test_ranks_differ_in_places_within_whole_vectors_only() -> None:
    step = step_for(Sharing(2, 1), "bf16_stochastic")
    other = step_of(step, 1)
    assert step.division is not None
    assert step.kernels is other.kernels and step.slots is other.slots and step_of(step, 0) is step
    for program, launches in step.programs.items():
        for a, b in zip(launches, other.programs[program], strict=True):
            shared = program in ("norm", "sum") or a.label.startswith("adamw")
            assert a.kernel == b.kernel and (a.offsets != b.offsets) == shared
    firsts = {n: v for n, v in other.scalars.items() if n.startswith("first.")}
    assert firsts == {n: step.scalars[n] + step.division.firsts[n] for n in firsts} and len(firsts) == 2


@pytest.mark.parametrize("zero", [0, 1])
def test_what_comes_from_other_ranks_has_its_place_when_the_micro_batches_are_done(zero: int) -> None:
    step = step_for(Sharing(3, zero), "fp8")
    assert step.division is not None and not list(faults_of_plan(step))
    rows = [*(to for _, to in step.division.scattered), *(to for _, to in step.division.joined)]
    slots = {s.offset: s for s in step.slots.values() if s.kind == "received"}
    assert len(slots) == len(rows) == 3
    for r in rows:
        assert slots[r.offset].bytes == 3 * r.bytes and slots[r.offset].dtype is r.dtype
    assert "received" in plan_text(step) and "sum of gradients" in launch_label(step, slots[rows[0].offset].first)
    most = max(s.offset + s.bytes for s in step.slots.values() if s.kind == "activation")
    assert min(slots) < most, "activations have had this memory before"


def test_an_optimizer_that_needs_whole_vectors_is_refused_under_zero_1(tmp_path: Path) -> None:
    text = (Path(training.__file__).parent.parent / "models/ops/optim.tc").read_text()
    module = load_module("gpt2", "f32")
    file = tmp_path / "ops.tc"
    file.write_text(text.replace("gs[i] = g[i] * scale", "gs[i] = g[N - 1 - i] * scale"))
    module = replace(module, ops={**module.ops, "adamw": load(file).ops["adamw"]})
    request = StepRequest("gpt2", "tiny", {"B": 2, "T": 16}, {"L": 1, "C": 16, "H": 2}, "f32", sharing=Sharing(2, 1))
    with pytest.raises(TcError, match="updates its share of the parameters only, and op 'adamw' needs more"):
        build_step(module, request, detect(), 1)


def test_what_sums_of_shares_read_is_not_idle(tmp_path: Path) -> None:
    """A number that the norm reads before the ranks join their sums."""
    text = (library() / "gpt2.tc").read_text().replace("norm by global_norm", "norm by weighed")
    text = text.replace("beta1 = 0.9,", "beta1 = 0.9, weight = 0.5,")
    (tmp_path / "own.tc").write_text(text + WEIGHED)
    for sharing in (Sharing(), Sharing(2, 0)):
        sizes = {"L": 1, "C": 16, "H": 2}
        request = StepRequest("gpt2", "tiny", {"B": 2, "T": LENGTH}, sizes, "f32", sharing=sharing)
        step = build_step(load_module(str(tmp_path / "own.tc"), "f32"), request, detect(), 1)
        assert "hyper.weight" in step.hyper and not step.idle_hyper()


WEIGHED = """
op weighed(g: f32[N], clip: f32[], weight: f32[]) -> norm: f32[], scale: f32[]:
  s = sum i: g[i] * g[i] * weight
  norm = sqrt(s)
  scale = min(1.0, clip / (norm + 1e-6))
"""


def test_sums_for_a_norm_that_read_the_steps_learning_rate_are_not_taken_before_it_is_there(tmp_path: Path) -> None:
    text = (Path(training.__file__).parent.parent / "models/ops/optim.tc").read_text()
    head, body = "op global_norm(g: f32[N], clip: f32[])", "s = sum i: g[i] * g[i]"
    assert head in text and body in text
    file = tmp_path / "ops.tc"
    file.write_text(text.replace(head, head.replace("clip", "lr: f32[], clip")).replace(body, f"{body} * lr"))
    module = load_module("gpt2", "f32")
    module = replace(module, ops={**module.ops, "global_norm": load(file).ops["global_norm"]})
    assert in_parts(module.ops["global_norm"]) is not None
    request = StepRequest("gpt2", "tiny", {"B": 2, "T": 16}, {"L": 1, "C": 16, "H": 2}, "f32", sharing=Sharing(2, 1))
    with pytest.raises(TcError, match="'global_norm' takes more of them than sums"):
        build_step(module, request, detect(), 1)


@pytest.mark.parametrize(("model", "ranks"), [("gpt2", 7), ("gpt2_muon", 7)])
def test_what_makes_groups_as_long_as_equal_shares_is_zero_at_first(model: str, ranks: int) -> None:
    step = step_for(Sharing(ranks), "bf16", model=model)
    assert step.division is not None and step.division.behind
    zeros = sorted(step.zeros())
    held = [(s.offset, s.offset + s.bytes) for s in step.slots.values() if s.kind in FLAT and s.bytes]
    for at, size in step.division.behind:
        assert size > 0 and (at, size) in zeros
        assert not any(a < at + size and b > at for a, b in held)


def test_random_numbers_of_an_update_do_not_depend_on_how_many_ranks_there_are() -> None:
    found = [step_for(Sharing(ranks), "bf16_stochastic", model="gpt2_muon").scalars for ranks in (1, 7)]
    firsts = [{n: v for n, v in scalars.items() if n.startswith("first.")} for scalars in found]
    assert firsts[0] == firsts[1] and any("qkv_w" in n for n in firsts[0]) and "first.vectors" in firsts[0]
