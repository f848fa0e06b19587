"""The executor on the virtual GPU's driver, with kernels written by hand: values, batches, graphs, faults."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as cu

from tcomp.dsl.ast import Span
from tcomp.errors import UserError
from tcomp.machine.gpu import H100
from tcomp.runtime.cuda.context import Context
from tcomp.runtime.cuda.device import CudaDevice
from tcomp.runtime.cuda.driver import CudaError
from tcomp.runtime.cuda.gpus import choose, gpus, machine_of
from tcomp.runtime.cuda.kernels import load_all
from tcomp.runtime.peers import PeerFailed
from tests.runtime.cuda.hand_made import N, kernels

W = np.arange(N, dtype=np.float32) / 8


def feed(executor: Any, number: int) -> np.ndarray[Any, Any]:
    """Give a batch; what `add` makes of it."""
    with executor.batch() as inputs:
        inputs["tokens"][...] = number + np.arange(4).reshape(2, 2)
        inputs["targets"][...] = -1
    return np.tile(number + np.arange(4), N // 4).astype(np.float32)


@pytest.mark.parametrize("graph", [True, False])
def test_programs_compute_what_their_kernels_say(hand_made: Any, virtual: Any, graph: bool) -> None:
    executor = hand_made(graph=graph)
    executor.write("w", W)
    added = feed(executor, 3)
    executor.run("micro_first")
    loss = executor.fetch("loss")
    executor.run("update")
    executor.run("nothing")
    want = W + np.float32(0.5) * added
    assert float(loss.value()) == want.sum()
    np.testing.assert_array_equal(executor.read("w"), want[::-1])
    assert (executor.read("targets") == -1).all()
    assert [r.kernel for r in virtual.reports] == ["add", "total_0", "total_1", "reverse"]
    assert not virtual.findings


def test_batches_and_results_keep_their_order_without_waiting(hand_made: Any) -> None:
    executor = hand_made()
    executor.write("w", W)
    want, losses, w = [], [], W.copy()
    for number in range(9):
        rate = np.float32(0.25 * number)
        executor.write("lr", rate)
        w += rate * feed(executor, number)
        executor.run("micro_first")
        losses.append(executor.fetch("loss"))
        want.append(w.sum())
    assert [float(r.value()) for r in reversed(losses)] == want[::-1]
    assert losses[0].ready and float(losses[0].value()) == want[0]


def test_a_reading_tells_when_it_is_there(hand_made: Any) -> None:
    executor = hand_made()
    executor.write("lr", 2.0)
    reading = executor.fetch("lr")
    executor.write("lr", 3.0)
    executor.wait()
    assert reading.ready and reading.value() == 2.0 and executor.read("lr") == 3.0


def test_slots_are_written_filled_and_read_in_part(hand_made: Any) -> None:
    executor = hand_made()
    with executor.fill("w") as w:
        w[...] = W
    np.testing.assert_array_equal(executor.read_part("w", 5, 9), W[5:9])
    assert executor.read_part("w", 5, 5).size == 0
    executor.write("w", 1)
    assert (executor.read("w") == 1).all()
    executor.write("step", 7)
    assert executor.read("step") == 7 and executor.read("step").shape == ()
    executor.write("half", np.full((5, 3), 1.5))
    assert (executor.read("half") == 0x3FC0).all()
    assert executor.read("lr") == 0.5, "the step's scalars are there from the start"


def test_a_batch_that_fails_to_fill_is_not_sent(hand_made: Any) -> None:
    executor = hand_made()
    feed(executor, 1)
    with pytest.raises(ValueError, match="no data"), executor.batch() as inputs:
        inputs["tokens"][...] = 99
        raise ValueError("no data")
    feed(executor, 5)
    assert executor.read("tokens")[0, 0] == 5


def test_profile_names_and_times_every_launch(hand_made: Any) -> None:
    executor = hand_made()
    executor.write("w", W)
    feed(executor, 0)
    found = executor.profile("micro_first")
    assert [label for label, _ in found] == ["the add", "the total (1/2)", "the total (2/2)"]
    assert all(ms > 0 for _, ms in found)
    assert executor.read("loss") == W.sum() + 0.5 * 1.5 * N


def test_more_than_48_kilobytes_of_shared_memory(hand_made: Any) -> None:
    executor = hand_made(shared_bytes=200_000)
    executor.write("w", W)
    executor.run("update")
    np.testing.assert_array_equal(executor.read("w"), W[::-1])
    with pytest.raises(
        UserError, match=r"kernel reverse takes 300000 bytes of shared memory, a block of .* has 232448"
    ):
        hand_made(shared_bytes=300_000)


@pytest.mark.parametrize(("cluster", "shared", "columns"), [(1, 120_000, 0), (2, 120_000, 0), (1, 40_000, 512)])
def test_blocks_that_wait_for_each_other_must_all_have_room(
    virtual: Any, cluster: int, shared: int, columns: int
) -> None:
    """With 120 KB of shared memory an H100's 132 multiprocessors have one block each; so would those with 512 columns
    of tensor memory, if a block took all."""
    made = kernels(shared_bytes=shared)["reverse"]
    ptx = made.ptx.replace("\n{", f"\n.reqntid {N}\n.reqnctapercluster {cluster}\n{{", 1) if cluster > 1 else made.ptx
    context = Context(choose("", gpus()))

    def load(blocks: int, resident: bool = True) -> None:
        launch = replace(made.launches[0], blocks=blocks, cluster=cluster, resident=resident, tensor_columns=columns)
        machine = replace(H100, tensor_columns=512)
        load_all(context, {"reverse": replace(made, ptx=ptx, launches=(launch,))}, machine)

    try:
        load(132)
        load(134, resident=False)
        with pytest.raises(UserError, match=r"kernel reverse wait for each other, .* has room for 132 of its 134"):
            load(134)
    finally:
        context.close()


def test_a_kernel_that_does_not_assemble_is_named_with_its_schedules_line(virtual: Any) -> None:
    made = kernels(shared_bytes=0)["reverse"]
    broken = replace(made, ptx=made.ptx.replace("ret;", "no.such.instruction;\nret;", 1))
    context, span = Context(choose("", gpus())), Span("mine.tc", 7, 3, 7, 9)
    try:
        with pytest.raises(UserError, match=r"^mine\.tc:7:3: kernel reverse: the PTX does not assemble for sm_90a"):
            load_all(context, {"reverse": broken}, H100, spans={"reverse": span})
    finally:
        context.close()


def test_a_graph_is_recorded_once(hand_made: Any) -> None:
    executor = hand_made()
    executor.write("w", W)
    for turn in range(3):
        executor.run("update")
        np.testing.assert_array_equal(executor.read("w"), W[::-1] if turn % 2 == 0 else W)
    assert len(executor._graphs) == 1


def test_a_fault_names_its_launch_when_launches_are_waited_for(hand_made: Any) -> None:
    executor = hand_made(graph=False)
    executor.write("w", W)
    feed(executor, 0)
    with pytest.raises(CudaError, match="a kernel failed in the fault: ") as e:
        executor.run("fault")
    assert e.value.sticky and "in kernel fault: " in e.value.message


def test_a_launch_that_is_waited_for_may_wait_for_another_process(
    hand_made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is before it on the stream may be NCCL's, of a rank that is gone."""
    executor = hand_made(graph=False)

    def look() -> None:
        raise PeerFailed("rank 0 has lost another rank", "look")

    with monkeypatch.context() as m:
        m.setattr(cu, "cuStreamQuery", lambda _: (cu.CUresult.CUDA_ERROR_NOT_READY,))
        executor.context.look = look
        with pytest.raises(PeerFailed):
            executor.run("update")
    executor.context.look = None


