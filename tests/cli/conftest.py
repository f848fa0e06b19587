"""Every test works in an empty folder of its own; `tcomp` runs the command line in this process."""

from tests.cli.support import own_folders, tcomp, text

__all__ = ["own_folders", "tcomp", "text"]
