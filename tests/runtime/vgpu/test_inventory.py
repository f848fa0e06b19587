"""Every instruction form of the inventory decodes, and targets have what ptxas says they have."""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_right
from pathlib import Path

import pytest

from tcomp.errors import UserError
from tcomp.runtime.vgpu import Device, PtxError, UnknownInstruction
from tcomp.runtime.vgpu.targets import needs
from tests.runtime.vgpu.conftest import REGISTERS, find_nvcc
from tests.runtime.vgpu.inventory import GROUPS, lines


def module(instructions: list[str], target: str = "sm_90a", version: str = "9.0") -> str:
    """A kernel for each instruction; it is jumped over, so it is decoded but not executed."""
    wide = ".reg .b128 %rq<2>;" if any("%rq" in i for i in instructions) else ""
    text = f".version {version}\n.target {target}\n.address_size 64\n"
    for n, i in enumerate(instructions):
        text += (
            f".visible .entry k{n}(.param .u64 x)\n.maxntid 128\n{{\n{REGISTERS}{wide}\n"
            f".shared .align 128 .b8 buf{n}[4096];\nld.param.u64 %rd0, [x]; setp.eq.u64 %p29, %rd0, 1; @%p29 bra END;\n"
            f"{i.replace('buf', f'buf{n}')}\nEND: ret;\n}}\n"
        )
    return text


def decode(instruction: str, target: str = "sm_90a", version: str = "9.0", sm: int = 90) -> None:
    Device(sm).load(module([instruction], target, version)).launch("k0", 1, 32, [1])


@pytest.mark.parametrize("group", GROUPS)
def test_every_form_is_executed(group: str) -> None:
    missing = []
    for i in lines(GROUPS[group]):
        try:
            decode(i)
        except PtxError as e:
            missing.append(f"{i}  {e}")
    assert not missing, "\n".join(missing)


LATER = """
tcgen05.fence::before_thread_sync #
clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 %p1, %rq0
st.bulk.weak.shared::cta [buf], 16, 0
multimem.ld_reduce.relaxed.sys.global.add.u32 %r1, [%rd0]
cvt.rn.satfinite.e2m1x2.f32 %h1, %f1, %f2
cvt.rs.f16x2.f32 %r1, %f1, %f2, %r3
cvt.rz.satfinite.ue8m0x2.f32 %h1, %f1, %f2
cvt.rn.satfinite.e4m3x2.bf16x2 %h1, %r2
redux.sync.min.f32 %f1, %f2, -1
ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%r1, %r2}, [buf]
txq.width.b32 %r1, [%rd0]
tex.2d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [%rd0, {%r1, %r2}]
mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r1}, {%r1}, {%f1, %f2, %f3, %f4}, %r1, 0
frobnicate.f32 %f1, %f2
"""


@pytest.mark.parametrize("instruction", lines(LATER))
def test_what_there_is_not_is_named_with_its_line(instruction: str) -> None:
    opcode = instruction.split()[0].rstrip(";")
    with pytest.raises(PtxError, match=rf"PTX line \d+: .*`{re.escape(opcode)}`"):
        decode(instruction)


