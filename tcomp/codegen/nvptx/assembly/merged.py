"""The code of several cubins as one ELF file, which nvdisasm reads in one start, and its text taken apart again.

The file has the first cubin's notes (what GPU it is for) and each cubin's code, with its relocations and the symbols
that they name: with the cubin's number behind them, as several have the same names. nvdisasm numbers labels through the
file; in a cubin's own text they begin at 0, in the same order.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATED = struct.Struct("<Q")
"""a relocation's symbol, and its kind, behind its place in the code"""
_PLACE = 8
"""bytes of that place"""
_FIRST = 4
"""number of the first cubin's first section: before it nothing, the sections' names, the symbols' names, the symbols"""
UNKNOWN = (struct.error, ValueError, LookupError, StopIteration)
"""What is raised for files that are not as this module knows them."""
_OWN = 0xFFFFFF
"""bits of a code section's `info` that number its symbol; the others count registers"""
_FUNCTION = 2
_TYPES = {1: "@object", 13: '@"STT_CUDA_OBJECT"'}
"""of symbols that a cubin may name and not define, as nvdisasm prints them"""
_HEADING = re.compile(r"^(?=//-+ \S+ +-+$)", re.M)
_TITLE = re.compile(r"^//-+ (\S+) +-+$", re.M)
_NUMBERED = re.compile(r"__\d+$")
_LABEL = re.compile(r"(?<=\.L_x_)\d+")


class _Section(NamedTuple):
    name: str
    type: int
    flags: int
    link: int
    info: int
    align: int
    entry: int
    data: bytes

    @property
    def is_code(self) -> bool:
        return self.name.startswith(".text.")

    @property
    def is_relocation(self) -> bool:
        return self.name.startswith((".rel.text.", ".rela.text."))


class _Symbol(NamedTuple):
    name: str
    info: int
    other: int
    section: int
    value: int
    size: int

    @property
    def is_local(self) -> bool:
        return self.info >> 4 == 0


def _sections(cubin: bytes) -> list[_Section]:
    """Those of an ELF file, by number."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    width, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [_SECTION.unpack_from(cubin, table + width * i) for i in range(count)]
    data = [cubin[h[4] : h[4] + h[5]] for h in headers]
    return [
        _Section(_text(data[names], h[0]), h[1], h[2], h[6], h[7], h[8], h[9], body)
        for h, body in zip(headers, data, strict=True)
    ]


def gpu_of(cubin: bytes) -> bytes:
    """What differs between cubins for different GPUs: the file's flags."""
    return cubin[48:52]


def _symbols(sections: Sequence[_Section]) -> list[_Symbol]:
    table = next(s for s in sections if s.name == ".symtab")
    return [_Symbol(_text(sections[table.link].data, at), *rest) for at, *rest in _SYMBOL.iter_unpack(table.data)]


