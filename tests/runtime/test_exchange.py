"""What ranks exchange, where they are and how they meet: sums, data, the launcher's environment, the store."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tcomp.dsl.ast import DType
from tcomp.errors import UserError
from tcomp.model.step import Division, Rows, Slot
from tcomp.runtime.batches import Batches
from tcomp.runtime.data import open_data
from tcomp.runtime.distributed.exchange import Array, HostExchange, gathered
from tcomp.runtime.distributed.group import Group
from tcomp.runtime.distributed.place import Place, among, cpus_here, keep_to_own_cpus, place_here
from tcomp.runtime.distributed.shares import owners
from tcomp.runtime.peers import PeerFailed
from tests.reference.ranks import LENGTH, Links, on_ranks


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
def test_rows_go_to_the_ranks_that_they_are_for(size: int) -> None:
    n, came, own = 5, 128, 512
    rows, arrived, all_of = (Rows(at, n, DType.F32) for at in (0, came, 256))

    def work(links: Links) -> list[Array]:
        arena = np.zeros(1024, np.uint8)

        @contextmanager
        def region(slot: Slot, write: bool) -> Iterator[Array]:
            yield arena[slot.offset : slot.offset + slot.bytes].view(np.float32).reshape(slot.shape)

        def matrix(at: int) -> Array:
            return arena[at : at + 4 * n * size].view(np.float32).reshape(size, n)

        matrix(0)[...] = [[100 * links.rank + r] * n for r in range(size)]
        arena[own : own + 4 * n].view(np.float32)[...] = links.rank
        exchange = HostExchange(links, region)
        exchange.scatter([(rows, arrived)])
        exchange.gather([(arrived.row(links.rank), arrived), (own, all_of)])
        return [matrix(0), matrix(came), matrix(256)]

    for rank, (sent, scattered, gathered_) in enumerate(on_ranks(size, work)):
        assert sent.tolist() == [[100 * rank + r] * n for r in range(size)]
        # what rank r was sent of itself, gathered from all
        assert scattered.tolist() == [[101 * r] * n for r in range(size)]
        assert gathered_.tolist() == [[r] * n for r in range(size)]
    found = on_ranks(size, lambda links: gathered(links, np.array([links.rank, 7.0])))
    assert all(r.tolist() == [[i, 7.0] for i in range(size)] for r in found)


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
    batches.fill({"tokens": tokens, "targets": targets})
    return tokens.tobytes() + targets.tobytes()


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


def test_ranks_of_several_launchers_on_a_machine_divide_its_cpus_among_all() -> None:
    cpus = ["one 0-3", "two 0-3", "one 0-3", "one 4-7"]
    places = [among(Place(rank, 4, 0, 1), cpus) for rank in range(4)]
    assert [(p.local, p.beside) for p in places] == [(0, 2), (0, 1), (1, 2), (0, 1)]
    assert cpus_here() == cpus_here() and cpus_here().startswith(platform.node())


def test_ranks_bound_to_cpus_of_their_own_share_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {int(threading.current_thread().name)}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, own: None, raising=False)
    store = Store()

    def work(links: Links) -> int:
        threading.current_thread().name = str(links.rank)
        group = group_of(store, links.rank, [])
        group.divide_cpus()
        return group.neighbours

    assert on_ranks(2, work) == [2, 2]


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
    group._first_here = 0
    group._store = group._launcher = store
    group._dist = SimpleNamespace(init_process_group=lambda *_, rank, **__: opened.append(rank))
    return group


@pytest.mark.parametrize("launchers", [1, 2])
def test_what_one_rank_makes_first_is_there_each_time_when_others_make_it(
    launchers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each rank of the machine has a launcher of its own."""
    monkeypatch.setattr("tcomp.runtime.distributed.group.keep_to_own_cpus", lambda place: None)
    store, made = Store(), []

    def make(rank: int, turn: int) -> None:
        time.sleep(0.1 if rank == 0 else 0.0)
        made.append((turn, rank))

    def work(links: Links) -> None:
        group = group_of(store, links.rank, [])
        if launchers == 2:
            group.place, group._first_here = Place(links.rank, 2, 0, 1), links.rank
            group.divide_cpus()
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


def test_nccls_ways_are_those_of_this_ranks_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "")
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING")
    store, asked = Store(), []
    group = group_of(store, 1, [])
    cuda = SimpleNamespace(
        set_device=lambda index: asked.append(f"use {index}"), is_available=lambda: True,
        ExternalStream=lambda pointer, device: asked.append(f"stream {pointer} of {device}"),
    )  # fmt: skip
    group._torch = SimpleNamespace(cuda=cuda, device=lambda kind, index: f"{kind}:{index}")

    def new_group(backend: str, timeout: timedelta, device_id: str) -> str:
        assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
        asked.append(f"{backend} on {device_id}")
        return "ways"

    group._dist = SimpleNamespace(new_group=new_group, is_nccl_available=lambda: True, is_initialized=lambda: False)
    context: Any = SimpleNamespace(gpu=SimpleNamespace(index=3), compute=7, look=None)
    assert group.has_nccl
    exchange = group.nccl(context, 4096)
    assert asked == ["use 3", "nccl on cuda:3", "stream 7 of cuda:3"] and exchange.ahead == 1
    context.look()
    group_of(store, 0, []).fails_first(UserError("the disk is full", "make room"))
    group._pulse._looked = 0.0
    with pytest.raises(PeerFailed, match="it has failed"):
        context.look()
    group.close()

    def refused(**_: Any) -> None:
        raise RuntimeError("Duplicate GPU detected")

    group._dist.new_group = refused
    with pytest.raises(PeerFailed, match="Duplicate GPU detected") as e:
        group.nccl(context, 4096)
    assert "--exchange gloo" in e.value.hint


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


def test_a_wait_for_nccl_that_lasts_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tcomp.runtime.distributed.group._LASTS", 0.01)
    group = group_of(Store(), 0, [])
    with group._said_to_wait("NCCL reaches all GPUs"):
        time.sleep(0.2)
    monkeypatch.setattr("tcomp.runtime.distributed.group._LASTS", 60.0)
    with group._said_to_wait("never said"):
        pass
    said = "rank 0 of 2 waits until NCCL reaches all GPUs; Ctrl-C ends it\n"
    assert capsys.readouterr().err == said


def test_messages_that_come_late_do_not_come_into_memory_that_is_given_back() -> None:
    """The error keeps the names of where it was raised; what receives must not be among them."""
    alive: set[int] = set()

    class Work:
        def __init__(self, rank: int) -> None:
            self.rank = rank
            alive.add(rank)

        def wait(self) -> None:
            if self.rank == 1:
                raise RuntimeError("Connection closed by peer")

        def __del__(self) -> None:
            alive.discard(self.rank)

    group = group_of(Store(), 0, [])
    group._torch = SimpleNamespace(from_numpy=lambda a: a)
    group._dist = SimpleNamespace(isend=lambda a, rank: Work(rank), irecv=lambda a, rank: Work(rank))
    into = np.zeros(4)
    with pytest.raises(PeerFailed, match="Connection closed") as e:
        group.exchange([(3, into)], [(2, into), (1, into)])
    assert e.value.__cause__ is not None and not alive - {1}
