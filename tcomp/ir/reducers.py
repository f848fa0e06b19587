"""The value that changes nothing in a reduction: what a sum, a maximum and a minimum begin with."""

from __future__ import annotations

import math

IDENTITY = {"sum": 0.0, "max": -math.inf, "min": math.inf}
"""of real numbers"""
_WHOLE = {"sum": 0, "max": -(2**31), "min": 2**31 - 1}


def identity(reducer: str, whole: bool) -> float | int:
    """Of real numbers, or of `whole` ones, which have 32 bits."""
    return _WHOLE[reducer] if whole else IDENTITY[reducer]
