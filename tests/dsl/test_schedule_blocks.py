"""A schedule's `for` and `on` blocks hold for the ops and targets that they name, and for no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings, strategies as st

from tcomp.codegen.cpu.compile import kernel_ir as cpu_code
from tcomp.codegen.nvptx.compile import kernel_ir as gpu_code
from tcomp.dsl.ast import Schedule
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.dsl.parse import parse
from tcomp.dsl.printer import print_directive, print_item
from tcomp.dsl.schedule_blocks import own_lines
from tcomp.grad import derive
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.machine.gpu import A100, H100, GpuMachine
from tcomp.schedule.choose import choice_of
from tcomp.schedule.lower import lower

OPS = ("f", "g", "h.backward")
TARGETS = ("gpu", "sm_80", "sm_90a")


@dataclass
class Piece:
    """A line of a schedule's text: the whole, a block, a kernel or a directive, and what stands below it."""

    text: str
    names: dict[str, list[str]] = field(default_factory=dict)
    below: list[Piece] = field(default_factory=list)

    @property
    def is_kernel(self) -> bool:
        return self.text.startswith("kernel")

    @property
    def kernels(self) -> bool:
        return self.is_kernel or any(p.kernels for p in self.below)

    def lines(self, depth: int = 0) -> Iterator[str]:
        yield "  " * depth + self.text
        for p in self.below:
            yield from p.lines(depth + 1)

    def paths(self, above: tuple[Piece, ...] = ()) -> Iterator[tuple[Piece, ...]]:
        yield (*above, self)
        for p in self.below:
            yield from p.paths((*above, self))


@st.composite
def texts(draw: st.DrawFn) -> Piece:
    """A schedule, every directive of which is told from the others by its number."""
    number = iter(range(1000))

    def body(known: dict[str, list[str]], kernels: bool, depth: int) -> list[Piece]:
        out = [directive(known, depth) for _ in range(draw(st.integers(1, 2)))]
        if kernels:
            for _ in range(draw(st.integers(min(depth, 1), 2))):
                if depth < 2 and draw(st.booleans()):
                    out.append(block(known, True, depth))
                else:
                    out.append(Piece(f"kernel Y{next(number)}:", {}, body(known, False, depth + 1)))
        return out

    def directive(known: dict[str, list[str]], depth: int) -> Piece:
        if depth < 3 and draw(st.booleans()):
            return block(known, False, depth)
        return Piece(f"raster {next(number)}")

    def block(known: dict[str, list[str]], kernels: bool, depth: int) -> Piece:
        word = draw(st.sampled_from(["for", "on"]))
        names = draw(st.lists(st.sampled_from(known[word]), min_size=1, unique=True))
        return Piece(f"{word} {', '.join(names)}:", {word: names}, body({**known, word: names}, kernels, depth + 1))

    first = Piece(f"raster {next(number)}")
    known = {"for": list(OPS), "on": list(TARGETS)}
    return Piece(f"schedule {', '.join(OPS)} on {', '.join(TARGETS)}:", {}, [first, *body(known, True, 0)])


def expected(whole: Piece, op: str, target: str) -> dict[str, list[str]]:
    """The directives of each kernel: those whose blocks all name op and target, and whose innermost block with kernels
    (or the whole) the kernel stands in."""
    at = {"for": op, "on": target}
    paths = [p for p in whole.paths() if all(at[w] in names for x in p for w, names in x.names.items())]
    kernels = [p for p in paths if p[-1].is_kernel] or [(whole,)]
    out = {}
    for k in kernels:
        below = [p for p in paths if p[-1].text.startswith("raster")]
        scopes = [next(x for x in reversed(p) if x.kernels or x is whole) for p in below]
        out[k[-1].text] = [p[-1].text for p, s in zip(below, scopes, strict=True) if any(s is x for x in k)]
    return out


def found(s: Schedule) -> dict[str, list[str]]:
    return {
        f"kernel {k.outputs[0]}:" if k.outputs else "": [print_directive(d) for d in own_lines(s.shared, k.directives)]
        for k in s.kernels
    }


@given(texts())
@settings(max_examples=100, deadline=None)
def test_each_op_on_each_target_has_the_lines_of_the_blocks_that_name_it(whole: Piece) -> None:
    schedules = [s for s in parse("\n".join(whole.lines()) + "\n").items if isinstance(s, Schedule)]
    assert {(s.op, s.target) for s in schedules} == {(op, target) for op in OPS for target in TARGETS}
    for s in schedules:
        assert list(found(s).values()) == list(expected(whole, s.op, s.target).values())


