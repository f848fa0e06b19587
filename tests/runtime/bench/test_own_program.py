"""Programs of the user's own beside tcomp's step."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tcomp.errors import UserError
from tcomp.runtime.bench.own_program import OwnProgram, label
from tcomp.runtime.bench.workload import save
from tests.runtime.bench.test_measure import workload

TEXT = """
import numpy as np

class Program:
    def __init__(self, workload, weights):
        self.w = np.empty(workload.parameters[0].shape, np.float32)
        weights.read("w", [self.w])

    def step(self, tokens, targets, learning_rate):
        return self.w.sum() + tokens.sum() + learning_rate
"""


def own(folder: Path, text: str) -> OwnProgram:
    asked = workload(hyper={"peak_lr": 0.5, "warmup": 2.0, "total": 9.0, "final_lr": 0.1})
    (folder / "mine.py").write_text(text)
    save(asked, folder)
    np.ones(1024 * 256, np.float32).tofile(folder / "weights.f32")
    return OwnProgram(folder / "mine.py", asked, folder)


def test_a_file_s_program_gets_weights_batches_and_the_learning_rate(tmp_path: Path) -> None:
    program = own(tmp_path, TEXT)
    ones = np.ones((2, 8), np.int32)
    losses = [program.run(ones, ones, n)[0] for n in (0, 1)]
    assert losses == [1024 * 256 + 16 + 0.25, 1024 * 256 + 16 + 0.5]
    assert set(program.phases) == {"imports", "weights"}
    assert label("some/where/mine.py") == "mine" and label("eager-heap") == "eager-heap"


def test_a_model_whose_learning_rate_is_another_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no hyperparameter 'final_lr'"):
        OwnProgram(tmp_path / "mine.py", workload(hyper={"peak_lr": 0.5}), tmp_path)


def test_a_file_may_declare_dataclasses_and_import_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_mine.py").write_text("ONE = 1.0\n")
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom beside_mine import ONE\n"
    program = own(tmp_path, f"{head}\n@dataclass\nclass State:\n    n: int\n{TEXT}")
    assert program.program.step(np.ones(1), None, 0.0) > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [("x = 1\n", "has no class Program"), ("import no_such_module_anywhere\n", "no_such_module_anywhere")],
)
def test_a_file_without_a_program_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        own(tmp_path, text)
