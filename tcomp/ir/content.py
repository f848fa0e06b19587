"""IR data as text that is the same in every process: what cache keys are hashes of.

The order in which a set gives its members depends on the process's hash seed and on how the set was made (a copy that
went through pickle may differ from its original), and so does `repr`.
"""

from __future__ import annotations

import re

_SET = re.compile(r"frozenset\(\{(.*?)\}\)")
_MEMBER = re.compile(r"\([^()]*\)|'[^']*'")


def content_text(value: object) -> str:
    """`repr`, the members of frozensets (of names, or of tuples of names) in order."""
    return _SET.sub(lambda m: f"frozenset({{{', '.join(sorted(_MEMBER.findall(m[1])))}}})", repr(value))
