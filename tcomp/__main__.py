"""`python -m tcomp` and the `tcomp` script: the command line. Nothing is imported before Ctrl-C is looked after."""

import sys


def main() -> None:
    """Run the command line; ends the process."""
    try:
        from tcomp.cli.main import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
