"""How good a model is beside its loss: how often its highest score is at the right class, and accuracy on
multiple-choice questions in HellaSwag's format.

A question is a JSON line {"ctx": text, "endings": [texts], "label": number of the right one}. An ending's score is the
log-probability of its tokens behind the context's; `accuracy` takes the likeliest ending, `normalised` the one that is
likeliest per token (longer endings are less likely as a whole).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcomp.errors import UserError
from tcomp.model.graph import Graph, Tensor, tensors_of
from tcomp.runtime.documents import check_regular, is_unicode, parse_json
from tcomp.runtime.executor import Executor
from tcomp.runtime.generate import logits
from tcomp.runtime.tokenizer import Tokenizer

_DIGITS = frozenset(map(str, range(100)))


@dataclass(frozen=True)
class Question:
    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Score:
    """Shares of questions answered rightly."""

    questions: int
    accuracy: float
    normalised: float
    chance: float
    cut: int
    """questions whose context did not fit and lost its beginning"""


def read_questions(path: Path, most: int = 0) -> list[Question]:
    """The questions of a JSON-lines file (the first `most`, 0 for all); UserError names the line that is none."""
    found: list[Question] = []
    try:
        check_regular(path)
        with open(path, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    found.append(_question(line, f"{path}:{number}"))
                if len(found) == most > 0:
                    break
    except OSError as e:
        raise UserError(f"{path}: cannot read it: {e.strerror or e}", "name a file of questions, JSON lines") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text: {e}", "name a file of questions, JSON lines in UTF-8") from e
    if not found:
        raise UserError(
            f"{path}: no questions in it", 'a line is {"ctx": "...", "endings": ["...", "..."], "label": 0}'
        )
    return found


def _question(line: str, where: str) -> Question:
    hint = 'a line is {"ctx": "...", "endings": ["...", "..."], "label": 0}'
    try:
        value = parse_json(line)
        if not isinstance(value, dict):
            raise UserError(f"{where}: the line is no JSON table", hint)
        context, endings, label = value["ctx"], value["endings"], value["label"]
    except ValueError as e:
        raise UserError(f"{where}: not a line of JSON: {e}", hint) from e
    except KeyError as e:
        raise UserError(f"{where}: the line has no {e}", hint) from e
    label = int(label) if isinstance(label, str) and label in _DIGITS else label  # the original files have both
    texts = isinstance(endings, list) and len(endings) > 1 and all(isinstance(e, str) and e for e in endings)
    if not isinstance(context, str) or not context or not texts:
        raise UserError(f"{where}: ctx must be a text and endings a list of two or more", hint)
    if not all(map(is_unicode, (context, *endings))):
        raise UserError(f"{where}: a text has half of a surrogate pair", "make it whole, or leave the line out")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(endings):
        raise UserError(f"{where}: label must be a number from 0 to {len(endings) - 1}", hint)
    return Question(context, tuple(endings), label)


def label_of(graph: Graph) -> str | None:
    """The input that says which class is right for each example: integers below at most as many as the model has logits
    for an example, which a call reads beside these. None where there is none, or more than one."""
    scores = graph.logits
    if scores is None or len(scores.shape) != 2:
        return None
    read = [tensors_of(n.reads) for n in graph.nodes]
    beside = set[Tensor]().union(*(tensors for tensors in read if scores.tensor in tensors))
    found = [
        name
        for name, t in graph.inputs.items()
        if t in beside and t.shape == scores.shape[:1] and 0 < graph.bounds[name] <= scores.shape[1]
    ]
    return found[0] if len(found) == 1 else None


def right(executor: Executor, label: str) -> int:
    """How many examples of the batch that was evaluated last have their highest score at their label."""
    rows, width = executor.step.slots["logits"].shape
    scores = logits(executor, 0, rows * width).reshape(rows, width)[:, : executor.step.inputs[label]]
    return int((scores.argmax(axis=1) == executor.read(label)).sum())


def answer(executor: Executor, tokenizer: Tokenizer, questions: list[Question], vocabulary: int) -> Iterator[Score]:
    """The score so far after each question."""
    right = likeliest = cut = 0
    chance = 0.0
    for number, q in enumerate(questions, 1):
        context = tokenizer.encode(q.context)
        endings = [tokenizer.encode(" " + e) for e in q.endings]
        sums, lost = _log_probabilities(executor, context, endings, vocabulary)
        per_token = [s / len(e) for s, e in zip(sums, endings, strict=True)]
        likeliest += int(np.argmax(sums)) == q.label
        right += int(np.argmax(per_token)) == q.label
        chance += 1 / len(endings)
        cut += lost
        yield Score(number, likeliest / number, right / number, chance / number, cut)


def _log_probabilities(
    executor: Executor, context: list[int], endings: list[list[int]], vocabulary: int
) -> tuple[list[float], bool]:
    """Of each ending behind the context, and whether anything did not fit."""
    slots = executor.step.slots
    rows, length = slots["tokens"].shape
    width = slots["logits"].shape[-1]
    lost = False
    sums: list[float] = []
    for first in range(0, len(endings), rows):
        group = endings[first : first + rows]
        texts = [(context + e)[-length - 1 :] for e in group]
        lost = lost or any(len(context) + len(e) > length + 1 for e in group)
        for text in texts:
            if max(text) >= vocabulary:
                raise UserError(
                    f"token {max(text)} is outside the model's vocabulary of {vocabulary}",
                    "use the tokenizer that the model was trained with",
                )
        with executor.batch() as inputs:
            for array in inputs.values():
                array[...] = 0
            for row, text in enumerate(texts):
                inputs["tokens"][row, : len(text) - 1] = text[:-1]
        executor.run("forward")
        for row, (text, ending) in enumerate(zip(texts, group, strict=True)):
            total = 0.0
            for at in range(max(0, len(text) - 1 - len(ending)), len(text) - 1):
                begin = (row * length + at) * width
                scores = logits(executor, begin, vocabulary)
                top = scores.max()
                total += float(scores[text[at + 1]] - top - math.log(np.exp(scores - top).sum()))
            sums.append(total)
    return sums, lost
