"""`python -m tcomp.runtime.vgpu.shim` prints the folder of libcuda.so.1, for LD_LIBRARY_PATH."""

from __future__ import annotations

import sys

from tcomp.errors import UserError


def main() -> int:
    try:
        from tcomp.runtime.vgpu.shim.load import library

        print(library().parent)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
