"""Sinks as they are named on a command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.sinks.base import Sink, sink_name
from token_meter.sinks.named import FORM, named_sink, read_options

if TYPE_CHECKING:
    from token_meter.cli.place import Place
    from token_meter.ledger import Ledger

FORMS: Final = (
    "ledger, jsonl:PATH, files:FOLDER, stripe, lago, amberflo, openmeter, webhook, NAME=… or module:attribute"
)


@dataclass(frozen=True, slots=True)
class Destination:
    """A sink and the name its journal knows it by; `ledger` is one that was opened for it to look customers up in."""

    name: str
    sink: Sink
    ledger: Ledger | None = None

    def close(self) -> None:
        """Close the sink if it can be closed, and its ledger."""
        close = getattr(self.sink, "close", None)
        if close is not None:
            close()
        if self.ledger is not None:
            self.ledger.close()


def read_sinks(texts: Sequence[str], place: Place) -> list[Destination]:
    """The sinks that were named. Wrong usage for one that cannot be made, or two of one name.

    Those that look customers up do so in the ledger of this place, if there is one.
    """
    sinks = [_read(text, place) for text in texts]
    destinations = [Destination(sink_name(sink), sink, _bound(sink, place)) for sink in sinks]
    names = [each.name for each in destinations]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise Failure(f"two sinks are called {double!r}: name them, as in audit=jsonl:audit.jsonl", code=WRONG_USAGE)
    return destinations


def _read(text: str, place: Place) -> Sink:
    match = FORM.fullmatch(text)
    if match is None:
        raise Failure(f"{text!r} names no sink: use {FORMS}", code=WRONG_USAGE)
    name, kind, rest = match["name"], match["kind"], match["rest"]
    if kind == "ledger" and rest is None:
        from token_meter.bookkeeping.lazy import LazyRater
        from token_meter.sinks import LedgerSink

        return LedgerSink(place.ledger, rater=LazyRater())
    if kind == "jsonl" and rest:
        from token_meter.sinks import JsonlSink

        return JsonlSink(rest, name=name or "jsonl")
    if kind == "files" and rest:
        from token_meter.sinks import FilesSink

        return FilesSink(rest, name=name or "files")
    made = _named(kind, rest, name)
    if made is not None:
        return made
    if rest and name is None:
        return _imported(kind, rest)
    raise Failure(f"{text!r} names no sink: use {FORMS}", code=WRONG_USAGE)


def _named(kind: str, rest: str | None, name: str | None) -> Sink | None:
    """A sink that is known by name, with options as in `stripe:api=stream,mode=test`; its key is in the environment."""
    options = read_options(rest)
    if options is None:
        return None  # a module and its attribute
    try:
        return named_sink(kind, options, name=name)
    except (ValueError, TypeError) as error:
        raise Failure(f"{kind}: {error}", code=WRONG_USAGE) from None


def _bound(sink: Sink, place: Place) -> Ledger | None:
    """The ledger in which the sink looks customers up; None for one that does not, or where there is no ledger."""
    from token_meter.sinks.base import Bound

    if not isinstance(sink, Bound) or place.missing:
        return None
    from token_meter.accounts.directory import LedgerAccounts
    from token_meter.ledger import Ledger

    ledger = Ledger(place.ledger)
    sink.bind(LedgerAccounts(ledger))
    return ledger


@contextmanager
def closing(destinations: Sequence[Destination]) -> Iterator[None]:
    """Close the sinks at the end."""
    try:
        yield
    finally:
        for destination in destinations:
            destination.close()


def _imported(module: str, attribute: str) -> Sink:
    """A sink of the user's: an object with `send`, or something to call that makes one."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does: a sidecar runs where the program's modules are
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise Failure(f"cannot load the sink {module}:{attribute}: {error}", code=WRONG_USAGE) from None
    if isinstance(found, type) or not hasattr(found, "send"):
        found = found() if callable(found) else found
    if not callable(getattr(found, "send", None)):
        raise Failure(f"{module}:{attribute} is no sink: it has no send(events)", code=WRONG_USAGE)
    return found  # type: ignore[no-any-return]
