"""Several ranks share a step: who has what, what they exchange, and that it is the same training."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tcomp.cli.common import load_module
from tcomp.dsl.errors import TcError
from tcomp.dsl.files import library
from tcomp.dsl.load import load
from tcomp.errors import UserError
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import Sharing, StepRequest
from tcomp.model.sharing import elementwise, in_parts
from tcomp.model.step import FLAT, Division, Slot, Step
from tcomp.runtime import train as training
from tcomp.runtime.batches import Batches
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.data import open_data
from tcomp.runtime.distributed.exchange import Array, add_up, gathered, spread
from tcomp.runtime.distributed.executor import RankExecutor
from tcomp.runtime.distributed.group import Group
from tcomp.runtime.distributed.place import Place, keep_to_own_cpus, place_here
from tcomp.runtime.distributed.shares import owners, step_of
from tcomp.runtime.executor import HostExecutor
from tcomp.runtime.peers import ALONE, Alone, LeadFailed, PeerFailed, Peers
from tcomp.runtime.run_folder import FollowedRun, RunFolder
from tcomp.runtime.train import Settings, train
from tcomp.runtime.values import numpy_type

LENGTH = 16


class Links:
    """A rank's messages to others in threads of this process."""

    def __init__(self, ways: dict[tuple[int, int], queue.Queue[Array]], rank: int, size: int) -> None:
        self.ways, self.rank, self.size = ways, rank, size

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        for other, array in sends:
            self.ways[self.rank, other].put(array.copy())
        for other, array in receives:
            array[...] = self.ways[other, self.rank].get(timeout=60)


def on_ranks(size: int, work: Callable[[Links], Any]) -> list[Any]:
    """What `work` gives on each rank, all at the same time; the first error of any."""
    ways: dict[tuple[int, int], queue.Queue[Array]] = {(a, b): queue.Queue() for a in range(size) for b in range(size)}
    found: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = work(Links(ways, rank, size))
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return found


# --------------------------------------------------------------------------------------------- arithmetic


@given(st.integers(2, 5), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_each_element_has_one_owner_and_a_place_of_its_own(ranks: int, shares: list[int], data: st.DataObject) -> None:
    groups, at = [], 0
    for share in shares:
        groups.append((at, share * ranks))
        at += share * ranks
    division = Division(ranks, 1, tuple(groups), {})
    places: dict[int, set[int]] = {rank: set() for rank in range(ranks)}
    for first, length in groups:
        cut = data.draw(st.integers(1, length))
        for start, stop in ((0, cut), (cut, length)):
            covered = []
            for o in owners(division, first + start, stop - start) if start < stop else ():
                covered += range(o.start, o.stop)
                new = set(range(o.place, o.place + o.stop - o.start))
                assert not new & places[o.rank]
                places[o.rank] |= new
            assert covered == list(range(stop - start))
    assert all(p == set(range(sum(shares))) for p in places.values())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_are_in_the_order_of_the_ranks_on_every_rank(size: int) -> None:
    draw = np.random.default_rng(size)
    vectors = [
        (draw.standard_normal((size, 7)) * 10.0 ** draw.integers(-6, 6, (size, 7))).astype("f4") for _ in range(size)
    ]
    wanted = vectors[0].copy()
    for v in vectors[1:]:
        wanted += v

    def work(links: Links) -> Array:
        own = vectors[links.rank].copy()
        add_up(links, own, piece=3)
        assert (own[links.rank] == wanted[links.rank]).all()
        spread(links, own)
        return own

    assert all((found == wanted).all() for found in on_ranks(size, work))
    rows = on_ranks(size, lambda links: gathered(links, np.array([links.rank, 7.0])))
    assert all(r.tolist() == [[i, 7.0] for i in range(size)] for r in rows)


def test_ranks_read_what_one_process_with_as_many_micro_batches_does(text: Path) -> None:
    data = open_data([text], LENGTH, 256)

    def read(rank: int, size: int, count: int) -> list[bytes]:
        batches, found = data.training_batches(3), []
        batches.skip(batches.count - 15)  # an epoch's end comes
        for _ in range(count):
            batches.skip(2 * rank)
            found.append(filled(batches))
            batches.skip(2 * (size - 1 - rank))
        return found

    ranks = [read(rank, 3, 4) for rank in range(3)]
    assert [own[i] for i in range(4) for own in ranks] == read(0, 1, 12)


def filled(batches: Batches) -> bytes:
    tokens, targets = (np.zeros((2, LENGTH), np.int32) for _ in range(2))
    batches.fill(tokens, targets)
    return tokens.tobytes() + targets.tobytes()


# ------------------------------------------------------------------------------------- the environment


WHOLE = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1",
}  # fmt: skip


