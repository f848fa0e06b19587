"""docs/models.md tells the truth: its new architecture checks, and is transformers' Qwen2."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tcomp.dsl.format import format_text
from tests.cli.support import Tcomp, own_folders, tcomp  # noqa: F401  fixtures
from tests.cli.test_weights import logits, tensors, theirs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
FILES = dict(re.findall(r"^```\w+ (qwen2\.\S+)\n(.*?)^```$", PAGE, re.S | re.M))


def test_the_walk_through_is_qwen2(tcomp: Tcomp, tmp_path: Path) -> None:  # noqa: F811
    assert set(FILES) == {"qwen2.tc", "qwen2.hf.toml"}
    assert format_text(FILES["qwen2.tc"]) == FILES["qwen2.tc"]
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=48,
            vocab_size=131, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=1, eos_token_id=1,
        )
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "there")
    result = tcomp("import", "--from-hf", "there", "--model", "qwen2.tc", "--out", "run")
    assert result.code == 0, result
    tokens = np.random.default_rng(1).integers(0, 131, (2, 23)).astype(np.int32)
    want = theirs(model, tokens)
    np.testing.assert_allclose(logits(tmp_path / "run", tokens)[..., :131], want, atol=1e-4 * float(np.abs(want).max()))
    assert tcomp("export", "run", "--to-hf", "back").code == 0
    before, after = tensors(tmp_path / "there"), tensors(tmp_path / "back")
    assert set(before) == set(after) and all(torch.equal(before[n], after[n]) for n in before)
    result = tcomp("generate", "run", "--prompt", "abc", "-n", "4", "--threads", "1")
    assert result.code == 0 and result.out.startswith("abc"), result
