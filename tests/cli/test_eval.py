"""`tcomp eval`: loss and accuracy against transformers on the same weights; bad questions are named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.cli.support import Tcomp, refused

transformers = pytest.importorskip("transformers")
SAMPLE = Path(__file__).resolve().parents[1] / "data" / "choices.jsonl"


@pytest.fixture
def model(tcomp: Tcomp, tmp_path: Path) -> Any:
    """A random GPT-2 over bytes, imported as `run`, whose scores are far from even."""
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=32, vocab_size=256, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    made = transformers.GPT2LMHeadModel(config).eval()
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    made.save_pretrained(tmp_path / "there")
    assert tcomp("import", "--from-hf", "there", "--out", "run").code == 0
    return made.double()


def test_the_loss_is_that_of_transformers(
    model: Any, tcomp: Tcomp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcomp.cli.evaluate.LINE_SECONDS", 0.0)
    text = "".join(f"{i} abcabd\n" for i in range(900))
    (tmp_path / "text.txt").write_text(text)
    result = tcomp("eval", "run", "--data", "text.txt", "-B", "4", "-T", "32", "--threads", "1")
    assert result.code == 0, result
    found = re.search(r"loss ([\d.]+) nats a token, perplexity ([\d.e+]+), over ([\d,]+) tokens", result.out)
    assert found is not None, result.out
    tokens = np.frombuffer(text.encode(), np.uint8)
    held = tokens[-int(len(tokens) * 0.05) :]
    count = (len(held) - 1) // 32
    assert count % 4, "the last batch is smaller"
    x = torch.tensor(np.array([held[i * 32 : i * 32 + 33] for i in range(count)]), dtype=torch.long)
    with torch.no_grad():
        want = F.cross_entropy(model(input_ids=x[:, :-1]).logits.reshape(-1, 256), x[:, 1:].reshape(-1))
    assert int(found[3].replace(",", "")) == count * 32
    assert f"evaluating: {count} of {count}" in result.error
    assert abs(float(found[1]) - float(want)) < 2e-4


def test_accuracy_is_that_of_transformers(model: Any, tcomp: Tcomp) -> None:
    likeliest = per_token = 0
    questions = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    for q in questions:
        sums, means = [], []
        for ending in q["endings"]:
            context, tokens = list(q["ctx"].encode()), list((" " + ending).encode())
            x = torch.tensor([context + tokens])
            with torch.no_grad():
                scores = model(input_ids=x[:, :-1]).logits.log_softmax(-1)[0]
            of = scores[torch.arange(x.shape[1] - 1), x[0, 1:]][-len(tokens) :]
            sums.append(float(of.sum()))
            means.append(float(of.mean()))
        likeliest += int(np.argmax(sums)) == int(q["label"])
        per_token += int(np.argmax(means)) == int(q["label"])
    result = tcomp("eval", "run", "--choices", str(SAMPLE), "-T", "64", "-B", "3", "--threads", "1")
    n = len(questions)
    want = f"{n} questions: accuracy {likeliest / n:.1%}, per token {per_token / n:.1%} (chance 33.3%)"
    assert result.out.splitlines()[0] == want, result
    assert tcomp("import", "--from-hf", "there", "--out", "narrow", "--dtype", "bf16").code == 0
    narrow = tcomp("eval", "narrow", "--choices", str(SAMPLE), "-T", "64", "-B", "3", "--threads", "1")
    assert narrow.out.splitlines()[0] == want, narrow
    short = tcomp("eval", "run", "--choices", str(SAMPLE), "-T", "16", "--questions", "2", "--threads", "1")
    assert short.out.startswith("2 questions") and "2 contexts were longer than 16 tokens" in short.out


BAD_QUESTIONS = {
    "{": "q.jsonl:2: not a line of JSON",
    "[1, 2]": "q.jsonl:2: the line is no JSON table",
    '{"ctx": "a"}': "q.jsonl:2: the line has no 'endings'",
    '{"ctx": "a", "endings": ["b"], "label": 0}': "q.jsonl:2: ctx must be a text and endings a list",
    '{"ctx": "a", "endings": ["b", "c"], "label": 2}': "q.jsonl:2: label must be a number from 0 to 1",
}


def test_bad_questions_are_named(model: Any, tcomp: Tcomp, tmp_path: Path) -> None:
    for line, words in BAD_QUESTIONS.items():
        (tmp_path / "q.jsonl").write_text('{"ctx": "a", "endings": ["b", "c"], "label": 1}\n' + line + "\n")
        refused(tcomp("eval", "run", "--choices", "q.jsonl"), words, "a line is")


def test_a_run_that_is_none_is_refused(tcomp: Tcomp) -> None:
    refused(tcomp("eval", "nowhere"), "not a run folder")
    refused(tcomp("eval", "nowhere", "-B", "0"), "batch = 0: must be at least 1")
