"""Which PyTorch model stands beside which model of ours, by the model's name; and whether PyTorch is here."""

from __future__ import annotations

import importlib.util

from tcomp.errors import UserError

COUNTERPARTS = {
    "gpt2": "tcomp.runtime.bench.torch_gpt2:Gpt2",
    "llama": "tcomp.runtime.bench.torch_llama:Llama",
}
"""Model name in the .tc text -> class (a `torch_base.Counterpart`) with the same parameters and mathematics."""


def check_counterpart(model: str, otherwise: str = "") -> None:
    """UserError when PyTorch is missing or has no model to hold against `model`; `otherwise` says what of it is not
    trained by the optimizer's own op."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "tcomp bench compares with PyTorch, which is not installed",
            "pip install 'tcomp[torch]' (or torch itself), or give --against none",
        )
    if model not in COUNTERPARTS:
        raise UserError(
            f"there is no PyTorch counterpart of model '{model}'",
            f"there is one of: {', '.join(COUNTERPARTS)}; give --against none to measure tcomp alone",
        )
    if otherwise:
        raise UserError(
            f"the PyTorch counterparts train by AdamW alone, this model {otherwise}",
            "give --against none to measure tcomp alone",
        )
