"""Records out of files: JSON, JSON lines and CSV, plain or gzipped, told apart by what is in them.

Files come from elsewhere, so nothing is taken for granted: a line has a greatest length, a document a greatest size,
and every row that is no record comes out with its number and the reason. Lines and CSV are read in constant memory.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, NamedTuple

from token_meter.partners.base import PartnerError, Row, Unreadable, parsed, shown

LINE_BYTES_MAX: Final = 8 << 20
"""The longest line, and the largest record of an array."""

DOCUMENT_BYTES_MAX: Final = 128 << 20
"""The largest JSON document that is one object around its records: that is read as a whole."""

CELL_CHARACTERS_MAX: Final = LINE_BYTES_MAX
COLUMNS_MAX: Final = 1_000
CHUNK_BYTES: Final = 1 << 16
TOLD_BYTES_MIN: Final = 1 << 20
"""Progress is told in steps of about this."""


_GZIP: Final = b"\x1f\x8b"
_UTF8_BOM: Final = b"\xef\xbb\xbf"
_OTHER_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")
_BLANK: Final = b" \t\r\n"


class Found(NamedTuple):
    """A row of a file: its number, and the record or what is wrong with it."""

    number: int
    record: Row | None
    problem: str | None = None


def rows(path: Path, *, lists: Sequence[str], moved: Callable[[int], object] | None = None) -> Iterator[Found]:
    """Every row of a file, in order. `lists` are the fields in which a document holds its records.

    Numbers are lines in JSON lines and CSV (its heading is 1), else positions in the document. `moved` is told how
    many bytes of the file were read since it was told last. Raises OSError, and PartnerError for what is no such file.
    """
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise PartnerError(f"{path} is no plain file, and it is read more than once: write it into one")
        watched = _Watched(file, moved)
        opened = io.BufferedReader(watched, CHUNK_BYTES)
        if opened.peek(2)[:2] == _GZIP:
            opened = io.BufferedReader(gzip.GzipFile(fileobj=opened), CHUNK_BYTES)  # type: ignore[arg-type]
        lines = _Lines(opened)
        try:
            yield from _told_apart(lines, path, lists)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield Found(lines.number + 1, None, f"the file is cut off or damaged from here on: {error}")
        finally:
            watched.report()
            opened.close()


def _told_apart(lines: _Lines, path: Path, lists: Sequence[str]) -> Iterator[Found]:
    first = lines.first()
    if first.startswith(_OTHER_BOMS):
        raise PartnerError(f"{path} is UTF-16: save it as UTF-8")
    if b"\x00" in first:
        raise PartnerError(f"{path} is no text: expected JSON, JSON lines or CSV, plain or gzipped")
    if not first:
        return iter(())
    if first.startswith(b"["):
        return _array(lines, lists)
    if first.startswith(b"{"):
        return _objects(lines, lists)
    return _table(lines, path)


class _Watched(io.RawIOBase):
    """A file that tells how far it was read."""

    def __init__(self, file: BinaryIO, moved: Callable[[int], object] | None) -> None:
        self._file = file
        self._moved = moved
        self._untold = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._untold += len(data)
        if self._untold >= TOLD_BYTES_MIN:
            self.report()
        return len(data)

    def report(self) -> None:
        """Tell what was read since the last time."""
        if self._moved is not None and self._untold:
            self._moved(self._untold)
        self._untold = 0


class _Lines:
    """Lines of bounded length, with their numbers; blank ones are passed over."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._kept: bytes | None = None
        self.number = 0

    def first(self) -> bytes:
        """The beginning of the first line that is not blank, which stays to be read."""
        line = self.next(CHUNK_BYTES)
        if line is not None and line.startswith(_UTF8_BOM):
            line = line.removeprefix(_UTF8_BOM)
            if not line.strip(_BLANK):
                line = self.next(CHUNK_BYTES)
        self._kept = line
        return (line or b"").lstrip(_BLANK)

    def next(self, longest: int = LINE_BYTES_MAX) -> bytes | None:
        """The next line that is not blank; one that is too long comes cut, longer than `longest`. None at the end."""
        if self._kept is not None:
            line, self._kept = self._kept, None
            cut = len(line) <= longest and not line.endswith(b"\n")
            return line + self._file.readline(longest + 1 - len(line)) if cut else line
        while line := self._file.readline(longest + 1):
            self.number += 1
            if line.strip(_BLANK):
                return line
        return None

    def pass_over_line(self) -> None:
        """Read to the end of a line that was cut."""
        while (piece := self._file.readline(CHUNK_BYTES)) and not piece.endswith(b"\n"):
            pass

    def rest(self, most: int) -> bytes:
        """What follows, one byte more than `most` if there is too much."""
        return self._file.read(most + 1)

    def put_back(self, data: bytes) -> None:
        """Read this again before what follows."""
        self._file = io.BufferedReader(_Joined(data, self._file), CHUNK_BYTES)
        self.number -= 1


