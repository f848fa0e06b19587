"""The most device memory PyTorch's bf16 autocast step takes, by account: the step runs on tensors without data.

PyTorch's own MemTracker adds up every storage while it lives, rounded up to 512 bytes as the CUDA allocator does. What
a real GPU takes besides is left out, in PyTorch's favour: workspaces of cuBLAS and kernels, unused parts of the
allocator's segments, the CUDA context. Attention keeps what FlashAttention keeps: q, k, v, the output and a logarithm
for each row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from tcomp.runtime.bench.torch_base import counterpart
from tcomp.runtime.bench.workload import Workload

NARROW = {F.linear, F.scaled_dot_product_attention}
WIDE = {F.layer_norm, F.cross_entropy}


class CudaAutocast(TorchFunctionMode):  # type: ignore[misc]
    """What torch.autocast("cuda", torch.bfloat16) does to the functions the GPT-2 counterpart calls, on any device.

    Its lists: https://docs.pytorch.org/docs/stable/amp.html, "CUDA Op-Specific Behavior". (autocast of a CPU has
    others, and autocast of CUDA does not start without a GPU.)
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        to = torch.bfloat16 if function in NARROW else torch.float32 if function in WIDE else None
        if to is not None:
            args = tuple(a.to(to) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)
        return function(*args, **(kwargs or {}))


def step_peak(workload: Workload) -> dict[str, int]:
    """Bytes at the peak of the second of two steps, by MemTracker's kinds and "Total". Nothing is computed."""
    with FakeTensorMode():
        return traced_peak(workload)


def traced_peak(workload: Workload) -> dict[str, int]:
    """The same on tensors as the surrounding mode makes them: really computed where there is none."""
    from torch.distributed._tools.mem_tracker import MemTracker  # with it loads torch's compiler, which takes seconds

    model = counterpart(workload)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.zeros(workload.batch, workload.length, dtype=torch.int64)
    tracker = MemTracker()
    tracker.track_external(model, optimizer, tokens)
    with tracker:
        for number in range(2):
            if number:
                tracker.reset_mod_stats()
            with CudaAutocast():
                loss = model(tokens, tokens)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    (found,) = tracker.get_tracker_snapshot("peak").values()
    return {str(getattr(kind, "value", kind)): int(size) for kind, size in found.items()}
