"""The tensor-core families at full size: the time of every kernel, beside the static model's prediction and PyTorch's
library on the same GPU, and the results beside PyTorch's in f32.

Operands are random. On the virtual GPU, the same sections check tiny sizes and time nothing.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from gpu_cases import ATTENTION, EIGHT_BITS, PRODUCTS, Case, Prepared, op_of, prepare
from gpu_job import Item, Job, in_turn, reason
from gpu_library import Counterpart, Torch
from gpu_sweep import GUARD, attention_cases, compare, fp8_cases, harm, poison, product_cases, sampled
from predicted_fp8 import PUBLISHED
from published_attention import CHANNELS, FIGURES

from tcomp.model.single import single_op_step
from tcomp.runtime.cuda.executor import CudaExecutor
from tcomp.runtime.cuda.programs import BoundLaunch
from tcomp.runtime.cuda.timing import ColdClock
from tcomp.runtime.values import numpy_type, stored

REPEATS = 20
L2_TOLERANCE = 2.0**-7
"""Relative L2 distance from products in f32 of the operands as they are stored; 8-bit results allow twice that."""
ELEMENT = 2.0**-4
"""The farthest element, beside its own size and the typical one's."""
OF_TERMS = 2.0**-6
"""The same beside its own size and the root of the sum of its terms' squares, where that is known. A term rounded to
bf16 is off by 2**-8 of itself at most, with a deviation of 1.66e-3; of 1e8 elements the farthest is expected at 5.7
deviations, which is 0.0095, and this is 9.4. (Attention with weights and their gradients rounded, simulated: 0.0080 at
most, whatever T. Beside the typical element the same has 0.013 at 256 tokens and 0.058 at 8192 under the causal mask,
where the first rows' terms are larger by the root of T.)"""
PERIOD = 1048573
"""Random values are repeated after this many (a prime: rows differ), where there is no PyTorch to draw them."""


def products(job: Job) -> Iterator[Item]:
    yield from _timed(job, PRODUCTS, product_cases)


def attention(job: Job) -> Iterator[Item]:
    yield from _timed(job, ATTENTION, attention_cases)


def fp8(job: Job) -> Iterator[Item]:
    yield from _timed(job, EIGHT_BITS, fp8_cases)


def _timed(job: Job, cases: Sequence[Case], small: Callable[[bool], list[Case]]) -> Iterator[Item]:
    machine, cache = job.device.machine, job.device.cache
    if not job.real:
        yield from in_turn(job, small(False), partial(sampled, machine, cache), partial(compare, job))
        return
    measure = _Measure(job)
    yield from in_turn(job, cases, partial(prepare, machine, cache, job.predicted), measure, measure.start)


