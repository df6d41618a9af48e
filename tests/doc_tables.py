"""Tables in the documentation that are made from the code: `python -m tests.doc_tables` writes them anew.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; tests/test_docs.py says when one is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from typer.main import get_command

from token_meter.cli.app import app
from token_meter.event import STATUSES
from token_meter.providers import hosts
from token_meter.sinks.lago import CODES
from token_meter.usage import TOKEN_TYPES

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_TABLE: Final = re.compile(r"(?P<begin><!-- table: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)

MEANINGS: Final[Mapping[str, str]] = {
    "input": "prompt text that was not cached",
    "input_audio": "audio in the prompt",
    "input_image": "pictures in the prompt",
    "input_video": "video in the prompt",
    "input_document": "documents in the prompt",
    "tool_input": "prompts that hosted tools added (Gemini)",
    "cache_read": "prompt read from the provider's cache",
    "cache_read_audio": "the same, audio",
    "cache_read_image": "the same, pictures",
    "cache_read_video": "the same, video",
    "cache_write_5m": "prompt written to a cache that keeps it 5 minutes",
    "cache_write_30m": "… 30 minutes",
    "cache_write_1h": "… 1 hour",
    "cache_write_12h": "… 12 hours",
    "output": "text in the answer, without reasoning",
    "output_audio": "audio in the answer",
    "output_image": "pictures in the answer",
    "output_video": "video in the answer",
    "reasoning": "what the model thought and did not say",
    "cached_output": "output that a provider bills as cached",
    "web_search": "searches by a hosted tool",
    "file_search": "calls of the hosted file search",
    "code_interpreter": "containers that ran code",
    "image_generation": "pictures made by a hosted tool",
    "audio_ms": "audio billed by duration",
    "video_ms": "video billed by duration",
    "characters": "text billed by length",
    "images": "pictures billed by number",
    "units": "whatever a meter of your own counts",
}
STATUS_MEANINGS: Final[Mapping[str, str]] = {
    "complete": "the provider said its last word, and these are its numbers",
    "partial": "it ended early; the provider's numbers up to there",
    "estimated": "no numbers came; estimated, and `estimator` says by whom",
    "unmetered": "it may have been billed, and nobody knows how much: a human should look",
}


def token_types() -> Iterator[str]:
    """Every token type with headline and unit."""
    yield from _rows(
        ("Token type", "Headline", "Unit", "What it counts"),
        ((f"`{row.name}`", row.headline, row.unit, MEANINGS[row.name]) for row in TOKEN_TYPES.values()),
    )


def statuses() -> Iterator[str]:
    """Every status of an event."""
    yield from _rows(("Status", "Meaning"), ((f"`{name}`", STATUS_MEANINGS[name]) for name in STATUSES))


def host_table() -> Iterator[str]:
    """Every known host, by provider."""
    known = [*hosts._EXACT.items(), *((f"*{suffix}", host) for suffix, host in hosts._SUFFIXES)]
    rows: dict[str, list[str]] = {}
    asked: dict[str, bool] = {}
    for name, host in known:
        rows.setdefault(host.provider, []).append(f"`{name}`" + ("" if host.accepts_include_usage else " ¹"))
        asked[host.provider] = asked.get(host.provider, True) and host.accepts_include_usage
    cells = ((f"`{provider}`", ", ".join(names)) for provider, names in rows.items())
    yield from _rows(("Provider", "Hosts"), cells)


def lago_codes() -> Iterator[str]:
    """Every code that is reported to Lago, with the token types that count for it."""
    types: dict[str, list[str]] = {}
    for name, code in CODES.items():
        types.setdefault(code, []).append(f"`{name}`")
    yield from _rows(("Code", "Token types"), ((f"`{code}`", ", ".join(names)) for code, names in types.items()))


def commands() -> Iterator[str]:
    """Every command with the first sentence of its help."""
    found = ((f"`token-meter {name}`", _first_line(command)) for name, command in every_command().items())
    yield from _rows(("Command", "What it does"), found)


def every_command() -> dict[str, Any]:
    """The commands of the command line by name: `events tail`."""
    return dict(_walk(get_command(app), ()))


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(path), command
        return
    for name, each in inner.items():
        yield from _walk(each, (*path, name))


def _first_line(command: Any) -> str:
    return str(command.help).strip().splitlines()[0]


def _rows(heading: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(heading)} |"
    yield f"|{'|'.join('---' for _ in heading)}|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


TABLES: Final[Mapping[str, Callable[[], Iterator[str]]]] = {
    "token-types": token_types,
    "statuses": statuses,
    "hosts": host_table,
    "commands": commands,
    "lago-codes": lago_codes,
}


def renewed(page: str) -> str:
    """The text of a page with its tables as they should be."""
    return _TABLE.sub(
        lambda match: match["begin"] + "".join(f"{line}\n" for line in TABLES[match["name"]]()) + match["end"], page
    )


def names_in(page: str) -> list[str]:
    """The tables that a page has."""
    return [match["name"] for match in _TABLE.finditer(page)]


def main() -> None:
    """Write every page anew."""
    for path in PAGES:
        path.write_text(renewed(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
