"""What step to build, as every command, test and search says it: one record from the command line down to the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tcomp.dsl.dims import Number

LARGEST_SIZE = 1 << 20
"""Sequences, tokens or micro-batches at most."""
LARGEST_DIM = 1 << 24
"""A configuration value at most."""

RecomputePolicy = Literal["never", "cheap", "to fit"]


@dataclass(frozen=True)
class Sharing:
    """Among how many processes (`ranks`) a step's batch is divided, and what they share: with `zero` 0 nothing, each
    keeps all of the model; with 1 (ZeRO-1) each keeps optimizer state and master copies of its share only."""

    ranks: int = 1
    zero: int = 0


@dataclass(frozen=True)
class StepRequest:
    """A model at fixed sizes, and how its step is to be made.

    `model` is the model's name in its module; where files are looked for (the command line), the file that declares it.
    `config` is the name of a configuration, `dims` are values in place of its own; `sizes` are those that the model
    leaves open (B, T). `precision` names a recipe (empty: the model text's).

    `programs` is ("train",) for forward, backward and update, ("forward",) for inference, or ("decode",) for the
    forward pass of the model's decoding form (the program "forward" of that step). With `prefill` a decoding step has
    a program of that name too: the same at other sizes, on the same parameters and caches, without logits; its inputs
    of other shapes are named `prefill.NAME`. `keep_logits` makes logits a result of a training step.

    `memory_limit` bounds arena, scratch and team memory together, in bytes. Activations are computed again in the
    backward pass where that is needed to fit it ("to fit"), where it costs next to nothing ("cheap", on CPUs), or
    "never". `deterministic` refuses schedules by which two runs may round differently. `lock` is the lockfile of tuned
    schedules, `none`, or empty for the one that is found. `sharing` is about other processes that work on the step.
    """

    model: str
    config: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    dims: Mapping[str, Number] = field(default_factory=dict)
    precision: str = ""
    accumulation: int = 1
    programs: tuple[str, ...] = ("train",)
    keep_logits: bool = False
    prefill: Mapping[str, int] | None = None
    memory_limit: int | None = None
    recompute: RecomputePolicy = "never"
    deterministic: bool = True
    lock: str = ""
    sharing: Sharing = Sharing()