@pytest.mark.parametrize(
    ("instruction", "target", "version"),
    [
        ("wgmma.fence.sync.aligned;", "sm_90a", "8.0"),
        ("setmaxnreg.dec.sync.aligned.u32 40;", "sm_90a", "8.0"),
        ("stmatrix.sync.aligned.m8n8.x1.shared.b16 [buf], {%r1};", "sm_90", "7.8"),
        ("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [buf];", "sm_75", "6.5"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2, %r3, %r4}, {%r1, %r2},"
         " {%f1, %f2, %f3, %f4};", "sm_80", "7.0"),
        ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2, %r3, %r4}, {%r1, %r2},"
         " {%f1, %f2, %f3, %f4};", "sm_89", "8.4"),
        ("cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, %f2;", "sm_89", "7.8"),
        ("add.rn.bf16 %h1, %h2, %h3;", "sm_90", "7.8"),
        ("red.global.v2.f32.add [%rd0], {%f1, %f2};", "sm_90", "8.1"),
        ("redux.sync.add.u32 %r1, %r2, -1;", "sm_80", "7.0"),
        ("elect.sync %r1|%p1, -1;", "sm_90", "8.0"),
        ("add.rn.f32.f16 %f1, %h1, %f2;", "sm_100", "8.6"),
        ("fma.rn.f32x2 %rd1, %rd2, %rd3, %rd4;", "sm_100", "8.6"),
    ],
)  # fmt: skip
def test_targets_and_versions(instruction: str, target: str, version: str) -> None:
    opcode = instruction.split()[0].rstrip(";")
    least, exact, since = needs(opcode)
    assert (f"sm_{least}{'a' * exact}", ".".join(map(str, since))) == (target, version)
    lower = {
        "sm_100": "sm_90",
        "sm_90a": "sm_90",
        "sm_90": "sm_89",
        "sm_89": "sm_80",
        "sm_80": "sm_75",
        "sm_75": "sm_70",
    }[target]
    with pytest.raises(PtxError, match=f"needs {target}, this module is for {lower}"):
        decode(instruction, lower)
    with pytest.raises(PtxError, match=f"came with PTX {version}, this module says 6.0"):
        decode(instruction, target, "6.0", max(90, least))


def test_a_device_runs_modules_for_its_own_capability_and_below() -> None:
    decode("add.u32 %r1, %r2, %r3;", "sm_80", sm=80)
    decode("add.u32 %r1, %r2, %r3;", "sm_80", sm=90)
    for target, sm in (("sm_90", 80), ("sm_90a", 89), ("sm_100", 90), ("sm_80a", 90)):
        with pytest.raises(UserError, match=f"this module is for {target}, the virtual GPU is sm_{sm}"):
            decode("add.u32 %r1, %r2, %r3;", target, sm=sm)


def refused_by_ptxas(ptxas: str, folder: Path, target: str, version: str, instructions: list[str]) -> set[int]:
    """Which instructions ptxas does not take."""
    text = module(instructions, target, version)
    source = folder / "all.ptx"
    source.write_text(text)
    arch = "sm_90a" if target.startswith("sm_9") else target
    done = subprocess.run([ptxas, f"-arch={arch}", "-c", str(source), "-o", str(folder / "all.cubin")],
                          capture_output=True, text=True, check=False)  # fmt: skip
    starts = [n for n, line in enumerate(text.splitlines(), 1) if line.startswith(".visible")]
    errors = re.findall(r"line (\d+); error", done.stderr)
    return {bisect_right(starts, int(n)) - 1 for n in errors}


@pytest.mark.slow
def test_ptxas_agrees(tmp_path: Path) -> None:
    """The inventory is PTX, and each target and version refuses the same instructions as ptxas does."""
    nvcc = find_nvcc()
    ptxas = Path(nvcc).with_name("ptxas") if nvcc else None
    if ptxas is None or not ptxas.exists():
        pytest.skip("no ptxas")
    everything = [i for g in GROUPS.values() for i in lines(g)]
    assert not refused_by_ptxas(str(ptxas), tmp_path, "sm_90a", "9.0", everything)
    for target in ("sm_80", "sm_89", "sm_90"):
        sm, suffix = int(target[3:]), target.endswith("a")
        refused = refused_by_ptxas(str(ptxas), tmp_path, target, "9.0", everything)
        assert refused
        for n, i in enumerate(everything):
            least, exact, _ = needs(i.split()[0].rstrip(";"))
            by_operand = "arrive.release.cta.shared::cta" in i  # ptxas counts the operands
            assert by_operand or (sm < least or (exact and not suffix)) == (n in refused), (target, i)


def test_unknown_modifiers_of_conversions_are_refused() -> None:
    with pytest.raises(UnknownInstruction, match=r"cvt has no \.wide"):
        decode("cvt.rn.wide.f32.f64 %f1, %fd2;")
