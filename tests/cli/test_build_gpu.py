"""`tcomp build --target`: the table, the findings at their schedule's line, --strict, what the folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tcomp.cli import build_gpu
from tcomp.cli.common import build_step
from tcomp.cli.options import TargetOptions
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import H100, MACHINES, GpuMachine, machine_named
from tcomp.model.request import StepRequest
from tests.cli.support import Tcomp, refused
from tests.tcomp import ptx_samples as samples

SMALL = ["gpt2", "--dim", "L=1", "--dim", "H=2", "--dim", "C=16", "-B", "2", "-T", "16"]

ONE = ("gpt2", "sm_100a")
"""The model and target that each run builds; the slow tests have the others."""


@dataclass(frozen=True)
class Shape:
    symbol: str
    blocks: int = 100
    threads: int = 128
    shared_bytes: int = 0
    tensor_columns: int = 0


@dataclass(frozen=True)
class Code:
    ptx: str
    launches: tuple[Shape, ...]


Generate = Callable[[Kernel], Code]


TOUCHED = "FENCE|MMA|add.f32 %f1, %a3, %a0;|st.global.f32 [%d1+9000], %f1;|MMA|COMMIT|WAIT"
"""accumulators read before their product is waited for"""


def clean(kernel: Kernel) -> Code:
    return Code(samples.kernel("bar.sync 0;", bounds=".maxntid 128, 1, 1"), (Shape("k"),))


@pytest.fixture
def generated_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Generate], None]:
    """Let PTX of the test's own stand for the code generator's."""

    def install(generate: Generate) -> None:
        monkeypatch.setattr(build_gpu, "generator", lambda machine, cache: generate)

    return install


def only(name: str, code: Code) -> Generate:
    """That code for the kernel of that name, clean code for the others."""
    return lambda kernel: code if kernel.name == name else clean(kernel)


def test_a_clean_build(tcomp: Tcomp, generated_by: Callable[[Generate], None], tmp_path: Path) -> None:
    generated_by(clean)
    result = tcomp("build", *SMALL, "--target", "sm_90a", "--strict")
    assert result.code == 0, result.error
    assert "NVIDIA H100 SXM 80 GB (sm_90a)" in result.out and "100%  16 blocks by threads" in result.out
    assert "findings    none" in result.out
    folder = tmp_path / "build" / "gpt2-tiny-sm_90a"
    table = json.loads((folder / "table.json").read_text())
    assert (table["machine"], table["target"]) == ("h100", "sm_90a") and table["assembler"].startswith("nvjitlink ")
    names = [k["name"] for k in table["kernels"]]
    assert "layernorm" in names and len(names) == len(set(names)) > 20
    for name in names:
        assert (folder / "ptx" / f"{name}.ptx").read_text().startswith(".version")
        assert (folder / "cubin" / f"{name}.cubin").read_bytes().startswith(b"\x7fELF")
    launch = table["kernels"][0]["launches"][0]
    assert launch["resources"]["barriers"] == 1 and launch["occupancy"]["blocks"] == 16
    assert not (folder / "llvm").exists()
    for file in ("ast.txt", "schedules.tc", "tile.txt", "plan.txt", "launches.txt", "kernels.txt", "summary.txt"):
        assert (folder / file).read_text().strip()
    assert "grid" in (folder / "schedules.tc").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_our_own_kernels_have_no_findings(target: str, tcomp: Tcomp) -> None:
    result = tcomp("build", *SMALL, "--target", target, "--strict")
    assert result.code == 0, result.out + result.error
    assert result.out.count("tc_layernorm_0") == 1


@pytest.mark.parametrize(
    ("model", "target"),
    [
        pytest.param(model, target, marks=[] if (model, target) == ONE else pytest.mark.slow(seconds=6))
        for model in ("gpt2", "llama")
        for target in ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
    ],
)
def test_tiny_steps_are_built_for_every_target_without_findings(model: str, target: str, tcomp: Tcomp) -> None:
    """By each target's own schedules, whose products use its matrix units."""
    size = ("--config", "tiny", "-B", "2", "-T", "64", "--precision", "bf16", "--lock", "none")
    result = tcomp("build", model, *size, "--target", target, "--strict")
    assert result.code == 0, result.out + result.error
    assert "findings    none" in result.out


@pytest.mark.slow(seconds=11)
@pytest.mark.parametrize("model,config,batch", [("gpt2", "124M", 4), ("gpt2", "124M", 16), ("llama", "smollm_135M", 4)])
def test_a_full_size_step_by_the_shipped_lockfile_has_no_findings(
    model: str, config: str, batch: int, tcomp: Tcomp
) -> None:
    """No spill, no serialised wgmma, no setmaxnreg without effect, no schedule that is not taken."""
    size = ("--config", config, "-B", str(batch), "-T", "1024", "--precision", "bf16")
    result = tcomp("build", model, *size, "--target", "sm_90a", "--strict")
    assert result.code == 0, result.out + result.error
    assert "findings    none" in result.out and "op instances by" in result.out and f"{model}.h100.lock" in result.out


@pytest.mark.slow
@pytest.mark.parametrize("model,length", [("gpt2", 130), ("llama", 131)])
def test_attention_of_at_most_two_turns_is_not_serialised(model: str, length: int) -> None:
    request = StepRequest(
        model, "tiny", {"B": 1, "T": length}, {"S" if model == "gpt2" else "V": 256}, precision="bf16"
    )
    step = build_step(request, build_gpu.TargetDevice(H100)).step
    built = build_gpu.build_kernels([k for n, k in step.kernels.items() if "attention" in n], H100)
    assert len(built.reports) >= 3 and not any("serialized" in line for line in built.findings)