def test_a_place_is_what_the_launcher_says() -> None:
    assert place_here({}) is None
    assert place_here(WHOLE) == Place(1, 4, 1, 2)
    assert place_here({**WHOLE, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set"),
        ({**WHOLE, "MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({**WHOLE, "RANK": "4"}, "RANK=4"),
        ({**WHOLE, "LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said) as e:
        place_here(environment)
    assert "torchrun" in e.value.hint


@pytest.mark.parametrize(
    ("cpus", "beside", "parts"),
    [
        ({0, 1, 2, 3, 8}, 2, [{0, 1}, {2, 3}]),
        ({4, 5, 6}, 3, [{4}, {5}, {6}]),
        ({4, 7}, 3, [{4}, {7}, {4}]),  # too few: with a thread for each CPU in each process, nobody would get on
    ],
)
def test_ranks_of_a_machine_divide_its_cpus(
    monkeypatch: pytest.MonkeyPatch, cpus: set[int], beside: int, parts: list[set[int]]
) -> None:
    found: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cpus, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, own: found.append(set(own)), raising=False)
    for local in range(beside):
        keep_to_own_cpus(Place(local, beside, local, beside))
    assert found == parts


class Store:
    """The launcher's key-value store."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.values[key]

    def add(self, key: str, number: int) -> int:
        self.values[key] = str(int(self.values.get(key, b"0")) + number).encode()
        return int(self.values[key])


def group_of(store: Store, rank: int, opened: list[int]) -> Group:
    """One of two ranks of a machine, with a store of this process; `opened` notes who opens ways to others."""
    group = object.__new__(Group)
    group.place, group._turns, group._patience = Place(rank, 2, rank, 2), 0, timedelta(seconds=20)
    group._store = group._launcher = store
    group._dist = SimpleNamespace(init_process_group=lambda *_, rank, **__: opened.append(rank))
    return group


def test_what_one_rank_makes_first_is_there_each_time_when_others_make_it() -> None:
    store, made = Store(), []

    def make(rank: int, turn: int) -> None:
        time.sleep(0.1 if rank == 0 else 0.0)
        made.append((turn, rank))

    def work(links: Links) -> None:
        group = group_of(store, links.rank, [])
        for turn in range(2):
            group.first_beside(lambda: make(links.rank, turn))  # noqa: B023  (called at once)

    on_ranks(2, work)
    assert [rank for turn in range(2) for t, rank in made if t == turn] == [0, 1, 0, 1]


def test_a_rank_that_fails_before_all_have_met_is_not_waited_for() -> None:
    store, opened = Store(), []
    assert group_of(store, 1, opened).fails_first(UserError("other data", "the same"))
    with pytest.raises(PeerFailed, match="it has failed"):
        group_of(store, 0, opened).join()
    assert not opened
    store = Store()
    on_ranks(2, lambda links: group_of(store, links.rank, opened).join())
    assert sorted(opened) == [0, 1]


def test_ctrl_c_ends_a_process_that_looks_for_others() -> None:
    store, found = Store(), []
    store.set("here/1", "")
    group = group_of(store, 0, [])
    group._dist.init_process_group = lambda *_, **__: found.append(signal.getsignal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        group.join()
        assert found == [signal.SIG_DFL] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# -------------------------------------------------------------------------------------------- the model


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


def step_for(sharing: Sharing, precision: str = "f32", accumulation: int = 1, model: str = "gpt2") -> Step:
    request = StepRequest(
        "gpt2", "tiny", {"B": 2, "T": LENGTH}, {"L": 1, "C": 16, "H": 2}, precision, accumulation, sharing=sharing
    )
    return build_step(load_module(model, precision), request, detect(), 1)


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
            shared = program == "norm" or a.label.startswith("adamw")
            assert a.kernel == b.kernel and (a.offsets != b.offsets) == shared
    firsts = {n: v for n, v in other.scalars.items() if n.startswith("first.")}
    assert firsts == {n: step.scalars[n] + step.division.firsts[n] for n in firsts} and len(firsts) == 2


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


# -------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals are the main thread's; ranks are others here."""

    @contextmanager
    def none() -> Iterator[list[int]]:
        yield []

    monkeypatch.setattr(training, "_signals", none)


def trained(
    folder: Path, text: Path, kernels: Path, silent: Any, sharing: Sharing, accumulation: int, *,
    precision: str = "f32", steps: int = 5, resume: bool = False, model: str = "gpt2",
) -> tuple[bytes, list[float]]:  # fmt: skip
    """The last checkpoint's tensors, and the losses (the last one is the validation's), of a run of so many ranks."""
    step = step_for(sharing, precision, accumulation, model)

    def work(links: Links) -> None:
        executor: Any = CpuExecutor(step_of(step, links.rank), detect(), 1, kernels)
        peers: Peers = ALONE
        if sharing.ranks > 1:
            executor = peers = RankExecutor(executor, links)
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


class Memory(HostExecutor):
    """An arena in which nothing runs."""

    def __init__(self, step: Step) -> None:
        self._step, self.bytes = step, np.zeros(step.arena_bytes, np.uint8)

    @property
    def step(self) -> Step:
        return self._step

    def array(self, name: str) -> Array:
        return self.at(self._step.slots[name])

    def at(self, slot: Slot) -> Array:
        return self.bytes[slot.offset : slot.offset + slot.bytes].view(numpy_type(slot.dtype)).reshape(slot.shape)

    @contextmanager
    def region(self, slot: Slot, write: bool) -> Iterator[Array]:
        yield self.at(slot)

    def run(self, program: str) -> None:
        raise AssertionError

    def close(self) -> None:
        pass


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
        executor = RankExecutor(Memory(step_of(step, links.rank)), links)
        executor.check_alike()
        executor.write("lnf_b", 1e-30 * links.rank)
        with pytest.raises(UserError, match="not the same bits"):
            executor.check_alike()

    on_ranks(2, work)


def test_the_scales_of_8_bit_layers_follow_the_largest_value_of_any_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_for(Sharing(2), "fp8")
    assert step.division is not None
    (name,) = step.division.news
    monkeypatch.setattr(Memory, "run", lambda self, program: None)
    shape = step.slots[name].shape
    values = np.random.default_rng(3).random((2, *shape)).astype("f4")

    def work(links: Links) -> Array:
        inner = Memory(step_of(step, links.rank))
        inner.write(name, values[links.rank])
        RankExecutor(inner, links).run_step("micro_first")
        return inner.read(name).copy()

    for found in on_ranks(2, work):
        np.testing.assert_array_equal(found, values.max(0))


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
        executor = RankExecutor(inner, links)
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