class _Measure:
    """Rows of a case: the library's kernels, then ours, checked and timed."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.torch: Torch | None = None

    def start(self) -> Iterator[Item]:
        """Load PyTorch; a row where there is none."""
        try:
            self.torch = Torch(f"cuda:{self.job.device.gpu.index}")
        except Exception as e:
            yield {"kind": "row", "what": "PyTorch: nothing to compare with", "error": reason(e)}

    def __call__(self, case: Case, prepared: Prepared) -> Iterator[Item]:
        counterpart = self.torch.counterpart(case) if self.torch else None
        library: dict[str, float] = {}
        if self.torch and counterpart:
            for t in self.torch.timed(counterpart, REPEATS):
                row: Item = {"kind": "row", "what": str(case), "kernel": f"{t.name} {t.output}".strip()}
                if t.error:
                    yield row | {"error": t.error}
                else:
                    rate = _operations(case, t.output or "whole") / t.ms / 1e9
                    library[t.output] = max(rate, library.get(t.output, 0.0))
                    yield row | {"us": 1e3 * t.ms, "TFLOP/s": rate}
            self.torch.free()
        step = single_op_step(prepared.lowered, case.sizes, GUARD)
        executor = self.job.device.open(step)
        assert isinstance(executor, CudaExecutor)
        try:
            if self.torch and counterpart:
                yield _checked(self.torch, executor, case, counterpart)
            else:
                _fill(executor, case)
                executor.run("run")
                executor.wait()
            yield from _times(executor, case, prepared, library)
        finally:
            executor.close()
            del counterpart
            with contextlib.suppress(RuntimeError):  # (after a fault: what it was is being reported already)
                if self.torch:
                    self.torch.free()


def _checked(torch: Torch, executor: CudaExecutor, case: Case, counterpart: Counterpart) -> Item:
    """Two runs with everything but the inputs NaN before, the same bits, near PyTorch's results; guards and inputs as
    they were."""
    inputs = {n: x for n, x in counterpart.inputs.items() if n in executor.step.slots}
    wanted = {n: x for n, x in counterpart.references().items() if n in executor.step.slots}
    for name, x in inputs.items():
        torch.put(executor, name, x)
    runs, faults = [], []
    for _ in range(2):
        poison(executor, iter(inputs))
        executor.run("run")
        runs.append({n: torch.get(executor, n) for n in wanted})
    faults += [f"other bits of {n} in a second run" for n in wanted if not torch.same(runs[0][n], runs[1][n])]
    faults += [f"writes past the end of {n}" for n in harm(executor)]
    faults += [f"changes its input {n}" for n, x in inputs.items() if not torch.same(torch.get(executor, n), x)]
    off = {n: torch.distances(runs[0][n], x) for n, x in wanted.items()}
    more = 2 if case.file.startswith("fp8") else 1
    allowed = {n: ELEMENT if x.terms is None else OF_TERMS for n, x in wanted.items()}
    faults += [f"{n} is {far:.1e} away, {worst:.1e} its farthest element" for n, (far, worst) in off.items()
               if not (far <= more * L2_TOLERANCE and worst <= more * allowed[n])]  # fmt: skip
    of = max(off, key=lambda n: off[n])
    row: Item = {"kind": "row", "what": str(case), "kernel": "check", "off, L2": off[of][0], "off, element": off[of][1]}
    return row | ({"error": "; ".join(faults)} if faults else {}) | {"good": not faults}


def _fill(executor: CudaExecutor, case: Case) -> None:
    """Random inputs, drawn on the host."""
    random = np.random.default_rng(1)
    block = random.standard_normal(PERIOD, np.float32)
    for p in op_of(case).params:
        if p.name in executor.step.slots:
            slot = executor.step.slots[p.name]
            made = stored(block[: max(1, min(PERIOD, int(np.prod(slot.shape))))], slot.dtype)
            executor.write(p.name, np.resize(made, slot.shape).astype(numpy_type(slot.dtype)))


def _times(executor: CudaExecutor, case: Case, prepared: Prepared, library: dict[str, float]) -> Iterator[Item]:
    """A row for each kernel, and one for all of them where there are several. A kernel's launches go together: blocks
    that take turns need the words that the first launch clears."""
    bound = iter(executor.programs["run"])
    kernels: list[tuple[str, list[BoundLaunch]]] = []
    for launch in executor.step.programs["run"]:
        kernels.append((launch.kernel, [next(bound) for _ in executor.kernels[launch.kernel].functions]))
    if len(kernels) > 1:
        kernels.append(("whole", [x for _, launches in kernels for x in launches]))
    clock = ColdClock(executor.context.gpu, executor.machine)
    try:
        for name, launches in kernels:
            work = partial(_submit, launches, executor.context.compute)
            ms = statistics.median(clock.milliseconds(executor, [work] * REPEATS))
            yield _row(case, name, ms * 1e-3, prepared.predicted, library, len(kernels))
    finally:
        clock.close()


def _submit(launches: Sequence[BoundLaunch], stream: Any) -> None:
    for launch in launches:
        launch.submit(stream)


def _row(
    case: Case, kernel: str, seconds: float, predicted: dict[str, float], library: dict[str, float], kernels: int
) -> Item:
    """What is known of one kernel, or of the whole op."""
    row: Item = {"kind": "row", "what": str(case), "kernel": kernel, "us": 1e6 * seconds}
    whole = kernel == "whole" or kernels == 1
    parts = predicted if whole else {n: s for n, s in predicted.items() if n == kernel}
    model = sum(parts.values())
    output = _output(case, kernel, whole)
    operations = _operations(case, output)
    if operations:
        row["TFLOP/s"] = operations / seconds / 1e12
    if model:
        row |= {"predicted us": 1e6 * model, "measured over predicted": seconds / model}
        row |= {"predicted TFLOP/s": operations / model / 1e12} if operations else {}
    best = library.get("" if output == "whole" else output)
    if best and operations:
        row |= {"library TFLOP/s": best, "over the library": row["TFLOP/s"] / best}
    published = _published(case, output)
    return row | ({"published TFLOP/s": published} if published else {})


def _output(case: Case, kernel: str, whole: bool) -> str:
    """The result that is a kernel's product: Y, dX or dW; "whole" for all of an attention; "" for other kernels."""
    if case.file == "attention" or kernel == "whole":
        return "whole" if whole else ""
    if kernel == case.op and not case.backward:
        return "Y"
    last = kernel.removeprefix(case.op + ".").split("+")
    return next((x for x in ("Y", "dX", "dW") if x in last), "")


def _operations(case: Case, output: str) -> float:
    """Floating-point operations that count: a product's; of attention two or five products, half under the mask."""
    d = case.sizes
    if case.file == "attention":
        dense = (10 if case.backward else 4) * float(d["B"]) * d["T"] ** 2 * d["H"] * d["D"]
        return dense / (1 if case.full else 2) if output else 0.0
    one = 2.0 * d["M"] * d["N"] * d["K"]
    return (2 * one if case.backward else one) if output == "whole" else one if output else 0.0


def _published(case: Case, output: str) -> str:
    """Published rates of other kernels at that shape, on an H100 or H800."""
    d = case.sizes
    if case.file == "attention" and output and d["B"] == 1 and d["H"] * d["D"] == CHANNELS:
        found = [f for f in FIGURES if (f.backward, f.head, f.causal) == (case.backward, d["D"], not case.full)]
        return ", ".join(f"{f.low:.0f}" if f.low == f.high else f"{f.low:.0f} to {f.high:.0f}" for f in found)
    return " to ".join(map(str, PUBLISHED)) if case.file == "fp8_block" and output == "Y" else ""
