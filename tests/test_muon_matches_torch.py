"""models/gpt2_muon.tc, Muon for the layers' matrices beside AdamW, against PyTorch, and against itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load, load_text
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import Sharing, StepRequest
from tcomp.model.step import Step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.data import open_data
from tcomp.runtime.initialise import initialise
from tcomp.runtime.progress import PlainProgress
from tcomp.runtime.run_folder import RunFolder
from tcomp.runtime.scalars import set_scalars
from tcomp.runtime.train import Settings, train as train_run
from tcomp.runtime.verify import verify_step
from tests.reference import torch_gpt2 as reference
from tests.reference.runs import MODELS, Run, assert_same, built, distance, doubled, train
from tests.reference.torch_gpt2 import Config, Hyper
from tests.reference.torch_muon import Muon
from tests.turns import in_turns

TEXT = (MODELS / "gpt2_muon.tc").read_text()
TRAINED = ("qkv_w", "proj_w", "up_w", "down_w")
OUTLIVING = ("parameter", "master", "state")
CONFIG = Config(L=2, H=2, C=24, V=41, S=16)
REST = tuple(n for n in CONFIG.shapes() if n not in TRAINED)
HYPER = Hyper(
    peak_lr=5e-3, warmup=3, total=12, clip=0.8, weight_decay={"embeddings": 0.1, "matrices": 0.1, "vectors": 0.0}
)
EASY = {"peak_lr": 0.1, "warmup": 1.0, "eps": 1e-3}
"""Changes that are large beside the parameters' rounding; where a true gradient is 0, rounding is no whole update"""


def step_of(text: str = TEXT, precision: str = "f32", threads: int = 2, config: Config = CONFIG) -> Step:
    request = StepRequest("gpt2", "tiny", {"B": 3, "T": 13}, dims=asdict(config), precision=precision)
    return build_step(load_text(text), request, detect(), threads=threads)


def run(objects: Path, threads: int, accumulation: int, steps: int, precision: str = "f32") -> Run:
    params = reference.random_params(CONFIG, seed=1)
    batches = reference.random_batches(CONFIG, 2, 3, 13, steps * accumulation)
    with built("gpt2_muon", asdict(CONFIG), 3, 13, accumulation, threads, objects, precision) as (step, executor):
        return train(step, executor, params, batches, HYPER, accumulation)


def wanted(accumulation: int, steps: int, muon: Muon) -> reference.Trained:
    """The same steps in float64 by PyTorch."""
    params = doubled(reference.random_params(CONFIG, seed=1))
    batches = reference.random_batches(CONFIG, 2, 3, 13, steps * accumulation)
    hyper = replace(HYPER, weight_decay={"matrices": 0.1, "vectors": 0.0})
    return reference.train_steps(params, batches, CONFIG, hyper, accumulation, muon=(muon, TRAINED))


