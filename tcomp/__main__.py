"""`python -m tcomp` and the `tcomp` script: the command line. Nothing is imported before Ctrl-C is looked after."""

import _thread
import gc
import os
import sys


def main() -> None:
    """Run the command line; ends the process."""
    # Compilers make trees by the million and few cycles: looking for those as often as usual takes a tenth of the time.
    # (Modules of LLVM are cycles: all are looked through as often as usual, or a search would grow for minutes.)
    gc.set_threshold(100_000, 50, 10)
    try:
        open_streams()
        limit_blas()
        from tcomp.cli.main import main as run

        run()
    except KeyboardInterrupt:  # before, or behind, what looks after it there
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def open_streams() -> None:
    """Let standard streams that the caller has closed (`>&-`) lead nowhere: Python has none in their places, and the
    next file that is opened would have their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115


def limit_blas() -> None:
    """Let NumPy's OpenBLAS do with the threads that this process may start.

    It starts one per processor as it is loaded, and interrupts the process (SIGINT) where it may not: in a container
    with a limit of tasks, say.
    """
    wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    started, gate = 1, _thread.allocate_lock()
    with gate:
        try:
            while started < min(wanted, 64):
                _thread.start_new_thread(_pass, (gate,))
                started += 1
        except RuntimeError:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", str(started))


def _pass(gate: _thread.LockType) -> None:
    with gate:
        pass


if __name__ == "__main__":
    main()
