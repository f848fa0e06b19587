"""The process of one program of `tcomp bench`: `python -m tcomp.cli.bench_program NAME FOLDER STARTED ANSWERS`.

The command line's way of building a step (lockfile, memory budget), given to `tcomp.runtime.bench.program`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tcomp.runtime.bench import program

if TYPE_CHECKING:
    from tcomp.model.step import Step
    from tcomp.runtime.bench.workload import Workload
    from tcomp.runtime.device import Device


def build(workload: Workload) -> tuple[Step, Device]:
    """The step and device of a workload, as `tcomp train` would have them."""
    from tcomp.cli import common

    device = common.device_for(workload.device, gpu=workload.gpu, threads=workload.threads)
    return common.build_step(workload.request, device, free=False, to_run=True).step, device


if __name__ == "__main__":
    program.main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), build)
