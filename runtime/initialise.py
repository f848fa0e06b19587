"""Fresh parameters from a seed: the same values whatever the number of threads or the arena's layout."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.model.step import ParameterInit
from tcomp.runtime.executor import Executor

_BLOCK = 1 << 20


def initialise(executor: Executor, seed: int, threads: int) -> None:
    """Fill parameters as the model says, and set the optimizer's state to zero.

    Random values come in blocks with a generator of their own each, keyed by seed, name and block number.
    """
    for name, slot in executor.step.slots.items():
        if slot.kind == "state":
            executor.array(name)[...] = 0
    work = []
    for init in executor.step.parameters:
        array = executor.array(init.slot)
        if init.kind in ("zeros", "ones"):
            array[...] = 0 if init.kind == "zeros" else 1
            continue
        flat = array.reshape(-1)  # a view: parameters are contiguous
        for block in range(-(-flat.size // _BLOCK)):
            work.append((init, flat[block * _BLOCK : (block + 1) * _BLOCK], block))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        list(pool.map(lambda item: _fill(seed, *item), work))


def _fill(seed: int, init: ParameterInit, out: NDArray[Any], block: int) -> None:
    key = [seed, zlib.crc32(init.slot.encode()), block]
    random = np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))
    if init.kind == "normal":
        values = random.standard_normal(out.size, dtype=np.float32) * np.float32(init.value)
    else:
        values = (random.random(out.size, dtype=np.float32) * 2 - 1) * np.float32(init.value)
    out[...] = values
