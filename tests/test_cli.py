"""The command line: what it prints, and that bad input ends in one message and exit code 2."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tcomp.cli.build import write_folder
from tcomp.cli.common import build_step
from tcomp.cli.main import main, spread_data
from tcomp.errors import UserError

TINY = [
    "--dim", "L=1", "--dim", "H=2", "--dim", "C=16", "-B", "2", "-T", "16",
    "--threads", "1", "--eval-batches", "2", "--sample", "8",
]  # fmt: skip


@dataclass
class Result:
    code: int
    out: str
    error: str


Tcomp = Callable[..., Result]


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder; compiled kernels are shared between the tests of a session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TCOMP_CACHE", str(tmp_path_factory.getbasetemp() / "tcomp-cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def tcomp(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tcomp:
    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["tcomp", *arguments])
        code = 0
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i % 7} abcabd\n" for i in range(700)))
    return str(path)


def refused(result: Result, *words: str) -> None:
    """Exit code 2, the words in the message, no traceback, nothing else."""
    assert result.code == 2, result
    flat = re.sub(r"[\s│]+", " ", result.error)
    for word in words:
        assert word in flat, result.error
    assert "Traceback" not in result.error


# --------------------------------------------------------------------------------------------- help


def test_help_lists_the_commands_and_each_gives_examples(tcomp: Tcomp) -> None:
    listing = tcomp("--help")
    assert listing.code == 0
    for command in ("train", "generate", "build", "plan", "show", "grad", "check", "fmt"):
        assert f" {command} " in listing.out
        one = tcomp(command, "--help")
        assert one.code == 0 and f"tcomp {command}" in one.out.split("Examples")[1]


def test_usage_errors_name_the_option(tcomp: Tcomp) -> None:
    refused(tcomp("train", "--stepz", "3"), "--stepz")
    refused(tcomp("trian"), "trian")


def test_starting_the_command_line_does_not_import_the_heavy_libraries() -> None:
    program = "import tcomp.cli.main, sys; print({'torch', 'matplotlib', 'optuna', 'llvmlite'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_data_takes_several_paths() -> None:
    given = ["train", "gpt2", "--data", "a", "b", "c", "--steps", "3", "--data", "d"]
    wanted = "train gpt2 --data a --data b --data c --steps 3 --data d"
    assert spread_data(given) == wanted.split()
    assert spread_data(["fmt", "--data", "a", "b"]) == ["fmt", "--data", "a", "b"]


# ------------------------------------------------------------------------------------------ bad text


OP = "op double(X: f32[M, N]) -> Y: f32[M, N]:\n  Y[m, n] = X[m, n] * 2.0\n"
BAD_TEXT = {
    "syntax": ("op double(X: f32[M]) -> Y: f32[M]\n  Y[m] = X[m]\n", "bad.tc:1:"),
    "unknown name": (OP.replace("X[m, n]", "Z[m, n]"), "bad.tc:2:13: error:"),
    "shape mismatch": (OP.replace("X[m, n]", "X[m]"), "bad.tc:2:13: error:"),
    "unknown dtype": (OP.replace("X: f32", "X: f33"), "bad.tc:1:"),
    "wrong dtype": (
        "op pick(X: f32[M], i: f32[M]) -> Y: f32[M]:\n  Y[m] = X[i[m]]\n",
        "bad.tc:2:",
    ),
    "schedule of no op": (OP + "schedule tripel on cpu:\n  m -> core\n", "bad.tc:3:"),
    "missing schedule target": (OP + "schedule double on toaster:\n  m -> core\n", "bad.tc:3:"),
    "missing import": ("import ops.nothing\n", "bad.tc:1:"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text_is_shown_with_its_place(case: str, tcomp: Tcomp, tmp_path: Path) -> None:
    text, place = BAD_TEXT[case]
    (tmp_path / "bad.tc").write_text(text)
    result = tcomp("check", "bad.tc", "--parse-only")
    refused(result, place)
    assert "^" in result.error, "no caret"


@pytest.mark.parametrize("dtype", ["e4m3", "bf16"])
def test_check_of_a_dtype_that_it_cannot_compare(dtype: str, tcomp: Tcomp, tmp_path: Path) -> None:
    file = tmp_path / "quarter.tc"
    file.write_text(f"op quarter(X: {dtype}[N]) -> Y: f32[N]:\n  Y[n] = f32(X[n]) * 0.25\n")
    refused(tcomp("check", str(file)), "quarter", dtype, "f32")


def test_files_and_names_that_do_not_exist(tcomp: Tcomp) -> None:
    refused(tcomp("plan", "gpt22"), "gpt22: no such file", "did you mean 'gpt2'?")
    refused(tcomp("plan", "gpt2", "--config", "125M"), "125M", "124M")
    refused(tcomp("plan", "ops/linear"), "declares no model")
    refused(tcomp("grad", "ops/linear", "linaer"), "no op 'linaer'", "did you mean 'linear'?")
    refused(tcomp("show", "gpt2"), "tell what to show")
    refused(tcomp("show", "ops/linear", "linear", "--tile"), "needs its dimensions", "--dim M=64")
    refused(tcomp("plan", "gpt2", "--dim", "Q=3"), "Q")
    refused(tcomp("plan", "gpt2", "--dim", "L"), "not NAME=NUMBER")
    refused(tcomp("plan", "gpt2", "--memory", "lots"), "not an amount of memory")


# -------------------------------------------------------------------------------------- plan and show


def test_plan_prints_the_table_and_draws(tcomp: Tcomp, tmp_path: Path) -> None:
    result = tcomp("plan", "models/gpt2.tc", "-B", "2", "-T", "16", "--png", "plan.png")
    assert result.code == 0
    for word in ("parameter", "gradient", "state", "activation", "lower bound"):
        assert word in result.out
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_a_plan_that_does_not_fit_is_refused_with_the_tensors_to_blame(tcomp: Tcomp) -> None:
    refused(tcomp("plan", "gpt2", "-B", "2", "--memory", "3MB"), "the step needs", "the limit is", "wte")


@pytest.mark.parametrize("stage", ["ast", "graph", "grad", "schedule", "tile", "llvm", "asm", "plan", "launches"])
def test_show_prints_each_stage(stage: str, tcomp: Tcomp) -> None:
    marks = {
        "ast": "Op name=linear", "graph": "backward:", "grad": "backward linear", "schedule": "schedule linear",
        "tile": "phase 0:", "llvm": "define", "asm": ".text", "plan": "arena", "launches": "program micro_first",
    }  # fmt: skip
    some = ["layernorm"] if stage in ("llvm", "asm") else []
    result = tcomp("show", "gpt2", *some, f"--{stage}", "-B", "1", "-T", "8", "--dim", "C=16", "--dim", "L=1")
    assert result.code == 0, result.error
    assert marks[stage] in result.out


def test_show_of_an_op_without_a_model(tcomp: Tcomp) -> None:
    dims = ["--dim", "M=8", "--dim", "N=16", "--dim", "K=4"]
    result = tcomp("show", "ops/linear", "linear.backward", "--schedule", "--tile", *dims)
    assert result.code == 0, result.error
    assert "kernel linear.backward" in result.out


def test_grad_prints_text_that_parses_again(tcomp: Tcomp) -> None:
    from tcomp.dsl.parse import parse

    result = tcomp("grad", "gpt2", "linear_gelu")
    assert result.code == 0 and result.out.startswith("backward linear_gelu(")
    assert parse(result.out, "grad.tc").items


def test_fmt_rewrites_once_and_check_tells(tcomp: Tcomp, tmp_path: Path) -> None:
    path = tmp_path / "op.tc"
    path.write_text("# a comment\n" + OP.replace("X[m, n] * 2.0", "X[m,n]*2.0   # twice"))
    assert tcomp("fmt", "--check", "op.tc").code == 1
    assert "formatted op.tc" in tcomp("fmt", "op.tc").out
    assert "X[m, n] * 2.0" in path.read_text() and "# twice" in path.read_text()
    again = tcomp("fmt", "--check", ".")
    assert (again.code, again.out) == (0, "")
    path.write_text("op (")
    refused(tcomp("fmt", "op.tc"), "op.tc:1:")
    assert path.read_text() == "op ("


def test_build_leaves_every_stage_in_a_folder(tcomp: Tcomp, tmp_path: Path) -> None:
    small = ["-B", "1", "-T", "8", "--dim", "C=16", "--dim", "H=2", "--dim", "L=1", "--threads", "1"]
    result = tcomp("build", "models/gpt2.tc", *small, "--out", "built")
    assert result.code == 0, result.error
    names = {p.name for p in (tmp_path / "built").iterdir()}
    assert names == {
        "ast.txt", "graph.txt", "grad.tc", "schedules.tc", "tile.txt", "llvm", "asm", "plan.txt",
        "launches.txt", "summary.txt",
    }  # fmt: skip
    assert "kernels" in result.out and "lower bound" in result.out


def test_only_a_build_folder_is_replaced(tmp_path: Path) -> None:
    write_folder(tmp_path / "b", {"summary.txt": "1", "llvm/old.ll": ""})
    write_folder(tmp_path / "b", {"summary.txt": "2"})
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["summary.txt"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    with pytest.raises(UserError, match="not a build folder"):
        write_folder(tmp_path / "mine", {"summary.txt": "3"})
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["precious.txt"]


def test_check_passes_for_an_op_file_and_fails_for_a_wrong_tolerance(tcomp: Tcomp) -> None:
    good = tcomp("check", "ops/layernorm", "--threads", "1")
    assert good.code == 0, good.error
    assert "layernorm.backward" in good.out and "ok" in good.out
    refused(tcomp("check", "ops/layernorm", "--tolerance", "0", "--threads", "1"), "from the oracle")


# ------------------------------------------------------------------------------- values out of range


OUT_OF_RANGE = [
    ("--dim L=-1", "dims.L = -1: must be at least 1", "--dim L=2"),
    ("--dim L=0", "dims.L = 0: must be at least 1", "--dim L=2"),
    ("--dim H=0", "dims.H = 0: must be at least 1", "--dim H=2"),
    ("--dim V=0", "dims.V = 0: must be at least 1", "--dim V=2"),
    ("--dim L=1e300", "dims.L = 1000", "--dim L=2"),
    ("--dim L=nan", "--dim L=nan: must be a whole number", "--dim L=2"),
    ("--dim L=inf", "--dim L=inf: must be a whole number", "--dim L=2"),
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
        ("[dims]\nL = -1", "dims.L = -1: must be at least 1"),
        ("[dims]\nH = 0", "dims.H = 0: must be at least 1"),
        ("[dims]\nL = nan", "dims.L must be a whole number"),
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


def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*_: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr("tcomp.runtime.cpu.executor.CpuExecutor", compiled)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("build gpt2 -B 0", "batch = 0: must be at least 1"),
        ("build gpt2 --dim L=nan", "--dim L=nan: must be a whole number"),
        ("plan gpt2 -T -1", "length = -1: must be at least 1"),
        ("plan gpt2 --largest -1", "largest = -1: must not be negative"),
        ("plan gpt2 --threads 100000", "threads = 100000: must be at most"),
        ("show gpt2 --graph --dim L=-1", "dims.L = -1: must be at least 1"),
        ("check gpt2 --trials 0", "trials = 0: must be at least 1"),
        ("check gpt2 --tolerance nan", "tolerance = nan: must be a number"),
        ("generate r --temperature nan", "temperature = nan: must be a number"),
        ("generate r --top-k -1", "top_k = -1: must not be negative"),
        ("generate r --prompt ", "the prompt is empty"),
        ("vgpu run k.ptx --grid 0", "--grid 0: not a size"),
        ("vgpu run k.ptx --block 8,x", "--block 8,x: not a size"),
        ("vgpu run k.ptx --shared -1", "--shared -1: must not be negative"),
    ],
)
def test_other_commands_refuse_numbers_out_of_range(arguments: str, message: str, tcomp: Tcomp) -> None:
    refused(tcomp(*arguments.split(" ")), message)


def test_a_model_is_built_with_dimensions_from_one_on() -> None:
    with pytest.raises(UserError, match="H = 0 of model 'gpt2' must be at least 1"):
        build_step("gpt2", "tiny", 1, 8, dims={"H": 0})


# -------------------------------------------------------------------------------- bad files, by command


BAD_FILES = {
    "missing.tc": ("missing.tc: no such file", "tcomp's own files"),
    "syntax.tc": ("syntax.tc:1:14: error:",),
    "binary.tc": ("binary.tc is not UTF-8 text",),
    ".": ("a folder, not a .tc file",),
    "": ("the file's name is empty",),
}


@pytest.mark.parametrize("file", BAD_FILES)
@pytest.mark.parametrize("command", ["train", "build", "plan", "show --ast", "grad", "check"])
def test_bad_files(command: str, file: str, tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "syntax.tc").write_text("op f(X: f32[M) -> Y:\n")
    (tmp_path / "binary.tc").write_bytes(b"\xff\xfe")
    name, *flags = command.split()
    refused(tcomp(name, file, *(["f"] if name == "grad" else flags)), *BAD_FILES[file])


def test_fmt_of_bad_files(tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "binary.tc").write_bytes(b"\xff\xfe")
    refused(tcomp("fmt", "missing.tc"), "missing.tc: cannot read it: No such file")
    refused(tcomp("fmt", "binary.tc"), "binary.tc: cannot read it")


@pytest.mark.parametrize("command", ["train", "build gpt2", "plan gpt2", "show gpt2 --graph"])
def test_unknown_configs(command: str, tcomp: Tcomp) -> None:
    refused(tcomp(*command.split(), "--config", "125M"), "no config '125M'", "124M")


@pytest.mark.parametrize(
    "command", ["show gpt2 NAME --ast", "show gpt2 NAME --tile", "grad gpt2 NAME", "check gpt2 NAME"]
)
def test_unknown_ops(command: str, tcomp: Tcomp) -> None:
    refused(tcomp(*command.replace("NAME", "linaer").split()), "'linaer'", "did you mean 'linear'?")


# ------------------------------------------------------------------------------ errors of the system


def test_an_error_without_a_file_name_is_one_message(tcomp: Tcomp, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tcomp.cli.common.build_step", full)
    result = tcomp("plan", "gpt2")
    refused(result)
    assert result.error == "error: No space left on device\n  help: free some disk space\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_finds_no_room_is_one_message() -> None:
    with open("/dev/full", "w") as out:
        found = subprocess.run(
            [sys.executable, "-m", "tcomp.cli.main", "grad", "ops/linear", "linear"],
            stdout=out, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (found.returncode, found.stderr) == (2, "error: No space left on device\n  help: free some disk space\n")


def test_an_executor_that_fails_leaves_no_run_folder(
    tcomp: Tcomp, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("tcomp.runtime.cpu.executor.CpuExecutor", failing)
    refused(tcomp("train", *TINY, "--data", text), "error: Cannot allocate memory", "use smaller sizes")
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_that_cannot_be_made(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    arguments = ["train", *TINY, "--data", text, "--steps", "1", "--run"]
    refused(tcomp(*arguments, f"{text}/r"), "cannot use it as run folder: Not a directory")

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tcomp.runtime.run_folder.write_atomic", no_room)
        refused(tcomp(*arguments, "a/b"), "run.json: cannot write it: No space left")
    assert not (tmp_path / "a").exists()


# ------------------------------------------------------------------------------------ train, generate


def test_train_generate_and_resume(tcomp: Tcomp, text: str) -> None:
    result = tcomp("train", *TINY, "--data", text, "--steps", "6", "--run", "r")
    assert result.code == 0, result.error
    assert "step 6/6" in result.out and "validation loss" in result.out and "tcomp generate r" in result.out
    first = tcomp("generate", "r", "--count", "20", "--prompt", "ab", "--threads", "1")
    assert first.code == 0 and first.out.startswith("ab")
    assert tcomp("generate", "r", "--count", "20", "--prompt", "ab", "--threads", "1").out == first.out
    more = tcomp("train", "--resume", "r", "--steps", "9")
    assert more.code == 0 and "step 9/9" in more.out and "step 6/9" not in more.out


def test_the_run_folder_is_numbered(tcomp: Tcomp, text: str) -> None:
    for name in ("runs/gpt2-tiny", "runs/gpt2-tiny-2"):
        assert f"run folder {name}:" in tcomp("train", *TINY, "--data", text, "--steps", "1").out
    refused(tcomp("train", *TINY, "--data", text, "--run", "runs/gpt2-tiny"), "already holds a run", "--resume")


def test_run_file_values_and_flags(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        f'steps = 2\nbatch = 1\nlength = 16\ndata = "{text}"\nsample = 0\nthreads = 1\nrun = "a"\n'
        "[dims]\nL = 1\nH = 2\nC = 16\n[hyper]\npeak_lr = 1e-3\nwarmup = 1\n"
    )
    result = tcomp("train", "--run-file", "run.toml", "--steps", "3")
    assert result.code == 0, result.error
    assert "step 3/3" in result.out and "lr 1.00e-03" in result.out
    assert "threads instead of 1" in tcomp("train", "--resume", "a", "--threads", "2").error


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("stesp = 3", ("unknown setting 'stesp'", "did you mean 'steps'?")),
        ("steps = 'three'", ("steps must be a whole number",)),
        ("steps = ", ("not a TOML file",)),
        ("steps = 0", ("steps = 0: must be at least 1",)),
        ("[hyper]\npeak_lr = 'x'", ("hyper.peak_lr must be a number",)),
        ("[hyper]\npeek_lr = 1.0", ("unknown hyperparameter 'peek_lr'",)),
        ("[dims]\nL = 1.5", ("dims.L must be a whole number",)),
    ],
)
def test_bad_run_files(toml: str, words: tuple[str, ...], tcomp: Tcomp, tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(toml)
    refused(tcomp("train", "--run-file", "run.toml", *TINY, "--data", text), *words)


def test_a_resumed_run_keeps_its_settings(tcomp: Tcomp, text: str) -> None:
    tcomp("train", *TINY, "--data", text, "--steps", "1", "--run", "r")
    refused(tcomp("train", "--resume", "r", "--lr", "1"), "cannot change when a run is resumed")
    refused(tcomp("train", "--resume", "nowhere"), "not a run folder")
    config = Path("r/run.json")
    config.write_text(config.read_text().replace('"threads": 1,', '"threads": 9999,'))
    refused(tcomp("train", "--resume", "r"), "threads = 9999: must be at most", "--threads")
    assert tcomp("train", "--resume", "r", "--threads", "1").code == 0
    config.write_text("{")
    refused(tcomp("train", "--resume", "r"), "run.json: damaged")
    refused(tcomp("generate", "r"), "run.json: damaged")


def test_bad_data(tcomp: Tcomp, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    refused(tcomp("train", *TINY, "--data", "missing.txt"), "missing.txt: no such file or folder")
    refused(tcomp("train", *TINY, "--data", str(empty)), "no text in it")
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 99
    tokens = tmp_path / "t.bin"
    tokens.write_bytes(header.tobytes() + np.full(99, 300, "<u2").tobytes())
    refused(tcomp("train", *TINY, "--data", str(tokens)), "token 300 at position 0", "vocabulary of 256")
    assert not (tmp_path / "runs").exists(), "a refused run leaves no folder"


def test_bad_checkpoints(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    tcomp("train", *TINY, "--data", text, "--steps", "3", "--save-every", "2", "--run", "r")
    folder = tmp_path / "r" / "checkpoints"
    tensors = [folder / f"step-00000{i}" / "tensors.safetensors" for i in (2, 3)]
    os.truncate(tensors[1], 1000)
    result = tcomp("train", "--resume", "r")
    assert result.code == 0 and "truncated" in result.error
    assert "step-000003" in result.error and "using the checkpoint before it, step-000002" in result.error
    for path in folder.glob("step-*/tensors.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 255
        path.write_bytes(data)
    refused(tcomp("train", "--resume", "r"), "no usable checkpoint", "checksum does not match")
    refused(tcomp("generate", "r"), "no usable checkpoint")


def test_a_damaged_checkpoint_does_not_push_out_a_good_one(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    tcomp("train", *TINY, "--data", text, "--steps", "4", "--save-every", "2", "--run", "r")
    (tmp_path / "r" / "checkpoints" / "step-000004" / "manifest.json").unlink()
    result = tcomp("train", "--resume", "r", "--steps", "3", "--keep", "1")
    assert result.code == 0 and "step-000004: manifest.json: No such file" in result.error
    assert "using the checkpoint before it, step-000002" in result.error
    generated = tcomp("generate", "r", "--count", "2", "--threads", "1")
    assert generated.code == 0 and "using the checkpoint before it, step-000003" in generated.error


def test_a_checkpoint_of_another_model(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    tcomp("train", *TINY, "--data", text, "--steps", "1", "--run", "r")
    config = tmp_path / "r" / "run.json"
    config.write_text(config.read_text().replace('"C": 16', '"C": 32'))
    refused(tcomp("train", "--resume", "r", "--steps", "2"), "made with C = 16, this model has 32")
    refused(tcomp("generate", "r"), "made with C = 16, this model has 32")
    config.write_text(config.read_text().replace('"config": "tiny"', '"config": "124M"'))
    refused(tcomp("train", "--resume", "r", "--steps", "2"), "a checkpoint of gpt2 tiny, not of gpt2 124M")


def test_unwritable_cache_folder(tcomp: Tcomp, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCOMP_CACHE", text + "/below")
    refused(tcomp("train", *TINY, "--data", text), "cache folder", "cannot be written", "TCOMP_CACHE")


def test_a_full_disk_while_saving(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the save fails, the old checkpoint stays usable."""
    tcomp("train", *TINY, "--data", text, "--steps", "1", "--run", "r")
    limited = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "import sys; sys.argv = ['tcomp', 'train', '--resume', 'r', '--steps', '2']; "
        "from tcomp.cli.main import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    refused(Result(found.returncode, found.stdout, found.stderr), "cannot save the checkpoint", "is kept")
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-000001"]
    assert tcomp("train", "--resume", "r", "--steps", "2").code == 0