def _text(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()


class _Strings:
    """A section of names in the making."""

    def __init__(self) -> None:
        self.data = bytearray(b"\0")

    def put(self, name: str) -> int:
        at = len(self.data)
        self.data += name.encode() + b"\0"
        return at


def can_be_merged(cubin: bytes) -> bool:
    """Not where a section has several functions: the order in which nvdisasm numbers their ends is its own."""
    try:
        sections = _sections(cubin)
        functions = [s.section for s in _symbols(sections) if s.info & 0xF == _FUNCTION and s.section]
    except UNKNOWN:
        return False
    return len(set(functions)) == len(functions)


def merged(cubins: Sequence[bytes]) -> bytes:
    """One file with the code of cubins for the same GPU. An error of `UNKNOWN` where one's code names what it does not
    define."""
    kept: list[_Section] = []
    symbols: list[tuple[_Symbol, int]] = []  # each with the number of its section in the file
    unmoved: list[tuple[dict[int, int], dict[int, int]]] = []  # of each of `kept`: numbers of sections; of symbols
    for at, cubin in enumerate(cubins):
        sections, numbers, places = _sections(cubin), dict[int, int](), dict[int, int]()
        for number, s in enumerate(sections):
            if s.is_code or s.is_relocation or (at == 0 and s.name.startswith((".note.", ".nv.compat"))):
                numbers[number] = _FIRST + len(kept)
                kept.append(s._replace(name=f"{s.name}__{at}") if s.is_code or s.is_relocation else s)
                unmoved.append((numbers, places))
        for number, symbol in enumerate(_symbols(sections)):
            if symbol.section in numbers:
                places[number] = len(symbols)
                symbols.append((symbol._replace(name=f"{symbol.name}__{at}"), numbers[symbol.section]))
    order = sorted(range(len(symbols)), key=lambda n: not symbols[n][0].is_local)  # local ones first, as ELF has it
    final = {n: 1 + place for place, n in enumerate(order)}
    moved = [
        _moved(s, numbers, {n: final[x] for n, x in places.items()})
        for s, (numbers, places) in zip(kept, unmoved, strict=True)
    ]
    strings, table = _Strings(), bytearray(_SYMBOL.size)
    for n in order:
        symbol, section = symbols[n]
        table += _SYMBOL.pack(strings.put(symbol.name), symbol.info, symbol.other, section, symbol.value, symbol.size)
    first_global = 1 + sum(s.is_local for s, _ in symbols)
    own = [
        _Section(".strtab", 3, 0, 0, 0, 1, 0, bytes(strings.data)),
        _Section(".symtab", 2, 0, 2, first_global, 8, _SYMBOL.size, bytes(table)),
    ]
    return _file(cubins[0][:64], [*own, *moved])


def _moved(s: _Section, numbers: Mapping[int, int], places: Mapping[int, int]) -> _Section:
    """A cubin's section with the file's numbers of sections and of symbols."""
    if s.is_code:
        return s._replace(link=3, info=s.info & ~_OWN | places.get(s.info & _OWN, 0))
    if s.is_relocation:
        moved = bytearray(s.data)
        for at in range(_PLACE, len(moved), s.entry):
            (info,) = _RELOCATED.unpack_from(moved, at)
            _RELOCATED.pack_into(moved, at, places[info >> 32] << 32 | info & 0xFFFFFFFF)
        return s._replace(link=3, info=numbers[s.info], data=bytes(moved))
    return s._replace(link=numbers.get(s.link, 0), info=numbers.get(s.info, 0))


def _file(head: bytes, sections: Sequence[_Section]) -> bytes:
    """The sections behind a cubin's own header, their names before them, their headers behind them."""
    names = _Strings()
    named = [names.put(s.name) for s in sections]
    named.insert(0, names.put(".shstrtab"))
    out, headers = bytearray(head), bytearray(_SECTION.size)
    for s, name in zip((_Section(".shstrtab", 3, 0, 0, 0, 1, 0, bytes(names.data)), *sections), named, strict=True):
        out += bytes(-len(out) % max(s.align, 1))
        headers += _SECTION.pack(name, s.type, s.flags, 0, len(out), len(s.data), s.link, s.info, s.align, s.entry)
        out += s.data
    out += bytes(-len(out) % 8)
    struct.pack_into("<QQ", out, 32, 0, len(out))  # no segments; where the sections' headers are
    struct.pack_into("<HHHH", out, 56, 0, _SECTION.size, len(headers) // _SECTION.size, 1)
    return bytes(out + headers)


def apart(text: str, cubins: Sequence[bytes]) -> list[str]:
    """What nvdisasm says of each cubin, from what it says of them merged. An error of `UNKNOWN` where it says it in
    another way."""
    head, *parts = _HEADING.split(text)
    rest = iter(parts)
    found = []
    for cubin in cubins:
        sections = _sections(cubin)
        symbols = _symbols(sections)
        code = [s.name for s in sections if s.is_code]
        own = _by_itself("".join([next(rest) for _ in code]), [s.name for s in symbols if s.name])
        if [heading[0] for heading in _TITLE.finditer(own)] != [_title(name) for name in code]:
            raise ValueError("its sections are not in the cubins' order")
        found.append(head + own.rstrip("\n") + "\n" + _missing([s for s in symbols if s.name and not s.section]))
    return found


def _by_itself(text: str, names: Sequence[str]) -> str:
    """A cubin's part with the names and the labels that it has when it is read alone."""
    if any(_NUMBERED.search(name) for name in names):
        raise ValueError("a name has a number behind it")
    text = re.sub(rf"(?<![\w$])({'|'.join(map(re.escape, names))})__\d+(?![\w$])", r"\1", text)
    text = _TITLE.sub(lambda m: _title(m[1]), text)
    numbers = {n: str(i) for i, n in enumerate(sorted(set(_LABEL.findall(text)), key=int))}
    return _LABEL.sub(lambda m: numbers[m[0]], text)


def _title(section: str) -> str:
    return f"//{'-' * 21} {section:25} {'-' * 26}"


def _missing(symbols: Sequence[_Symbol]) -> str:
    """What a cubin names and does not define, as nvdisasm lists it."""
    lines = [f"\t.type\t\t{s.name},{_TYPES[s.info & 0xF]}\n\t.size\t\t{s.name},{s.size:#x}\n" for s in symbols]
    return "\n\n//--------------------- SYMBOLS --------------------------\n\n" + "".join(lines) if lines else ""
