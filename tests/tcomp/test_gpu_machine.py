"""GPU machines and targets: what is known of them, and that the assembler agrees on PTX versions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.errors import UserError
from tcomp.machine.gpu import MACHINES, GpuMachine, machine_for_target, machine_named
from tcomp.machine.targets import FEATURES, TARGETS, VERSIONS, Feature, GpuTarget, target_named
from tests.tcomp import ptx_samples as samples


def test_machines_by_name_and_by_target() -> None:
    assert set(MACHINES) == {"h100", "h200", "a100", "l40s", "rtx4090", "rtx5090", "b200", "b300", "thor"}
    for name, m in MACHINES.items():
        assert machine_named(name) is m and m.name == name and m.target in TARGETS
    assert machine_named("RTX 4090").name == machine_named("rtx-4090").name == "rtx4090"
    defaults = {t: machine_for_target(t).name for t in TARGETS}
    assert defaults == {
        "sm_80": "a100", "sm_89": "rtx4090", "sm_90a": "h100", "sm_100a": "b200", "sm_103a": "b300",
        "sm_110a": "thor", "sm_120a": "rtx5090",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"(?s)no description of a GPU 'h10'.*did you mean 'h100'.*known GPUs: h100"):
        machine_named("h10")
    with pytest.raises(UserError, match=r"(?s)'toaster'.*known GPUs: .*b200"):
        machine_named("toaster")
    with pytest.raises(UserError, match="GPU targets: sm_80, sm_89, sm_90a, sm_100a, sm_103a, sm_110a, sm_120a"):
        machine_for_target("sm_50")


@pytest.mark.parametrize("machine", MACHINES.values(), ids=lambda m: m.name)
def test_figures_hang_together(machine: GpuMachine) -> None:
    assert TARGETS[machine.target].capability == machine.capability and TARGETS[machine.target].sm == machine.sm
    assert machine.shared_per_block + machine.shared_reserved == machine.shared_per_sm
    assert machine.registers_per_sm % (machine.partitions * machine.register_granularity) == 0
    bf16, tf32 = machine.tensor_rate("bf16"), machine.tensor_rate("tf32")
    assert bf16 is not None and tf32 is not None and bf16 / tf32 == pytest.approx(2, rel=0.03)
    assert machine.tensor_rate("f32") is None
    assert (machine.tensor_rate("e4m3") is None) == (machine.sm < 89)
    # Matrix units do a power of two of operations per clock and SM: rate, clock and number of SMs agree.
    per_clock = bf16 / machine.sms / machine.clock_hz
    assert per_clock == pytest.approx(2 ** round(math.log2(per_clock)), rel=0.02)
    assert machine.memory_bandwidth < machine.l2_bandwidth
    assert machine.tensor_columns == (512 if machine.matrix_path == "tcgen05" else 0)


def test_what_has_tcgen05_takes_its_schedules() -> None:
    for name in ("b300", "thor"):
        assert machine_named(name).targets[1] == "sm_100a"
    assert "sm_100a" not in machine_named("rtx5090").targets


def test_published_peaks() -> None:
    assert machine_named("h100").f32_flops == pytest.approx(61.8e12, rel=0.01)
    assert machine_named("a100").f32_flops == pytest.approx(19.5e12, rel=0.01)
    assert machine_named("rtx4090").f32_flops == pytest.approx(82.6e12, rel=0.01)


# ---------------------------------------------------------------------------------------- PTX versions


def accepted(sample: str, target: GpuTarget, version: tuple[int, int], folder: Path) -> bool:
    try:
        text = samples.kernel(sample, target=target.name, version="{}.{}".format(*version))
        assemble(text, target.name, folder)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_the_lowest_version_of_a_target(target: GpuTarget, tmp_path: Path) -> None:
    assert target.ptx_version() == target.version
    assert accepted("", target, target.version, tmp_path)
    before = VERSIONS.index(target.version) - 1
    assert before < 0 or not accepted("", target, VERSIONS[before], tmp_path)
    assert target.llvm_features() == "+ptx{}{}".format(*target.version)


SAMPLES = {
    "fp8.convert": "cvt.rn.satfinite.e4m3x2.f32 %h0, %f0, %f1;",
    "fp8.mma": "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
    "{%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f1, %f2, %f3};",
}


@pytest.mark.parametrize("feature", FEATURES.values(), ids=lambda f: f.name)
def test_the_lowest_version_of_a_feature(feature: Feature, tmp_path: Path) -> None:
    sample = SAMPLES[feature.name]
    for target in TARGETS.values():
        if target.name not in feature.targets:
            assert not accepted(sample, target, VERSIONS[-1], tmp_path)
            with pytest.raises(UserError, match=f"{target.name} has no {feature.name}"):
                target.ptx_version([feature.name])
            continue
        lowest = target.ptx_version([feature.name])
        assert accepted(sample, target, lowest, tmp_path)
        if lowest > target.version:
            assert not accepted(sample, target, VERSIONS[VERSIONS.index(lowest) - 1], tmp_path)


def test_a_module_gets_the_version_of_its_newest_feature() -> None:
    hopper = target_named("sm_90a")
    assert hopper.ptx_version(["fp8.convert"]) == (8, 0)
    assert hopper.ptx_version(["fp8.convert", "fp8.mma"]) == (8, 4)
    assert hopper.llvm_features(["fp8.convert", "fp8.mma"]) == "+ptx84"
    with pytest.raises(KeyError):
        hopper.ptx_version(["telepathy"])
