"""`training` on the virtual GPU: a step that trains is evaluated with the other numbers, and trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tcomp.cli import common
from tcomp.dsl.load import load
from tcomp.model.request import StepRequest
from tcomp.runtime.initialise import initialise
from tcomp.runtime.scalars import set_scalars
from tcomp.runtime.verify import verify_step
from tests.runtime.test_training_number import DIMS, EXAMPLE, LOSSES, SCALED, SIZES, drops, losses


def opened(text: str, folder: Path, config: str, sizes: dict[str, int], dims: dict[str, float]) -> Any:
    (folder / "model.tc").write_text(text)
    device = common.device_for("virtual")
    return device.open(common.build_step(StepRequest(str(folder / "model.tc"), config, sizes, dims), device).step)


def test_a_step_has_both_values(virtual: Any, tmp_path: Path) -> None:
    executor = opened(SCALED, tmp_path, "one", {"B": 2}, {})
    try:
        assert losses(executor) == LOSSES
        assert not virtual.findings
    finally:
        executor.close()


@pytest.mark.slow(seconds=4)
def test_the_documents_example_against_the_oracle(virtual: Any, tmp_path: Path) -> None:
    executor = opened(EXAMPLE, tmp_path, "tiny", SIZES, DIMS)
    try:
        initialise(executor, 1, 1)
        set_scalars(executor, {"peak_lr": 0.1, "warmup": 1.0, "eps": 1e-3})
        found = {c.what: c.error for c in verify_step(executor, load(tmp_path / "model.tc"), DIMS)}
        assert "loss in evaluation" in found and max(found.values()) < 1e-4, found
        assert drops(executor)
        assert not virtual.findings
    finally:
        executor.close()