DISK = """
set -e
mount -t tmpfs -o size=256k none small
cp -r r small
cd small
tcomp() { "$PYTHON" -m tcomp.cli.main "$@"; }
head -c 1m /dev/zero > filler 2> /dev/null || true
truncate -s -16k filler
code=0; tcomp train --resume r --steps 2 > /dev/null || code=$?
ls r/checkpoints
test $code = 2
rm filler
tcomp train --resume r --steps 3 | tail -n 1
"""


def test_a_small_disk_that_fills_up(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    """A file system of 256 KiB in a mount namespace of the test's own, which ends with it."""
    (tmp_path / "small").mkdir()
    own = ["unshare", "-rm", "bash", "-c"]
    if shutil.which("unshare") is None or subprocess.call(
        [*own, "mount -t tmpfs none small"], stderr=subprocess.DEVNULL
    ):
        pytest.skip("this machine lets no user mount a file system")
    tcomp("train", *TINY, "--data", text, "--steps", "1", "--run", "r")
    environment = {**os.environ, "PYTHON": sys.executable}
    found = subprocess.run([*own, DISK], capture_output=True, text=True, check=False, env=environment)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[0] == "step-000001" and "run folder r" in found.stdout.splitlines()[-1]
    assert found.stderr.count("error:") == 1 and "Traceback" not in found.stderr
    assert "No space left on device; step-000001 is kept" in found.stderr