def test_a_fault_in_a_graph_comes_with_what_the_checks_found(hand_made: Any) -> None:
    executor = hand_made()
    executor.write("w", W)
    feed(executor, 0)
    executor.run("fault")
    with pytest.raises(CudaError, match=r"in a launch of program 'fault'.*") as e:
        executor.fetch("loss").value()
    assert "in kernel fault: " in e.value.message and "PTX line" in e.value.message
    executor.close()
    after = hand_made()
    after.write("w", W)
    after.run("update")
    np.testing.assert_array_equal(after.read("w"), W[::-1])


def test_findings_end_in_an_error(hand_made: Any, virtual: Any) -> None:
    executor = hand_made()
    device = CudaDevice(gpus()[0], executor.machine, virtual=virtual)
    device.finish()
    executor.run("careless")
    executor.wait()
    with pytest.raises(UserError, match=r"found \d+ faults? in the kernels") as e:
        device.finish()
    assert "in kernel careless: " in e.value.message


def test_too_little_memory_is_one_message(hand_made: Any) -> None:
    with pytest.raises(UserError, match=r"the step needs 1,024.00 GiB on GPU 0, .*, where [\d,.]+ [GM]iB are free"):
        hand_made(arena_bytes=1 << 40)
    assert hand_made().context.free_memory() > 1 << 30, "what a refused step had taken was given back"


def test_closing_gives_the_memory_back(hand_made: Any) -> None:
    first = hand_made()
    free = first.context.free_memory()
    second = hand_made(arena_bytes=1 << 28)
    assert first.context.free_memory() <= free - (1 << 28)
    second.close()
    second.close()
    assert first.context.free_memory() == free


def test_kernels_for_an_older_gpu_run_through_the_drivers_compiler(hand_made: Any) -> None:
    executor = hand_made(machine="a100")
    executor.write("w", W)
    executor.run("update")
    np.testing.assert_array_equal(executor.read("w"), W[::-1])


def test_kernels_for_another_gpu_are_refused(hand_made: Any) -> None:
    with pytest.raises(UserError, match=r"compiled for sm_100a, and GPU 0, .*, is sm_90"):
        hand_made(machine="b200")


def test_the_machine_is_read_from_the_device(virtual: Any) -> None:
    from tcomp.machine.gpu import H100

    found = machine_of(gpus()[0])
    for name in ("name", "target", "sms", "shared_per_block", "threads_per_sm", "l2_bytes", "memory_bandwidth"):
        assert getattr(found, name) == getattr(H100, name), name


# ---------------------------------------------------------------------------- drivers, one a process


def in_a_process(program: str) -> tuple[int, str]:
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    return found.returncode, found.stdout + found.stderr


REPORT = """
from tcomp.dsl.ast import Span
from tcomp.errors import UserError
from tcomp.runtime.cuda.gpus import gpus
try:
    print(len(gpus()), "GPUs")
except UserError as e:
    print("refused:", e)
"""


def test_an_old_driver(virtual: Any) -> None:
    install = "from tcomp.runtime.vgpu.shim import install, ShimOptions\n"
    code, out = in_a_process(install + "install('h100', options=ShimOptions(driver_version=11040))\n" + REPORT)
    assert code == 0 and "refused: the NVIDIA driver is too old: it is for CUDA 11.4" in out, out
    assert "install a driver for CUDA 12.0 or newer" in out


def test_several_gpus(virtual: Any) -> None:
    install = "from tcomp.runtime.vgpu.shim import install\ninstall('a100', 3)\n"
    assert in_a_process(install + REPORT) == (0, "3 GPUs\n")


def test_no_driver(no_driver: None) -> None:
    code, out = in_a_process(REPORT)
    assert code == 0 and "refused: no NVIDIA driver: the library libcuda.so.1 was not found" in out, out
