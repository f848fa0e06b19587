"""Text from a model: the scores of the next token, and a token drawn from them.

`Decoding` runs the model's decoding form over the new positions only, with the keys and values of earlier ones in
caches. `Rereading` serves models without that form: the whole window again for each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tcomp.errors import UserError
from tcomp.runtime.executor import Executor
from tcomp.runtime.values import values

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """How a token is drawn: temperature 0 takes the likeliest; `top_k` likeliest (0: all); of these the fewest that
    have `top_p` of the probability together."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0


class Scorer(Protocol):
    def scores(self, tokens: list[int]) -> Floats:
        """Logits of what follows the tokens, one per word of the vocabulary."""
        ...


def logits(executor: Executor, start: int, count: int) -> Floats:
    """`count` elements of the logits from `start` on, whatever they are stored in."""
    part = executor.read_part("logits", start, start + count)
    return values(part, executor.step.slots["logits"].dtype).astype(np.float64)


ROWS_AS_WEIGHTS = 16
"""Positions whose arithmetic takes about as long as reading the weights once: an estimate from T = 1 and T = 8."""
_PARTS = (8, 16, 32, 64, 128)


def prefill_part(positions: int, window: int) -> int:
    """Positions to run together where a text begins with so many of them; 0 where that is not worth a program."""
    parts = [p for p in _PARTS if p <= window]
    if positions < 2 or not parts:
        return 0
    return min(parts, key=lambda p: -(-positions // p) * (p + ROWS_AS_WEIGHTS))


class Decoding:
    """Scores by a step of the decoding form: T positions at a time, at most W in all.

    A call runs the positions that the caches lack. The last T positions are always run together, so that what is
    written beside new positions is what stood there before. With a program `prefill`, which has no logits, all but the
    last positions go through that one in larger parts. When W positions are full, the later half of the text starts
    afresh.
    """

    def __init__(self, executor: Executor, vocabulary: int) -> None:
        self.executor, self.vocabulary = executor, vocabulary
        slots = executor.step.slots
        self.at_once = slots["tokens"].shape[1]
        self.tokens = {"forward": "tokens"}
        if "prefill" in executor.step.programs:
            self.tokens["prefill"] = "prefill.tokens" if "prefill.tokens" in slots else "tokens"
        self.width = slots["logits"].shape[-1]
        caches = [s for s in slots.values() if s.kind == "cache"]
        self.position = next(n for n in executor.step.inputs if n not in self.tokens.values())
        self.window = executor.step.inputs[self.position]
        for cache in caches:
            executor.write(cache.name, 0)
        self.first = 0  # of the text, the token that has position 0
        self.seen: list[int] = []

    def scores(self, tokens: list[int]) -> Floats:
        text = tokens[self.first :]
        if len(text) > self.window:
            self.first = len(tokens) - self.window // 2
            text, self.seen = tokens[self.first :], []
        known = 0
        while known < min(len(self.seen), len(text) - 1) and self.seen[known] == text[known]:
            known += 1
        if "prefill" in self.tokens:
            known = self._prefill(text, known)
        row = 0
        for end in [*range(known + self.at_once, len(text), self.at_once), len(text)]:
            start = max(0, end - self.at_once)
            self._run("forward", text[start:end], start)
            row = end - start - 1
        self.seen = list(text)
        begin = row * self.width
        return logits(self.executor, begin, self.vocabulary)

    def _prefill(self, text: list[int], known: int) -> int:
        """Run positions from `known` up to the last, as long as whole parts are cheaper than what `forward` does."""
        part = self.executor.step.slots[self.tokens["prefill"]].shape[1]
        while len(text) - 1 - known > part // ROWS_AS_WEIGHTS:
            end = min(known + part, len(text) - 1)
            start = max(0, end - part)
            self._run("prefill", text[start:end], start)
            known = end
        return known

    def _run(self, program: str, tokens: list[int], start: int) -> None:
        with self.executor.batch() as inputs:
            for array in inputs.values():
                array[...] = 0
            inputs[self.tokens[program]][0, : len(tokens)] = tokens
            inputs[self.position][...] = start
        self.executor.run(program)


class Rereading:
    """Scores by the forward pass over the last T tokens; causal attention makes what stands behind them irrelevant."""

    def __init__(self, executor: Executor, vocabulary: int) -> None:
        self.executor, self.vocabulary = executor, vocabulary

    def scores(self, tokens: list[int]) -> Floats:
        slots = self.executor.step.slots
        recent = tokens[-slots["tokens"].shape[1] :]
        width = slots["logits"].shape[-1]
        with self.executor.batch() as inputs:
            for array in inputs.values():
                array[...] = 0
            inputs["tokens"][0, : len(recent)] = recent
        self.executor.run("forward")
        start = (len(recent) - 1) * width
        return logits(self.executor, start, self.vocabulary)


def sample(
    scorer: Scorer, prompt: list[int], count: int, choice: Choice, seed: int = 1, ends: frozenset[int] = frozenset()
) -> Iterator[int]:
    """At most `count` tokens that continue `prompt`, one at a time; the first of `ends` is the last."""
    if not prompt:
        raise UserError("the prompt is empty", "give at least one character with --prompt")
    random = np.random.default_rng(seed)
    tokens = list(prompt)
    for _ in range(count):
        token = choose(scorer.scores(tokens), choice, random)
        if token in ends:
            return
        tokens.append(token)
        yield token


def choose(scores: Floats, choice: Choice, random: np.random.Generator) -> int:
    """A token drawn from softmax(scores / temperature), among those that `choice` leaves."""
    if choice.temperature <= 0:
        return int(np.argmax(scores))
    scores = scores / choice.temperature
    if 0 < choice.top_k < scores.size:
        scores = np.where(scores >= np.partition(scores, -choice.top_k)[-choice.top_k], scores, -np.inf)
    weights = np.exp(scores - scores.max())
    if choice.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= choice.top_p * weights.sum()]] = 0  # the likeliest always stays
    edges = np.cumsum(weights)
    return int(min(np.searchsorted(edges, random.random() * edges[-1], side="right"), scores.size - 1))
