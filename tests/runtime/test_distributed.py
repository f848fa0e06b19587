"""Several ranks train together: it is the same training, and all end together."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tcomp.dsl.load import load_text
from tcomp.errors import UserError
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import Sharing, StepRequest
from tcomp.model.step import Slot, Step
from tcomp.runtime import train as training
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.data import open_data
from tcomp.runtime.distributed.exchange import Array
from tcomp.runtime.distributed.executor import RankExecutor
from tcomp.runtime.distributed.shares import step_of
from tcomp.runtime.peers import ALONE, Alone, LeadFailed, PeerFailed, Peers
from tcomp.runtime.run_folder import FollowedRun, RunFolder
from tcomp.runtime.train import Settings, train
from tests.reference.ranks import LENGTH, Links, Memory, on_ranks, ranked, step_for
from tests.runtime.test_training_number import DIMS, EXAMPLE
from tests.turns import in_turns


@pytest.fixture
def no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals are the main thread's; ranks are others here."""

    @contextmanager
    def none() -> Iterator[list[int]]:
        yield []

    monkeypatch.setattr(training, "_signals", none)


def trained(
    folder: Path, text: Path, kernels: Path, silent: Any, sharing: Sharing, accumulation: int, *,
    precision: str = "f32", steps: int = 5, resume: bool = False, model: str = "gpt2", step: Step | None = None,
) -> tuple[bytes, list[float]]:  # fmt: skip
    """The last checkpoint's tensors, and the losses (the last one is the validation's), of a run of so many ranks."""
    step = step or step_for(sharing, precision, accumulation, model)

    def work(links: Links) -> None:
        executor: Any = CpuExecutor(step_of(step, links.rank), detect(), 1, kernels)
        peers: Peers = ALONE
        if sharing.ranks > 1:
            executor = peers = ranked(executor, links)
        run = FollowedRun(folder) if links.rank else RunFolder(folder, create=not resume)
        if not links.rank and not resume:
            run.write_config({})
        hyper = {"peak_lr": 1e-2, "warmup": 2.0, "total": 20.0, "clip": 1.0}
        settings = Settings(steps=steps, accumulation=accumulation, hyper=hyper, eval_batches=5)
        try:
            train(executor, open_data([text], LENGTH, 256), run, settings, silent(), resume, None, peers)
        finally:
            run.close()
            executor.close()

    on_ranks(sharing.ranks, work)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    losses = [x["loss"] for x in lines if "loss" in x] + [lines[-1]["validation_loss"]]
    return (newest / "tensors.safetensors").read_bytes(), losses


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does_and_zero_1_bitwise_as_they(
    tmp_path: Path, text: Path, kernels: Path, silent: Any, no_signals: None
) -> None:
    _, alone = trained(tmp_path / "1", text, kernels, silent, Sharing(), 2)
    state, losses = trained(tmp_path / "2", text, kernels, silent, Sharing(2), 1)
    assert alone[-2] < alone[0] - 0.3
    np.testing.assert_allclose(losses, alone, rtol=1e-6)
    assert trained(tmp_path / "z", text, kernels, silent, Sharing(2, 1), 1) == (state, losses)


@pytest.mark.slow
def test_two_ranks_train_matrices_as_one_process_does(
    tmp_path: Path, text: Path, kernels: Path, silent: Any, no_signals: None
) -> None:
    _, alone = trained(tmp_path / "1", text, kernels, silent, Sharing(), 2, model="gpt2_muon")
    state, losses = trained(tmp_path / "2", text, kernels, silent, Sharing(2), 1, model="gpt2_muon")
    assert alone[-2] < alone[0] - 0.3
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    trained(tmp_path / "r", text, kernels, silent, Sharing(2), 1, steps=3, model="gpt2_muon")
    resumed = trained(tmp_path / "r", text, kernels, silent, Sharing(2), 1, resume=True, model="gpt2_muon")
    assert resumed[0] == state


