"""`python -m tcomp`: the command line, as `tcomp`."""

from tcomp.cli.main import main

if __name__ == "__main__":
    main()
