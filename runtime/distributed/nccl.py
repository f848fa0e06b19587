"""What ranks exchange of GPUs' memory by NCCL, through torch.distributed: no copy to hosts, and no wait of theirs.

Not run on hardware so far: tests hold it against a torch that only notes what is asked of it.

torch works in the device's primary context, as tcomp does, so a tensor can stand for a place in the arena. Collectives
are asked for while our stream is torch's current one: NCCL's work comes behind what that stream was given, and what the
stream is given later behind NCCL's. They move bytes; sums are the step's own kernels', in the order of the ranks
(NCCL's own sums would be in an order of its choice).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from tcomp.errors import UserError
from tcomp.model.step import Rows
from tcomp.runtime.peers import PeerFailed

if TYPE_CHECKING:
    from tcomp.runtime.cuda.context import Context


class Place:
    """Device memory, as what torch makes a tensor of bytes of without copying."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,), "typestr": "|u1", "data": (address, False), "strides": None, "version": 3,
        }  # fmt: skip


class NcclExchange:
    """`exchange.Exchange`. `torch` is that module, `group` its NCCL process group of all `size` ranks. `arena` is the
    device address that rows' offsets count from. `look` raises where another rank is gone: NCCL would wait for it.
    `faults` reports what the driver says of kernels before."""

    name = "NCCL"
    ahead = 1

    def __init__(
        self, torch: Any, group: Any, rank: int, size: int, context: Context, arena: int, look: Callable[[], None],
        faults: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:  # fmt: skip
        self._torch, self._group, self._rank, self._size = torch, group, rank, size
        self._context, self._arena, self._faults = context, arena, faults
        self._device = torch.device("cuda", context.gpu.index)
        self._stream = torch.cuda.ExternalStream(int(context.compute), device=self._device)
        self._tensors: dict[tuple[int, int], Any] = {}
        context.look = look

    def scatter(self, moves: Sequence[tuple[Rows, Rows]]) -> None:
        with self._in_order() as dist:
            for source, to in moves:
                dist.all_to_all_single(self._all(to), self._all(source), group=self._group)

    def gather(self, moves: Sequence[tuple[int, Rows]]) -> None:
        with self._in_order() as dist:
            for place, to in moves:
                dist.all_gather_into_tensor(self._all(to), self._bytes(place, to.bytes), group=self._group)

    def close(self) -> None:
        """Wait for what was asked for; where a rank is gone, end NCCL's part of it, which would never end."""
        try:
            self._context.wait()
        except PeerFailed:
            with suppress(RuntimeError):
                self._group.abort()
        except UserError:  # of a kernel before: who closes the context says so
            pass
        self._context.look = None

    @contextmanager
    def _in_order(self) -> Iterator[Any]:
        """torch.distributed, whose work comes behind that of our stream and before what follows there."""
        try:
            with self._torch.cuda.stream(self._stream):
                yield self._torch.distributed
        except RuntimeError as e:
            with self._faults():  # torch is the first to meet one, and does not know whose it is
                self._context.check()
            raise PeerFailed(
                f"rank {self._rank} cannot exchange by NCCL: {(str(e).strip().splitlines() or ['?'])[0][:200]}",
                "look for another rank's message (NCCL_DEBUG=INFO tells more), or use --exchange gloo",
            ) from e

    def _all(self, rows: Rows) -> Any:
        return self._bytes(rows.offset, self._size * rows.bytes)

    def _bytes(self, offset: int, size: int) -> Any:
        """A tensor for a place in the arena."""
        if (offset, size) not in self._tensors:
            place = Place(self._arena + offset, size)
            self._tensors[offset, size] = self._torch.as_tensor(place, device=self._device)
        return self._tensors[offset, size]
