"""Random products with random epilogues, and random schedules of them on tensor cores, made from a seed.

Operands lie in any order, with other indices and offsets among their subscripts, of any type that an instruction takes.
What is computed from a sum leaves in several results: rounded, activated, turned round, summed along rows or columns.
A schedule may be illegal; the compiler has to refuse those, with a place and a remedy. Tiles are whole instructions, if
they are not asked to be `cut`: then of any size, also one that no other is a multiple of.
"""

from __future__ import annotations

import random

TARGETS = ["sm_80", "sm_89", "sm_100a", "sm_120a", *["sm_90a"] * 6]
ACTIVATIONS = ["tanh({0})", "max({0}, 0.0)", "min(max({0}, -2.0), 2.0)", "{0} / (1.0 + exp(-{0}))", "sin({0})"]
GUARDS = ["k <= m", "m <= k", "k < c + 3", "k <= m + 5 and k > m - 9", "k < c"]


class RandomProduct:
    """The op `f` of one seed, `text` with its schedule, `target`, `dims` and multiprocessors of the GPU."""

    def __init__(self, seed: int, cut: bool = False, tensor_memory: bool = False) -> None:
        self.random = r = random.Random(seed)
        self.cuts = random.Random(seed) if cut else None
        self.target = r.choice(TARGETS)
        self.multiprocessors = r.choice([1, 2, 3, 132])
        self.group = self.target == "sm_90a" and r.random() < 0.75
        self.tma = self.target == "sm_90a" and (self.group or r.random() < 0.4)
        self.tensor_memory = tensor_memory
        """are sums those of tcgen05?"""
        if tensor_memory:
            self.target, self.group, self.tma = "sm_100a", True, True
        self.left, self.right = self._types()
        self.real = r.choice(["bf16", "f16", "f32"])
        self.rounded = {"f32": "tf32", "e4m3": "sum", "e5m2": "sum"}.get(self.left, "f32")
        """the type that what is summed or read again is rounded to on its way"""
        self.batch = r.random() < 0.3
        self.results: dict[str, str] = {}
        self.lines: list[str] = []
        unit = 16 if self.tma and r.random() < 0.9 else 1
        self.dims = {d: self._extent(unit, most) for d, most in (("M", 150), ("N", 150), ("K", 140))}
        if self.batch:
            self.dims |= {"G": r.randint(1, 3), "H": r.randint(1, 2)}
        self.text = self._op() + "\n" + self._schedule()

    def _extent(self, unit: int, most: int) -> int:
        r = self.random
        n = r.choice([1, 2, 3, 7, 8, 13, 16, 31, 61, 64, 67, 127, 128]) if r.random() < 0.35 else r.randint(1, most)
        return max(unit, n // unit * unit)

    def _types(self) -> tuple[str, str]:
        r, eight = self.random, self.target in ("sm_89", "sm_90a", "sm_100a", "sm_120a")
        kind = r.choice(["bf16", "bf16", "f16", "f32", *["8"] * (2 * eight)])
        return (r.choice(["e4m3", "e5m2"]), r.choice(["e4m3", "e5m2"])) if kind == "8" else (kind, kind)

    # ------------------------------------------------------------------------------------------------------- the op

    def _operand(self, name: str, dtype: str, own: str, extent: str) -> tuple[str, str]:
        """(declaration, access) of a factor with the indices `own` and k."""
        r = self.random
        last = dtype in ("e4m3", "e5m2") or (dtype == "f32" and self.group) or r.random() < 0.6
        axes = [(own, extent), ("k", "K")] if last or r.random() < 0.03 else [("k", "K"), (own, extent)]
        if self.batch and r.random() < 0.8:
            at = r.choice([*["g"] * 7, "g // H"]), "G"
            axes.insert(r.choice([0, 0, 1]), at)
        shifted = r.random()
        if shifted < 0.02:
            axes[-2] = f"{axes[-2][0]} + 2", f"{axes[-2][1]} + 2"
        elif shifted < 0.2:
            axes.insert(r.choice([0, 1]), (str(r.randint(0, 1)), "2"))
        elif shifted < 0.21 and not self.tma:
            axes[-1] = f"{axes[-1][0]} + 1", f"{axes[-1][1]} + 1"
        elif shifted < 0.22:
            axes[-2] = f"{axes[-2][1]} - 1 - {axes[-2][0]}", axes[-2][1]
        subscripts, shape = (", ".join(x[i] for x in axes) for i in range(2))
        return f"{name}: {dtype}[{shape}]", f"{name}[{subscripts}]"

    def _op(self) -> str:
        r = self.random
        g = "g, " if self.batch else ""
        outer = "G, " if self.batch else ""
        left, x = self._operand("X", self.left, "m", "M")
        right, w = self._operand("W", self.right, "n", "N")
        operands = [left, right, f"b: {self.real}[N]", f"R: {self.real}[{outer}M, N]", "s: f32[]", "c: i32[]"]
        self.factors = ["X", "W"]
        self.made = ""
        if r.random() < 0.2 and self.left in ("bf16", "f16"):
            self.made = r.choice(["tile", "memory"])
            value = r.choice(ACTIVATIONS[:3]).format(x)
            if r.random() < 0.5:
                value = f"select({r.choice(GUARDS)}, {value}, 0.0)"
            self.lines.append(f"A[{g}m, k]: {self.left} = {value}")
            self.rounded = self.left
            x, self.factors = f"A[{g}m, k]", ["A", "W"]
        pair = f"{x} * {w}" if r.random() < 0.7 else f"{w} * {x}"
        guard = f" where {r.choice(GUARDS)}" if r.random() < 0.01 else ""
        self.direct = r.random() < 0.25
        self.adds = r.random() < 0.15
        if self.direct:
            self.sum, dtype = "Y", r.choice(["f32", "f32", self.real])
            if self.adds:
                operands.append(f"inout Y: f32[{outer}M, N]")
            else:
                self.results["Y"] = f"{dtype}[{outer}M, N]"
            self.lines.append(f"Y[{g}m, n] {'+=' if self.adds else '='} sum k{guard}: {pair}")
        else:
            self.sum = "acc"
            self.lines.append(f"acc[{g}m, n] = sum k{guard}: {pair}")
            self._epilogue(g, outer)
        indices = [f"index {i}: {d}" for i, d in (("m", "M"), ("n", "N"), ("k", "K"), ("g", "G"))
                   if i != "g" or self.batch]  # fmt: skip
        dims = "; H" if self.batch else ""
        results = ", ".join(f"{n}: {t}" for n, t in self.results.items())
        head = f"op f({', '.join(operands)}{dims}){' -> ' + results if results else ''}:\n"
        return head + "".join(f"  {line}\n" for line in [*indices, *self.lines])

    def _epilogue(self, g: str, outer: str) -> None:
        r, value, at = self.random, f"acc[{g}m, n]", f"{g}m, n"
        for term in (" * s", " + b[n]", f" + R[{at}]", f" * R[{at}]"):
            if r.random() < 0.35:
                value = f"({value}){term}"
        self.lines.append(f"Y[{at}] = {value}")
        shape, read = f"{outer}M, N", f"{r.choice(['Y', 'acc'])}[{at}]"
        self.results["Y"] = f"{r.choice([self.real, self.real, 'f32'])}[{shape}]"
        further = [
            ("P", f"{self.real}[{shape}]", f"P[{at}] = {read} * 2.0 - {read}"),
            ("Z", f"{self.real}[{shape}]", f"Z[{at}] = {r.choice(ACTIVATIONS).format(read)}"),
            ("T", f"{self.real}[{outer}N, M]", f"T[{g}n, m] = {read}"),
            ("E", f"{r.choice(['e4m3', 'e5m2'])}[{shape}]", f"E[{at}] = {read} * 0.25"),
            ("U", f"f32[{shape}]", f"U[{at}] = select(n >= m, {read}, -1.0)"),
            ("r", f"f32[{outer}M]", f"r[{g}m] = {r.choice(['sum', 'max', 'max'])} n: abs({read})"),
            ("q", f"f32[{outer}N]", f"q[{g}n] = {r.choice(['sum', 'max'])} m: {read}"),
        ]
        for name, kind, line in r.sample(further, r.randint(0, 3)):
            self.results[name] = kind
            self.lines.append(line)

    # ------------------------------------------------------------------------------------------------- the schedule

    def _schedule(self) -> str:
        self.body: list[str] = []
        self._loops()
        self._staging()
        self._sums()
        self._leaving()
        self._flags()
        apart = "  kernel A:\n    m -> grid(8) / warp.y(2)\n    k -> lane / vec\n" + "    g -> grid(1)\n" * self.batch
        start, indent = "", "  "
        if self.made == "memory":
            start, indent = apart + f"  kernel {', '.join(self.results) or 'Y'}:\n", "    "
        return f"schedule f on {self.target}:\n{start}" + "".join(f"{indent}{line}\n" for line in self.body)

    def _loops(self) -> None:
        r = self.random
        unit = {"f32": 8, "bf16": 16, "f16": 16}.get(self.left, 32)
        step, stages = unit * r.choice([1, 2, 4] if self.left != "f32" else [1, 2, 4, 4]), r.choice([1, 2, 2, 3, 4])
        rows, columns = self._tiles(r.choice([1, 1, 1, 2, 2, 4]) if self.tma else 1)
        self.divided = r.random() < (0.5 if self.direct else 0.15)
        step = self._cut(step)
        part = f"grid.z({step * r.randint(1, 3)}) / " if self.divided else ""
        pipe = f"pipe({step}, {stages}) / " if stages > 1 or r.random() < 0.5 else f"seq({step}) / "
        if not part and self.dims["K"] <= 128 and r.random() < 0.08:
            pipe = ""
        self.body += [f"m -> {rows}", f"n -> {columns}", f"k -> {part}{pipe}mma"]
        if self.batch:
            self.body += r.choice([["g -> grid(1)"], ["g -> grid.z(1)"], ["g -> seq(1)", "order g, k"]])

    def _tiles(self, cluster: int) -> tuple[str, str]:
        """The levels of rows and columns. Where a block makes the left operand itself, it has all columns."""
        r = self.random
        whole = self.made == "tile" and r.random() < 0.9

        def blocks(rows: int) -> str:
            return f"grid.y({rows * cluster})" + (f" / cluster({rows})" if cluster > 1 else "")

        if self.group:
            rows = 128 if self.tensor_memory else 64
            groups, columns = r.randint(1, 3), r.choice([8, 16, 24, 32, 48, 64, 64, 96, 128, 128, 160, 192, 256])
            limit = r.choice(["", "", ", 1", ", 2"])
            wide = "mma" if whole else f"grid.x({self._cut(columns)}) / mma"
            return f"{blocks(self._cut(rows * groups, often=0.3))} / warpgroup({rows}{limit}) / mma", wide
        own_m, own_n = self._cut(16 * r.randint(1, 4)), self._cut(16 * r.randint(1, 4))
        warps_m, warps_n = r.randint(1, 3), r.randint(1, 3)
        limit_m, limit_n = (r.choice(["", "", "", ", 2"]) for _ in range(2))
        down = f"warp.y({own_m}{limit_m}) / " if warps_m > 1 or r.random() < 0.7 else ""
        across = f"warp.x({own_n}{limit_n}) / " if warps_n > 1 or r.random() < 0.7 else ""
        wide = "" if whole else f"grid.x({self._cut(own_n * warps_n, often=0.3)}) / "
        return f"{blocks(self._cut(own_m * warps_m, often=0.3))} / {down}mma", f"{wide}{across}mma"

    def _cut(self, tile: int, often: float = 0.6) -> int:
        """A size near that of whole instructions, if tiles may be cut."""
        if self.cuts is None or self.cuts.random() >= often:
            return tile
        return max(1, tile + self.cuts.choice([-13, -9, -8, -8, -7, -4, -1, 1, 4, 8, 8, 12, 16]))

    def _staging(self) -> None:
        r = self.random
        ways = ["cp.async", "cp.async swizzle", "copy", "cp.async pad(8)", "cp.async swizzle(64)"]
        how = "tma" if self.tma else r.choice(ways)
        staged = [f for f in self.factors if f != "A" or self.made == "memory"]
        outside = staged[0] if r.random() < 0.08 else ""
        self.body += [f"stage {f} in shared at {'n' if f == outside else 'k'} by {how}" for f in staged]
        tf32 = ".tf32" if self.left == "f32" else ""
        instruction = "tcgen05" if self.tensor_memory else "wgmma" if self.group else "mma.sync"
        self.body.append(f"use {instruction}{tf32} for {self.sum}")

    def _sums(self) -> None:
        """How sums are joined that are divided among blocks."""
        r = self.random
        by = r.choice(["turns", "partials", "partials"]) if self.tma else "partials"
        self.turns = self.divided and by == "turns"
        if self.divided:
            self.body.append(f"combine {self.sum} over k by {by}")
        for name, over in (("q", "m"), ("r", "n")):
            if name in self.results:
                self.body.append(f"combine {name} over {over} by {r.choice(['partials'] * 9 + ['turns'])}")

    def _leaving(self) -> None:
        """How results leave, and what comes for them."""
        r = self.random
        if self.tma:
            written = [n for n in ("Y", "P", "Z", "T", "E", "U") if n in self.results or (n == "Y" and self.adds)]
            read = [n for n in ("b", "R") if f"{n}[" in " ".join(self.lines)]
            self.body += [f"stage {n} in shared at n by tma" for n in (*written, *read) if r.random() < 0.5]
        inner = [n for n in ("Y", "P") if n in self.results and n != self.sum]
        if inner and r.random() < 0.4:
            self.body.append(f"inline {r.choice(inner)}")
        if "T" in self.results and r.random() < 0.5:
            self.body += ["m of T -> lane.x / vec(4)", "n of T -> warp.y(8) / lane.y(1)"]

    def _flags(self) -> None:
        r, sides = self.random, False
        if self.tma and (self.tensor_memory or r.random() < 0.65):
            producer = r.choice(["warp", "warpgroup(24)", "warpgroup(40)"])
            self.body.append(f"producer {'warpgroup(40)' if self.tensor_memory else producer}")
            if r.random() < 0.5:
                self.body.append(r.choice(["stagger", "pingpong"]))
                sides = self.body[-1] == "pingpong"
        if sides or r.random() < 0.4:
            self.body.append("persistent")
            if self.turns and r.random() < 0.6:
                self.body.append("stream")
        if r.random() < 0.3:
            self.body.append(f"raster {r.randint(1, 5)}")
        if r.random() < 0.15:
            self.body.append(f"reverse {r.choice('mn')}")
        if self.group and r.random() < 0.2:
            self.body.append(f"promote {self.sum}")
