"""Checkpoints that are damaged or do not fit, and disks that fill up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tcomp.cli.settings import KEPT, TrainSettings, as_json
from tests.cli.support import TINY, Result, Tcomp, refused


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


@pytest.mark.slow
def test_a_checkpoint_of_another_model(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    tcomp("train", *TINY, "--data", text, "--steps", "1", "--run", "r")
    config = tmp_path / "r" / "run.json"
    config.write_text(config.read_text().replace('"C": 16', '"C": 32'))
    refused(tcomp("train", "--resume", "r", "--steps", "2"), "made with C = 16, this model has 32")
    refused(tcomp("generate", "r"), "made with C = 16, this model has 32")
    config.write_text(config.read_text().replace('"config": "tiny"', '"config": "124M"'))
    refused(tcomp("train", "--resume", "r", "--steps", "2"), "a checkpoint of gpt2 tiny, not of gpt2 124M")


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
tcomp() { "$PYTHON" -m tcomp "$@"; }
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


@pytest.mark.parametrize("value", ["1e400", "-Infinity", "NaN", "1" + 30 * "0", "-1"])
def test_a_runs_settings_with_dims_that_no_run_had(value: str, tcomp: Tcomp, tmp_path: Path) -> None:
    settings = json.dumps(as_json(TrainSettings())).replace('"dims": {}', f'"dims": {{"L": {value}}}')
    (tmp_path / "run.json").write_text(settings)
    for command in (["generate", "."], ["eval", "."], ["export", ".", "--to-hf", "o"], ["train", "--resume", "."]):
        refused(tcomp(*command), "run.json", "help: put back a copy of the file, or name another run")
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_runs_settings_that_lack_one(tcomp: Tcomp, tmp_path: Path) -> None:
    """No default takes the place of what the run was."""
    whole = as_json(TrainSettings())
    for name in KEPT:
        (tmp_path / "run.json").write_text(json.dumps({k: v for k, v in whole.items() if k != name}))
        refused(tcomp("train", "--resume", "."), f"run.json: damaged: it has no '{name}'", "put back a copy")
    for command in (["generate", "."], ["eval", "."], ["export", ".", "--to-hf", "o"], ["train", "--init-from", "."]):
        refused(tcomp(*command), f"run.json: damaged: it has no '{KEPT[-1]}'")
