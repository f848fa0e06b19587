"""Launches of one small kernel are one launch where they may run at one time, and what is computed stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tcomp.dsl.ast import DType, Module
from tcomp.dsl.load import library, load, load_text
from tcomp.ir.batch import batchable
from tcomp.ir.print import print_kernel
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.machine.gpu import H100, GpuMachine
from tcomp.model import batches, draft
from tcomp.model.batches import in_batches
from tcomp.model.build import build_step
from tcomp.model.graph import Tensor, View
from tcomp.model.lowering import PlannedLaunch
from tcomp.model.request import StepRequest
from tcomp.runtime.cuda.device import virtual_device
from tcomp.runtime.device import CpuDevice
from tcomp.runtime.initialise import initialise
from tcomp.runtime.scalars import set_scalars
from tcomp.schedule.lower import lower
from tests.tcomp.tile_interpreter import Interpreter

TEXT = """
op scale(h: f32[N]) -> s: f32[]:
  a = max i: h[i]
  s = 8.0 / a

op times(x: f32[M], s: f32[]) -> y: f32[M], r: f32[M]:
  y[m] = x[m] * s
  r[m] = abs(x[m])

op next(r: f32[M], h: f32[N]) -> g: f32[N]:
  a = max m: r[m]
  g[turn] = select(turn > 0, h[max(turn - 1, 0)], a)

op begin(h: f32[N]) -> g: f32[N]:
  g[i] = h[i]

op cast(w: f32[M], s: f32[], r: f32[M]) -> c: f32[M], d: f32[M], t: f32[]:
  c[m] = w[m] * s + r[m]
  d[m] = c[m] + 1.0
  t = sum m: w[m]

schedule cast on gpu:
  kernel c, d:
    m -> grid(2) / lane
  kernel t:
    m -> grid(2) / lane
    combine t over m by partials

schedule next on cpu, gpu:
  kernel g:
    m -> seq
    turn -> seq(2)

schedule scale on cpu, gpu:
  kernel s:
    i -> seq

schedule times on cpu, gpu:
  kernel y, r:
    m -> seq
"""
LAYERS, N, M = 3, 4, 5


@pytest.fixture(scope="module")
def module() -> Module:
    return load_text(TEXT)


def tensor(name: str, *shape: int) -> Tensor:
    return Tensor(name, DType.F32, shape, "activation")


class Written:
    """Launches as a model would have them; each layer's state is the part 2 * l of one tensor. The first of all
    writes what is between such parts."""

    def __init__(self, module: Module, machine: CpuMachine | GpuMachine) -> None:
        self.kernels: dict[str, Kernel] = {}
        for name in ("scale", "times", "next"):
            (self.kernels[name],) = lower(module.ops[name], module, {"N": N, "M": M}, machine).kernels
        self.h, self.g = tensor("h", 2 * LAYERS, N), tensor("g", 2 * LAYERS, N)
        self.weights: list[Tensor] = []
        self.x = [tensor(f"x{i}", M) for i in range(LAYERS + 1)]
        self.launches: list[PlannedLaunch] = []
        (self.kernels["begin"],) = lower(module.ops["begin"], module, {"N": 2 * LAYERS * N}, machine).kernels
        self.add("begin", h=self.h.whole(), g=self.g.whole())
        for i in range(LAYERS):
            s, r = tensor(f"s{i}"), tensor(f"r{i}", M)
            self.add("scale", h=self.part(self.h, i), s=s.whole())
            self.add("times", x=self.x[i].whole(), s=s.whole(), y=self.x[i + 1].whole(), r=r.whole())
            self.add("next", r=r.whole(), h=self.part(self.h, i), g=self.part(self.g, i))

    def part(self, t: Tensor, layer: int) -> View:
        return View(t, 2 * layer * N, (N,))

    def add(self, name: str, **views: View) -> None:
        kernel = self.kernels[name]
        self.launches.append(PlannedLaunch(name, kernel, tuple(views[o.name] for o in kernel.operands), name))

    def batched(self, alone: Sequence[bool] | None = None, room: int = 0) -> tuple[PlannedLaunch, ...]:
        def add(kernel: Kernel) -> str:
            self.kernels[kernel.name] = kernel
            return kernel.name

        flags = alone or [True] * len(self.launches)
        launches, kept = in_batches(
            self.launches, flags, {self.h, self.g, self.x[0], self.x[-1], *self.weights}, room, add
        )
        assert len(kept) == len(launches)
        return launches


def run(launches: Sequence[PlannedLaunch], given: dict[Tensor, np.ndarray]) -> dict[Tensor, np.ndarray]:
    """The memory of all tensors after the launches; what nobody wrote is NaN."""
    memory = {t: v.copy().reshape(-1) for t, v in given.items()}
    for x in launches:
        arrays = {}
        for o, v in zip(x.kernel.operands, x.views, strict=True):
            whole = memory.setdefault(v.tensor, np.full(v.tensor.elements, np.nan, np.float32))
            arrays[o.name] = whole[v.offset : v.offset + v.elements].reshape(o.shape)
        Interpreter(x.kernel, arrays, 2).run()
    return memory


@pytest.mark.parametrize("machine", [detect(), H100], ids=["cpu", "gpu"])
def test_what_is_computed_stays_the_same(module: Module, machine: CpuMachine | GpuMachine) -> None:
    written = Written(module, machine)
    rng = np.random.default_rng(0)
    given = {written.h: rng.random((2 * LAYERS, N)).astype(np.float32), written.x[0]: rng.random(M).astype(np.float32)}
    given[written.g] = np.full((2 * LAYERS, N), np.nan, np.float32)
    launches = written.batched()
    assert [x.key for x in launches] == ["begin", "scale.x3", *LAYERS * ["times"], "next.x3"]
    expected, found = run(written.launches, given), run(launches, given)
    for t in (written.x[-1], written.g):
        np.testing.assert_array_equal(found[t], expected[t])


def test_parts_stay_apart_where_nothing_writes_what_is_between_them(module: Module) -> None:
    """It would count as written, and be no longer zero where it is a gradient."""
    written = Written(module, detect())
    del written.launches[0]
    assert [x.key for x in written.batched()].count("next") == LAYERS


@pytest.mark.parametrize(("machine", "joined"), [(detect(), True), (H100, False)], ids=["cpu", "gpu"])
def test_parts_are_joined_where_vectors_may_begin(
    module: Module, machine: CpuMachine | GpuMachine, joined: bool
) -> None:
    """A GPU takes no 16 bytes at a time from others: three scales, each the second of five numbers."""
    written, s = Written(module, machine), tensor("s", LAYERS, 5)
    written.launches = []
    for i in range(LAYERS):
        written.add("times", x=written.x[0].whole(), s=View(s, 5 * i + 1, ()), y=tensor(f"y{i}", M).whole(),
                    r=tensor(f"r{i}", M).whole())  # fmt: skip
    assert [x.key for x in written.batched()] == (["times.x3"] if joined else LAYERS * ["times"])


def test_large_tensors_do_not_live_longer(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales move up and are four bytes each; histories move down, and rows' values wait for them."""
    for most, joined in ((4 * M, {"scale", "next"}), (4 * M - 1, {"scale"}), (3, set())):
        monkeypatch.setattr(batches, "LONGER", most)
        keys = [x.key for x in Written(module, detect()).batched()]
        assert {k.removesuffix(".x3") for k in keys if k.endswith(".x3")} == joined


