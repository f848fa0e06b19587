"""`tcomp import` and `tcomp export`: folders that transformers saves come in and go out unchanged, and bad ones are
refused. Models are initialised at random by transformers itself."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tcomp.cli import common
from tcomp.dsl.files import library
from tcomp.model.request import StepRequest
from tcomp.runtime import checkpoint
from tcomp.runtime.scalars import set_scalars
from tcomp.runtime.train import load_weights
from tests.cli.support import Tcomp, refused
from tests.reference.torch_llama import Config

transformers = pytest.importorskip("transformers")
LLAMA = Config(L=2, H=4, G=2, D=8, C=32, F=48, V=131, S=64)
SCALED = Config(L=1, H=2, G=1, D=16, C=24, F=40, V=97, S=64, TIED=0, factor=8, original=32)


def saved(folder: Path, cfg: Config | None, seed: int = 0, dtype: torch.dtype = torch.float32, **how: Any) -> Any:
    """A random model (GPT-2 without a config of Llama's) saved by transformers."""
    torch.manual_seed(seed)
    if cfg is None:
        made = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_layer=2, n_head=2, n_embd=24, vocab_size=131, n_positions=64, bos_token_id=1, eos_token_id=1
            )
        )
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    else:
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**cfg.hf()))
    made = made.to(dtype).eval()
    made.save_pretrained(folder, **how)
    return made


def logits(run: Path, tokens: np.ndarray) -> np.ndarray:
    """What tcomp computes from a run folder's newest weights."""
    settings = json.loads((run / "run.json").read_text())
    sizes = dict(zip("BT", tokens.shape, strict=True))
    request = StepRequest(
        settings["model"], settings["config"], sizes, settings["dims"], programs=("forward",), keep_logits=True
    )
    built = common.build_step(request, common.device_for(threads=1))
    executor = built.device.open(built.step)
    try:
        set_scalars(executor, {})
        load_weights(executor, checkpoint.newest(run, lambda _: None))
        for name, value in (("tokens", tokens), ("targets", np.zeros_like(tokens))):
            executor.write(name, value)
        executor.run("forward")
        return np.array(executor.read("logits")).reshape(*tokens.shape, -1)
    finally:
        executor.close()


def theirs(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        out: np.ndarray = model.double()(input_ids=torch.from_numpy(tokens).long()).logits.numpy()
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for p in sorted(folder.glob("*.safetensors")) for n, t in load_file(p).items()}


@pytest.mark.parametrize(
    "cfg",
    [
        pytest.param(LLAMA, id="llama", marks=pytest.mark.slow),
        pytest.param(SCALED, id="scaled-untied"),
        pytest.param(None, id="gpt2"),
    ],
)
def test_there_and_back(cfg: Config | None, tcomp: Tcomp, tmp_path: Path) -> None:
    model = saved(tmp_path / "there", cfg, max_shard_size="20KB")
    (tmp_path / "there" / "tokenizer.json").write_text("{}")
    assert len(list((tmp_path / "there").glob("*.safetensors"))) > 1
    assert tcomp("import", "--from-hf", "there", "--out", "run").code == 0
    tokens = np.random.default_rng(1).integers(0, 97, (2, 33)).astype(np.int32)
    want = theirs(model, tokens)
    got = logits(tmp_path / "run", tokens)[..., : want.shape[-1]]
    np.testing.assert_allclose(got, want, atol=1e-4 * float(np.abs(want).max()))
    assert tcomp("export", "run", "--to-hf", "back", "--shard-size", "20KB").code == 0
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    before, after = tensors(tmp_path / "there"), tensors(tmp_path / "back")
    assert set(before) == set(after)
    assert all(before[n].dtype == after[n].dtype and torch.equal(before[n], after[n]) for n in before)
    assert (tmp_path / "back" / "tokenizer.json").read_text() == "{}"
    again = type(model).from_pretrained(tmp_path / "back")
    np.testing.assert_array_equal(theirs(again, tokens), want)


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_trained_run_loads_in_transformers(name: str, tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    small = ["L=1", "H=2", "C=16", "S=64"] + (["G=1", "D=8", "F=24", "TIED=0", "factor=4"] if name == "llama" else [])
    flags = [x for d in small for x in ("--dim", d)]
    train = ["--steps", "2", "-B", "2", "-T", "16", "--threads", "1", "--sample", "0", "--eval-batches", "1"]
    assert tcomp("train", name, *flags, *train, "--data", text, "--run", "run").code == 0
    assert tcomp("export", "run", "--to-hf", "out").code == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = np.random.default_rng(2).integers(0, 256, (1, 21)).astype(np.int32)
    want = theirs(model, tokens)
    got = logits(tmp_path / "run", tokens)[..., : want.shape[-1]]
    np.testing.assert_allclose(got, want, atol=1e-4 * float(np.abs(want).max()))


def test_types_are_converted(tcomp: Tcomp, tmp_path: Path) -> None:
    saved(tmp_path / "there", LLAMA, dtype=torch.bfloat16)
    assert tcomp("import", "--from-hf", "there", "--out", "kept").code == 0
    assert tcomp("export", "kept", "--to-hf", "same").code == 0
    assert tcomp("export", "kept", "--to-hf", "wide", "--dtype", "f32").code == 0
    assert tcomp("import", "--from-hf", "wide", "--out", "narrow", "--dtype", "bf16").code == 0
    assert tcomp("export", "narrow", "--to-hf", "again").code == 0
    before = tensors(tmp_path / "there")
    assert {t.dtype for t in before.values()} == {torch.bfloat16}
    for folder, dtype in (("same", torch.bfloat16), ("wide", torch.float32), ("again", torch.bfloat16)):
        after = tensors(tmp_path / folder)
        assert {t.dtype for t in after.values()} == {dtype}
        assert all(torch.equal(before[n].float(), after[n].float()) for n in before)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype="auto").dtype == torch.float32


MIXED = """
op rmsnorm_wide(X: real[M, N], w: f32[N], eps: f32[]) -> Y: real[M, N], r: f32[M]:
  s[m] = sum n: X[m, n] * X[m, n]
  r[m] = rsqrt(s[m] / N + eps)
  Y[m, n] = X[m, n] * r[m] * w[n]
"""


@pytest.mark.slow
def test_parameters_of_two_types_keep_them(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    """Norms in f32 beside matrices in bf16: trained, exported, imported, trained further, each in its own type."""
    library = Path(common.find_file("llama"))
    own = library.read_text(encoding="utf-8").replace("rmsnorm(", "rmsnorm_wide(") + MIXED
    for name in ("norm1_w", "norm2_w", "normf_w"):
        own = own.replace(f"param {name}: real", f"param {name}: f32")
    (tmp_path / "mixed.tc").write_text(own, encoding="utf-8")
    shutil.copy(common.layout_path(library), tmp_path / "mixed.hf.toml")
    small = [x for d in ("L=1", "H=2", "C=16", "S=64", "G=1", "D=8", "F=24") for x in ("--dim", d)]
    train = ["--steps", "2", "-B", "2", "-T", "16", "--threads", "1", "--sample", "0", "--eval-batches", "1"]
    run = [*train, "--data", text, "--precision", "bf16"]
    assert tcomp("train", "mixed.tc", *small, *run, "--run", "run").code == 0
    assert tcomp("export", "run", "--to-hf", "out").code == 0
    out = tensors(tmp_path / "out")
    kinds = {n: torch.float32 if "norm" in n else torch.bfloat16 for n in out}
    assert {n: t.dtype for n, t in out.items()} == kinds
    came = tcomp("import", "--from-hf", "out", "--model", "mixed.tc", "--out", "in")
    assert came.code == 0 and "BF16 and F32" in came.out
    assert tcomp("export", "in", "--to-hf", "back").code == 0
    back = tensors(tmp_path / "back")
    assert {n: t.dtype for n, t in back.items()} == kinds and all(torch.equal(out[n], back[n]) for n in out)
    assert json.loads(next((tmp_path / "in").rglob("manifest.json")).read_text())["manifest"]["precision"] == "bf16"
    assert tcomp("generate", "in", "-n", "4", "--threads", "1").code == 0
    assert tcomp("train", *run, "--run", "further", "--init-from", "in").code == 0
    before, after = (checkpoint.newest(tmp_path / n, lambda _: None) for n in ("run", "further"))
    for name, entry in after.tensors().items():
        assert entry.kind == before.tensors()[name].kind, name
        assert not name.startswith("master.") or "norm" not in name
    assert tcomp("train", "--resume", "run", "--steps", "4").code == 0


@pytest.mark.slow
def test_weights_go_from_one_optimizer_to_another(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    """A file that gives a model of another one an optimizer takes that one's runs, and table of names; both ways."""
    small = [x for d in ("L=1", "H=2", "C=16", "S=64") for x in ("--dim", d)]
    run = ["-B", "2", "-T", "16", "--threads", "1", "--sample", "0", "--eval-batches", "1", "--data", text]
    assert tcomp("train", "gpt2", *small, *run, "--steps", "1", "--run", "a").code == 0
    (tmp_path / "own.tc").write_text((common.find_file("gpt2_muon")).read_text())
    assert tcomp("train", "own.tc", *run, "--steps", "1", "--run", "b", "--init-from", "a").code == 0
    assert tcomp("train", "gpt2", *run, "--steps", "1", "--run", "c", "--init-from", "b").code == 0
    assert tcomp("export", "b", "--to-hf", "out").code == 0
    assert tcomp("import", "--from-hf", "out", "--model", "gpt2_muon", "--out", "d").code == 0
    held = [checkpoint.newest(tmp_path / n, lambda _: None) for n in ("b", "d")]
    np.testing.assert_array_equal(held[0].values("qkv_w"), held[1].values("qkv_w"))
    refused(tcomp("train", "llama", *run, "--steps", "1", "--run", "e", "--init-from", "b"), "it holds weights of")


@pytest.mark.parametrize(
    ("version", "dtype"), [pytest.param(3, torch.float32, marks=pytest.mark.slow), (5, torch.bfloat16)]
)
def test_llmc_checkpoints(version: int, dtype: torch.dtype, tcomp: Tcomp, tmp_path: Path) -> None:
    """Against a file written here as llm.c's train_gpt2.py writes it, from transformers' weights."""
    state = saved(tmp_path / "there", None, dtype=dtype).state_dict()
    header = np.zeros(256, "<i4")
    header[:8] = 20240326, version, 64, 131, 2, 2, 24, 256
    names = [("ln_1.weight", 0), ("ln_1.bias", 0), ("attn.c_attn.weight", 1), ("attn.c_attn.bias", 0)]
    names += [("attn.c_proj.weight", 1), ("attn.c_proj.bias", 0), ("ln_2.weight", 0), ("ln_2.bias", 0)]
    names += [("mlp.c_fc.weight", 1), ("mlp.c_fc.bias", 0), ("mlp.c_proj.weight", 1), ("mlp.c_proj.bias", 0)]
    parts = [torch.nn.functional.pad(state["transformer.wte.weight"], (0, 0, 0, 125)), state["transformer.wpe.weight"]]
    for name, turned in names:
        for layer in range(2):
            t = state[f"transformer.h.{layer}.{name}"]
            parts.append(t.T if turned else t)
    parts += [state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]]
    raw = b"".join(p.contiguous().view(torch.uint8).numpy().tobytes() for p in parts)
    (tmp_path / "model.bin").write_bytes(header.tobytes() + raw)
    assert tcomp("import", "--from-llmc", "model.bin", "--out", "run").code == 0
    assert tcomp("export", "run", "--to-hf", "out").code == 0
    before, after = tensors(tmp_path / "there"), tensors(tmp_path / "out")
    assert set(before) == set(after) and all(torch.equal(before[n], after[n]) for n in before)
    (tmp_path / "short.bin").write_bytes(header.tobytes() + raw[:-2])
    refused(tcomp("import", "--from-llmc", "short.bin"), "truncated", "copy or make the file again")
    (tmp_path / "header.bin").write_bytes((tmp_path / "model.bin").read_bytes()[:700])
    refused(tcomp("import", "--from-llmc", "header.bin"), "truncated: 700 bytes", "copy or make the file again")
    header[1] = 4
    (tmp_path / "old.bin").write_bytes(header.tobytes() + raw)
    refused(tcomp("import", "--from-llmc", "old.bin"), "version 4; known are 3 (F32), 5 (BF16)")
    (tmp_path / "other.bin").write_bytes(b"xyz")
    refused(tcomp("import", "--from-llmc", "other.bin"), "not an llm.c checkpoint")


# -------------------------------------------------------------------------------------------------- bad folders


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return edit


def edit_config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return edit


def edit_bytes(at: int, data: bytes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        raw = bytearray((folder / "model.safetensors").read_bytes())
        raw[at : at + len(data)] = data
        (folder / "model.safetensors").write_bytes(raw)

    return edit


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def renamed_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))


NORM = "model.norm.weight"
BAD: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "missing": (edit_tensors(lambda s: s.pop(NORM)), (f"{NORM} is missing ([32])", "config.json and the tensors")),
    "extra": (edit_tensors(lambda s: s.update(extra=torch.zeros(2))), ("extra is unknown to the layout",)),
    "shape": (edit_tensors(lambda s: s.update({NORM: torch.zeros(31)})), (f"{NORM} is [31], the model needs [32]",)),
    "dtype": (
        edit_tensors(lambda s: s.update({NORM: torch.zeros(32, dtype=torch.int64)})),
        (f"{NORM} is I64; known are F32, F16, BF16",),
    ),
    "untied": (
        edit_tensors(lambda s: s.update({"lm_head.weight": torch.zeros(131, 32)})),
        ("lm_head.weight differs from model.embed_tokens.weight, but the model ties them",),
    ),
    "act": (edit_config(hidden_act="gelu"), ('hidden_act is "gelu", this model needs "silu"',)),
    "bias": (edit_config(attention_bias=True), ("attention_bias is true, this model needs false",)),
    "quantized": (edit_config(quantization_config={"bits": 4}), ("quantization_config is", "needs absent")),
    "type": (edit_config(model_type="mamba"), ("model_type is 'mamba'; known are gpt2, llama", "docs/models.md")),
    "layers": (edit_config(num_hidden_layers=3), ("model.layers.2.", "is missing", "and 4 more")),
    "no-key": (edit_config(hidden_size=None), ("it has no hidden_size",)),
    "not-whole": (edit_config(hidden_size="32"), ('hidden_size is "32", not a whole number',)),
    "heads": (edit_config(num_key_value_heads=3), ("requires H == G * R",)),
    "huge-header": (edit_bytes(0, b"\xff" * 8), ("not a whole safetensors file",)),
    "header": (edit_bytes(8, b"]"), ("a damaged safetensors file",)),
    "pickle": (pickled, ("pytorch_model.bin, a pickle", "does not open it", "safe_serialization=True")),
    "outside": (renamed_shard, ("'../model.safetensors' is no safetensors file of this folder",)),
    "shard": (missing_shard, ("the index names model-2.safetensors, which is not there",)),
    "no-config": (lambda folder: (folder / "config.json").unlink(), ("config.json: No such file",)),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    saved(folder, LLAMA)
    return folder