def test_findings_stand_at_the_schedule_and_fail_a_strict_build(
    tcomp: Tcomp, generated_by: Callable[[Generate], None], tmp_path: Path
) -> None:
    spilling = samples.SPILLS.replace("(.param .u64 p)", "(.param .u64 p) .maxntid 1024, 1, 1 .minnctapersm 2")
    code = Code(spilling, (Shape("k", 7, 1024, 0),))
    generated_by(only("layernorm", code))
    result = tcomp("build", *SMALL, "--target", "sm_90a")
    assert result.code == 0
    (line,) = [x for x in result.out.splitlines() if "warning:" in x]
    assert "ops/layernorm.tc:" in line and "kernel k:" in line and "[spill]" in line
    assert "help: use a smaller register tile" in result.out and "findings    1" in result.out
    row = next(x.split() for x in result.out.splitlines() if x.split()[:3] == ["k", "7", "1024"])
    assert row[3] == "32" and int(row[4]) > 100, "registers, spilled bytes"
    strict = tcomp("build", *SMALL, "--target", "sm_90a", "--strict")
    refused(strict, "the build has 1 finding,", "strict", "without --strict")
    assert "[spill]" in strict.out, "the findings are shown all the same"
    table = json.loads((tmp_path / "build" / "gpt2-tiny-sm_90a" / "table.json").read_text())
    (kernel,) = [k for k in table["kernels"] if k["findings"]]
    assert kernel["name"] == "layernorm" and kernel["findings"][0]["code"] == "spill"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (Code(samples.WGMMA_WITHOUT_WAIT, (Shape("k"),)), ("wgmma.wait_group is injected", "C7517")),
        (Code(samples.wgmma_tile(64, TOUCHED), (Shape("k"),)), ("wgmma.mma_async instructions are serialized",)),
        (Code(samples.SETMAXNREG, (Shape("k"),)), ("setmaxnreg", "install ptxas", "C7504")),
        (Code(samples.STACK, (Shape("k"),)), ("256 bytes of local memory", "unroll the loop that indexes it")),
        (Code(samples.WGMMA_AND_PRINTF, (Shape("k"),)), ("calls vprintf", "must be inlined")),
        (Code(samples.WGMMA, (Shape("k", shared_bytes=300000),)), ("cannot run on h100: shared memory of 300000",)),
        (Code(samples.SHARED, (Shape("k"),)), ("50000 bytes of static shared memory",)),
    ],
    ids=["wait", "serialised", "setmaxnreg", "stack", "call", "launch", "static shared"],
)
def test_each_kind_of_finding(
    code: Code,
    words: tuple[str, ...],
    tcomp: Tcomp,
    generated_by: Callable[[Generate], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As without ptxas, whose place nvJitLink takes: setmaxnreg has no effect in what it makes."""
    monkeypatch.setattr("tcomp.codegen.nvptx.assembly.assemble.whole_program_tool", lambda _: None)
    generated_by(only("layernorm", code))
    result = tcomp("build", *SMALL, "--target", "sm_90a", "--strict")
    refused(result, "and it is strict")
    (line,) = [x for x in result.out.splitlines() if words[0] in x]
    assert "ops/layernorm.tc:" in line
    for word in words:
        assert word in result.out


def test_ptx_that_does_not_assemble_is_one_message(
    tcomp: Tcomp, generated_by: Callable[[Generate], None], tmp_path: Path
) -> None:
    bad = Code(samples.kernel("addx.f32 %f1, %f2, %f3;"), (Shape("k"),))
    generated_by(only("layernorm", bad))
    result = tcomp("build", *SMALL, "--target", "sm_90a")
    refused(result, "ops/layernorm.tc:", "kernel layernorm: the PTX does not assemble for sm_90a", "8 | addx.f32")
    assert not (tmp_path / "build").exists()


def test_every_launch_has_its_row(generated_by: Callable[[Generate], None]) -> None:
    two = samples.kernel(name="a", target="sm_80", version="7.0") + (".visible .entry b(.param .u64 p)\n{\nret;\n}\n")
    generated_by(lambda kernel: Code(two, (Shape("a", 3), Shape("b", 1, 32, 1000))))
    kernel = Kernel("both", (), (), (), frozenset(), frozenset())
    built = build_gpu.build_kernels([kernel, replace(kernel, name="more")], machine_named("a100"))
    assert [[x.symbol for x in r.launches] for r in built.reports] == [["a", "b"]] * 2
    assert built.reports[0].launches[1].occupancy.limit == "blocks" and built.count == 0
    assert built.table.count("\n") >= 6


def test_targets_and_gpus(tcomp: Tcomp) -> None:
    refused(tcomp("build", "gpt2", "--target", "sm_91"), "no GPU target 'sm_91'", "sm_90a")
    refused(tcomp("build", "gpt2", "--gpu", "h300"), "no description of a GPU 'h300'", "known GPUs")
    refused(tcomp("build", "gpt2", "--gpu", "a100", "--target", "sm_90a"), "a100 is of target sm_80", "leave out")
    refused(tcomp("build", "gpt2", "--strict"), "--strict is for GPU targets")
    machines: dict[tuple[str, str], GpuMachine | None] = {
        ("", ""): None, ("cpu", ""): None, ("sm_90a", ""): MACHINES["h100"], ("sm_90a", "h200"): MACHINES["h200"],
        ("", "rtx4090"): MACHINES["rtx4090"],
    }  # fmt: skip
    for (target, gpu), machine in machines.items():
        assert TargetOptions(target, gpu).machine() is machine


def test_a_step_that_does_not_fit_the_gpu(tcomp: Tcomp) -> None:
    arguments = ["build", "gpt2", "--config", "124M", "-B", "512", "-T", "1024", "--gpu", "rtx4090"]
    refused(tcomp(*arguments), "the step needs", "the limit is 23.00 GiB")
