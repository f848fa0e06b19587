"""Text from a model: the forward program at B = 1, run over a sliding window of the last tokens.

Each new token runs the whole window again and reads the logits of its last real position; causal attention
makes what stands after that position irrelevant.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import numpy as np

from tcomp.errors import UserError
from tcomp.runtime.executor import Executor
from tcomp.runtime.values import values


def sample(
    executor: Executor,
    prompt: list[int],
    count: int,
    vocabulary: int,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 1,
) -> Iterator[int]:
    """`count` tokens that continue `prompt`, one at a time. Temperature 0 takes the likeliest each time."""
    if not prompt:
        raise UserError("the prompt is empty", "give at least one character with --prompt")
    slots = executor.step.slots
    length, width = slots["tokens"].shape[1], slots["logits"].shape[-1]
    random = np.random.default_rng(seed)
    tokens = list(prompt)
    for _ in range(count):
        recent = tokens[-length:]
        with executor.batch() as inputs:
            for array in inputs.values():
                array[...] = 0
            inputs["tokens"][0, : len(recent)] = recent
        executor.run("forward")
        start = (len(recent) - 1) * width
        part = executor.read_part("logits", start, start + vocabulary)
        scores = values(part, slots["logits"].dtype).astype(np.float64)
        tokens.append(choose(scores, temperature, top_k, random))
        yield tokens[-1]


def choose(scores: np.ndarray, temperature: float, top_k: int, random: np.random.Generator) -> int:
    """A token drawn from softmax(scores / temperature), among the `top_k` likeliest when that is not 0."""
    if temperature <= 0:
        return int(np.argmax(scores))
    scores = scores / temperature
    if 0 < top_k < scores.size:
        scores = np.where(scores >= np.partition(scores, -top_k)[-top_k], scores, -np.inf)
    weights = np.exp(scores - scores.max())
    edges = np.cumsum(weights)
    return int(min(np.searchsorted(edges, random.random() * edges[-1], side="right"), scores.size - 1))


class ByteDecoder:
    """Byte tokens to text as they come; bytes that are not UTF-8 show as the replacement character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else f"<{token}>"

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)
