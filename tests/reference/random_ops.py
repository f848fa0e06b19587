"""Random ops and schedules: what users may write, in f32, made from a seed.

Equations read one another; sums, extrema and softmax-like monoids with guards; gathers, scatters, affine and modular
subscripts; integer temporaries; results written in part, added to, or turned round. A schedule may be illegal: the
compiler refuses those.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

RANGES = {"i": "I", "i2": "I", "j": "J", "j2": "J", "k": "K", "h": "H"}
INPUTS = {
    "A": ("I", "J"), "B": ("J", "K"), "v": ("I",), "w": ("2 * I + 1",), "x": ("I + K - 1",), "c": (),
    "Q": ("J", "3", "I"), "u": ("I * J",), "Z": ("K", "J", "I"),
}  # fmt: skip
FUNCTIONS = """
monoid expsum by m:
  m = max(a.m, b.m)
  x = a.x * exp(a.m - m) + b.x * exp(b.m - m)

fn bump(x) = x * x / (1.0 + x * x) - x

"""
POINTWISE = [
    "({0} + {1})", "({0} - {1})", "({0} * {1})", "({0} / (1.5 + ({1}) ** 2))", "bump({0})", "tanh({0})", "sin({0})",
    "exp(tanh({0}))", "log(1.5 + ({0}) ** 2)", "rsqrt(1.0 + ({0}) ** 2)", "max({0}, {1})", "min({0}, {1})",
    "abs({0} + 0.3)", "(1.1 + min(({0}) ** 2, 3.0)) ** tanh({1})", "min(max({0}, -2.0), 2.0) ** 3",
]  # fmt: skip
INTEGER = [
    "({0} + {1})", "({0} - {1})", "({0} * {1})", "({0} // 3)", "({0} % 4)", "({0} - 5) // 2", "(-{0}) % 3",
    "min({0}, {1})", "max({0}, {1})", "abs({0} - {1})", "select({0} < {1}, {0}, {1})",
]  # fmt: skip
GUARDS = [
    "{a} <= {b}", "{b} <= {a}", "{b} % 2 == 0", "{b} < n", "{a} == {b}", "{b} >= {a} - 1 and {b} <= {a} + 1",
    "{b} + 2 <= {a}", "{c}",
]  # fmt: skip


class RandomOp:
    """The op `f` of one seed: `text`, with `output` as the type of its results."""

    def __init__(self, seed: int, output: str = "f32") -> None:
        self.random = random.Random(seed)
        self.output = output
        self.tensors: dict[str, tuple[str, ...]] = dict(INPUTS)
        self.outputs: dict[str, tuple[str, ...]] = {}
        self.integers: dict[str, list[str]] = {}
        self.lines: list[str] = []
        for number in range(self.random.randrange(1, 6)):
            self.equation(f"t{number}")
        if not self.outputs:
            self.lines.append(
                "last[i] = v[i]" if len(self.tensors) == len(INPUTS) else f"last[i] = {self.access(['i'])}"
            )
            self.outputs["last"] = ("I",)

    @property
    def text(self) -> str:
        used = set(re.findall(r"\w+", " ".join(self.lines)))
        operands = [f"{n}: f32[{', '.join(s)}]" for n, s in INPUTS.items()] + [
            "ids: i32[I]",
            "jds: i32[J, K]",
            "n: i32[]",
        ]
        results = [f"{n}: {self.output}[{', '.join(s)}]" for n, s in self.outputs.items()]
        lines = ["require H <= I", *(f"index {i}: {e}" for i, e in RANGES.items() if i in used), *self.lines]
        head = f"op f({', '.join(operands)}; H) -> {', '.join(results)}:\n"
        return FUNCTIONS + head + "".join(f"  {line}\n" for line in lines)

    def subscript(self, extent: str, indices: Sequence[str]) -> tuple[str, str]:
        """(a subscript of an axis, the condition under which it lies inside or "")."""
        own = [i for i in indices if RANGES[i] == extent or (i == "h" and extent == "I")]
        found = [(i, "") for i in own for _ in range(8)] + [("0", "")]
        for i in own:
            found += [(f"{i} - 1", f"{i} >= 1"), (f"{i} + 1", f"{i} + 1 < {extent}"), (f"{extent} - 1 - {i}", "")]
            found += [(s.format(i, extent), "") for s in ("({0} * 5 + 3) % {1}", "{0} // 2", "min(2 * {0}, {1} - 1)")]
        by = {e: [i for i in indices if RANGES[i] == e] for e in "IJK"}
        if extent == "2 * I + 1":
            found += [(s.format(i), "") for i in by["I"] for s in ("2 * {} + 1", "2 * {} + 1", "{}", "2 * I - {}")]
        if extent == "I + K - 1":
            found += [(f"{i} + {k}", "") for i in by["I"] for k in by["K"] for _ in range(4)]
        if extent == "I * J":
            found += [
                (s.format(i, j), "") for i in by["I"] for j in by["J"] for s in ("{0} * J + {1}", "{1} * I + {0}")
            ]
        if extent == "3":
            found += [("1", ""), ("2", ""), *((f"{i} % 3", "") for i in indices)]
        if extent == "J":
            found += [("n", ""), *((f"ids[{i}]", "") for i in by["I"])]
        if extent == "I":
            found += [(f"jds[{j}, {k}]", "") for j in by["J"] for k in by["K"]]
        return self.random.choice(found)

    def access(self, indices: Sequence[str]) -> str:
        name = self.random.choice(sorted(self.tensors))
        parts = [self.subscript(extent, indices) for extent in self.tensors[name]]
        text = f"{name}[{', '.join(s for s, _ in parts)}]" if parts else name
        needed = [c for _, c in parts if c]
        return f"select({' and '.join(needed)}, {text}, 0.5)" if needed else text

    def integer(self, indices: Sequence[str], depth: int) -> str:
        if depth == 0:
            known = [f"{t}[{', '.join(s)}]" for t, s in self.integers.items() if set(s) <= set(indices)]
            known += [f"ids[{i}]" for i in indices if RANGES[i] == "I"]
            return self.random.choice(["2", "n", "I", "K - 2", *indices, *indices, *known])
        return self.random.choice(INTEGER).format(*(self.integer(indices, depth - 1) for _ in range(2)))

    def condition(self, indices: Sequence[str], depth: int = 1) -> str:
        kind = self.random.randrange(6) if depth else 3
        if kind < 2:
            return f"({self.condition(indices, 0)} {('and', 'or')[kind]} {self.condition(indices, 0)})"
        if kind == 2:
            return f"not ({self.condition(indices, 0)})"
        sides = [self.integer(indices, self.random.randrange(2)) for _ in range(2)]
        return f"{sides[0]} {self.random.choice(['<', '<=', '>', '>=', '==', '!='])} {sides[1]}"

    def expression(self, indices: Sequence[str], depth: int) -> str:
        if depth == 0:
            others = ["2", "0.5", "J ** -0.5", f"(0.25 * {self.integer(indices, 1)})", *indices[:1]]
            return self.access(indices) if self.random.random() < 0.7 else self.random.choice(others)
        values = [self.expression(indices, depth - 1) for _ in range(2)]
        if self.random.random() < 0.12:
            return f"select({self.condition(indices)}, {values[0]}, {values[1]})"
        return self.random.choice(POINTWISE).format(*values)

    def equation(self, name: str) -> None:
        r = self.random
        left = r.sample(["i", "j", "k"], r.randrange(4)) + r.choice([[], [], [], ["h"]])
        kind = r.choice(["point", "point", *["sum"] * 5, "max", "min", "expsum", "scatter", "integer", "part", "again"])
        if kind == "integer":
            self.integers[name] = left or ["i"]
            self.lines.append(f"{name}[{', '.join(left or ['i'])}]: i32 = {self.integer(left or ['i'], 2)}")
        elif kind == "scatter":
            self.outputs[name] = ("J", "K")
            self.lines.append(f"{name}[ids[i], k] += {self.expression(['i', 'k'], 2)}")
        elif kind == "part":
            self.part(name)
        elif kind == "again" and self.outputs.keys() & self.tensors.keys():
            self.add_to(r.choice(sorted(self.outputs.keys() & self.tensors.keys())))
        else:
            self.define(name, left, "sum" if kind == "again" else kind)

    def part(self, name: str) -> None:
        """An output of which subscripts on the left name some elements, or all in another order."""
        shape, indices, at = self.random.choice(
            [
                (("2 * I + 1",), "i", "2 * i + 1"), (("I * J",), "ij", "j * I + i"), (("I", "K"), "ik", "I - 1 - i, k"),
                (("K", "3"), "k", "k, 1"), (("J", "2", "I"), "ij", "j, 1, i"),
            ]
        )  # fmt: skip
        self.outputs[name] = shape
        self.lines.append(f"{name}[{at}] {self.random.choice(['=', '+='])} {self.expression(list(indices), 2)}")

    def add_to(self, name: str) -> None:
        left = [e.lower() for e in self.outputs[name]]
        shape = self.tensors.pop(name)  # which is read where it is written only
        reduced = self.random.choice([i for i in RANGES if i not in left])
        at = f"[{', '.join(left)}]" if left else ""
        self.lines.append(f"{name}{at} += sum {reduced}: {self.expression([*left, reduced], 2)}")
        self.tensors[name] = shape

    def define(self, name: str, left: list[str], kind: str) -> None:
        r = self.random
        at = f"[{', '.join(left)}]" if left else ""
        output = r.random() < 0.5
        target = name + at + ("" if output else ": f32")
        others = [i for i in RANGES if i not in left]
        reduced = r.sample(others, r.choice([1, 1, 2]) if kind != "expsum" else 1)
        indices, over = [*left, *reduced], ", ".join(reduced)
        if r.random() < 0.5:
            some = {"a": r.choice(indices), "b": r.choice(reduced), "c": self.condition(indices)}
            over += " where " + r.choice(GUARDS).format(**some)
        if kind == "point":
            self.lines.append(f"{target} = {self.expression(left, 3)}")
        elif kind == "expsum":
            fields = ", ".join(f"{name}{s}{at}: f32" for s in "mlo")
            key, value = self.expression(indices, 1), self.expression(indices, 1)
            self.lines.append(f"{fields} = expsum {over} by {key}: 1, {value}")
            self.lines.append(f"{target} = {name}o{at} / (1.0 + {name}l{at})")
        elif kind == "sum":
            self.lines.append(f"{target} = sum {over}: {self.expression(indices, 2)}")
        else:
            self.lines.append(f"{name}e{at}: f32 = {kind} {over}: {self.expression(indices, 2)}")
            self.lines.append(f"{target} = min(max({name}e{at}, -5.0), 5.0)")
        self.tensors[name] = tuple(RANGES[i] for i in left)
        if output:
            self.outputs[name] = self.tensors[name]


def random_schedule(r: random.Random, op: str, extents: dict[str, int], parallel: set[str], gpu: bool) -> str:
    """A schedule of an op that may be illegal; only `parallel` loops are divided among cores or blocks."""
    lines, tiled = [], []
    for i, size in extents.items():
        levels = []
        if i in parallel and r.random() < 0.4:
            size = r.randint(1, size)
            levels.append(f"{'grid' if gpu else 'core'}({size})")
        for kind in r.choice([(), (), ("seq",), ("pipe",)] if gpu else [(), (), ("seq",), ("seq", "seq")]):
            size = r.randint(1, size)
            levels.append(f"{kind}({size})")
            tiled.append(i)
        if gpu and r.random() < 0.4:
            levels.append(f"{r.choice(['warp.x', 'warp.y'])}({r.randint(1, size)}, {r.randint(1, 4)})")
        if gpu and r.random() < 0.4:
            levels.append("lane")
        if r.random() < 0.4:
            levels.append(f"unroll({r.choice([1, 2, 4])})")
        if not gpu and r.random() < 0.5:
            levels.append("vec")
        if levels:
            lines.append(f"  {i} -> {' / '.join(levels)}\n")
    r.shuffle(tiled)
    if len(tiled) > 1:
        lines.append(f"  order {', '.join(tiled)}\n")
    lines = lines or [f"  {i} -> seq\n" for i in extents]
    return f"schedule {op} on {'gpu' if gpu else 'cpu'}:\n{''.join(lines)}" if lines else ""
