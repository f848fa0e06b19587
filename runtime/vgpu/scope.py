"""Nested name scopes of a PTX function. A name that hides an outer one gets a suffix, so it stays unique."""

from __future__ import annotations


class Scope:
    def __init__(self, parent: Scope | None) -> None:
        self.parent = parent
        self.names: dict[str, str] = {}
        self.counter: list[int] = parent.counter if parent and parent.parent else [0]

    def declare(self, name: str) -> str:
        """The unique name by which `name` is known from here inward."""
        if self.parent is None or self.parent.parent is None:
            self.names[name] = name
            return name
        self.counter[0] += 1
        base, dot, part = name.partition(".")
        self.names[name] = f"{base}@{self.counter[0]}{dot}{part}"
        return self.names[name]

    def find(self, name: str) -> str:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return name