class _Joined(io.RawIOBase):
    """Some bytes, then a file."""

    def __init__(self, head: bytes, file: IO[bytes]) -> None:
        self._head = io.BytesIO(head)
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head.read(len(buffer)) or self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


# ---- JSON lines, and one object around its records ----------------------------------------------------------------


def _objects(lines: _Lines, lists: Sequence[str]) -> Iterator[Found]:
    first = lines.next() or b""
    if not _is_json(first):
        whole = first + (lines.rest(DOCUMENT_BYTES_MAX - len(first)) if len(first) <= DOCUMENT_BYTES_MAX else b"")
        if len(whole) <= DOCUMENT_BYTES_MAX and _is_json(whole):
            yield from _inside(parsed(whole, "the document"), 1, lists)
            return
        lines.put_back(whole)
        first = lines.next() or b""
    line: bytes | None = first
    while line is not None:
        number = lines.number
        if len(line) > LINE_BYTES_MAX:
            yield Found(number, None, f"the line is longer than {LINE_BYTES_MAX:,} bytes")
            if not line.endswith(b"\n"):
                lines.pass_over_line()
        else:
            yield from _line(line, number, lists)
        line = lines.next()


def _is_json(data: bytes) -> bool:
    try:
        parsed(data, "it")
    except Unreadable:
        return False
    return True


def _line(line: bytes, number: int, lists: Sequence[str]) -> Iterator[Found]:
    try:
        document = parsed(line, "the line")
    except Unreadable as problem:
        yield Found(number, None, str(problem))
        return
    for found in _inside(document, number, lists):
        yield found._replace(number=number)


def _inside(document: Any, number: int, lists: Sequence[str]) -> Iterator[Found]:
    """The records in a document: the object itself, those in one of its lists, or those of an array."""
    inner = document
    if isinstance(document, dict):
        inner = next((document[name] for name in lists if isinstance(document.get(name), (list, dict))), document)
    for place, each in enumerate(inner if isinstance(inner, list) else [inner], 1):
        number_of = place if isinstance(inner, list) else number
        if isinstance(each, dict):
            yield Found(number_of, each)
        else:
            yield Found(number_of, None, f"{shown(each)} is no record")


# ---- an array -----------------------------------------------------------------------------------------------------


def _array(lines: _Lines, lists: Sequence[str]) -> Iterator[Found]:
    """Records of an array, one by one, however they are broken into lines; several arrays may follow each other."""
    place = 0
    for item in _items(lines):
        place += 1
        if isinstance(item, _Broken):
            yield Found(place, None, f"{item.reason}; what follows cannot be read")
            return
        try:
            document = parsed(item, "the record")
        except Unreadable as problem:
            yield Found(place, None, str(problem))
            continue
        for found in _inside(document, place, lists):
            yield found._replace(number=place)


class _Broken(NamedTuple):
    reason: str


_INSIDE: Final = re.compile(rb'["{}\[\],]')
_IN_TEXT: Final = re.compile(rb'["\\]')
_DEEPER: Final = {b"{": 1, b"[": 1, b"}": -1, b"]": -1}


