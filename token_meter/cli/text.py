"""Names as they may be shown: customers, models and dimensions are other people's text and may hold anything."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

# Categories that move the cursor, start an escape sequence, reorder the line or cannot be encoded.
_UNSHOWABLE: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER: Final = re.compile(r"[-+]?\d+(?:\.\d+)?")
_PASSWORD: Final = re.compile(r"(?P<start>[a-z][a-z0-9+.-]*://[^/\s:@]*:)[^\s]*(?=@)", re.IGNORECASE)
_PASSWORD_OPTION: Final = re.compile(r"(?P<start>[?&](?:password|sslpassword|passfile)=)[^&\s]*", re.IGNORECASE)


def printable(text: str) -> str:
    """The text with everything that would steer a terminal written as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(sign) if unicodedata.category(sign) in _UNSHOWABLE else sign for sign in text)


def printable_lines(text: str) -> str:
    """The same for text of several lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode()


def spreadsheet_safe(text: str) -> str:
    """The text as a CSV cell that no spreadsheet takes for a formula."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def markdown_safe(text: str) -> str:
    """The text as a cell of a Markdown table."""
    text = printable(text).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_").replace("`", "\\`")


def without_passwords(text: str) -> str:
    """The text with the passwords of URLs in it hidden."""
    return _PASSWORD_OPTION.sub(r"\g<start>***", _PASSWORD.sub(r"\g<start>***", text))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?", or nothing when no known name is like it."""
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 event`, `1,234 events`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def age(seconds: float) -> str:
    """How long ago in the largest sensible unit: `12 s`, `5 min`, `3 h`, `2 d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def first_line(error: BaseException) -> str:
    """What a database's driver said, without the statement around it."""
    cause = getattr(error, "orig", None) or error
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
