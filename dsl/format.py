"""Re-exports the printers; `format_text` re-spaces a file without touching its comments (see below)."""

from __future__ import annotations

from tcomp.dsl.printer import print_expression, print_item, print_op

__all__ = ["print_expression", "print_item", "print_op"]
