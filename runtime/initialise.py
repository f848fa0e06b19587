"""Fresh parameters from a seed: the same values whatever the number of threads or the arena's layout."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.model.step import ParameterInit
from tcomp.runtime.executor import Executor

_BLOCK = 1 << 18


def initialise(executor: Executor, seed: int, threads: int) -> None:
    """Fill parameters as the model says, and set the optimizer's state to zero.

    Random values come in blocks with a generator of their own each, keyed by seed, name and block number.
    """
    work: list[tuple[ParameterInit | None, NDArray[Any], int]] = []
    for name, slot in executor.step.slots.items():
        if slot.kind == "state":
            work += [(None, part, 0) for part in _blocks(executor.array(name))]
    for init in executor.step.parameters:
        array = executor.array(init.slot)
        if init.kind in ("zeros", "ones"):
            array[...] = 0 if init.kind == "zeros" else 1
            continue
        work += [(init, part, number) for number, part in enumerate(_blocks(array))]
    _normal_levels()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        list(pool.map(lambda item: _fill(seed, *item), work))


def _blocks(array: NDArray[Any]) -> list[NDArray[Any]]:
    flat = array.reshape(-1)  # a view: slots are contiguous
    return [flat[at : at + _BLOCK] for at in range(0, flat.size, _BLOCK)]


def _fill(seed: int, init: ParameterInit | None, out: NDArray[Any], block: int) -> None:
    if init is None:
        out[...] = 0
        return
    key = [seed, zlib.crc32(init.slot.encode()), block]
    words = np.random.SFC64(np.random.SeedSequence(key)).random_raw(-(-out.size // 4))
    levels = words.view(np.uint16)[: out.size]
    table = (_normal_levels() if init.kind == "normal" else _uniform_levels()) * np.float32(init.value)
    if out.dtype == np.float32:
        np.take(table, levels, out=out, mode="clip")
    else:
        out[...] = table[levels]


@cache
def _normal_levels() -> NDArray[np.float32]:
    """The normal distribution's quantiles at 65536 even levels, of standard deviation 1: a random 16-bit number
    picks one. Five times as fast as drawing exact normals, which would take seconds for a 124M model."""
    x = np.linspace(-6, 6, 1 << 18)
    below = np.cumsum(np.exp(-x * x / 2))
    values = np.interp((np.arange(1 << 16) + 0.5) / (1 << 16) * below[-1], below, x)
    values = (values - values[::-1]) / 2
    return np.asarray(values / values.std(), dtype=np.float32)


@cache
def _uniform_levels() -> NDArray[np.float32]:
    return np.asarray((np.arange(1 << 16) + 0.5) / (1 << 15) - 1, dtype=np.float32)
