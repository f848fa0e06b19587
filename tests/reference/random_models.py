"""Random models: what users may write, from a seed. Layers, skips, branches that meet again, parameters that are
shared, tied, sliced, frozen, or not used at all, own ops beside those of the library, results that nobody reads,
states, several inputs, losses under a mask and of two parts, odd widths, and dimensions of 1; and the pieces of
`random_pieces.py`.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.reference.random_pieces import PIECES, Pieces

OPS = Path(__file__).with_suffix(".tc").read_text(encoding="utf-8")
EXPRESSIONS = [
    "({0} + {1})", "({0} - {1})", "({0} * {1})", "({0} / (1.5 + ({1}) ** 2))", "tanh({0})", "sin({0})", "gelu({0})",
    "silu({0})", "rsqrt(1.0 + ({0}) ** 2)", "max({0}, 0.5 * {1})", "abs({0} + 0.3)", "0.7 * {0}",
]  # fmt: skip
ADAMW = """
  optimizer adamw:
    hyper peak_lr = 2e-2, final_lr = 0.1, warmup = {warmup}, total = 9
    hyper beta1 = 0.9, beta2 = 0.95, eps = 1e-6, clip = {clip}
    group matrices: weight_decay = 0.1
    group vectors: weight_decay = 0.0
    lr by cosine
    norm by global_norm
    under bf16_stochastic by adamw_stochastic
"""
MOMENTUM = """
  optimizer momentum:
    hyper peak_lr = 0.05
    group matrices: beta = 0.9
    group vectors: beta = 0.5
    lr by constant