@pytest.mark.slow
def test_each_batch_has_its_own_dropout_whoever_trains_on_it(
    tmp_path: Path, text: Path, kernels: Path, silent: Any, no_signals: None
) -> None:
    """Here validation drops, too, so that it shows what its batches' numbers are."""
    module = load_text(EXAMPLE.replace("rate * training", "rate"))

    def run(name: str, sharing: Sharing, accumulation: int, **how: Any) -> tuple[bytes, list[float]]:
        dims = {**DIMS, "V": 256}
        request = StepRequest(
            "regular", "tiny", {"B": 2, "T": LENGTH}, dims, accumulation=accumulation, sharing=sharing
        )
        step = build_step(module, request, detect(), 1)
        return trained(tmp_path / name, text, kernels, silent, sharing, accumulation, step=step, **how)

    _, alone = run("1", Sharing(), 4)
    state, losses = run("2", Sharing(2), 2)
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    run("r", Sharing(2), 2, steps=3)
    assert run("r", Sharing(2), 2, resume=True) == (state, losses)
    run("s", Sharing(), 4, steps=2)
    np.testing.assert_allclose(run("s", Sharing(2), 2, resume=True)[1], alone, rtol=1e-5)


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16_stochastic", "fp8"])
def test_other_precisions_and_rank_counts_go_on_bitwise_from_one_kind_of_checkpoint(
    tmp_path: Path, text: Path, kernels: Path, silent: Any, no_signals: None, precision: str
) -> None:
    def run(name: str, *which: Any, **how: Any) -> tuple[bytes, list[float]]:
        return trained(tmp_path / name, text, kernels, silent, *which, precision=precision, **how)

    state, losses = run("2", Sharing(2), 2)
    assert run("z", Sharing(2, 1), 2) == (state, losses)
    run("r", Sharing(2, 1), 2, steps=3)
    again, others = run("r", Sharing(2, 1), 2, resume=True)
    assert again == state and others[-1] == losses[-1]
    run("m", Sharing(3, 1), 4, steps=3)
    run("m", Sharing(4, 1), 3, steps=4, resume=True)
    _, mixed = run("m", Sharing(), 12, resume=True)
    np.testing.assert_allclose(mixed, run("12", Sharing(), 12)[1], rtol=2e-3 if precision == "fp8" else 2e-5)


def test_a_rank_whose_parameters_differ_is_found() -> None:
    step = step_for(Sharing(2))

    def work(links: Links) -> None:
        executor = ranked(Memory(step_of(step, links.rank)), links)
        executor.check_alike()
        executor.write("lnf_b", 1e-30 * links.rank)
        with pytest.raises(UserError, match="not the same bits"):
            executor.check_alike()

    on_ranks(2, work)


def test_shares_are_summed_in_the_order_of_the_ranks_and_scales_follow_the_largest_of_any(
    monkeypatch: pytest.MonkeyPatch, objects: Path
) -> None:
    """Of 8-bit layers' scales, that is; all that joins what has come."""
    step = step_for(Sharing(3), "fp8")
    assert step.division is not None
    (news,) = step.division.joined
    place = Slot("", "", news[1].dtype, (news[1].elements,), news[0], news[1].bytes, 0, 0)
    groups = [Slot("", "", a.dtype, (3 * a.elements,), a.offset, 3 * a.bytes, 0, 0) for a, _ in step.division.scattered]
    draw = np.random.default_rng(3)
    scales = draw.random((3, news[1].elements)).astype("f4")
    gradients = [
        (draw.standard_normal((3, *g.shape)) * 10.0 ** draw.integers(-6, 6, (3, *g.shape))).astype("f4") for g in groups
    ]
    real = CpuExecutor.run
    monkeypatch.setattr(CpuExecutor, "run", lambda self, name: real(self, name) if name == "sum" else None)

    CpuExecutor(step_of(step, 0), detect(), 1, objects).close()  # else three would compile the same kernels at once

    def work(links: Links) -> list[Array]:
        inner = CpuExecutor(step_of(step, links.rank), detect(), 1, objects)
        for slot, values in ((place, scales), *zip(groups, gradients, strict=True)):
            with inner.region(slot, True) as there:
                there[...] = values[links.rank]
        ranked(inner, links).run_step("micro_first")
        found = []
        for slot in (place, *groups):
            with inner.region(slot, False) as there:
                found.append(there.copy())
        inner.close()
        return found

    for first, *others in on_ranks(3, work):
        np.testing.assert_array_equal(first, scales.max(0))
        for found, g in zip(others, gradients, strict=True):
            np.testing.assert_array_equal(found, g[0] + g[1] + g[2])


def test_ranks_that_have_drifted_apart_end_the_run_at_the_next_save(
    tmp_path: Path, text: Path, bigram: Any, silent: Any, no_signals: None
) -> None:
    class Drifted(Alone):
        def check_alike(self) -> None:
            if executor.array("step") > 0:
                raise UserError("the ranks' parameters are not the same bits", "look why")

    executor, run = bigram(), RunFolder(tmp_path / "run", create=True)
    settings = Settings(steps=9, save_every=3)
    with pytest.raises(UserError, match="not the same bits"):
        train(executor, open_data([text], 8, 256), run, settings, silent(), False, None, Drifted())
    run.close()
    assert executor.array("step") == 2 and not (tmp_path / "run" / "checkpoints").exists()


