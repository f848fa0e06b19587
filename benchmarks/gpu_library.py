"""PyTorch on the same GPU: random operands of a case, what its results should be (products in f32), and the library's
kernels for the same work, timed as ours are: between events, L2 flushed before each repeat.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cuda.bindings import driver as cu
from gpu_cases import Case
from gpu_job import lost, reason

from tcomp.dsl.ast import DType
from tcomp.runtime.cuda.driver import call
from tcomp.runtime.cuda.executor import CudaExecutor

Tensor = Any
FLUSH = 1 << 30
"""Bytes that are filled before each repeat: far more than L2, and half a millisecond in which the host runs ahead."""
AMAX = 6.0
"""What 8-bit layers remember as the largest value."""
ROOM = 1 << 28
"""Scores that are made at once."""


FAINT = 2.0**-8
"""What of a difference's operands counts as a term of what the difference is multiplied with: where they cancel,
rounding remains."""


@dataclass(frozen=True)
class Reference:
    """A result in f32. `terms`: of each element the root of the sum of the squares of what it is the sum of, which is
    how rounding those sums up; None where an element is as large as its terms have it (all rows are alike)."""

    value: Tensor
    terms: Tensor | None = None


@dataclass(frozen=True)
class Counterpart:
    """`inputs` are on the GPU in the types of the op's operands; `references` gives its results; `library` has the
    result that each of the library's kernels is for, its name, and what runs it."""

    inputs: dict[str, Tensor]
    references: Callable[[], dict[str, Reference]]
    library: Sequence[tuple[str, str, Callable[[], Callable[[], Any]]]]


def _alike(**results: Tensor) -> dict[str, Reference]:
    return {name: Reference(x) for name, x in results.items()}


@dataclass(frozen=True)
class Timed:
    """A kernel of the library's: milliseconds, or why there are none."""

    output: str
    name: str
    ms: float = 0.0
    error: str = ""