"""
KINDS = [
    "linear", "linear", "matmul", "norm", "norm", "mlp", "mlp", "attention", "own", "own", "branch", "gated", "add",
    "gate", "columns", "rows", "pick", "shift", "depthwise", "convolution", "position", "gram", "centre", "softmax",
    "join", "scalar", "drop", "damped", *PIECES,
]  # fmt: skip


class RandomModel(Pieces):
    """The model `m` of one seed: its `text`, with numbers for its dimensions in `dims` (B and T are its sizes)."""

    def __init__(self, seed: int) -> None:
        self.random = r = random.Random(seed)
        heads, width = r.choice([1, 1, 2, 3]), r.choice([1, 2, 4, 5, 8, 11, 16, 32])
        words, deep = r.choice([2, 7, 16, 33, 97]), r.choice([1, 2, 3, 8, 17, 24, 40, 66])
        self.sizes = {"B": r.choice([1, 1, 2, 3, 5]), "T": r.choice([1, 2, 5, 8, 12, 13])}
        if seed % 5 == 4:  # of several tiles along all axes
            width, words, deep = r.choice([33, 64, 80, 130]), r.choice([97, 300, 1000]), r.choice([100, 200, 520])
            self.sizes = {"B": r.choice([1, 2, 3]), "T": r.choice([16, 37, 64, 130])}
        self.dims = {
            "L": r.choice([1, 2, 3]), "H": heads, "D": width, "C": heads * width, "F": deep,
            "V": words, "P": words + r.choice([0, 0, 1, 15]), "S": max(16, self.sizes["T"]),
            "K": r.choice([1, 2, 3]), "Q": r.choice([0, 0, 1, 2, 3]),
        }  # fmt: skip
        self.frozen = random.Random(seed + 3_000_000)
        """says which parameters are not trained, as often as its first number says"""
        self.more = random.Random(seed + 5_000_000)
        """says what there is beside it all: losses of layers, a second loss, results of the last calls made again"""
        self.cold = self.frozen.choice([0.0, 0.0, 0.2, 0.5])
        self.params: dict[str, str] = {}
        self.parameters: dict[str, tuple[str, ...]] = {}
        """what is declared, and its shape"""
        self.inputs: dict[str, str] = {}
        self.kept = {}
        self.wides = {}
        self.ops: list[str] = []
        self.lines: list[str] = []
        self.indent, self.layers = "    ", False
        self.tied = ""
        self.count = 0
        self.adamw, self.warmup, self.clip = r.random() < 0.75, r.choice([0, 2]), r.choice([0.0, 0.05, 1.0])
        self.eights = 0
        """calls that are made in 8 bits under fp8"""
        self.precisions = self.build()

    # ---------------------------------------------------------------------------------------------- the text

    @property
    def text(self) -> str:
        declared = [f"  param {n}: {p}\n" for n, p in self.params.items()]
        declared += [f"  tie head to {self.tied}\n"] if self.tied else []
        declared += [f"  input {n}: {i}\n" for n, i in self.inputs.items()]
        declared += [f"  state {n}: f32[{shape}] = zeros by keep\n" for n, shape in self.kept.items()]
        if self.eights:
            declared.append("  state amax: f32[L, 3, 4] = zeros by history under fp8\n")
        config = ", ".join(f"{n} = {x}" for n, x in self.dims.items())
        end = ADAMW.format(warmup=self.warmup, clip=self.clip) if self.adamw else MOMENTUM
        forward = "".join(f"{line}\n" for line in self.lines)
        head = f"model m(B, T):\n  config c: {config}\n{''.join(declared)}\n  forward:\n{forward}\n  loss loss\n"
        return OPS + "".join(self.ops) + "\n" + head + end

    def build(self) -> tuple[str, ...]:
        r = self.random
        x = self.first()
        if r.random() < 0.5:
            x = self.block(x, r.randrange(1, 5))
        kept = x
        if r.random() < 0.75:
            self.lines.append("    x = " + self.same(x) if r.random() < 0.5 else f"    x = add({x}, {x})")
            self.lines.append("    for l in L:")
            self.indent, self.layers = "      ", True
            deep = self.more.random() < 0.3
            if deep:
                self.lines.insert(-1, f"    aux = small({x})")
            last = self.block("x", r.randrange(1, 6))
            self.lines.append(
                f"      x = {self.same(last)}"
                if r.random() < 0.3
                else f"      x = add({last}, {r.choice(['x', last, kept])})"
            )
            if deep:
                self.deep_loss("x")
            self.indent, self.layers = "    ", False
            x = "x"
        x = self.block(x, r.randrange(0, 3))
        if r.random() < 0.3:
            y = self.block(kept, 1)
            x = self.bind(f"add({x}, {y})")
        if r.random() < 0.2:
            self.param(("C", "C") if r.random() < 0.5 else ("F",))  # nobody reads it
        self.loss(x)
        self.more_losses(x)
        self.freeze()
        return self.allowed()

    def freeze(self) -> None:
        """Some parameters are not trained; tied ones stay alike, and one is."""
        kept = {
            "head" if self.tied or self.frozen.random() < 0.7 else "",
            self.tied,
            self.frozen.choice(list(self.params)),
        }
        for name, declared in self.params.items():
            if name not in kept and self.frozen.random() < self.cold:
                self.params[name] = declared.rsplit(" in ", 1)[0] + " frozen"

    def allowed(self) -> tuple[str, ...]:
        found = ["f32", "f32", "bf16"]
        if self.adamw:
            found.append("bf16_stochastic")
        if self.eights:
            found += ["fp8", "fp8_block"]
        return tuple(found)

    # --------------------------------------------------------------------------------------------- statements

    def first(self) -> str:
        r = self.random
        if r.random() < 0.75:
            self.inputs["tokens"] = "i32[B, T] below V"
            table = self.param(("P", "C"), shared=False)
            if r.random() < 0.5:
                return self.bind(f"embedding(tokens, {table}, {self.param(('S', 'C'))})", "{}", " as [B * T, C]")
            return self.bind(f"lookup(tokens, {table})", "{}", " as [B * T, C]")
        self.inputs["z"] = "f32[B * T]"
        self.ops.append(
            "\nop start(z: f32[M], w: real[2, N]) -> Y: real[M, N]:\n  Y[m, n] = sin(z[m] * w[0, n]) + w[1, n]\n"
        )
        return self.bind(f"start(z, {self.param(('2', 'C'))})")

    def block(self, x: str, count: int) -> str:
        """Statements from [B * T, C] to a value of that shape; they may read it and each other."""
        values = [x]
        for _ in range(count):
            x = self.random.choice([values[-1], values[-1], values[-1], self.random.choice(values)])
            values.append(self.statement(x, self.random.choice(values)))
        return values[-1]

    def statement(self, x: str, other: str) -> str:
        r = self.random
        kind = r.choice(KINDS)
        return str(getattr(self, f"make_{kind}")(x, other))

    def make_linear(self, x: str, other: str) -> str:
        w, b = self.param(("C", "C")), self.param(("C",))
        if self.random.random() < 0.4:
            return self.bind(f"linear_residual({x}, {w}, {b}, {other})", note=self.eight("linear_residual"))
        return self.bind(f"linear({x}, {w}, {b})", note=self.eight("linear"))

    def make_matmul(self, x: str, other: str) -> str:
        w = self.param(("C", "C"))
        if self.random.random() < 0.4:
            return self.bind(f"matmul_residual({x}, {w}, {other})", note=self.eight("matmul_residual"))
        return self.bind(f"matmul({x}, {w})", note=self.eight("matmul"))

    def make_norm(self, x: str, other: str) -> str:
        w = self.param(("C",))
        if self.layers and not self.eights and self.random.random() < 0.4:  # quantised where it is made, on Hopper
            self.eights += 1
            h = self.bind(f"layernorm({x}, {w}, {self.param(('C',))})", "{}, _, _")
            cast = "quantised(layernorm_cast_fp8, linear_given_fp8, sm_90a)"
            note = f"fp8(linear_fp8, amax[l], {cast}), fp8_block(linear_fp8_block)"
            return self.bind(f"linear({h}, {self.param(('C', 'C'))}, {self.param(('C',))})", note=note)
        if self.random.random() < 0.5:
            return self.bind(f"rmsnorm({x}, {w}, 1e-3)", "{}, _")
        return self.bind(f"layernorm({x}, {w}, {self.param(('C',))})", "{}, _, _")

    def make_mlp(self, x: str, other: str) -> str:
        up, b = self.param(("F", "C")), self.param(("F",))
        if self.random.random() < 0.7:
            note = self.random.choice(["", "", "early(dP)"])
            u = self.bind(
                f"linear_gelu({x}, {up}, {b})", "_, {}", note=", ".join(filter(None, [note, self.eight("linear_gelu")]))
            )
        else:
            u = self.bind(f"linear_gelu({x}, {up}, {b})", "p, {}")
            u = self.bind(f"gate(p, {u})")
        down = self.param(("C", "F"))
        return self.bind(f"matmul_residual({u}, {down}, {other})", note=self.eight("matmul_residual"))

    def make_gated(self, x: str, other: str) -> str:
        u = self.bind(f"matmul({x}, {self.param(('2 * F', 'C'))})")
        u = self.bind(f"swiglu({u} as [B * T, 2, F])")
        return self.bind(f"matmul({u}, {self.param(('C', 'F'))})")

    def make_attention(self, x: str, other: str) -> str:
        u = self.bind(f"matmul({x}, {self.param(('3 * C', 'C'))})")
        return self.bind(f"attention({u} as [B, T, 3, H, D])", "{}, _", " as [B * T, C]")

    def make_own(self, x: str, other: str) -> str:
        """An op of random point-wise equations, with one or two results, one of which nobody may read."""
        r, name = self.random, f"own{len(self.ops)}"
        y, z = self.expression(["A[m, n]", "B[m, n]", "w[n]"], 3), self.expression(["A[m, n]", "Y[m, n]", "w[n]"], 2)
        two = r.random() < 0.4
        results = ", Z: real[M, N]" if two else ""
        self.ops.append(
            f"\nop {name}(A, B: real[M, N], w: real[N]) -> Y: real[M, N]{results}:\n  Y[m, n] = {y}\n"
            + (f"  Z[m, n] = {z}\n" if two else "")
        )
        into = r.choice(["{}, _", "_, {}", "{}, o"]) if two else "{}"
        found = self.bind(f"{name}({x}, {other}, {self.param(('C',))})", into)
        return self.bind(f"gate({found}, o)") if into.endswith("o") else found

    def expression(self, leaves: list[str], depth: int) -> str:
        if depth == 0:
            return self.random.choice(leaves)
        return self.random.choice(EXPRESSIONS).format(*(self.expression(leaves, depth - 1) for _ in range(2)))

    def make_branch(self, x: str, other: str) -> str:
        a, b = self.make_own(x, other), self.make_norm(x, other)
        return self.bind(f"{self.random.choice(['add', 'gate'])}({a}, {b})")

    def make_add(self, x: str, other: str) -> str:
        return self.bind(f"add({x}, {other})")

    def make_gate(self, x: str, other: str) -> str:
        return self.bind(f"gate({x}, {other})")

    def make_columns(self, x: str, other: str) -> str:
        return self.bind(f"columns({x}, {self.param(('C',))})")

    def make_rows(self, x: str, other: str) -> str:
        self.inputs["z"] = "f32[B * T]"
        return self.bind(f"rows({x}, z)")

    def make_pick(self, x: str, other: str) -> str:
        self.inputs["at"] = "i32[B * T] below B * T"
        return self.bind(f"pick({x}, at)")

    def make_shift(self, x: str, other: str) -> str:
        return self.bind(f"shift({x} as [B, T, C])", "{}", " as [B * T, C]")

    def make_depthwise(self, x: str, other: str) -> str:
        return self.bind(f"depthwise({x} as [B, T, C], {self.param(('K', 'C'))})", "{}", " as [B * T, C]")

    def make_convolution(self, x: str, other: str) -> str:
        return self.bind(f"convolution({x} as [B, T, C], {self.param(('K', 'C', 'C'))})", "{}", " as [B * T, C]")

    def make_position(self, x: str, other: str) -> str:
        return self.bind(f"position({x} as [B, T, C], {self.param(('S', 'C'))})", "{}", " as [B * T, C]")

    def make_gram(self, x: str, other: str) -> str:
        g = self.bind(f"gram({x}, {other})")
        return self.bind(f"matmul({x}, {g})")

    def make_centre(self, x: str, other: str) -> str:
        if self.random.random() < 0.5:
            return self.bind(f"centre({x})", "{}, _")
        y = self.bind(f"centre({x})", "{}, s")
        return self.bind(f"raise_by({self.random.choice([y, other])}, s)")

    def make_softmax(self, x: str, other: str) -> str:
        if self.random.random() < 0.5:
            return self.bind(f"softmax({x})", "{}, _")
        y = self.bind(f"softmax({x})", "{}, s")
        return self.bind(f"rows({self.random.choice([y, other])}, s)")

    def make_join(self, x: str, other: str) -> str:
        y = self.bind(f"join({x}, {self.random.choice([x, other])})")
        return self.bind(f"matmul({y}, {self.param(('C', '2 * C'))})")

    def make_scalar(self, x: str, other: str) -> str:
        return self.bind(f"scalar({x}, {self.param(('1',))})")

    def make_drop(self, x: str, other: str) -> str:
        return self.bind(f"drop({x}, {self.random.randrange(9)})")

    def make_damped(self, x: str, other: str) -> str:
        return self.make_add(x, other) if self.layers else self.make_seen(x, other)

    def loss(self, x: str) -> None:
        r = self.random
        kind = r.choice(["words", "words", "masked", "squares", "both", "sliced", "tempered"])
        if kind == "squares":
            self.inputs["goal"] = "f32[B * T]"
            self.lines.append(f"    loss = squares({x}, goal)")
            return
        tables = [n for n, s in self.parameters.items() if s == ("P", "C")]
        head = "head"
        if tables and r.random() < 0.3:
            head = tables[0]
        else:
            self.params["head"] = "real[P, C] = normal(0.4) in matrices"
            if tables and r.random() < 0.4:
                self.tied = tables[0]
        chunked = " [chunks(Q)]" if r.random() < 0.5 else ""
        at_once = " [at_once(crossentropy_at_once)]" if r.random() < 0.5 else ""
        if kind == "sliced":
            return self.sliced_loss(x, head, chunked, at_once)
        self.inputs["targets"] = "i32[B, T] below V"
        if self.more.random() < 0.2:
            chunked = chunked.replace("]", ", recompute]") or " [recompute]"
        self.lines.append(f"    logits = matmul({x}, {head}){chunked}")
        self.lines.append(f"    losses, _ = crossentropy(logits, targets as [B * T], V = V){at_once}")
        if kind == "words":
            self.lines.append("    loss = mean(losses)")
            return
        if kind == "tempered":
            return self.tempered_loss()
        self.inputs["mask"] = "f32[B * T]"
        if kind == "masked":
            self.lines.append("    loss = masked(losses, mask)")
            return
        self.inputs["goal"] = "f32[B * T]"
        self.lines += ["    a = mean(losses)", f"    b = squares({x}, goal)", "    loss = both(a, b)"]

    # ------------------------------------------------------------------------------------------------- names

    def same(self, x: str) -> str:
        return f"scalar({x}, {self.param(('1',))})"

    def bind(self, call: str, into: str = "{}", view: str = "", note: str = "") -> str:
        """Add a call; the name of its result, in the shape `view`."""
        self.count += 1
        name = f"v{self.count}"
        notes = [n for n in (note, self.random.choice(["", "", "", "", "recompute"])) if n]
        self.lines.append(
            f"{self.indent}{into.format(name + view)} = {call}{' [' + ', '.join(notes) + ']' if notes else ''}"
        )
        return name

    def param(self, shape: tuple[str, ...], shared: bool = True) -> str:
        """A parameter of that shape: new, or one that others read, in layers a slice of one."""
        r = self.random
        known = [n for n, s in self.parameters.items() if s == shape]
        sliced = [n for n, s in self.parameters.items() if s == ("L", *shape)]
        if shared and known and r.random() < 0.25:
            return r.choice(known)
        if shared and sliced and not self.layers and r.random() < 0.5:
            return f"{r.choice(sliced)}[{r.choice(['0', 'L - 1'])}]"
        if shared and sliced and self.layers and r.random() < 0.2:
            return f"{r.choice(sliced)}[{r.choice(['l', '0', 'L - 1 - l'])}]"
        name = f"p{len(self.params)}"
        whole = ("L", *shape) if self.layers and r.random() < 0.8 else shape
        self.parameters[name] = whole
        group = "vectors" if len(shape) == 1 else "matrices"
        init = "ones" if len(shape) == 1 and r.random() < 0.5 else "normal(0.4)"
        self.params[name] = f"real[{', '.join(whole)}] = {init} in {group}"
        return f"{name}[l]" if whole != shape else name

    def eight(self, op: str) -> str:
        """The annotations of a call that may be made in 8 bits: in layers, the first with delayed scales too."""
        if not self.layers or self.random.random() < 0.5:
            return ""
        self.eights += 1
        blocks = f"fp8_block({op}_fp8_block)"
        return f"fp8({op}_fp8, amax[l]), {blocks}" if self.eights == 1 else blocks