def _items(lines: _Lines) -> Iterator[bytes | _Broken]:
    """The elements of top-level arrays as text: only brackets, commas and the ends of strings are looked at."""
    depth, in_text, item = 0, False, bytearray()
    while (piece := lines.next(CHUNK_BYTES)) is not None:
        at = 0
        while at < len(piece):
            match = (_IN_TEXT if in_text else _INSIDE).search(piece, at)
            end = match.start() if match else len(piece)
            item += piece[at:end]
            if match is None:
                break
            sign, at = piece[end : end + 1], end + 1
            if in_text:
                item += sign
                if sign == b"\\":
                    if at == len(piece):  # the escaped sign is in the next piece
                        piece, at = lines.next(CHUNK_BYTES) or b"", 0
                    item += piece[at : at + 1]
                    at += 1
                else:
                    in_text = False
                continue
            before, depth = depth, depth + _DEEPER.get(sign, 0)
            if not before and (sign != b"[" or item.strip(_BLANK)):
                yield _Broken("something stands outside the array")
                return
            if not before or not depth or (sign == b"," and depth == 1):
                text = bytes(item).strip(_BLANK)
                if text or sign == b",":
                    yield text or _Broken("a record is missing between two commas")
                item.clear()
                continue
            in_text = sign == b'"'
            item += sign
        if len(item) > LINE_BYTES_MAX:
            yield _Broken(f"a record is longer than {LINE_BYTES_MAX:,} bytes")
            return
    if depth or in_text:
        yield _Broken("the file ends in the middle of a record")
    elif item.strip(_BLANK):
        yield _Broken("something stands outside the array")


# ---- CSV ----------------------------------------------------------------------------------------------------------


def _table(lines: _Lines, path: Path) -> Iterator[Found]:
    """Rows under a heading. The separator is the one of comma, semicolon and tab that the heading has most of."""
    heading = (lines.next() or b"").decode("utf-8", "surrogateescape")
    separator = max((",", ";", "\t"), key=heading.count)
    names = _names(heading, separator, path)
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=separator, strict=True)
    _allow_long_cells()
    while True:
        feed.began = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Found(feed.began or lines.number, None, _until(feed.began, lines.number, str(error)))
            continue
        yield _cells(feed.began or lines.number, names, cells)


def _names(heading: str, separator: str, path: Path) -> list[str]:
    try:
        names = [name.strip() for name in next(csv.reader([heading], delimiter=separator, strict=True), [])]
    except csv.Error:
        names = []
    if not 2 <= len(names) <= COLUMNS_MAX or len(set(names)) != len(names) or not all(map(_names_a_column, names)):
        raise PartnerError(
            f"{path} is neither JSON nor CSV with a heading: its first line is {shown(heading.strip())}, and a heading "
            "names each column once"
        )
    return names


def _names_a_column(name: str) -> bool:
    return bool(name) and name.isprintable() and _is_text(name)


def _until(began: int | None, ended: int, reason: str) -> str:
    """Where a quote is not closed, rows that follow are swallowed: they are told of too."""
    return reason if began in (None, ended) else f"{reason}; lines {began} to {ended} cannot be told apart"


def _cells(number: int, names: Sequence[str], cells: Sequence[str]) -> Found:
    if len(cells) != len(names):
        return Found(number, None, f"has {len(cells)} cells under {len(names)} headings")
    broken = next((name for name, cell in zip(names, cells, strict=True) if not _is_text(cell)), None)
    if broken is not None:
        return Found(number, None, f"{broken} is not UTF-8")
    return Found(number, dict(zip(names, cells, strict=True)))


def _is_text(cell: str) -> bool:
    if cell.isascii():
        return True
    with suppress(UnicodeEncodeError):
        cell.encode()
        return True
    return False


class _Feed(Iterator[str]):
    """Lines for the CSV reader, which notes on which of them a row began."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        self.began: int | None = None

    def __next__(self) -> str:
        line = self._lines.next()
        if line is None:
            raise StopIteration
        if self.began is None:
            self.began = self._lines.number
        if len(line) > LINE_BYTES_MAX:
            if not line.endswith(b"\n"):
                self._lines.pass_over_line()
            raise csv.Error(f"the line is longer than {LINE_BYTES_MAX:,} bytes")
        return line.decode("utf-8", "surrogateescape")


def _allow_long_cells() -> None:
    """Prompts may stand in some cells. The limit is the process's, so it is raised and never lowered."""
    if csv.field_size_limit() < CELL_CHARACTERS_MAX:
        csv.field_size_limit(CELL_CHARACTERS_MAX)


def size_of(path: Path) -> int:
    """The size of a file, for progress; 0 where that is not known."""
    with suppress(OSError):
        return os.stat(path).st_size
    return 0
