"""Generation: decoding with caches gives the forward pass's scores, and tokens are drawn as asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.dsl.load import load
from tcomp.errors import UserError
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.generate import Choice, Decoding, Rereading, choose, prefill_part, sample
from tcomp.runtime.scalars import set_scalars
from tcomp.runtime.tokenizer import ByteDecoder

MODELS = Path(__file__).resolve().parents[2] / "models"
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"L": 2, "H": 2, "C": 32, "V": 97, "S": 40},
    "llama": {"L": 2, "H": 4, "G": 2, "D": 8, "C": 32, "F": 48, "V": 97, "S": 40, "factor": 4.0, "original": 16.0},
}


@contextmanager
def opened(name: str, program: str, objects: Path, prefill: int = 0, **sizes: int) -> Iterator[CpuExecutor]:
    """The model with the same random weights whatever the program."""
    machine = detect()
    step = build_step(
        load(MODELS / f"{name}.tc"),
        StepRequest(
            name,
            "tiny",
            {"B": 1, **sizes},
            dims=SMALL[name],
            programs=(program,),
            keep_logits=True,
            prefill={"T": prefill} if prefill else None,
        ),
        machine,
        threads=2,
    )
    executor = CpuExecutor(step, machine, 2, objects)
    try:
        set_scalars(executor, {})
        rng = np.random.default_rng(5)
        for p in step.parameters:
            executor.write(p.slot, rng.standard_normal(step.slots[p.slot].shape, dtype=np.float32) * 0.15)
        yield executor
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("gpt2", ((1, 0), (8, 0))),
        ("llama", ((8, 0), (1, 16))),
        pytest.param("gpt2", ((1, 16),), marks=pytest.mark.slow),
    ],
)
def test_decoding_gives_the_scores_of_the_forward_pass(
    name: str, ways: tuple[tuple[int, int], ...], objects: Path
) -> None:
    """Whatever is new in each call: one token, several, another text, a longer text than fits at once. The ways to run:
    so many positions at once, and so many of a prompt."""
    rng = np.random.default_rng(1)
    text = [int(t) for t in rng.integers(0, 97, 40)]
    calls = [text[:1], text[:2], text[:3], text[:19], text[:20], text[5:18], text[:20], text[:40]]
    with opened(name, "forward", objects, T=40) as executor:
        whole = Rereading(executor, 97)
        want = [whole.scores(t) for t in calls]
    for at_once, prefill in ways:
        with opened(name, "decode", objects, prefill, T=at_once, W=40) as executor:
            assert {s.name for s in executor.step.slots.values() if s.kind == "cache"} == {"keys", "values"}
            assert set(executor.step.inputs) - {"prefill.tokens"} == {"tokens", "start"}
            assert ("prefill.tokens" in executor.step.inputs) == bool(prefill)
            decoding = Decoding(executor, 97)
            for tokens, wanted in zip(calls, want, strict=True):
                got = decoding.scores(tokens)
                assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_full_window_goes_on_with_the_later_half(objects: Path) -> None:
    text = [int(t) for t in np.random.default_rng(2).integers(0, 97, 33)]
    with opened("llama", "decode", objects, T=8, W=16) as executor:
        decoding = Decoding(executor, 97)
        long = [decoding.scores(text[:n]) for n in range(10, 34)]
    with opened("llama", "decode", objects, T=8, W=16) as executor:
        np.testing.assert_allclose(long[7], Decoding(executor, 97).scores(text[9:17]), rtol=1e-5, atol=1e-6)


def test_a_long_prompt_runs_in_large_parts_without_logits(objects: Path) -> None:
    """The parts extend the caches that single positions read; memory for logits is that of one position."""
    text = [int(t) for t in np.random.default_rng(3).integers(0, 97, 39)]
    with opened("llama", "decode", objects, 16, T=1, W=40) as executor:
        runs: list[str] = []
        run = executor.run
        executor.run = lambda program: (runs.append(program), run(program))[1]  # type: ignore[assignment,return-value]
        Decoding(executor, 97).scores(text)
        assert runs == ["prefill", "prefill", "prefill", "forward"]
        assert executor.step.slots["logits"].shape[0] == 1
        labels = {x.label for x in executor.step.programs["prefill"]}
        assert not any("head_w" in x or ("wte" in x and "matmul" in x) for x in labels)


def test_the_part_of_a_prompt_that_runs_together_fits_it() -> None:
    assert [prefill_part(n, 1024) for n in (0, 1, 2, 8, 9, 100, 511)] == [0, 0, 8, 8, 16, 128, 128]
    assert prefill_part(511, 20) == 16 and prefill_part(30, 7) == 0


def test_decoding_starts_from_clean_caches(objects: Path) -> None:
    with opened("gpt2", "decode", objects, T=8, W=16) as executor:
        executor.write("values", np.nan)
        assert np.isfinite(Decoding(executor, 97).scores([1, 2, 3])).all()


class Successor:
    """The next number is the likeliest; the others are alike."""

    def scores(self, tokens: list[int]) -> np.ndarray:
        scores = np.zeros(256)
        scores[(tokens[-1] + 1) % 256] = 5
        return scores


def test_sampling_goes_on_from_its_own_tokens_and_stops_at_an_end() -> None:
    still = Choice(temperature=0)
    assert list(sample(Successor(), [65], 10, still)) == list(range(66, 76))
    assert list(sample(Successor(), [65], 10, still, ends=frozenset([70]))) == [66, 67, 68, 69]
    with pytest.raises(UserError, match="prompt is empty"):
        next(sample(Successor(), [], 1, still))


def test_sampling_is_decided_by_its_seed() -> None:
    one, two = (list(sample(Successor(), [65], 20, Choice(), seed=s)) for s in (1, 1))
    assert one == two != list(sample(Successor(), [65], 20, Choice(), seed=2))


def test_temperature_top_k_and_top_p() -> None:
    scores = np.log(np.array([0.1, 0.2, 0.3, 0.4]))
    random = np.random.default_rng(0)
    assert {choose(scores, Choice(1.0, 2), random) for _ in range(200)} == {2, 3}
    assert {choose(scores, Choice(0.0), random) for _ in range(20)} == {3}
    assert {choose(scores, Choice(1.0, 0, 0.39), random) for _ in range(50)} == {3}
    assert {choose(scores, Choice(1.0, 0, 0.0), random) for _ in range(50)} == {3}
    assert {choose(scores, Choice(1.0, 0, 0.41), random) for _ in range(200)} == {2, 3}
    assert {choose(scores, Choice(1.0, 3, 0.89), random) for _ in range(200)} == {1, 2, 3}
    drawn = np.bincount([choose(scores, Choice(1.0), random) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, [0.1, 0.2, 0.3, 0.4], atol=0.03)


def test_bytes_are_decoded_as_they_come() -> None:
    decoder = ByteDecoder()
    pieces = [decoder.feed(b) for b in "é!".encode()] + [decoder.feed(0xC3), decoder.end()]
    assert pieces == ["", "é", "!", "", "�"]
