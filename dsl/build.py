"""From grammar rules to syntax tree: one method per rule of grammar.lark, called as the parser reduces it.

Each method takes the rule's children (tokens and nodes already built) and gives the node, with its span.
The rules live in build_expressions.py, build_ops.py, build_schedules.py and build_models.py.
"""

from __future__ import annotations

from tcomp.dsl import ast
from tcomp.dsl.build_expressions import Children
from tcomp.dsl.build_models import ModelRules
from tcomp.dsl.build_ops import OpRules
from tcomp.dsl.build_schedules import ScheduleRules


class Builder(OpRules, ScheduleRules, ModelRules):
    """lark's embedded transformer. `begin` must be called with the text before each parse."""

    def import_item(self, c: Children) -> ast.Import:
        return ast.Import(str(c[1]), str(c[2] or ""), self._token_span(c[1]))

    def file(self, c: Children) -> tuple[ast.Item, ...]:
        items: list[ast.Item] = []
        for x in c:
            if isinstance(x, list):
                items.extend(x)
            else:
                items.append(x)
        return tuple(items)