def changes(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How far the parameters that Muon trains have come from the start."""
    start = reference.random_params(CONFIG, seed=1)
    return {n: params[n].astype(np.float64) - start[n].double().numpy() for n in TRAINED}


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_six_steps_are_pytorchs(accumulation: int, objects: Path) -> None:
    """Tall, square and wide matrices; the norm is clipped in some steps."""
    want = wanted(accumulation, 6, Muon())
    got = run(objects, 2, accumulation, 6)
    assert_same(got, want)
    theirs = changes({n: p.numpy() for n, p in want.params.items()})
    for name, ours in changes(got.params).items():
        assert distance(ours, torch.from_numpy(theirs[name])) < 1e-3, name
    assert accumulation > 1 or min(want.norms) < HYPER.clip < max(want.norms), (
        "one of the branches of clipping was not taken"
    )


def test_states_are_kept_for_what_reads_them_and_workspaces_have_owners() -> None:
    """AdamW's second moment is not kept for matrices; a plan says whose each workspace is, and of which call."""
    step = step_of()
    kept = {n for n, s in step.slots.items() if s.kind == "state"}
    assert {n for n in kept if n.startswith("state.v.")} == {f"state.v.{n}" for n in REST}
    assert {n for n in kept if n.startswith("state.m.")} == {f"state.m.{n}" for n in (*TRAINED, *REST)}
    slot = step.slots["qkv_w[1].muon.i4.B"]
    assert (slot.kind, slot.shape, slot.owner) == ("workspace", (24, 24), "qkv_w[1].muon.i4.matmul_scaled")
    assert "muon qkv_w[1] matmul_scaled" in {x.label for x in step.programs["update"]}


def test_groups_that_one_update_trains_share_its_numbers() -> None:
    """Two groups, and one whose parameters are of two types: no two scalars of a step have one name."""
    line = next(x for x in TEXT.splitlines() if "group matrices by" in x)
    two = "\n".join([line.replace("matrices", "wide of up_w"), line.replace("matrices", "matrices of qkv_w, proj_w")])
    text = TEXT.replace(line, two + "\n" + line.replace("matrices", "tall of down_w"))
    step = step_of(text)
    assert {"hyper.wide.rms", "hyper.matrices.rms", "hyper.tall.rms"} <= step.hyper.keys()
    assert [n for n in step.scalars if step.scalars[n] == 2.0315] == ["constant.2.0315"]


def test_vectors_of_layers_side_by_side_are_not_taken_for_a_matrix() -> None:
    text = TEXT.replace("group embeddings of wte", "group matrices of ln1_w by muon: momentum = 0.9, rms = 0.2, "
                        "weight_decay = 0.0\n  group embeddings of wte", 1)  # fmt: skip
    text = "\n".join(line for line in text.splitlines() if "group matrices by" not in line) + "\n"
    with pytest.raises(TcError) as caught:
        step_of(text)
    assert "'muon' trains tensors of 2 axes, but 'ln1_w' is [2, 24], of which calls read [24]" in caught.value.render()
    assert "group GROUP of ln1_w" in caught.value.render()


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_one_thread_and_two_and_steps_that_overlap_give_the_same_bits(precision: str, objects: Path) -> None:
    """Whole steps, of which the update's vectors are left for the next one, are the programs one by one."""
    found = []
    for threads, whole in ((1, False), (2, False), (2, True)):
        step = step_of(TEXT, precision, threads)
        executor = CpuExecutor(step, detect(), threads, objects)
        try:
            initialise(executor, 1, 1)
            rng = np.random.default_rng(0)
            for number in range(3):
                executor.write("step", number)
                for name, bound in step.inputs.items():
                    executor.array(name)[...] = rng.integers(0, bound, step.slots[name].shape)
                if whole:
                    executor.run_step("micro_first")
                else:
                    executor.run("micro_first")
                    executor.run("update")
            found.append({n: executor.read(n).tobytes() for n, s in step.slots.items() if s.kind in OUTLIVING})
        finally:
            executor.close()
    assert found[0] == found[1] == found[2]


FACTORED = """
op rows(inout p: f32[R, C], g: f32[R, C], inout a: f32[R], inout b: f32[C], lr: f32[], first: i32[], decay: f32[])
    -> w: real[R, C]:
  u[r] = sum c: g[r, c] * g[r, c]
  v[c] = sum r: g[r, c] * g[r, c]
  a[r] = decay * a[r] + u[r]
  b[c] = decay * b[c] + v[c]
  p[r, c] = p[r, c] - lr * g[r, c] / sqrt(a[r] * b[c] + 1e-12) + 1e-6 * (first + r * C + c)
  w[r, c] = p[r, c]
"""


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_an_op_of_a_matrix_keeps_states_of_other_shapes(precision: str, objects: Path) -> None:
    """Factored second moments (as Adafactor's), of rows and of columns: against the oracle, and NumPy."""
    lines = [x for x in TEXT.splitlines() if "group matrices by" not in x and "under" not in x]
    text = "\n".join([*lines, "  group matrices by rows: decay = 0.9", FACTORED])
    step = step_of(text, precision)
    assert step.slots["state.a.up_w"].shape == (2, 96)
    assert step.slots["state.b.up_w"].shape == (2, 24)
    executor = CpuExecutor(step, detect(), 2, objects)
    try:
        initialise(executor, 1, 1)
        set_scalars(executor, EASY)
        tolerance = 1e-4 if precision == "f32" else 0.05
        assert max(c.error for c in verify_step(executor, load_text(text), asdict(CONFIG))) < tolerance
        if precision == "f32":
            g = executor.read("grad.up_w").astype(np.float64)
            np.testing.assert_allclose(executor.read("state.a.up_w"), (g * g).sum(2), rtol=1e-4)
            np.testing.assert_allclose(executor.read("state.b.up_w"), (g * g).sum(1), rtol=1e-4)
    finally:
        executor.close()


@pytest.mark.slow
def test_bf16_is_about_as_near_as_iterations_in_bf16_are(objects: Path) -> None:
    """By PyTorch, too, the iterations run in bf16: of a step's change a tenth is their rounding."""
    want = wanted(1, 3, Muon())
    loose = changes({n: p.numpy() for n, p in wanted(1, 3, Muon(iterate=torch.bfloat16)).params.items()})
    got = run(objects, 2, 1, 3, "bf16")
    np.testing.assert_allclose(got.losses, want.losses, rtol=3e-4)
    for name, ours in changes(got.params).items():
        truth = changes({n: p.numpy() for n, p in want.params.items()})[name]
        far = np.linalg.norm(ours - truth), np.linalg.norm(loose[name] - truth)
        assert far[0] < 3 * far[1] + 0.02 * np.linalg.norm(truth), f"{name}: {far}, of {np.linalg.norm(truth)}"


@pytest.mark.slow
def test_a_resumed_run_is_bitwise_the_same(tmp_path: Path, objects: Path) -> None:
    (tmp_path / "text").write_text("to be, or not to be, that is the question. " * 40)
    data = open_data([tmp_path / "text"], 13, 131)

    def go_on(folder: str, steps: int, resume: bool = False) -> dict[str, bytes]:
        step = step_of(TEXT, "bf16", 2, replace(CONFIG, V=131))
        executor = CpuExecutor(step, detect(), 2, objects)
        opened = RunFolder(tmp_path / folder, create=not resume)
        try:
            if not resume:
                opened.write_config({})
            settings = Settings(steps=steps, hyper={"total": 6.0, "warmup": 1.0})
            train_run(executor, data, opened, settings, PlainProgress(), resume)
            return {n: executor.read(n).tobytes() for n, s in step.slots.items() if s.kind in OUTLIVING}
        finally:
            opened.close()
            executor.close()

    whole = go_on("a", 6)
    go_on("b", 3)
    assert go_on("b", 6, resume=True) == whole


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "f32"])
def test_a_step_on_the_virtual_gpu_is_the_oracles(precision: str, objects: Path) -> None:
    """All checks of the virtual GPU on, and no findings; the iterations on tensor cores in bf16."""
    from tcomp.runtime.cuda.device import virtual_device

    device = virtual_device("h100", objects, True)
    sizes = {"L": 1, "H": 1, "C": 32, "V": 37, "S": 8}
    request = StepRequest("gpt2", "tiny", {"B": 1, "T": 8}, dims=sizes, precision=precision)
    module = load(MODELS / "gpt2_muon.tc")
    step = build_step(module, request, device.machine)
    assert any("matmul_across_scaled" in k for k in step.kernels)
    executor = device.open(step)
    try:
        initialise(executor, 1, 1)
        set_scalars(executor, EASY)
        tolerance = 1e-4 if precision == "f32" else 0.05
        worst = max(verify_step(executor, module, sizes), key=lambda c: c.error)
        assert worst.error < tolerance, worst
        device.finish()
    finally:
        executor.close()


def test_processes_do_not_divide_the_state_of_such_a_step() -> None:
    request = StepRequest("gpt2", "tiny", {"B": 3, "T": 13}, dims=asdict(CONFIG), sharing=Sharing(2, 1))
    with pytest.raises(TcError, match="group 'matrices' is trained by 'muon': under ZeRO-1 all groups must be"):
        build_step(load(MODELS / "gpt2_muon.tc"), request, detect(), threads=1)