class Torch:
    """PyTorch on a device, "cuda:0" or "cpu" (where there are no times). ImportError where it is not installed,
    RuntimeError where it has no CUDA."""

    def __init__(self, device: str) -> None:
        import torch

        self.torch: Any = torch
        self.device = torch.device(device)
        if self.device.type == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("PyTorch has no CUDA")
            torch.cuda.set_device(self.device)
            torch.backends.cuda.matmul.allow_tf32 = False
            self._rubbish = torch.empty(FLUSH, dtype=torch.uint8, device=self.device)
        torch.manual_seed(1)
        self.types: dict[DType, Any] = {
            DType.BF16: torch.bfloat16, DType.F16: torch.float16, DType.F32: torch.float32, DType.I32: torch.int32,
            DType.E4M3: torch.float8_e4m3fn, DType.E5M2: torch.float8_e5m2,
        }  # fmt: skip

    def normal(self, *shape: int, dtype: Any = None) -> Tensor:
        return self.torch.randn(shape, device=self.device, dtype=dtype or self.torch.bfloat16)

    # ------------------------------------------------------------------------------------------- slots

    def put(self, executor: CudaExecutor, name: str, tensor: Tensor) -> None:
        """Copy a tensor's bytes into a slot."""
        slot = executor.step.slots[name]
        tensor = tensor.contiguous()
        assert tensor.numel() * tensor.element_size() == slot.bytes and tensor.dtype == self.types[slot.dtype], name
        self.torch.cuda.synchronize()
        call(
            cu.cuMemcpyDtoDAsync, executor.arena + slot.offset, tensor.data_ptr(), slot.bytes, executor.context.compute
        )
        executor.wait()

    def get(self, executor: CudaExecutor, name: str) -> Tensor:
        """A slot's values as a tensor."""
        slot = executor.step.slots[name]
        found = self.torch.empty(slot.shape, dtype=self.types[slot.dtype], device=self.device)
        self.torch.cuda.synchronize()
        call(cu.cuMemcpyDtoDAsync, found.data_ptr(), executor.arena + slot.offset, slot.bytes, executor.context.compute)
        executor.wait()
        return found

    def same(self, a: Tensor, b: Tensor) -> bool:
        """The same bits."""
        view = self.torch.uint8
        return bool(self.torch.equal(a.contiguous().view(-1).view(view), b.contiguous().view(-1).view(view)))

    def distances(self, got: Tensor, wanted: Reference) -> tuple[float, float]:
        """Relative L2 distance; and the farthest element, beside its own size and its terms', or the typical element's.
        Infinite where a result is not finite."""
        a, b = got.float().view(-1), wanted.value.float().reshape(-1)
        gap = (a - b).abs_()
        size = float(self.torch.linalg.vector_norm(b))
        far = float(self.torch.linalg.vector_norm(gap)) / max(size, 1e-30)
        typical: Any = size / max(1, b.numel()) ** 0.5 + 1e-30
        if wanted.terms is not None:
            typical = wanted.terms.reshape(-1) + 1e-30
        worst = float((gap / (b.abs() + typical)).max())
        finite = far == far and worst == worst
        return (far, worst) if finite else (float("inf"), float("inf"))

    def free(self) -> None:
        """Give the memory of dropped tensors back, for our executors."""
        self.torch.cuda.empty_cache()

    # ------------------------------------------------------------------------------------------- times

    def timed(self, counterpart: Counterpart, repeats: int) -> Iterator[Timed]:
        """Median milliseconds of each of the library's kernels. What the library refuses says so."""
        for output, name, start in counterpart.library:
            try:
                yield Timed(output, name, self._median(start(), repeats))
            except Exception as e:
                if lost(e):
                    raise
                yield Timed(output, name, error=reason(e))

    def _median(self, work: Callable[[], Any], repeats: int) -> float:
        cuda = self.torch.cuda
        for _ in range(3):  # (the first call chooses a kernel and compiles some)
            work()
        events = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for start, stop in events:
            self._rubbish.zero_()
            start.record()
            work()
            stop.record()
        cuda.synchronize()
        return float(statistics.median(start.elapsed_time(stop) for start, stop in events))

    # ------------------------------------------------------------------------------------------- families

    def counterpart(self, case: Case) -> Counterpart:
        """That of a case of gpu_cases.py."""
        make = {"linear": self._product, "attention": self._attention, "fp8": self._fp8, "fp8_block": self._fp8_block}
        return make[case.file](case)

    def _product(self, case: Case) -> Counterpart:
        m, n, k = (case.sizes[d] for d in "MNK")
        x, w, matmul = self.normal(m, k), self.normal(n, k), self.torch.matmul
        if not case.backward:
            y = self.torch.empty(m, n, dtype=x.dtype, device=self.device)
            return Counterpart(
                {"X": x, "W": w},
                lambda: _alike(Y=x.float() @ w.float().t()),
                [("Y", "torch.matmul", lambda: lambda: matmul(x, w.t(), out=y))],
            )
        d = self.normal(m, n)
        dx, dw = self.torch.empty_like(x), self.torch.empty_like(w)
        return Counterpart(
            {"X": x, "W": w, "dY": d},
            lambda: _alike(dX=d.float() @ w.float(), dW=d.float().t() @ x.float()),
            [
                ("dX", "torch.matmul", lambda: lambda: matmul(d, w, out=dx)),
                ("dW", "torch.matmul", lambda: lambda: matmul(d.t(), x, out=dw)),
            ],
        )

    def _attention(self, case: Case) -> Counterpart:
        b, t, h, d = (case.sizes[x] for x in "BTHD")
        qkv = self.normal(b, t, 3, h, d)
        given: dict[str, Tensor] = {"QKV": qkv}
        if case.backward:
            forward = self._scores(case, qkv, {})
            given |= {"O": forward["O"].value.to(qkv.dtype), "L": forward["L"].value, "dO": self.normal(b, t, h, d)}
        kernels = [
            ("", f"SDPA, {backend}", partial(self._sdpa, case, given, backend))
            for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION")
        ]
        return Counterpart(given, lambda: self._scores(case, qkv, given), kernels)

    def _scores(self, case: Case, qkv: Tensor, given: dict[str, Tensor]) -> dict[str, Reference]:
        """O and L; or dQKV, of the O, L and dO that are given. The terms of an element are products with a weight (or
        its gradient), which kernels round to 16 bits. Under a causal mask they are few and large in the first rows, and
        the typical element says nothing of those."""
        torch = self.torch
        b, t, h, d = (case.sizes[x] for x in "BTHD")
        heads, scale = max(1, min(b * h, ROOM // (t * t))), d**-0.5
        q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, b * h, t, d).unbind(0)
        hidden = None if case.full else torch.ones(t, t, dtype=torch.bool, device=self.device).triu_(1)

        def flat(name: str) -> Tensor:
            return given[name].permute(0, 2, 1, 3).reshape(b * h, t, d)

        backward = "dO" in given
        o: Tensor = flat("O") if backward else None
        do: Tensor = flat("dO") if backward else None
        logs = given["L"].reshape(b * h, t) if backward else torch.empty(b * h, t, device=self.device)
        out = torch.empty(2, 3 if backward else 1, b * h, t, d, device=self.device)

        def put(part: int, at: slice, weights: Tensor, values: Tensor, squares: Tensor | None = None) -> None:
            """Products with weights, and the roots of those of their squares."""
            squares = weights.square() if squares is None else squares
            torch.matmul(weights, values, out=out[0, part, at])
            torch.matmul(squares, values.square(), out=out[1, part, at]).sqrt_()

        for first in range(0, b * h, heads):
            at = slice(first, first + heads)
            qs, ks, vs = q[at].float(), k[at].float(), v[at].float()
            p = torch.matmul(qs, ks.transpose(1, 2)).mul_(scale)
            if hidden is not None:
                p.masked_fill_(hidden, -torch.inf)
            if not backward:
                logs[at] = torch.logsumexp(p, -1)
            p.sub_(logs[at, :, None]).exp_()
            if not backward:
                put(0, at, p, vs)
                continue
            g = do[at].float()
            delta = (g * o[at].float()).sum(-1, keepdim=True)
            put(2, at, p.transpose(1, 2), g)
            of_weights = torch.matmul(g, vs.transpose(1, 2))
            faint = p * of_weights.abs().add_(delta.abs()).mul_(scale * FAINT)
            p.mul_(of_weights.sub_(delta)).mul_(scale)
            squares = faint.square_().addcmul_(p, p)
            put(0, at, p, ks, squares)
            put(1, at, p.transpose(1, 2), qs, squares.transpose(1, 2))
        if backward:
            made = (x.view(3, b, h, t, d).permute(1, 3, 0, 2, 4).contiguous() for x in out)
            return {"dQKV": Reference(*made)}
        made = (x[0].view(b, h, t, d).permute(0, 2, 1, 3).contiguous() for x in out)
        return {"O": Reference(*made), "L": Reference(logs.view(b, h, t))}

    def _sdpa(self, case: Case, given: dict[str, Tensor], backend: str) -> Callable[[], Any]:
        """The library's attention: forward, or the gradients of all three."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        attend = self.torch.nn.functional.scaled_dot_product_attention
        parts = [given["QKV"][:, :, i].contiguous().transpose(1, 2).detach() for i in range(3)]
        causal = not case.full

        def forward() -> Tensor:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return attend(*parts, is_causal=causal)

        if not case.backward:
            return forward
        for p in parts:
            p.requires_grad_(True)
        out, gradient = forward(), given["dO"].transpose(1, 2)
        return lambda: self.torch.autograd.grad(out, parts, gradient, retain_graph=True)

    # ------------------------------------------------------------------------------------------- 8 bits

    def _narrow(self, x: Tensor, scale: Tensor, dtype: Any) -> Tensor:
        top = float(self.torch.finfo(dtype).max)
        return (x.float() * scale).clamp_(-top, top).to(dtype)

    def _stretch(self, largest: Tensor, top: float) -> Tensor:
        return (top / largest.clamp(min=1e-30)).to(self.torch.bfloat16).float()

    def _blocks(self, x: Tensor, dtype: Any, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """x, a block of rows x columns with a scale each, in 8 bits; and the scales, [blocks down, blocks across]."""
        (m, n) = x.shape
        blocks = x.float().view(m // rows, rows, n // columns, columns)
        scale = self._stretch(blocks.abs().amax((1, 3), keepdim=True), float(self.torch.finfo(dtype).max))
        return self._narrow(blocks, scale, dtype).view(m, n), scale[:, 0, :, 0]

    def _unscaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """What 8-bit values with scales of blocks stand for, f32."""
        (m, n), (down, across) = x.shape, scale.shape
        return (x.float().view(down, m // down, across, n // across) / scale[:, None, :, None]).view(m, n)

    def _fp8(self, case: Case) -> Counterpart:
        torch = self.torch
        m, n, k = (case.sizes[d] for d in "MNK")
        four, five = torch.float8_e4m3fn, torch.float8_e5m2
        x, w = self.normal(m, k), self.normal(n, k)
        h = torch.full((3, case.sizes["H"]), AMAX, device=self.device)
        sx = sw = self._stretch(h[0, 0], 448.0)
        sd = self._stretch(h[0, 0], 57344.0)
        xq, wq = self._narrow(x, sx, four), self._narrow(w, sw, four)
        rx, rw = x.float().abs().amax(1), w.float().abs().amax(1)
        xt, wt = xq.t().contiguous(), wq.t().contiguous()
        if not case.backward:

            def forward() -> dict[str, Reference]:
                y = (xq.float() @ wq.float().t()) / (sx * sw)
                return _alike(Y=y, Xt=xt.float(), Wt=wt.float(), rX=rx, rW=rw)

            return Counterpart({"X": x, "W": w, "h": h}, forward, self._scaled("Y", xq, wq, True))
        dy = self.normal(m, n)
        dq = self._narrow(dy, sd, five)
        dt = dq.t().contiguous()
        given = {"Xt": xt, "Wt": wt, "rX": rx, "rW": rw, "h": h, "dY": dy}
        given |= {"sD": sd, "uX": 1 / (sd * sw), "uW": 1 / (sd * sx)}

        def backward() -> dict[str, Reference]:
            return _alike(dX=dq.float() @ wq.float() / (sd * sw), dW=dq.float().t() @ xq.float() / (sd * sx))

        return Counterpart(given, backward, [*self._scaled("dX", dq, wt, False), *self._scaled("dW", dt, xt, False)])

    def _fp8_block(self, case: Case) -> Counterpart:
        """Of sizes that are multiples of 128."""
        four, five = self.torch.float8_e4m3fn, self.torch.float8_e5m2
        m, n, k = (case.sizes[d] for d in "MNK")
        x, w = self.normal(m, k), self.normal(n, k)
        largest = x.float().view(m // 128, 128, k).abs().amax(1)
        vx = (largest.clamp(min=1e-30) / 448.0).to(self.torch.bfloat16)
        tx = 1.0000002 / vx.float()
        xc = self._narrow(x.view(m // 128, 128, k), tx[:, None], four).view(m, k)
        wq, sw = self._blocks(w, four, 128, 128)
        kept = {
            "Xt": xc.t().contiguous().view(k, m // 128, 128),
            "vX": vx,
            "Wt": wq.t().contiguous().view(k, n // 128, 128),
            "uW": 1 / sw,
        }
        if not case.backward:

            def forward() -> dict[str, Reference]:
                y = self._unscaled(*self._blocks(x, four, 1, 128)) @ self._unscaled(wq, sw).t()
                return _alike(Y=y, **{name: value.float() for name, value in kept.items()})

            return Counterpart({"X": x, "W": w}, forward, self._block_scaled(x, w))
        d = self.normal(m, n)

        def backward() -> dict[str, Reference]:
            dx = self._unscaled(*self._blocks(d, five, 1, 128)) @ self._unscaled(wq, sw)
            dw = self._unscaled(*self._blocks(d, five, 128, 1)).t() @ self._unscaled(xc, tx)
            return _alike(dX=dx, dW=dw)

        return Counterpart({**kept, "W": w, "dY": d}, backward, [])

    def _scaled(self, output: str, a: Tensor, b: Tensor, rows: bool) -> list[tuple[str, str, Any]]:
        """torch._scaled_mm of a [M, K] and b [N, K], a scale for each tensor, and with `rows` for each row too."""
        torch = self.torch
        one = torch.ones((), device=self.device)
        by_row = torch.ones(a.shape[0], 1, device=self.device), torch.ones(1, b.shape[0], device=self.device)

        def product(scales: tuple[Tensor, Tensor], fast: bool) -> Callable[[], Any]:
            return lambda: torch._scaled_mm(
                a, b.t(), scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16, use_fast_accum=fast
            )

        found = [
            (output, "_scaled_mm, per tensor", lambda: product((one, one), False)),
            (output, "_scaled_mm, per tensor, fast sums", lambda: product((one, one), True)),
        ]
        if rows:
            found.append((output, "_scaled_mm, per row, fast sums", lambda: product(by_row, True)))
        return found

    def _block_scaled(self, x: Tensor, w: Tensor) -> list[tuple[str, str, Any]]:
        """The library's product with the scales of 1 x 128 of x and of 128 x 128 of w, each laid out along K last."""
        torch = self.torch
        (m, k), (n, _) = x.shape, w.shape
        one = torch.ones((), device=self.device)
        xq, wq = self._narrow(x, one, torch.float8_e4m3fn), self._narrow(w, one, torch.float8_e4m3fn)
        a = torch.ones(k // 128, m, device=self.device).t()
        b = torch.ones(n // 128, k // 128, device=self.device).t()

        def start() -> Callable[[], Any]:
            from torch.nn.functional import ScalingType, scaled_mm

            kinds = ScalingType.BlockWise1x128, ScalingType.BlockWise128x128
            return lambda: scaled_mm(xq, wq.t(), a, kinds[0], b, kinds[1], output_dtype=torch.bfloat16)

        return [("Y", "scaled_mm, per block", start)]
