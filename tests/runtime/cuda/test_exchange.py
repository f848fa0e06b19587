"""What ranks exchange of GPUs' memory: through pinned memory, and by NCCL as a torch that is none sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as cu

from tcomp.cli.common import load_module
from tcomp.dsl.ast import DType
from tcomp.machine.gpu import H100
from tcomp.model.build import build_step
from tcomp.model.request import Sharing, StepRequest
from tcomp.model.step import Rows
from tcomp.runtime.cuda.context import Context
from tcomp.runtime.cuda.driver import CudaError, call
from tcomp.runtime.cuda.executor import CudaExecutor
from tcomp.runtime.cuda.gpus import choose, gpus
from tcomp.runtime.cuda.pinned import PinnedExchange
from tcomp.runtime.distributed.exchange import Array, Exchange
from tcomp.runtime.distributed.executor import RankExecutor
from tcomp.runtime.distributed.nccl import NcclExchange
from tcomp.runtime.distributed.shares import step_of
from tcomp.runtime.initialise import initialise
from tcomp.runtime.peers import PeerFailed
from tests.reference.ranks import Links, on_ranks

ARENA = 1 << 14
N = 300
"""Elements of a row: more than a piece in one case"""


class Torch:
    """The part of torch that is used, over the driver: collectives go by `links`, on the stream that is current."""

    def __init__(self, links: Links) -> None:
        self.links, self.current, self.made = links, 0, 0
        self.cuda = SimpleNamespace(ExternalStream=lambda pointer, device: (pointer, device), stream=self.stream)
        self.distributed = SimpleNamespace(
            all_to_all_single=self.all_to_all_single, all_gather_into_tensor=self.all_gather_into_tensor
        )

    def device(self, kind: str, index: int) -> str:
        return f"{kind}:{index}"

    @contextmanager
    def stream(self, stream: tuple[int, str]) -> Iterator[None]:
        before, self.current = self.current, stream[0]
        yield
        self.current = before

    def as_tensor(self, place: Any, device: str) -> tuple[int, int]:
        about = place.__cuda_array_interface__
        assert about["typestr"] == "|u1" and about["version"] == 3 and about["strides"] is None
        assert device == "cuda:0"
        (size,), (address, read_only) = about["shape"], about["data"]
        assert not read_only
        self.made += 1
        return address, size

    def all_to_all_single(self, out: tuple[int, int], given: tuple[int, int], group: str) -> None:
        assert out[1] == given[1] and group == "group"
        rows = self.read(given).reshape(self.links.size, -1)
        came = np.empty_like(rows)
        self.links.exchange(list(enumerate(rows)), list(enumerate(came)))
        self.write(out, came)

    def all_gather_into_tensor(self, out: tuple[int, int], given: tuple[int, int], group: str) -> None:
        assert out[1] == given[1] * self.links.size and group == "group"
        own = self.read(given)
        came = np.empty((self.links.size, own.size), np.uint8)
        self.links.exchange([(r, own) for r in range(self.links.size)], list(enumerate(came)))
        self.write(out, came)

    def read(self, tensor: tuple[int, int]) -> Array:
        assert self.current, "torch's own stream would not wait for ours"
        found = np.empty(tensor[1], np.uint8)
        call(cu.cuMemcpyDtoHAsync, found.ctypes.data, tensor[0], found.nbytes, self.current)
        call(cu.cuStreamSynchronize, self.current)
        return found

    def write(self, tensor: tuple[int, int], values: Array) -> None:
        call(cu.cuMemcpyHtoDAsync, tensor[0], values.ctypes.data, values.nbytes, self.current)
        call(cu.cuStreamSynchronize, self.current)


def pinned(most: int) -> Callable[[Links, Context, int], Exchange]:
    def make(links: Links, context: Context, arena: int) -> Exchange:
        none: Callable[[], AbstractContextManager[None]] = nullcontext
        return PinnedExchange(links, context, arena, most, none, most)

    return make


def nccl(links: Links, context: Context, arena: int) -> Exchange:
    return NcclExchange(Torch(links), "group", links.rank, links.size, context, arena, lambda: None)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("made", [pinned(1 << 20), pinned(1024), nccl], ids=["whole", "pieces", "nccl"])
def test_rows_go_to_the_ranks_that_they_are_for(virtual: Any, made: Any, size: int) -> None:
    rows, to, own = Rows(256, N, DType.F32), Rows(5120, N, DType.F32), 10240
    kept = Context(choose("", gpus()))

    def work(links: Links) -> list[Array]:
        context = Context(choose("", gpus()))
        arena = context.memory(ARENA)
        values = np.zeros(ARENA // 4, np.float32)
        values[64 : 64 + size * N] = np.repeat([100 * links.rank + r for r in range(size)], N)
        values[own // 4 : own // 4 + N] = np.arange(N) + links.rank
        call(cu.cuMemcpyHtoDAsync, arena, values.ctypes.data, ARENA, context.compute)
        exchange = made(links, context, arena)
        found = []

        def keep(at: int) -> None:
            out = np.empty((size, N), np.float32)
            call(cu.cuMemcpyDtoHAsync, out.ctypes.data, arena + at, out.nbytes, context.compute)
            call(cu.cuStreamSynchronize, context.compute)
            found.append(out)

        exchange.scatter([(rows, to), (rows, to)])
        keep(to.offset)
        exchange.gather([(to.row(links.rank), to)])
        keep(to.offset)
        exchange.gather([(own, to), (own, rows)])
        keep(rows.offset)
        exchange.close()
        context.close()
        return found

    for rank, (scattered, gathered, whole) in enumerate(on_ranks(size, work)):
        np.testing.assert_array_equal(scattered[:, 0], [100 * r + rank for r in range(size)])
        assert (scattered == scattered[:, :1]).all() and (gathered == gathered[:, :1]).all()
        np.testing.assert_array_equal(gathered[:, 0], [101 * r for r in range(size)])
        np.testing.assert_array_equal(whole, [np.arange(N) + r for r in range(size)])
    kept.close()
    assert not virtual.findings


@pytest.mark.slow(seconds=12)
def test_ranks_end_in_the_same_bits_whatever_they_share_and_whichever_way_they_exchange(
    virtual: Any, kernels: Path
) -> None:
    """And near those of one process with as many micro-batches."""
    batches = np.random.default_rng(1).integers(0, 256, (4, 2, 1, 8))

    def trained(sharing: Sharing, made: Callable[[Links, Context, int], Exchange] | None = None) -> dict[str, Array]:
        """Parameters after two steps of two micro-batches."""
        sizes = {"L": 1, "C": 8, "H": 1}
        request = StepRequest("gpt2", "tiny", {"B": 1, "T": 8}, sizes, "f32", 2 // sharing.ranks, sharing=sharing)
        step = build_step(load_module("gpt2", "f32"), request, H100)

        def work(links: Links) -> dict[str, Array]:
            inner = CudaExecutor(step_of(step, links.rank), H100, 0, cache_dir=kernels)
            executor: Any = RankExecutor(inner, links, made(links, inner.context, inner.arena)) if made else inner
            initialise(executor, 1, 1)
            executor.write("hyper.warmup", 1.0)

            def run(number: int, how: Callable[[str], None], program: str) -> None:
                with executor.batch() as inputs:
                    inputs["tokens"][...], inputs["targets"][...] = batches[number]
                how(program)

            for number in range(2):
                executor.write("step", number)
                if made:
                    run(2 * number + links.rank, executor.run_step, "micro_first")
                else:
                    run(2 * number, executor.run, "micro_first")
                    run(2 * number + 1, executor.run_step, "micro_next")
            found = {n: executor.read(n).copy() for n, s in executor.step.slots.items() if s.kind == "parameter"}
            executor.close()
            return found

        first, *others = on_ranks(sharing.ranks, work)
        for other in others:
            assert all((first[n] == other[n]).all() for n in first)
        found: dict[str, Array] = first
        return found

    kept = Context(choose("", gpus()))
    one = trained(Sharing())
    plain = trained(Sharing(2), pinned(1024))
    zero = trained(Sharing(2, 1), nccl)
    kept.close()
    assert not virtual.findings
    for name, value in plain.items():
        np.testing.assert_array_equal(value, zero[name])
        np.testing.assert_allclose(value, one[name], rtol=1e-4, atol=2e-5)
    assert any((value != one[name]).any() for name, value in plain.items())


def test_places_are_made_tensors_of_once(virtual: Any) -> None:
    context = Context(choose("", gpus()))
    torch = Torch(Links({}, 0, 1))
    torch.links.exchange = lambda sends, receives: receives[0][1].__setitem__(..., sends[0][1])  # type: ignore[method-assign]
    arena, rows = context.memory(1024), Rows(0, 64, DType.F32)
    call(cu.cuMemsetD8Async, arena, 0, 1024, context.compute)
    exchange = NcclExchange(torch, "group", 0, 1, context, arena, lambda: None)
    for _ in range(3):
        exchange.scatter([(rows, Rows(256, 64, DType.F32))])
    assert torch.made == 2
    context.close()


class Never:
    """A GPU that waits for another rank."""

    gpu = SimpleNamespace(index=0)
    compute = 7

    def __init__(self) -> None:
        self.look: Any = None

    def wait(self) -> None:
        while True:
            self.look()


def test_what_nccl_waits_for_is_ended_where_a_rank_is_gone() -> None:
    ended: list[str] = []
    looks = iter([None, None, PeerFailed("rank 0 has lost another rank", "look")])

    def look() -> None:
        found = next(looks)
        if found is not None:
            raise found

    group: Any = SimpleNamespace(abort=lambda: ended.append("abort"))
    context: Any = Never()
    exchange = NcclExchange(Torch(Links({}, 0, 2)), group, 0, 2, context, 0, look)
    exchange.close()
    assert ended == ["abort"] and context.look is None


def test_nccls_error_is_another_ranks(virtual: Any) -> None:
    context = Context(choose("", gpus()))
    torch = Torch(Links({}, 0, 2))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("NCCL error: remote process exited\nmore")

    torch.distributed.all_to_all_single = fail
    exchange = NcclExchange(torch, "group", 0, 2, context, context.memory(256), lambda: None)
    with pytest.raises(PeerFailed, match=r"by NCCL: NCCL error: remote process exited\n  help"):
        exchange.scatter([(Rows(0, 1, DType.F32), Rows(16, 1, DType.F32))])
    context.close()


def test_a_kernels_fault_that_torch_meets_first_is_this_ranks_own(
    virtual: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context(choose("", gpus()))
    torch = Torch(Links({}, 0, 2))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    @contextmanager
    def faults() -> Iterator[None]:
        try:
            yield
        except CudaError as e:
            raise CudaError(e.name, "a kernel failed in a launch of program 'micro_first'") from e

    torch.distributed.all_to_all_single = fail
    exchange = NcclExchange(torch, "group", 0, 2, context, context.memory(256), lambda: None, faults)
    with monkeypatch.context() as m, pytest.raises(CudaError, match="in a launch of program 'micro_first'"):
        m.setattr(cu, "cuStreamQuery", lambda _: (cu.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,))
        exchange.scatter([(Rows(0, 1, DType.F32), Rows(16, 1, DType.F32))])
    context.look = None
    context.close()


def test_a_wait_for_the_gpu_looks_around(virtual: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(choose("", gpus()))
    event = context.event()
    call(cu.cuEventRecord, event, context.compute)
    looked: list[int] = []
    states = iter([600, 600, 0, 700])
    monkeypatch.setattr(cu, "cuEventQuery", lambda _: (cu.CUresult(next(states)),))
    context.look = lambda: looked.append(1)
    context.until(event)
    assert len(looked) == 2
    with pytest.raises(CudaError):
        context.until(event)
    context.look = None
    context.close()
