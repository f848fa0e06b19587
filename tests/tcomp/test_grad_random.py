"""The derived backward of random ops agrees with central finite differences in float64.

The ops are made of random index equations: sums, extrema, softmax-like monoid reductions, guards, broadcast,
affine subscripts, gathers, scatters, builtins, several equations that read one another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from hypothesis import HealthCheck, assume, given, note, settings, strategies as st
from hypothesis.strategies import DrawFn

from tcomp.dsl.dims import operand_shape
from tcomp.dsl.format import print_op
from tcomp.dsl.load import load_text
from tcomp.grad.derive import derive
from tcomp.oracle import evaluate

RANGES = {"i": "I", "i2": "I", "j": "J", "j2": "J", "k": "K", "h": "H"}
INPUTS = {"A": ("I", "J"), "B": ("J", "K"), "v": ("I",), "w": ("2 * I + 1",), "x": ("I + K - 1",), "c": ()}
MONOID = """
monoid expsum by m:
  m = max(a.m, b.m)
  x = a.x * exp(a.m - m) + b.x * exp(b.m - m)
"""
HEADER = (
    "op random_op(A: f64[I, J], B: f64[J, K], v: f64[I], w: f64[2 * I + 1], x: f64[I + K - 1], c: f64[], "
    "ids: i32[I]; H) -> "
)


@dataclass
class Program:
    """The equations so far. `tensors`: name -> the extents of its axes (readable). `outputs` likewise."""

    tensors: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(INPUTS))
    outputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)


def subscript(draw: DrawFn, extent: str, indices: list[str]) -> tuple[str, str]:
    """(a subscript within an axis of this extent, the condition it needs or "")."""
    bare = [i for i in indices if RANGES[i] == extent or (i == "h" and extent == "I")]
    choices = [(i, "") for i in bare for _ in range(6)] + [("0", "")]
    choices += [(f"({i} + 1) % {extent}", "") for i in bare]
    choices += [(f"{i} - 1", f"{i} >= 1") for i in bare]
    choices += [(f"{i} // 2", "") for i in bare]
    i_like = [i for i in indices if RANGES[i] == "I"]
    if extent == "2 * I + 1":
        choices += [(f"2 * {i} + 1", "") for i in i_like for _ in range(4)] + [(i, "") for i in i_like]
    if extent == "I + K - 1" and "k" in indices:
        choices += [(f"{i} + k", "") for i in i_like for _ in range(4)]
    if extent == "J":
        choices += [(f"ids[{i}]", "") for i in i_like for _ in range(2)]
    return draw(st.sampled_from(choices))


def access(draw: DrawFn, p: Program, indices: list[str]) -> str:
    name = draw(st.sampled_from(sorted(p.tensors)))
    p.read.add(name)
    parts = [subscript(draw, extent, indices) for extent in p.tensors[name]]
    text = f"{name}[{', '.join(s for s, _ in parts)}]" if parts else name
    needed = [c for _, c in parts if c]
    return f"select({' and '.join(needed)}, {text}, 0.5)" if needed else text


def expression(draw: DrawFn, p: Program, indices: list[str], depth: int) -> str:
    if depth == 0:
        kind = draw(st.integers(0, 9))
        if kind == 0 and indices:
            return draw(st.sampled_from(indices))
        if kind == 1:
            return draw(st.sampled_from(["2", "0.5", "1.0", "I", "-1.5", "J ** -0.5"]))
        return access(draw, p, indices)

    def again() -> str:
        return expression(draw, p, indices, depth - 1)

    kind = draw(st.sampled_from("+-**/^ftlmxasrei"))
    if kind in "+-":
        return f"({again()} {kind} {again()})"
    if kind == "*":
        return f"({again()} * {again()})"
    if kind == "/":
        return f"({again()} / (1.5 + ({again()}) ** 2))"
    if kind == "^":
        return f"(1.1 + ({again()}) ** 2) ** tanh({again()})"
    if kind == "f":
        return f"bump({again()})"
    if kind in "tse":
        return {"t": "tanh({})", "s": "sin({})", "e": "exp(tanh({}))"}[kind].format(again())
    if kind == "l":
        return f"log(1.5 + ({again()}) ** 2)"
    if kind == "r":
        return draw(st.sampled_from(["sqrt(1.0 + ({}) ** 2)", "rsqrt(1.0 + ({}) ** 2)", "cos({})"])).format(again())
    if kind in "mx":
        return f"{'max' if kind == 'm' else 'min'}({again()}, {again()})"
    if kind == "a":
        return f"abs({again()} + 0.3)"
    condition = f"{draw(st.sampled_from(indices))} % 2 == 0" if indices and draw(st.booleans()) else f"{again()} > 0.1"
    return f"select({condition}, {again()}, {again()})"


def equation(draw: DrawFn, p: Program) -> None:
    """Add one equation that defines a new tensor."""
    left = draw(st.lists(st.sampled_from(["i", "j", "k"]), unique=True, max_size=3))
    left += draw(st.sampled_from([[], [], ["h"]]))
    others = [n for n in RANGES if n not in left]
    kind = draw(st.sampled_from(["point", "point", "sum", "sum", "sum", "max", "min", "expsum", "scatter"]))
    name = f"t{len(p.lines)}"
    output = draw(st.booleans()) or kind == "scatter"
    if kind == "scatter":
        left = ["i", "k"] if "k" in left else ["i"]
        p.outputs[name] = ("J", "K") if "k" in left else ("J",)
        p.lines.append(f"{name}[{', '.join(['ids[i]', *left[1:]])}] += {expression(draw, p, left, 2)}")
        p.used |= set(left)
        return
    subscripts = f"[{', '.join(left)}]" if left else ""
    target = f"{name}{subscripts}" if output else f"{name}{subscripts}: f64"
    shape = tuple(RANGES[i] for i in left)
    if kind == "point":
        p.lines.append(f"{target} = {expression(draw, p, left, 3)}")
        p.used |= set(left)
    else:
        reduced = draw(st.lists(st.sampled_from(others), unique=True, min_size=1, max_size=2 if kind == "sum" else 1))
        indices = left + reduced
        guard = ""
        if kind in ("sum", "expsum") and draw(st.booleans()):
            a, b = draw(st.sampled_from(indices)), draw(st.sampled_from(reduced))
            guard = f" where {a} % 2 == 0" if a == b else f" where {a} <= {b}"
        body = expression(draw, p, indices, 2)
        p.used |= set(indices)
        if kind == "expsum":
            key = expression(draw, p, indices, 1)
            value = expression(draw, p, indices, 1)
            names = [f"{name}{s}{subscripts}: f64" for s in ("m", "l", "o")]
            p.lines.append(f"{', '.join(names)} = expsum {', '.join(reduced)}{guard} by {key}: 1, {value}")
            if guard:
                fields = f"{name}o{subscripts} / (1.0 + {name}l{subscripts})"
            else:
                fields = f"{name}o{subscripts} / {name}l{subscripts}"
            if draw(st.booleans()) and not guard:
                fields += f" + {name}m{subscripts} + log({name}l{subscripts})"
            elif draw(st.booleans()) and not guard:
                fields += f" * {name}m{subscripts}"
            p.lines.append(f"{target} = {fields}")
        else:
            p.lines.append(f"{target} = {kind} {', '.join(reduced)}{guard}: {body}")
        if kind == "sum" and draw(st.integers(0, 3)) == 0:
            p.lines.append(f"{name}{subscripts} += {expression(draw, p, left, 2)}")
    p.tensors[name] = shape
    if output:
        p.outputs[name] = shape


@st.composite
def programs(draw: DrawFn) -> str:
    """The text of a module with one random op."""
    p = Program()
    for _ in range(draw(st.integers(1, 4))):
        equation(draw, p)
    last = [n for n in p.tensors if n.startswith("t")]
    if not p.outputs:
        name = last[-1]
        p.outputs[name] = p.tensors[name]
        p.lines = [re.sub(rf"^({name}(\[.*?\])?): f64 =", r"\1 =", line) for line in p.lines]
    outputs = ", ".join(f"{n}: f64[{', '.join(s)}]" for n, s in p.outputs.items())
    lines = [f"index {n}: {RANGES[n]}" for n in RANGES if n in p.used] + p.lines
    lines = ["require H <= I", *lines]
    text = MONOID + "\nfn bump(x) = x * x / (1.0 + x * x) - x\n\n"
    return text + HEADER + outputs + ":\n" + "".join(f"  {line}\n" for line in lines)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), st.integers(0, 2**32 - 1))
def test_the_derivative_of_a_random_op_agrees_with_finite_differences(text: str, seed: int) -> None:
    note(text)
    module = load_text(text)
    op = module.ops["random_op"]
    backward = derive(op, module)
    printed = print_op(backward)
    note(printed)
    again = load_text(text + "\n" + printed).ops["random_op.backward"]
    assert again == backward

    random = np.random.default_rng(seed)
    dims = {n: int(random.integers(1, 5)) for n in "IJK"}
    dims["H"] = int(random.integers(1, dims["I"] + 1))
    x = {p.name: random.uniform(-1, 1, operand_shape(p, dims)) for p in op.params if p.dtype.is_float}
    ids = random.integers(0, dims["J"], dims["I"])
    y = evaluate(op, module, {**x, "ids": ids}, dims)
    assume(all(np.isfinite(v).all() and np.abs(v).max(initial=0) < 1e4 for v in y.values()))
    dy = {f"d{n}": random.standard_normal(v.shape) for n, v in y.items()}
    values = {**x, "ids": ids, **y, **dy}
    gradient = evaluate(backward, module, {p.name: values[p.name] for p in backward.params}, dims)
    direction = {n: random.standard_normal(v.shape) for n, v in x.items()}

    def slope(h: float) -> tuple[float, float]:
        """The derivative along `direction` by differences, and the size of its terms."""
        ahead = evaluate(op, module, {**{n: v + h * direction[n] for n, v in x.items()}, "ids": ids}, dims)
        behind = evaluate(op, module, {**{n: v - h * direction[n] for n, v in x.items()}, "ids": ids}, dims)
        terms = [dy[f"d{n}"] * (ahead[n] - behind[n]) / (2 * h) for n in y]
        return float(sum(t.sum() for t in terms)), float(sum(np.abs(t).sum() for t in terms))

    coarse, size = slope(1e-4)
    fine, _ = slope(1e-5)
    assume(abs(coarse - fine) <= 1e-5 * (1 + size))  # not at a corner
    derived = float(sum((gradient[f"d{n}"] * direction[n]).sum() for n in x))
    assert abs(derived - fine) <= 1e-5 * (1 + size), (derived, fine)
