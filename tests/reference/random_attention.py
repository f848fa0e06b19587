"""Random attention, causal, windowed, grouped or of documents, and random schedules of it, made from a seed.

Sequences and heads of any length, keys and values of different widths, tensors in any order of axes; schedules on
tensor cores and without. Every query sees a key, though perhaps none of the first blocks'.
"""

from __future__ import annotations

import random

from tests.reference.random_products import TARGETS

MASKS = ["k <= q", "k <= q", "k >= q", "k <= q and k > q - 5", "k <= q + 7", "k == q or k < n", "ids[k] == ids[q]",
         "abs(k - q) < 20", "(k + q) % 2 == 0", "not (k > q)", ""]  # fmt: skip
MONOID = """
monoid expsum by m:
  m = max(a.m, b.m)
  x = a.x * exp(a.m - m) + b.x * exp(b.m - m)

"""


class RandomAttention:
    """The op `f` of one seed, `text` with its schedule, `target`, `dims` and multiprocessors of the GPU."""

    def __init__(self, seed: int) -> None:
        self.random = r = random.Random(seed)
        self.target = r.choice(TARGETS)
        self.multiprocessors = r.choice([2, 132])
        self.group = self.target in ("sm_90a", "sm_100a") and r.random() < 0.75
        self.matrix = self.group or r.random() < 0.8
        self.real = self.rounded = self.left = (
            r.choice(["bf16", "bf16", "f16"]) if self.matrix else r.choice(["f32", "bf16"])
        )
        heads = [1, 8, 16, 24, 32, 40, 64, 64, 72, 96, 128] if self.group else [1, 5, 8, 16, 17, 32, 40, 64, 128]
        self.dims = {"T": r.choice([1, 2, 7, 31, 63, 64, 65, 129, r.randint(1, 150)]), "B": r.choice([1, 1, 2]),
                     "G": r.choice([1, 1, 2]), "R": r.choice([1, 1, 2, 3]), "D": r.choice(heads)}  # fmt: skip
        self.dims["E"] = self.dims["D"] if r.random() < 0.7 else r.choice(heads)
        self.packed = self.dims["D"] == self.dims["E"] and r.random() < 0.2
        self.text = MONOID + self._op() + "\n" + self._schedule()

    def _axes(self, fixed: list[str], last: str) -> tuple[str, str]:
        """(shape, subscripts) of a tensor's axes in a random order, the last one last."""
        own = [*self.random.sample(fixed, len(fixed)), last]
        extents = {"b": "B", "q": "T", "k": "T", "g": "G", "r": "R", "d": "D", "e": "E", "3": "3"}
        return ", ".join(extents.get(x, "3") for x in own), ", ".join(own)

    def _op(self) -> str:
        r = self.random
        q_shape, q = self._axes(["b", "q", "g", "r"], "d")
        k_shape, k = self._axes(["b", "k", "g"], "d")
        v_shape, v = self._axes(["b", "k", "g"], "e")
        o_shape, o = self._axes(["b", "q", "g", "r"], "e")
        at = "b, g, r, q"
        mask = r.choice(MASKS)
        scaled = r.choice([f"qk[{at}, k] * D ** -0.5"] * 3 + [f"qk[{at}, k] * D ** -0.5 - 0.1 * abs(q - k)",
                           f"tanh(qk[{at}, k] * 0.3) * 3.0", f"qk[{at}, k] * 0.2 + bias[q, k]"])  # fmt: skip
        operands = [f"Q: {self.real}[{q_shape}]", f"K: {self.real}[{k_shape}]", f"V: {self.real}[{v_shape}]",
                    "bias: f32[T, T]", "ids: i32[T]", "n: i32[]"]  # fmt: skip
        results = {"O": f"{r.choice([self.real, self.real, 'f32'])}[{o_shape}]"}
        lines = [f"qk[{at}, k] = sum d: Q[{q}] * K[{k}]"]
        self.inline = "qk" if scaled.startswith("tanh") else "s"
        lines.append(f"s[{at}, k] = {scaled}")
        lines.append(
            f"m[{at}], l[{at}], o[{at}, e] = expsum k{' where ' + mask if mask else ''} by s[{at}, k]: 1, V[{v}]"
        )
        lines.append(f"O[{o}] = o[{at}, e] / l[{at}]")
        if r.random() < 0.5:
            results["L"] = "f32[B, G, R, T]"
            lines.append(f"L[{at}] = m[{at}] + log(l[{at}])")
        indices = ["index q: T", "index k: T", "index b: B", "index g: G", "index r: R"]
        written = ", ".join(f"{n}: {t}" for n, t in results.items())
        head = f"op f({', '.join(operands)}) -> {written}:\n"
        return head + "".join(f"  {line}\n" for line in [*indices, *lines])

    def _schedule(self) -> str:
        r = self.random
        lines = ["b, g, r -> grid(1)", "inline s", "fuse qk, m, l, o at k"]
        stages = r.choice([1, 2, 2, 3])
        if not self.matrix:
            rows, keys = r.choice([8, 16, 32, 64]), r.choice([8, 16, 32, 64])
            lines += [f"q -> grid({rows}) / warp.y({r.choice([4, 8, 16])}) / lane.y({r.choice([1, 2, 4])})"]
            lines += [
                f"k -> {r.choice(['seq', 'pipe'])}({keys}) / lane.x",
                "k of o -> vec",
                "d -> vec",
                "e -> lane.x / vec",
            ]
            for tensor, at in (("Q", "q"), ("K", "k"), ("V", "k")):
                if r.random() < 0.7:
                    lines.append(f"stage {tensor} in shared at {at} by {r.choice(['cp.async', 'copy'])}")
        elif not self.group:
            rows, keys = 16 * r.randint(1, 4), 16 * r.randint(1, 6)
            tile = r.choice([16, 16, 32]) if rows % 32 == 0 else 16
            by = r.choice(["cp.async swizzle", "cp.async swizzle", "cp.async", "copy"])
            if self.target == "sm_90a" and r.random() < 0.3:
                by = "tma"
            lines += [f"q -> grid({rows}) / warp.y({tile}) / mma", f"k -> pipe({keys}, {stages}) / mma", "d, e -> mma"]
            lines += [f"stage Q in shared at q by {by}", f"stage K, V in shared at k by {by}", "use mma.sync for qk, o"]
            lines += ["cast o.weight to real"]
        else:
            rows, most, use = (64, 3, "wgmma") if self.target == "sm_90a" else (128, 2, "tcgen05")
            lines += [f"q -> grid({rows * r.randint(1, most)}) / warpgroup({rows}) / mma"]
            lines += [f"k -> pipe({r.choice([16, 32, 48, 64, 64, 80, 96, 128])}, {stages}) / mma", "d, e -> mma"]
            lines += ["stage Q in shared at q by tma", "stage K, V in shared at k by tma", f"use {use} for qk, o"]
            lines += ["cast o.weight to real"]
            if r.random() < 0.5:
                lines.append("stage O in shared at q by tma")
            if r.random() < 0.6:
                lines.append("overlap o")
            if r.random() < 0.6:
                lines.append(r.choice(["producer warp", "producer warpgroup(24)", "producer warpgroup(40)"]))
            if r.random() < 0.25:
                lines.append("persistent")
        if r.random() < 0.4:
            lines.append("reverse q")
        return f"schedule f on {self.target}:\n" + "".join(f"  {line}\n" for line in lines)
