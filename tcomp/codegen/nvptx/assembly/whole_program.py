"""Modules that must be assembled as whole programs: those that move registers between warps (setmaxnreg).

nvJitLink assembles for linking, where a kernel's registers at entry are not its own to give away. ptxas, of NVIDIA's
package nvidia-cuda-nvcc or a CUDA toolkit, assembles whole programs; where it is not installed nvJitLink does all the
same, with the finding C7504.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tcomp.codegen.nvptx.assembly.tools import cuda_tool


def whole_program_tool(ptx: str) -> Path | None:
    """ptxas, for a module that needs it and where there is one."""
    return cuda_tool("ptxas") if "setmaxnreg" in ptx else None


@cache
def tool_version(tool: Path) -> str:
    """What the tool says of itself: "13.5.37"; "" when it does not run."""
    try:
        said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    found = re.search(r"V(\d[\d.]*)", said)
    return found[1] if found else ""


def assemble_whole(tool: Path, ptx: str, target: str, options: Sequence[str] = ()) -> tuple[bytes, str] | None:
    """The cubin and the log; None where the tool fails (it is older than the target, say): nvJitLink tells more."""
    with tempfile.TemporaryDirectory(prefix="tcomp-ptxas-") as folder:
        source, cubin = Path(folder) / "tcomp.ptx", Path(folder) / "tcomp.cubin"
        source.write_text(ptx)
        command = [str(tool), f"-arch={target}", "-v", *options, str(source), "-o", str(cubin)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return None
        if done.returncode or not cubin.is_file():
            return None
        lines = (done.stderr + done.stdout).splitlines()
        return cubin.read_bytes(), "".join(f"{line}\n" for line in lines if "Compile time" not in line)
