"""PyTorch as a program under measurement: the counterpart model with fused AdamW, eager or through torch.compile.

The whole step as tcomp does it: forward, backward, clip by global norm, AdamW with the groups' weight decay, loss
read back. bf16 is autocast, with f32 parameters and optimizer state.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tcomp.runtime.bench.workload import Ints, Weights, Workload, learning_rate


class TorchProgram:
    """`phases` and `clock` are as in TcompProgram. The first step of a compiled program compiles."""

    def __init__(self, workload: Workload, folder: Path, compiled: bool) -> None:
        self.phases: dict[str, float] = {}
        began = time.perf_counter()
        import torch
        from torch import nn

        from tcomp.runtime.bench.torch_base import counterpart

        self.torch: Any = torch
        self.phases["imports"] = time.perf_counter() - began
        began = time.perf_counter()
        kind, _, which = workload.device.partition(":")
        self.device = f"cuda:{which or 0}" if kind == "cuda" else "cpu"
        self.clock = "gpu" if kind == "cuda" else "host"
        torch.set_num_threads(workload.threads)
        torch.set_float32_matmul_precision("highest")
        self.hyper, self.narrow = workload.hyper, workload.dtype == "bf16"
        model = counterpart(workload)
        model.read_weights(Weights(workload, folder))
        model.to(self.device)
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(
            self._groups(model, workload),
            lr=self.hyper["peak_lr"],
            betas=(self.hyper["beta1"], self.hyper["beta2"]),
            eps=self.hyper["eps"],
            fused=True,
        )
        self.clip = nn.utils.clip_grad_norm_
        self.loss: Any = torch.compile(model) if compiled else model
        self.phases["weights"] = time.perf_counter() - began

    def _groups(self, model: Any, workload: Workload) -> list[dict[str, Any]]:
        """The optimizer's groups, each with its weight decay."""
        groups: dict[str, list[Any]] = {}
        for p in workload.parameters:
            groups.setdefault(p.group, []).extend(model.tables[part] for part in model.parts[p.name])
        decay = {g: self.hyper.get(f"{g}.weight_decay", self.hyper.get("weight_decay", 0.0)) for g in groups}
        return [{"params": members, "weight_decay": decay[g]} for g, members in groups.items()]

    def run(self, tokens: Ints, targets: Ints, number: int) -> tuple[float, float | None]:
        """One whole step: its loss and seconds."""
        torch = self.torch
        if self.clock == "host":
            began = time.perf_counter()
            loss = self._step(tokens, targets, number)
            return loss, time.perf_counter() - began
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        loss = self._step(tokens, targets, number)
        stop.record()
        torch.cuda.synchronize()
        return loss, start.elapsed_time(stop) / 1e3

    def _step(self, tokens: Ints, targets: Ints, number: int) -> float:
        torch = self.torch
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.hyper, number)
        x, y = (torch.from_numpy(a).to(self.device, torch.int64) for a in (tokens, targets))
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.narrow):
            loss = self.loss(x, y)
        loss.backward()
        if self.hyper["clip"] > 0:
            self.clip(self.parameters, self.hyper["clip"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def device_bytes(self) -> int:
        """The most memory taken on a GPU."""
        return int(self.torch.cuda.max_memory_allocated()) if self.clock == "gpu" else 0

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass
