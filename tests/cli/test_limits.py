"""Numbers out of range: refused by every command, with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.cli import common
from tcomp.errors import UserError
from tcomp.model.request import StepRequest
from tests.cli.support import TINY, Tcomp, refused

OUT_OF_RANGE = [
    ("--dim L=-1", "dims.L = -1: must not be negative", "--dim L=2"),
    ("--dim L=0", "L = 0 of model 'gpt2' must be at least 1", "--dim L=4"),
    ("--dim H=0", "H = 0 of model 'gpt2' must be at least 1", "--dim H=4"),
    ("--dim V=0", "V = 0 of model 'gpt2' must be at least 1", "--dim V=256"),
    ("--dim L=1e300", "dims.L = 1000", "--dim L=2"),
    ("--dim L=1.5", "L = 1.5 of model 'gpt2' must be a whole number", "--dim L=4"),
    ("--dim L=nan", "--dim L=nan: must be a finite number", "--dim L=2"),
    ("--dim L=inf", "--dim L=inf: must be a finite number", "--dim L=2"),
    ("--dim L=20000", "20000 layers", "10000"),
    ("--memory infGB", "--memory infGB: not an amount of memory", "--memory 16GB"),
    ("--memory nanGB", "--memory nanGB: not an amount of memory", "--memory 16GB"),
    ("--memory -5GB", "--memory -5GB: must be more than nothing", "--memory 16GB"),
    ("--memory 0", "--memory 0: must be more than nothing", "--memory 16GB"),
    ("--threads 100000", "threads = 100000: must be at most", "--threads"),
    ("--threads -1", "threads = -1: must not be negative", "--threads"),
    ("--lr -1", "hyper.peak_lr = -1.0: must not be negative", "--lr"),
    ("--lr nan", "hyper.peak_lr = nan: must be a finite number", "--lr"),
    ("--lr 1e39", "hyper.peak_lr = 1e+39: must be a finite number", "--lr"),
    ("--hyper warmup=-inf", "hyper.warmup = -inf: must be a finite number", "--hyper warmup="),
    ("--hyper eps=-1", "hyper.eps = -1.0: must not be negative", "--hyper eps="),
    ("--hyper foo=1", "unknown hyperparameter 'foo'", "this model has: beta1"),
    ("--seed 99999999999999999999999", "seed = 99999999999999999999999: must be at most", "--seed"),
    ("--seed -1", "seed = -1: must not be negative", "--seed"),
    ("-B 0", "batch = 0: must be at least 1", "--batch"),
    ("-B 99999999999999999999", "batch = 99999999999999999999: must be at most", "--batch"),
    ("-T 0", "length = 0: must be at least 1", "--length"),
    ("--accumulation 0", "accumulation = 0: must be at least 1", "--accumulation"),
    ("--steps -1", "steps = -1: must be at least 1", "--steps"),
    ("--eval-every -1", "eval_every = -1: must not be negative", "--eval-every"),
    ("--eval-batches 0", "eval_batches = 0: must be at least 1", "--eval-batches"),
    ("--save-every -1", "save_every = -1: must not be negative", "--save-every"),
    ("--keep 0", "keep = 0: must be at least 1", "--keep"),
    ("--sample -1", "sample = -1: must not be negative", "--sample"),
    ("--prompt ", "the prompt is empty", "--prompt"),
    ("--prompt \udcff", "the prompt is not UTF-8 text", "--prompt"),
    ("--dim V=101 --prompt \u00e9", "outside the model's vocabulary of 101", "--prompt"),
]


def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*_: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr("tcomp.runtime.cpu.executor.CpuExecutor", compiled)


@pytest.mark.parametrize(("flags", "message", "remedy"), OUT_OF_RANGE, ids=[ascii(c[0]) for c in OUT_OF_RANGE])
def test_train_refuses_numbers_out_of_range(
    flags: str, message: str, remedy: str, tcomp: Tcomp, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_compiling(monkeypatch)
    Path(text).write_text("abcabd\n" * 700)
    result = tcomp("train", *TINY, "--data", text, *flags.split(" "))
    refused(result, message, remedy)
    assert result.error.count("\n") <= 4, "one message"
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"], "a refusal leaves nothing behind"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[dims]\nL = -1", "dims.L = -1: must not be negative"),
        ("[dims]\nH = 0", "H = 0 of model 'gpt2' must be at least 1"),
        ("[dims]\nL = nan", "dims.L = nan: must be a finite number"),
        ("memory = 'infGB'", "--memory infGB: not an amount of memory"),
        ("threads = 100000", "threads = 100000: must be at most"),
        ("[hyper]\npeak_lr = -1", "hyper.peak_lr = -1: must not be negative"),
        ("[hyper]\npeak_lr = nan", "hyper.peak_lr = nan: must be a finite number"),
        ("seed = 99999999999999999999999", "seed = 99999999999999999999999: must be at most"),
        ("batch = 0", "batch = 0: must be at least 1"),
        ("prompt = ''", "the prompt is empty"),
    ],
)
def test_run_files_refuse_the_same(
    toml: str, message: str, tcomp: Tcomp, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_compiling(monkeypatch)
    run_file = tmp_path / "run.toml"
    run_file.write_text(toml)
    refused(tcomp("train", "--run-file", "run.toml", "--data", text), message)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.toml", "text.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("build gpt2 -B 0", "batch = 0: must be at least 1"),
        ("build gpt2 --dim L=nan", "--dim L=nan: must be a finite number"),
        ("plan gpt2 -T -1", "length = -1: must be at least 1"),
        ("plan gpt2 --largest -1", "largest = -1: must not be negative"),
        ("plan gpt2 --threads 100000", "threads = 100000: must be at most"),
        ("show gpt2 --graph --dim L=-1", "dims.L = -1: must not be negative"),
        ("check gpt2 --trials 0", "trials = 0: must be at least 1"),
        ("check gpt2 --tolerance nan", "tolerance = nan: must be a number"),
        ("generate r --temperature nan", "temperature = nan: must be a number"),
        ("generate r --top-k -1", "top_k = -1: must not be negative"),
        ("generate r --prompt ", "the prompt is empty"),
        ("tune gpt2 --gpu h100 --threads 2", "share a CPU's step, and --gpu h100 makes a GPU's"),
        ("tune gpt2 --device cuda --threads 2", "share a CPU's step, and --device cuda makes a GPU's"),
        ("roofline gpt2 --gpu h100 --threads 2", "share a CPU's step, and --gpu h100 makes a GPU's"),
        ("build gpt2 --target sm_80 --threads 2", "share a CPU's step, and --target sm_80 makes a GPU's"),
        ("show gpt2 --tile --gpu h100 --threads 2", "share a CPU's step, and --gpu h100 makes a GPU's"),
        ("plan gpt2 --device virtual --threads 2", "share a CPU's step, and --device virtual makes a GPU's"),
        ("eval r --device cuda:1 --threads 2", "share a CPU's step, and --device cuda:1 makes a GPU's"),
        ("vgpu run k.ptx --grid 0", "--grid 0: not a size"),
        ("vgpu run k.ptx --block 8,x", "--block 8,x: not a size"),
        ("vgpu run k.ptx --shared -1", "--shared -1: must not be negative"),
    ],
)
def test_other_commands_refuse_numbers_out_of_range(arguments: str, message: str, tcomp: Tcomp) -> None:
    refused(tcomp(*arguments.split(" ")), message)


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        ("plan gpt2 --png a.txt", "a.txt: the name says no form in which pictures are drawn", ".png, .svg or .pdf"),
        ("plan gpt2 --png plan", "plan: the name says no form", ".png"),
        ("bench gpt2 --png figures.gif", "figures.gif: the name says no form", ".png"),
        ("bench gpt2 --json out --html ./out", "out: two outputs have this name", "a file of its own"),
        ("bench gpt2 --json a --html ./a --png b.png", "error: a: two outputs have this name", "a file of its own"),
        ("bench gpt2 --html missing/report.html", "missing/report.html: cannot write there", "a folder that exists"),
    ],
)
def test_outputs_are_refused_before_the_work(
    arguments: str, message: str, remedy: str, tcomp: Tcomp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "load_module", None)
    monkeypatch.setattr(common, "build_step", None)
    refused(tcomp(*arguments.split(" ")), message, remedy)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("target", "message"), [("p.png", "symbolic links"), ("gone/p.png", "cannot write there")])
def test_so_are_links_that_lead_nowhere(
    target: str, message: str, tcomp: Tcomp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "build_step", None)
    (tmp_path / "p.png").symlink_to(target)
    refused(tcomp("plan", "gpt2", "--png", "p.png"), "p.png: cannot write there", message, "name a")


def test_a_model_is_built_with_dimensions_from_one_on() -> None:
    with pytest.raises(UserError, match="H = 0 of model 'gpt2' must be at least 1"):
        common.build_step(StepRequest("gpt2", "tiny", {"B": 1, "T": 8}, {"H": 0}), common.device_for())