def test_a_divided_tensor_is_read_and_written_as_a_whole_one_and_failures_to_write_are_everyones() -> None:
    step = step_for(Sharing(3, 1))

    def fail() -> None:
        raise UserError("the disk is full", "make room")

    def work(links: Links) -> None:
        inner = Memory(step_of(step, links.rank))
        executor = ranked(inner, links)
        names = [n for n, s in executor.step.slots.items() if s.kind == "state"]
        wanted = {n: np.random.default_rng(i).random(executor.step.slots[n].shape, "f4") for i, n in enumerate(names)}
        for name, value in wanted.items():
            if "m" in name:
                executor.write(name, value)
            else:
                with executor.fill(name) as array:
                    array[...] = value
        read: dict[str, Array] = {}
        executor.lead(lambda: read.update({n: executor.read(n).copy() for n in names}))
        assert len(names) == 32 and all((read[n] == wanted[n]).all() for n in read)
        assert links.rank or len(read) == 32
        with pytest.raises(PeerFailed if links.rank else UserError):
            executor.lead(fail)

    on_ranks(3, work)


class Said:
    """The messages that rank 0 sends, of which nobody takes notice."""

    rank, size = 0, 2

    def __init__(self) -> None:
        self.sent: list[list[int]] = []

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        self.sent += [array.tolist() for _, array in sends]


@pytest.mark.parametrize("error", [PeerFailed("rank 2 is gone", "look"), KeyboardInterrupt(), MemoryError()])
def test_rank_0_says_that_it_goes_on_only_where_it_does(error: BaseException) -> None:
    """Who waits for rank 0 to take its part of a tensor does not listen to it, and rank 0 would wait, too."""
    executor, said = object.__new__(RankExecutor), Said()
    executor.links = said

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        executor.lead(fail)
    assert not said.sent


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (UserError("the disk is full", "make room"), True),
        (LeadFailed("rank 0 could not", "look"), True),
        (PeerFailed("rank 0 has lost another", "look"), False),
    ],
)
def test_training_goes_on_without_a_checkpoint_but_not_without_a_rank(
    monkeypatch: pytest.MonkeyPatch, error: UserError, goes_on: bool
) -> None:
    def save() -> None:
        raise error

    monkeypatch.setattr(training, "_ask", lambda *_: None)
    warned: list[str] = []
    run: Any = SimpleNamespace(
        executor=None, batches=None, peers=ALONE, settings=Settings(4, eval_every=0), done=0, behind=deque(),
        due=lambda every: every > 0, take_in=lambda most: None, save=save, progress=SimpleNamespace(warn=warned.append),
    )  # fmt: skip
    with nullcontext() if goes_on else pytest.raises(PeerFailed):
        training._Training.step(run)
    assert warned == [error.message] * goes_on


@pytest.mark.parametrize(("size", "looked"), [(1, [[1, 2], [1, 2]]), (2, [[1], [1, 2]])])
def test_ranks_look_at_the_same_step_together_however_fast_each_is(size: int, looked: list[list[int]]) -> None:
    """What is there already is looked at by one process at once; by ranks when as many steps are out as may be."""
    found: list[int] = []
    behind = deque([SimpleNamespace(step=1, ready=True), SimpleNamespace(step=2, ready=True)])
    run: Any = SimpleNamespace(
        behind=behind, peers=SimpleNamespace(size=size), look_at=lambda asked: found.append(asked.step)
    )
    for most, wanted in zip((1, 0), looked, strict=True):
        training._Training.take_in(run, most)
        assert found == wanted


@pytest.mark.parametrize("zero", [0, 1])
def test_ranks_exchange_between_programs_what_the_next_one_reads(zero: int) -> None:
    """Plain ranks tell each other summed gradients before the update, those of ZeRO-1 parameters behind it."""
    step, said = step_for(Sharing(2, zero)), list[str]()
    d = step.division
    assert d is not None and d.sums is not None
    names = {id(d.scattered): "shares", id(d.joined): "scales"}
    exchange: Any = SimpleNamespace(
        name="", ahead=0, close=None, scatter=lambda moves: said.append(names[id(moves)]),
        gather=lambda moves: said.append(
            names.get(id(moves)) or ("sums" if [rows for _, rows in moves] == [d.sums] else "spread")
        ),
    )  # fmt: skip
    inner: Any = SimpleNamespace(step=step, run=said.append)
    links: Any = SimpleNamespace(rank=0, size=2)
    RankExecutor(inner, links, exchange).run_step("micro_first")
    last = ["update", "spread"] if zero else ["spread", "update"]
    assert said == ["micro_first", "shares", "scales", "sum", "norm", "sums", *last]


def test_ranks_agree_on_the_mean_loss_and_stop_where_one_is_asked_to() -> None:
    def agreed(links: Links) -> list[tuple[float, bool]]:
        executor = object.__new__(RankExecutor)
        executor.links = links
        return [executor.agree(links.rank * 2.0, stop == links.rank) for stop in (1, None)]

    assert on_ranks(3, agreed) == [[(2.0, True), (2.0, False)]] * 3
