"""The built step of GPT-2: every launch reads what was written for it, the arena is tight, limits are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.dsl.ast import Module
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load
from tcomp.errors import UserError
from tcomp.machine.cpu import detect
from tcomp.model.arena import Arena
from tcomp.model.build import build_step
from tcomp.model.gradient_room import fixed, gradient_pieces
from tcomp.model.graph import Tensor
from tcomp.model.lowering import Lowering, PlannedLaunch
from tcomp.model.placement import ALIGNMENT
from tcomp.model.plan import ProgramPlan, plan_program
from tcomp.model.programs import build_programs
from tcomp.model.report import TEMPORARY, live_bytes, pieces, plan_text
from tcomp.model.request import StepRequest
from tcomp.model.step import Slot, Step
from tcomp.model.unroll import build_graph
from tcomp.schedule.lower import lower

GPT2 = Path(__file__).resolve().parents[2] / "models" / "gpt2.tc"
SMALL = {"L": 2, "H": 2, "C": 24, "V": 50, "S": 16}


@pytest.fixture(scope="module")
def gpt2() -> Module:
    return load(GPT2)


def step(module: Module, config: str = "tiny", B: int = 2, T: int = 16, **options: Any) -> Step:
    return build_step(module, StepRequest("gpt2", config, {"B": B, "T": T}, **options), detect(), threads=2)


@pytest.fixture(scope="module")
def tiny(gpt2: Module) -> Step:
    return step(gpt2)


@pytest.mark.parametrize(
    ("config", "B", "T"), [("tiny", 4, 64), ("tiny", 2, 13), ("124M", 4, 64), ("124M", 4, 1024), ("124M", 1, 1024)]
)
@pytest.mark.parametrize("programs", ["train", "forward"])
def test_the_arena_is_within_2_percent_of_the_lower_bound(
    gpt2: Module, config: str, B: int, T: int, programs: str
) -> None:
    s = step(gpt2, config, B, T, programs=(programs,))
    assert s.lower_bound_bytes <= s.arena_bytes <= 1.02 * s.lower_bound_bytes


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_every_launch_reads_what_was_written_for_it(gpt2: Module, accumulation: int, training: bool) -> None:
    """Replay the programs on a shadow of the arena that remembers whose bytes are where."""
    graph = build_graph(gpt2, "gpt2", "tiny", {"B": 2, "T": 16}, SMALL)
    p = build_programs(graph, gpt2, training, accumulation)
    lowering = Lowering(gpt2, lambda op, m, dims: lower(op, m, dims, detect(), threads=2))
    arena = Arena(p, not training, 1.0)
    for nodes in ((*p.forward, *p.backward), (*p.forward_next, *p.backward_next)):
        launches = lowering.launches(nodes)
        pieces = gradient_pieces(p, launches, range(len(lowering.launches(p.forward))))
        assert bool(pieces) == (bool(launches) and training and accumulation == 1)
        plan = plan_program(launches, arena.address.keys(), fixed(pieces, len(launches)))
        assert (min(plan.offsets.values(), default=0) < 0) == bool(pieces)
        replay(launches, plan, arena)


def replay(launches: tuple[PlannedLaunch, ...], plan: ProgramPlan, arena: Arena) -> None:
    owner = np.zeros((arena.bytes + plan.bytes) // 4, np.int64)
    written: set[tuple[Tensor, int]] = set()
    for launch in launches:
        regions = {}
        for operand, v in zip(launch.kernel.operands, launch.views, strict=True):
            base = arena.address.get(v.tensor)
            if base is None:
                base = arena.bytes + plan.offsets[v.tensor]
            start = (base + v.offset * v.tensor.dtype.bytes) // 4
            regions[operand.name] = slice(start, start + v.elements * v.tensor.dtype.bytes // 4), v.tensor
        for name in launch.kernel.reads:
            if name in regions and regions[name][1].kind not in ("parameter", "input", "scalar"):
                region, tensor = regions[name]
                if name in launch.kernel.writes and (tensor, region.start) not in written:
                    continue  # what the kernel itself has written before
                assert (owner[region] == id(tensor)).all(), f"{launch.label} reads {name} = {tensor.name}"
        for name in launch.kernel.writes:
            if name in regions:
                region, tensor = regions[name]
                owner[region] = id(tensor)
                written.add((tensor, region.start))
                for other, (place, t) in regions.items():
                    shares = place.start < region.stop and region.start < place.stop
                    if shares and t is not tensor:
                        assert (name, other) in launch.kernel.inplace, f"{launch.label}: {name} over {other}"


def test_slots_that_live_together_do_not_overlap_unless_one_took_the_others_place(tiny: Step) -> None:
    slots = sorted(pieces(tiny), key=lambda s: s.offset)
    for i, a in enumerate(slots):
        assert (a in tiny.gradients or a.offset % ALIGNMENT == 0) and a.offset + a.bytes <= tiny.arena_bytes
        for b in slots[i + 1 :]:
            if b.offset >= a.offset + a.bytes:
                break
            early, late = sorted((a, b), key=lambda s: s.first)
            assert late.first >= early.last, f"{a.name} and {b.name}"
            if late.first == early.last:
                assert (early.offset, early.bytes) == (late.offset, late.bytes)


def test_the_gradient_of_the_logits_is_written_over_them(tiny: Step) -> None:
    logits, gradient = tiny.slots["logits"], tiny.slots["grad.logits"]
    assert logits.offset == gradient.offset and gradient.first == logits.last


def test_logits_that_are_kept_are_a_result(gpt2: Module) -> None:
    kept = step(gpt2, keep_logits=True).slots["logits"]
    assert kept.kind == "output" and kept.shape == (32, 256)


def test_gradients_and_states_lie_as_the_parameters_do(tiny: Step) -> None:
    for p in tiny.parameters:
        at = tiny.slots[p.slot].offset - tiny.slots["wte"].offset
        for prefix in ("grad.", "state.m.", "state.v."):
            assert tiny.slots[prefix + p.slot].offset - tiny.slots[prefix + "wte"].offset == at


def test_the_update_sees_each_group_as_one_vector(tiny: Step) -> None:
    launches = [launch for launch in tiny.programs["update"] if tiny.kernels[launch.kernel].op.startswith("adamw")]
    assert [launch.label for launch in launches] == ["adamw matrices", "adamw vectors"]
    groups = {p.slot: p.group for p in tiny.parameters}
    for launch, group in zip(launches, ("matrices", "vectors"), strict=True):
        members = [tiny.slots[n] for n in groups if groups[n] == group]
        kernel = tiny.kernels[launch.kernel]
        operands = {o.name: (o, at) for o, at in zip(kernel.operands, launch.offsets, strict=True)}
        p, at = operands["p"]
        assert at == min(s.offset for s in members)
        end = max(s.offset + s.bytes for s in members)
        assert end <= at + p.bytes < end + ALIGNMENT
        assert operands["weight_decay"][1] == tiny.slots[f"hyper.{group}.weight_decay"].offset
        for name, slot in (("step", "step"), ("lr", "lr"), ("beta1", "hyper.beta1")):
            assert operands[name][1] == tiny.slots[slot].offset


def test_the_norm_sees_all_gradients(tiny: Step) -> None:
    launch = next(x for x in tiny.programs["update"] if tiny.kernels[x.kernel].op == "global_norm")
    g, at = next(
        (o, a) for o, a in zip(tiny.kernels[launch.kernel].operands, launch.offsets, strict=True) if o.name == "g"
    )
    gradients = [s for s in tiny.slots.values() if s.kind == "gradient"]
    assert at == min(s.offset for s in gradients)
    end = max(s.offset + s.bytes for s in gradients)
    assert end <= at + g.bytes < end + ALIGNMENT


def test_forward_is_the_beginning_of_the_first_micro_batch(tiny: Step) -> None:
    forward = tiny.programs["forward"]
    assert tiny.programs["micro_first"][: len(forward)] == forward
    assert forward[-1].label == "mean"


def test_later_micro_batches_only_when_accumulating(gpt2: Module, tiny: Step) -> None:
    assert set(tiny.programs) == {"forward", "micro_first", "update"}
    s = step(gpt2, accumulation=4)
    assert set(s.programs) == {"forward", "micro_first", "micro_next", "update"}
    assert s.scalars["loss_gradient"] == 0.25


def test_inference_has_no_gradients_and_little_memory(gpt2: Module, tiny: Step) -> None:
    s = step(gpt2, programs=("forward",))
    assert set(s.programs) == {"forward"}
    assert not [x for x in s.slots.values() if x.kind in ("gradient", "state")]
    assert s.arena_bytes < tiny.arena_bytes / 3
    assert s.slots["logits"].kind == "output"
    assert set(step(gpt2, programs=("forward",), accumulation=2).programs) == {"forward"}


def test_layers_share_their_kernels(gpt2: Module, tiny: Step) -> None:
    deep = step(gpt2, dims={"L": 9})
    assert set(deep.kernels) == set(tiny.kernels)
    assert len(deep.programs["micro_first"]) > len(tiny.programs["micro_first"])


def test_scalars_have_slots_and_values(tiny: Step) -> None:
    assert tiny.hyper["hyper.peak_lr"] == 6e-4
    assert tiny.hyper["hyper.vectors.weight_decay"] == 0.0
    assert set(tiny.hyper) | {"loss_gradient", "step"} == set(tiny.scalars)
    for name in tiny.scalars:
        assert tiny.slots[name].kind == "scalar" and tiny.slots[name].shape == ()
    assert tiny.inputs == {"tokens": 256, "targets": 256}
    assert {n for n, s in tiny.slots.items() if s.kind == "output"} == {"loss", "lr", "norm", "scale"}


def test_too_little_memory_names_what_is_to_blame(gpt2: Module) -> None:
    s = step(gpt2, B=64, T=128)
    step(gpt2, B=64, T=128, memory_limit=s.arena_bytes + 2 * s.scratch_bytes + s.team_bytes)
    with pytest.raises(UserError) as e:
        step(gpt2, B=64, T=128, memory_limit=s.arena_bytes)
    text = str(e.value)
    assert "the limit is" in text and "the peak is at" in text
    assert "l0.u" in text and "activation" in text and "smaller batch" in text


def test_unknown_programs_are_refused(gpt2: Module) -> None:
    with pytest.raises(UserError, match="no program backward"):
        step(gpt2, programs=("backward",))


def test_too_long_a_sequence_is_refused_by_the_model(gpt2: Module) -> None:
    with pytest.raises(TcError, match="requires T <= S"):
        step(gpt2, T=4096)


def test_the_report_accounts_for_the_arena(tiny: Step) -> None:
    text = plan_text(tiny)
    for words in ("parameter", "gradient", "state", "workspace", "Peak: launch", f"{tiny.arena_bytes:,} bytes"):
        assert words in text
    peak = int(live_bytes(tiny).argmax())
    assert f"Peak: launch {peak} of {len(live_bytes(tiny))}, {tiny.programs['micro_first'][peak].label}\n" in text
    assert live_bytes(tiny).max() == tiny.lower_bound_bytes


def test_the_live_bytes_count_each_kind_once(tiny: Step) -> None:
    always = sum(s.bytes for s in tiny.slots.values() if s.kind not in TEMPORARY)
    first: list[Slot] = [s for s in tiny.slots.values() if s.kind in TEMPORARY and s.first == 0]
    assert live_bytes(tiny)[0] == always + sum(s.bytes for s in first)


def test_the_picture_is_drawn(tiny: Step, tmp_path: Path) -> None:
    from tcomp.model.plan_png import draw_plan

    draw_plan(tiny, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
