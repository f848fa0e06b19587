"""Statements of random models about where values lie: parameters that are f32 under every precision, tensors of
several types, slices of activations, small kernels and states of layers, whose launches may be joined.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

PIECES = [
    "wide", "wide", "routed", "wider", "stack", "stack", "parts", "tame", "tame", "turned", "seen", "overwritten",
]  # fmt: skip


class Pieces(ABC):
    """What `RandomModel` makes of them; each method adds calls from [B * T, C] to a value of that shape."""

    random: random.Random
    more: random.Random
    parameters: dict[str, tuple[str, ...]]
    params: dict[str, str]
    inputs: dict[str, str]
    lines: list[str]
    kept: dict[str, str]
    """states of the model, and their shapes"""
    layers: bool
    wides: dict[str, tuple[str, ...]]
    """parameters that are f32 under every precision, and their shapes"""

    @abstractmethod
    def bind(self, call: str, into: str = "{}", view: str = "", note: str = "") -> str: ...

    @abstractmethod
    def param(self, shape: tuple[str, ...], shared: bool = True) -> str: ...

    def wide_param(self, shape: tuple[str, ...]) -> str:
        """An f32 parameter of that shape: new, or one that others read, in layers a slice of one."""
        r = self.random
        whole = ("L", *shape) if self.layers and r.random() < 0.8 else shape
        known = [n for n, s in self.wides.items() if s == whole]
        if known and r.random() < 0.25:
            name = r.choice(known)
        else:
            name = f"p{len(self.params)}"
            self.wides[name] = whole
            group = r.choice(["matrices", "vectors"])
            init = "ones" if len(shape) == 1 and r.random() < 0.5 else "normal(0.4)"
            self.params[name] = f"f32[{', '.join(whole)}] = {init} in {group}"
        return f"{name}[{r.choice(['l', 'l', 'l', 'L - 1 - l', '0'])}]" if whole != shape else name

    def make_wide(self, x: str, other: str) -> str:
        return self.bind(f"wide({x}, {self.wide_param(('C',))})")

    def make_routed(self, x: str, other: str) -> str:
        g = self.bind(f"route({x}, {self.wide_param(('3', 'C'))})")
        u = self.bind(f"matmul({x}, {self.param(('3 * C', 'C'))})")
        return self.bind(f"mix({g}, {u}, {other})")

    def make_wider(self, x: str, other: str) -> str:
        """Activations in f32, added to each other there."""
        a = self.bind(f"widened({x})")
        b = self.bind(f"widened({self.random.choice([x, other])})")
        c = self.bind(f"plus({a}, {self.random.choice([a, b])})")
        return self.bind(f"narrowed({self.random.choice([b, c, c])}, {c})")

    def make_stack(self, x: str, other: str) -> str:
        """Slices of a value, of which some are read more than once, some by nobody; sometimes beside the whole."""
        r = self.random
        s = self.bind(f"stack({x}, {self.param(('C',))})")
        slices = [f"{s}[{i}]" for i in r.choices("012", k=3)]
        y = self.bind(f"{r.choice(['add', 'gate'])}({slices[0]}, {r.choice([slices[1], other])})")
        if r.random() < 0.4:
            y = self.bind(f"add({y}, {self.bind(f'shift({slices[2]} as [B, T, C])', '{}', ' as [B * T, C]')})")
        if r.random() < 0.4:
            y = self.bind(f"gate({y}, {self.bind(f'fold({s})')})")
        return y

    def make_parts(self, x: str, other: str) -> str:
        """Each position of a batch's row on its own, and the same memory in another shape."""
        r = self.random
        s = self.bind(f"shift({x} as [B, T, C])", "{}")
        y = self.bind(f"narrow_add({s}[{r.choice(['0', 'B - 1'])}], {s}[{r.choice(['0', 'B - 1'])}])")
        back = r.choice([f"{s} as [B * T, C]", x])
        return self.bind(f"spread({back}, {y})")

    def make_tame(self, x: str, other: str) -> str:
        """A small kernel of a parameter alone."""
        v = self.bind(f"tame({self.param(('C',))})")
        return self.bind(f"columns({x}, {v})")

    def make_turned(self, x: str, other: str) -> str:
        """The same of f32, with a result for the next and a sum over all rows."""
        v, s = self.bind(f"turned({self.wide_param(('C',))})", "{}, s_"), "s_"
        y = self.bind(f"wide({x}, {v})")
        return self.bind(f"by_number({y}, {s})")

    def make_seen(self, x: str, other: str) -> str:
        name = f"seen{len(self.kept)}"
        self.kept[name] = "L, 2" if self.layers else "2"
        return self.bind(f"damped({x}, {name}{'[l]' if self.layers else ''})")

    def make_overwritten(self, x: str, other: str) -> str:
        """A result that takes the place of what it is made of, read before and behind."""
        a = self.bind(f"own_square({x})")
        b = self.bind(f"add({a}, {other})")
        return self.bind(f"add({b}, {self.random.choice([a, b, x])})")

    def sliced_loss(self, x: str, head: str, chunked: str, at_once: str) -> None:
        """Losses of three kinds of rows, of which some count, and not alike."""
        r = self.random
        self.inputs["three"] = "i32[3 * B * T] below V"
        s = self.bind(f"stack({x}, {self.param(('C',))})")
        self.lines.append(f"    logits = matmul({s} as [3 * B * T, C], {head}){chunked}")
        self.lines.append(f"    losses as [3, B * T], _ = crossentropy(logits, three, V = V){at_once}")
        a, b = r.choice(["0", "1"]), r.choice(["1", "2"])
        self.lines += [f"    a = mean(losses[{a}])", f"    b = mean(losses[{b}])", "    loss = both(a, b)"]

    def deep_loss(self, x: str) -> None:
        """A loss of each layer, added up in `aux`."""
        self.inputs["targets"] = "i32[B, T] below V"
        table = self.param(("P", "C"))
        self._words("deep", x, table, "targets as [B * T]", "      ")
        self.lines += ["      deep_loss = mean(deep)", "      aux = both(aux, deep_loss)"]

    def more_losses(self, x: str) -> None:
        """A second loss of other words, by a table that may be the first one's, and those of layers."""
        r = self.more
        others = ["aux"] if any(line.startswith("    aux = ") for line in self.lines) else []
        if r.random() < 0.3:
            self.inputs["others"] = "i32[B * T] below V"
            tables = [n for n, s in self.parameters.items() if s == ("P", "C")]
            heads = [*tables, *(["head"] if "head" in self.params else [])]
            head = r.choice(heads) if heads and r.random() < 0.7 else self.param(("P", "C"), shared=False)
            self._words("second", x, head, "others", "    ")
            self.lines.append("    second_loss = mean(second)")
            others.append("second_loss")
        for number, other in enumerate(others):
            before = self.lines[-1].split(" = ")[0].strip() if number else "loss"
            at = max(i for i, line in enumerate(self.lines) if line.startswith(f"    {before} = "))
            self.lines[at] = self.lines[at].replace(f"    {before} = ", f"    main{number} = ", 1)
            self.lines.append(f"    loss = both(main{number}, {other})")

    def _words(self, name: str, x: str, table: str, targets: str, indent: str) -> None:
        r = self.more
        chunked = " [chunks(Q)]" if r.random() < 0.5 else ""
        at_once = " [at_once(crossentropy_at_once)]" if r.random() < 0.6 else ""
        self.lines.append(f"{indent}{name}_logits = matmul({x}, {table}){chunked}")
        self.lines.append(f"{indent}{name}, _ = crossentropy({name}_logits, {targets}, V = V){at_once}")

    def tempered_loss(self) -> None:
        """A mean of losses that a parameter has a part in."""
        self.lines.append(f"    loss = tempered(losses, {self.wide_param(('1',))})")
