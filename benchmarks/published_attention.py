"""Attention beside published kernels on an H100: what the static model predicts for ours, and what was published.

16,384 tokens, 2,048 channels in heads of 64 or 128, bf16 (FlashAttention's own setting). A full product of scores
counts 2 T T D operations, half of them under the causal mask; forward has two, backward five, however many a kernel
computes. Full attention is the op's own text without the mask.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tcomp.autotune.gpu_predict import KernelPrediction, predict_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.machine.gpu import H100, GpuMachine
from tcomp.schedule.lower import lower

TOKENS, CHANNELS = 16384, 2048
README = "FlashAttention-3, figures of its README"
PAPER = "FlashAttention-3, figures of its paper"
LOG = "FlashAttention-3, a later public log"
DETERMINISTIC = "FlashAttention-3 deterministic, the same log"


@dataclass(frozen=True)
class Figure:
    """A published rate in TFLOP/s, `low` to `high`."""

    backward: bool
    head: int
    causal: bool
    low: float
    high: float
    source: str


FIGURES = (
    Figure(False, 128, False, 648, 648, README),
    Figure(False, 128, True, 616, 616, README),
    Figure(False, 64, False, 497, 497, README),
    Figure(False, 64, True, 473, 473, README),
    Figure(False, 128, False, 737, 753, LOG),
    Figure(True, 64, False, 474, 474, PAPER),
    Figure(True, 128, False, 561, 561, PAPER),
    Figure(True, 128, False, 610, 652, LOG),
    Figure(True, 128, False, 525, 586, DETERMINISTIC),
)
SHAPES = tuple((backward, head, causal) for backward in (False, True) for head in (128, 64) for causal in (False, True))


def operations(backward: bool, causal: bool) -> float:
    """Floating-point operations that count, as published figures count them."""
    return (10 if backward else 4) * float(TOKENS) ** 2 * CHANNELS / (2 if causal else 1)


def without_mask(text: str) -> str:
    """Causal attention's text for all pairs of positions."""
    text = re.sub(r"select\(k <= q, (exp\(.*\)), 0\.0\)", r"\1", text)
    return text.replace(" where k <= q", "")


def attention_text(causal: bool, without: str = "") -> str:
    """The library's attention, for pairs of positions up to the diagonal or for all; schedule lines that begin with
    `without` are left out."""
    lines = (resources.files("tcomp.models") / "ops" / "attention.tc").read_text().splitlines(keepends=True)
    text = "".join(x for x in lines if not without or not x.strip().startswith(without))
    return text if causal else without_mask(text)


def shape_name(backward: bool, head: int, causal: bool) -> str:
    return f"{'backward' if backward else 'forward'} {'causal' if causal else 'full'}, heads of {head}"


def predictions(
    backward: bool, head: int, causal: bool, cache: Path | None = None, without: str = "", machine: GpuMachine = H100
) -> list[KernelPrediction]:
    """The kernels of the shipped schedule at that shape, predicted, lines left out that begin with `without`. UserError
    where they cannot be assembled."""
    module = load_text(attention_text(causal, without), "ops/attention.tc")
    op = backward_of("attention", module) if backward else module.ops["attention"]
    assert op is not None
    dims = {"B": 1, "T": TOKENS, "H": CHANNELS // head, "D": head}
    return [predict_kernel(k, machine, cache) for k in lower(bound(op, DType.BF16), module, dims, machine).kernels]


def rate(kernels: list[KernelPrediction], backward: bool, causal: bool) -> float:
    """Predicted TFLOP/s."""
    return operations(backward, causal) / sum(k.seconds for k in kernels) / 1e12
