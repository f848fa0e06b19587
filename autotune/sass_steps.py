"""What each instruction makes of a warp's values, read once for all warps that pass it.

`decoded` turns the instructions on which a kernel's branches depend into functions of a warp's `State`: their operands,
guards and tables are read from the text there, so that a walk (`sass_walk`) only computes. A value that is not known is
None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from tcomp.autotune.sass import Block, Function, Instruction
from tcomp.autotune.sass_operands import State, Test, predicate
from tcomp.autotune.sass_registers import COUNTED, REGISTER, dependences, is_predicate, registers_named, registers_read
from tcomp.autotune.sass_results import Results, results

DATA = {"LDG", "LD", "LDS", "LDL", "FSETP", "FCHK", "DSETP", "HSETP2", "ATOMG", "ATOM", "VOTE", "VOTEU"}
"""Instructions whose results are data."""


@dataclass(frozen=True, slots=True)
class Step:
    """An instruction that branches depend on, or (`evaluate` None) one that counts unless its guard holds it back."""

    address: int
    guard: Test | None
    evaluate: Callable[[State], Results] | None
    reads: frozenset[str]
    loads: bool
    """its results are data"""

    def execute(self, state: State) -> None:
        """Write what the instruction writes; under an unknown guard that is unknown."""
        known = True if self.guard is None else self.guard(state)
        if known is False or self.evaluate is None:
            return
        found = self.evaluate(state)
        if known and None not in [value for _, value in found]:
            state.values.update(found)
            state.data.difference_update([name for name, _ in found])
            return
        from_data = self.loads or not state.data.isdisjoint(self.reads)
        for name, value in found:
            state.values[name] = value if known else None
            if from_data and state.values[name] is None:
                state.data.add(name)
            else:
                state.data.discard(name)


@dataclass(frozen=True, slots=True)
class Branch:
    """A block's last instruction: whether it is taken, where it is a jump the registers that may hold its place."""

    name: str
    taken: Test
    named: frozenset[str]
    place: tuple[str, ...]
    rescales: bool


@dataclass(frozen=True, slots=True)
class Steps:
    """A block's; `branch` is None where it goes on in the next one whatever happens."""

    steps: tuple[Step, ...]
    branch: Branch | None


@lru_cache(maxsize=4)
def decoded(function: Function) -> tuple[Steps, ...]:
    """The steps of each block of a function."""
    chosen = dependences(function)
    return tuple(
        Steps(tuple(_step(i) for i in chosen[b.number]), _branch(function, b)) for b in function.blocks
    )  # fmt: skip


def rescales(function: Function, block: Block) -> bool:
    """Does the block end by a vote on whether running sums are multiplied, or left alone as no maximum grew?"""
    body = function.blocks[block.next].instructions if block.next is not None else ()
    products = sum(i.name == "FMUL" for i in body)
    return 2 * products > len(body) and any(i.name == "VOTE" for i in block.instructions)


def _step(i: Instruction) -> Step:
    guard = predicate(i.guard[1:]) if i.guard else None
    evaluate = None if i.name in COUNTED else results(i)
    return Step(i.address, guard, evaluate, frozenset(registers_read(i)), i.name in DATA)


def _branch(function: Function, block: Block) -> Branch | None:
    last = block.instructions[-1] if block.instructions else None
    if last is None or last.name not in ("BRA", "EXIT", "RET", "BRX"):
        return None
    place = tuple(REGISTER.findall(last.operands[0])) if block.jumps else ()
    return Branch(last.name, _taken(last), frozenset(registers_named(last)), place, rescales(function, block))


def _taken(i: Instruction) -> Test:
    """Of a branch: whether its guard and the predicates among its operands hold."""
    tests = [predicate(i.guard[1:])] if i.guard else []
    if i.opcode.startswith("BRA.DIV"):
        return lambda state: None if any(t(state) is None for t in tests) else False
    tests += [predicate(o) for o in i.operands[:-1] if is_predicate(o)]

    def all_hold(state: State) -> bool | None:
        found = [t(state) for t in tests]
        return None if None in found else all(found)

    return all_hold
