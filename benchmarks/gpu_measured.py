"""The static model beside what an H100 measured (docs/measurements/h100.toml): a table in Markdown for each precision.

python benchmarks/gpu_measured.py            nothing is run on a GPU
"""

from __future__ import annotations

from pathlib import Path

from tcomp.autotune.gpu_measured import beside, read_measurements, text_of
from tcomp.autotune.gpu_predict import predict_step
from tcomp.cli import common
from tcomp.cli.build_gpu import TargetDevice
from tcomp.machine.gpu import H100
from tcomp.runtime.cache import cache_folder
from tcomp.runtime.cuda.kernels import compile_all

FILE = Path(__file__).parent.parent / "docs" / "measurements" / "h100.toml"


def main() -> None:
    measured = read_measurements(FILE)
    for precision in measured.steps:
        step = common.build_step(
            "gpt2", "124M", 16, 1024, dims={}, accumulation=1, device=TargetDevice(H100), lock="none",
            precision=precision,
        ).step  # fmt: skip
        found = list(predict_step(step, H100, cache_folder("kernels")))
        codes = compile_all({k.name: step.kernels[k.name] for k, _ in found}, H100, cache_folder("kernels"))
        print(f"{precision}: {sum(k.seconds * n for k, n in found) * 1e3:.2f} ms predicted\n")
        print(text_of(beside(measured, precision, found, step.kernels, codes), {k.name: k for k, _ in found}))


if __name__ == "__main__":
    main()