@pytest.mark.parametrize(("damage", "words"), BAD.values(), ids=BAD.keys())
def test_bad_folders_are_refused_and_leave_nothing(
    damage: Callable[[Path], None], words: tuple[str, ...], good: Path, tcomp: Tcomp, tmp_path: Path
) -> None:
    shutil.copytree(good, tmp_path / "there")
    damage(tmp_path / "there")
    refused(tcomp("import", "--from-hf", "there", "--out", "run"), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_a_taken_folder_and_wrong_flags_are_refused(good: Path, tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("")
    refused(tcomp("import", "--from-hf", str(good), "--out", "run"), "there is something of that name already")
    refused(tcomp("import"), "tell where the weights come from")
    refused(tcomp("import", "--from-hf", str(good), "--dtype", "int4"), "--dtype int4", "give f32, bf16, f16")
    refused(tcomp("import", "--from-hf", "nowhere"), "No such file")
    refused(tcomp("export", "run", "--to-hf", "out"), "not a run folder")
    assert tcomp("import", "--from-hf", str(good), "--out", "weights").code == 0
    refused(tcomp("export", "weights", "--to-hf", "run"), "there is something of that name already")
    refused(tcomp("train", "--resume", "weights"), "weights only", "--init-from")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "weights"]


def test_parameters_whose_shapes_depend_on_a_size(tcomp: Tcomp, tmp_path: Path) -> None:
    """The size is asked for where weights come in, and known where they go out."""
    for name in ("gpt2.tc", "gpt2.hf.toml"):
        text = (library() / name).read_text().replace("wpe: real[S, C]", "wpe: real[E, C]")
        text = text.replace("  let D = C // H", "  let D = C // H\n  let E = T")
        text = re.sub(r"  decode\(W\):\n(    .*\n)*", "", text)  # (which wants parameters of one shape)
        (tmp_path / name.replace("gpt2", "own")).write_text(text)
    saved(tmp_path / "there", None)
    arguments = ["import", "--from-hf", "there", "--model", "own.tc", "--out", "run"]
    refused(tcomp(*arguments), "own.tc:", "the shape of 'wpe' depends on the size 'T'", "help: give it: --dim T=NUMBER")
    refused(tcomp(*arguments, "--dim", "C=24"), "--dim C=24: 'C' is no size of model 'gpt2'", "its sizes are B, T")
    refused(tcomp(*arguments, "--dim", "T=0"), "T = 0", "at least 1")
    refused(tcomp(*arguments, "--dim", "T=63"), "wpe.weight", "[64, 24]", "[63, 24]")
    assert not (tmp_path / "run").exists()
    assert tcomp(*arguments, "--dim", "T=64").code == 0
    assert tcomp("export", "run", "--to-hf", "back").code == 0
    before, after = tensors(tmp_path / "there"), tensors(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.slow
def test_numbers_that_follow_from_sizes_are_not_the_weights(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    """`let M = B * T` is another number in an import, a training step and a step of generation."""
    for name in ("gpt2.tc", "gpt2.hf.toml"):
        own = (library() / name).read_text().replace("  let D = C // H", "  let D = C // H\n  let M = B * T")
        (tmp_path / name.replace("gpt2", "own")).write_text(own)
    saved(tmp_path / "there", None)
    assert tcomp("import", "--from-hf", "there", "--model", "own.tc", "--out", "run").code == 0
    small = [x for d in ("L=1", "H=2", "C=16", "S=64") for x in ("--dim", d)]
    train = ["--steps", "1", "-B", "2", "-T", "16", "--threads", "1", "--sample", "0", "--eval-batches", "1"]
    assert tcomp("train", "own.tc", *small, *train, "--data", text, "--run", "trained").code == 0
    for run in ("run", "trained"):
        assert tcomp("export", run, "--to-hf", f"{run}-out").code == 0
        assert tcomp("generate", run, "-n", "2", "--threads", "1").code == 0
    before, after = tensors(tmp_path / "there"), tensors(tmp_path / "run-out")
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.slow
def test_a_run_starts_from_imported_weights(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    """Without a learning rate the weights stay what they were, and the tokenizer and config.json come along."""
    saved(tmp_path / "there", LLAMA, dtype=torch.bfloat16)
    (tmp_path / "there" / "tokenizer.json").write_text("{}")
    assert tcomp("import", "--from-hf", "there", "--out", "weights").code == 0
    quick = ["--steps", "1", "-B", "1", "-T", "16", "--threads", "1", "--sample", "0", "--eval-batches", "1"]
    still = ["--lr", "0", "--hyper", "final_lr=0"]
    result = tcomp("train", "--init-from", "weights", *quick, *still, "--data", text, "--run", "run")
    assert result.code == 0, result
    assert tcomp("export", "run", "--to-hf", "back", "--dtype", "bf16").code == 0
    before, after = tensors(tmp_path / "there"), tensors(tmp_path / "back")
    assert set(before) == set(after) and all(torch.equal(before[n], after[n]) for n in before)
    assert (tmp_path / "back" / "tokenizer.json").exists()
    refused(tcomp("train", "--init-from", "there"), "a Hugging Face folder", "tcomp import --from-hf there")
    refused(
        tcomp("train", "gpt2", "--init-from", "weights"), "it holds weights of llama, not of gpt2", "leave the model"
    )
    refused(tcomp("train", "--init-from", "weights", "--dim", "L=1", *quick, "--data", text), "tensor 'norm1_w'")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "run", "text.txt", "there", "weights"]


@pytest.mark.slow
def test_memory_stays_under_a_shard(tcomp: Tcomp, tmp_path: Path) -> None:
    """Shards of one 40 MB tensor each: neither way is as much as one of them ever held."""
    cfg = Config(L=1, H=2, G=1, D=16, C=256, F=64, V=40000, S=64, TIED=0)
    saved(tmp_path / "there", cfg, max_shard_size="42MB")
    largest = max(p.stat().st_size for p in (tmp_path / "there").glob("*.safetensors"))
    for command in (("import", "--from-hf", "there", "--out", "run"), ("export", "run", "--to-hf", "back")):
        tracemalloc.start()
        assert tcomp(*command, *(["--shard-size", "42MB"] if command[0] == "export" else [])).code == 0
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 8e6 < peak < largest, f"{command[0]}: {peak / 1e6:.0f} MB of {largest / 1e6:.0f}"
    before, after = tensors(tmp_path / "there"), tensors(tmp_path / "back")
    assert set(before) == set(after) and all(torch.equal(before[n], after[n]) for n in before)