def test_a_kernel_whose_loops_end_where_memory_says_is_for_one_place(module: Module) -> None:
    """(Bounds are read without subscripts: those of all turns would be the first one's.)"""
    text = "op some(x: f32[N], most: i32[]) -> y: f32[]:\n  y = sum n where n < most: x[n]\n"
    text += "schedule some on cpu, gpu:\n  n -> seq(4)\n"
    some = load_text(text)
    for machine in (detect(), H100):
        (kernel,) = lower(some.ops["some"], some, {"N": 64}, machine).kernels
        assert "most" in print_kernel(kernel).partition("seq")[2].partition("\n")[0] and not batchable(kernel)


def test_turns_have_rows_of_their_own(module: Module) -> None:
    written = Written(module, detect())
    written.batched()
    text = print_kernel(written.kernels["scale.x3"])
    assert "in h: f32[5, 4]" in text and "out s: f32[3, 16]" in text and "team a: f32[3]" in text
    assert "core turn.00 in 0 .. 3 step 1" in text and "s[turn.00, 0] = 8.0 / a[turn.00]" in text
    assert "a[turn.00] = max i: h[turn.00 * 2, i]" in text


def test_what_is_between_the_parts_that_are_written_is_kept(module: Module) -> None:
    """So such an operand is read, too: who sees the kernel alone may not take it for written whole."""
    written = Written(module, detect())
    written.batched()
    kernel = written.kernels["next.x3"]
    assert "g" in kernel.reads & kernel.writes and "\n  inout g: f32[5, 4]" in print_kernel(kernel)
    kernel = written.kernels["scale.x3"]  # rows side by side
    assert "s" in kernel.writes - kernel.reads and "\n  out s: f32[3, 16]" in print_kernel(kernel)


def test_launches_stay_apart_where_one_in_between_needs_them_to(module: Module) -> None:
    written = Written(module, detect())
    written.add("next", r=written.launches[2].views[-1], h=written.part(written.g, 0), g=written.part(written.h, 1))
    for i in (0, 2):
        written.add("scale", h=written.part(written.h, i), s=tensor(f"t{i}").whole())
    changed = written.launches.pop(-3)
    written.launches.insert(4, changed)  # of the first layer's next state, and of a state that changes on the way
    keys = [x.key for x in written.batched()]
    assert keys.count("scale.x3") == 0 and keys.count("next.x3") == 0


def test_a_forward_pass_alone_makes_its_own(module: Module) -> None:
    written = Written(module, detect())
    keys = [x.key for x in written.batched([*7 * [True], *3 * [False]])]
    assert keys == ["begin", "scale.x2", "times", "times", "next.x2", "scale", "times", "next"]


