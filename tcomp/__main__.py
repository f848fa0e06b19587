"""`python -m tcomp`: the command line, as `tcomp`."""

from tcomp.cli.main import main

main()