EQUATIONS = """
op f(X: bf16[M, K], W: bf16[N, K]) -> Y: bf16[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

op g(X: bf16[M, K], W: bf16[N, K]) -> Y: bf16[M, N], s: f32[M]:
  acc[m, n] = sum k: X[m, k] * W[n, k]
  Y[m, n] = 2.0 * acc[m, n]
  s[m] = sum k: X[m, k]
"""
BLOCKS = """
schedule f, g on cpu, gpu, sm_80:
  on cpu:
    tune B = 8
    n -> core / seq(B) / vec
  on gpu, sm_80:
    tune B = 64
    for f:
      tune C = 32
    for g:
      tune C = B
  on gpu:
    kernel Y:
      m -> grid(B)
      n -> lane
      k -> seq(32)
  on sm_80:
    kernel Y:
      m -> grid(B) / warp.y(16) / mma
      n -> grid(C) / mma
      k -> pipe(32, 2) / mma
      stage X, W in shared at k by cp.async swizzle
      use mma.sync for Y, acc
  on gpu, sm_80:
    kernel s:
      m -> grid(1)
"""
OUT = {
    "cpu": "  tune B = 8\n  n -> core / seq(B) / vec\n",
    "gpu": "  tune B = 64\n  kernel Y:\n    m -> grid(B)\n    n -> lane\n    k -> seq(32)\n",
    "sm_80": "  tune B = 64\n  tune C = {C}\n  kernel Y:\n    m -> grid(B) / warp.y(16) / mma\n    n -> grid(C) / mma\n"
    "    k -> pipe(32, 2) / mma\n    stage X, W in shared at k by cp.async swizzle\n    use mma.sync for {sum}\n",
}


def written_out(op: str, target: str) -> str:
    text = OUT[target].format(C="32" if op == "f" else "B", sum="Y" if op == "f" else "acc")
    sums = "  kernel s:\n    m -> grid(1)\n" if op == "g" and target != "cpu" else ""
    return f"\nschedule {op} on {target}:\n{text}{sums}"


@pytest.mark.parametrize(("target", "machine"), [("cpu", detect()), ("gpu", H100), ("sm_80", A100)])
def test_blocks_and_the_schedules_that_they_stand_for_give_the_same_code(
    target: str, machine: CpuMachine | GpuMachine
) -> None:
    def code(text: str, op: str) -> list[str]:
        module = load_text(EQUATIONS + text)
        kernels = lower(module.ops[op], module, {"M": 64, "N": 64, "K": 64}, machine).kernels
        return [gpu_code(k, machine)[0] if isinstance(machine, GpuMachine) else cpu_code(k, machine) for k in kernels]

    blocks = BLOCKS if target != "gpu" else BLOCKS.replace("sm_80", "sm_120a")  # an H100 would take it too
    for op in ("f", "g"):
        assert code(blocks, op) == code(written_out(op, target), op)


def test_a_name_in_a_block_is_of_the_ops_that_the_block_is_for() -> None:
    """`s` is a tensor of g, whose schedule the line is not in."""
    text = "\nschedule f, g on gpu:\n  m -> grid(1)\n  for f:\n    cast s to bf16\n"
    with pytest.raises(TcError, match="cast names 's', which is no tensor of f"):
        load_text(EQUATIONS + text)


def test_an_instruction_computes_of_the_tensors_that_a_line_names_those_that_are_sums_of_the_op() -> None:
    text = "\nschedule f, g on sm_80:\n  use mma.sync for Y, acc\n"
    module = load_text(EQUATIONS + text)
    assert "use mma.sync for Y\n" in print_item(module.schedules["f", "sm_80"])
    assert "use mma.sync for acc\n" in print_item(module.schedules["g", "sm_80"])


def test_of_a_shared_schedule_a_derived_op_takes_what_it_has() -> None:
    ops = """
op f(X: f32[M, N], b: f32[N]) -> Y: f32[M, N]:
  Y[m, n] = X[m, n] * X[m, n] + b[n]

op g(X: f32[M, N], b: f32[N]) -> P: f32[M, N], Y: f32[M, N]:
  P[m, n] = X[m, n] * X[m, n] + b[n]
  Y[m, n] = tanh(P[m, n])

schedule f.backward, g.backward on cpu:
  kernel dP:
    m -> core(1)
  kernel dX, db:
    n -> core
    stage dY, dP in cache at n
"""
    module = load_text(ops)
    taken = {}
    for name in ("f", "g"):
        backward = derive(module.ops[name], module, frozenset("Y"))
        schedule = choice_of(backward, module, {"M": 8, "N": 8}, ("cpu",)).schedule
        assert schedule is not None
        taken[name] = print_item(schedule)
    assert "dP" not in taken["f"] and "stage dY in cache" in taken["f"]
    assert "kernel dP:" in taken["g"] and "stage dY, dP in cache" in taken["g"]