def with_casts(module: Module) -> Written:
    """And a cast of each layer's weight, a part of one tensor, by kernels of three blocks."""
    written, w = Written(module, H100), tensor("w", LAYERS, M)
    written.weights = [w]
    for k in lower(module.ops["cast"], module, {"M": M}, H100).kernels:
        written.kernels[k.name] = k
    for i in range(LAYERS):
        views = {"w": View(w, i * M, (M,)), "s": written.launches[3 * i + 1].views[-1]}
        views["r"] = written.launches[3 * i + 2].views[-1]  # that has become a row of 16 when casts are joined
        views |= {n: tensor(f"{n}{i}", M).whole() for n in "cd"} | {"t": tensor(f"t{i}").whole()}
        for name in [n for n in written.kernels if n.startswith("cast")]:
            written.add(name, **views)
    return written


def test_kernels_of_several_blocks_are_joined_until_they_fill_the_machine(module: Module) -> None:
    written = with_casts(module)
    rng = np.random.default_rng(1)
    given = {written.h: rng.random((2 * LAYERS, N)).astype(np.float32), written.x[0]: rng.random(M).astype(np.float32)}
    given |= {t: rng.random((LAYERS, M)).astype(np.float32) for t in written.weights}
    for room, joined in ((LAYERS * 3 * 32, LAYERS), (LAYERS * 3 * 32 - 1, LAYERS - 1), (0, 1)):
        launches = written.batched(room=room)
        casts = [x.key for x in launches if x.key.startswith("cast.c")]
        whole = f"cast.c+d.x{joined}" if joined > 1 else "cast.c+d"
        assert casts == [whole, *(LAYERS - joined) * ["cast.c+d"]]
        expected, found = run(written.launches, given), run(launches, given)
        for name in "cdt":
            made, wanted = (
                np.concatenate([values for t, values in memory.items() if t.name.startswith(name)])
                for memory in (found, expected)
            )
            np.testing.assert_array_equal(made[~np.isnan(made)], wanted)


@pytest.mark.parametrize("machine", [detect(), H100], ids=["cpu", "gpu"])
@pytest.mark.parametrize(("name", "scales", "histories"), [("gpt2", 2, 4), ("llama", 2, 3)])
def test_scales_and_histories_of_all_layers_are_a_launch_for_each_kind(
    name: str, scales: int, histories: int, machine: CpuMachine | GpuMachine
) -> None:
    request = StepRequest(name, "tiny", {"B": 2, "T": 128}, precision="fp8")
    step = build_step(load(library() / f"{name}.tc"), request, machine, 2)
    keys = [x.kernel for x in step.programs["micro_first"]]
    more = int(name == "gpt2" and machine is not H100)  # layer normalisation has the scales of two kinds on an H100
    assert sum("uW" in k for k in keys) == scales + more
    assert sum(".dh" in k for k in keys) == histories - more
    if machine is H100:  # the weights', of four kinds; the last layer's history has a kernel of its own in gpt2
        assert sum("Wr+Wt" in k for k in keys) == 4 + (name == "gpt2")


def test_sums_for_biases_of_all_layers_are_a_launch_for_each_kind() -> None:
    """They move down to the last of them. Two of the four kinds have one kernel, and take turns in a layer."""
    request = StepRequest("gpt2", "tiny", {"B": 2, "T": 128}, precision="fp8_block")
    step = build_step(load(library() / "gpt2.tc"), request, H100, 2)
    keys = [x.kernel for x in step.programs["micro_first"]]
    assert sum("block.backward.db" in k for k in keys) == 4


@pytest.mark.slow
@pytest.mark.parametrize("on", ["cpu", "gpu"])
def test_a_step_has_the_same_bits(on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a micro-batch in 8 bits, on the virtual GPU with all its checks, and of two on the CPU."""
    module, dims = load(library() / "gpt2.tc"), {"L": 2, "H": 1, "C": 32, "V": 60}
    request = StepRequest("gpt2", "tiny", {"B": 1, "T": 16}, dims, precision="fp8", accumulation=1 + (on == "cpu"))
    runs: list[dict[str, bytes]] = []
    for joined in (True, False):
        if not joined:
            monkeypatch.setattr(draft, "in_batches", lambda launches, alone, *_: (tuple(launches), tuple(alone)))
        device = CpuDevice(detect(), 2, tmp_path) if on == "cpu" else virtual_device("h100", tmp_path, True)
        step = build_step(module, request, device.machine, 2)
        assert any(".x" in name for name in step.kernels) == joined
        executor = device.open(step)
        try:
            initialise(executor, 1, 1)
            set_scalars(executor, {})
            for micro in ("micro_first", "micro_next")[: request.accumulation]:
                with executor.batch() as inputs:
                    inputs["tokens"][...] = np.arange(16) * 7 % 60
                    inputs["targets"][...] = np.arange(16) * 5 % 60
                executor.run(micro)
            runs.append({n: executor.read(n).tobytes() for n in ("loss", "news.amax", "grad.qkv_w", "grad.down_w")})
        finally:
            executor.close()
        if on == "gpu":
            device.finish()
    assert runs[0] == runs[1]
