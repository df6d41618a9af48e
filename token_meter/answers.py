"""Answers that stand in the journal as the provider gave them, and how they become events.

The caller's thread only writes down what was said (its ids, words and counts: `body.excerpt`); what it means is worked
out where it is wanted: by whoever delivers the journal, and by whoever asks a tally or a health report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from token_meter.errors import InvalidEvent
from token_meter.providers.base import Body, Reading, raw_numbers
from token_meter.providers.publishers import publisher_of
from token_meter.usage import Usage

ANOMALIES_MAX: Final = 16
"""So many anomalies one event names at most."""


class Answer:
    """An answer of this process: read once, when its counts are first wanted, by any thread."""

    __slots__ = ("_excerpt", "_read", "_reading")

    def __init__(self, read: Callable[[Body], list[Reading]], excerpt: str) -> None:
        self._read = read
        self._excerpt = excerpt
        self._reading: Reading | None = None

    def reading(self) -> Reading:
        """What was said; `unmetered` if it turns out to be no JSON, which the caller's SDK cannot read either."""
        if self._reading is None:
            try:
                self._reading = self._read(json.loads(self._excerpt))[0]
            except (ValueError, RecursionError):
                self._reading = Reading(None, status="unmetered", anomalies=["unreadable"])
        return self._reading

    def usage(self) -> Usage:
        """The counts."""
        return self.reading().usage or Usage()


def completed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The event in a journal line that holds an answer: what `MeterEvent.to_json()` gives, read from the answer.

    Raises InvalidEvent for a line that no version of this package wrote.
    """
    event = dict(document)
    answer, dialect = event.pop("answer"), event.pop("dialect", None)
    read = _reader(dialect)
    if read is None or not isinstance(answer, dict):
        raise InvalidEvent(f"an answer in an unknown dialect {str(dialect)[:40]!r}")
    reading: Reading = read(answer)[0]
    if reading.usage is None:
        raise InvalidEvent("an answer without counts")
    model = reading.model or event.get("model_requested")  # some answers do not name their model
    named = {
        "model": model,
        "publisher": publisher_of(model) if isinstance(model, str) else None,
        "price_context": reading.price_context,
        "response_id": reading.response_id,
        "anomalies": list(dict.fromkeys(reading.anomalies))[:ANOMALIES_MAX],
        "raw_usage": raw_numbers(reading.raw_usage) if reading.raw_usage is not None else None,
    }
    event["usage"] = dict(reading.usage)
    event["status"] = reading.status
    event.update({name: value for name, value in named.items() if value})
    return event


def _reader(dialect: object) -> Any:
    from token_meter.providers import anthropic, openai

    return {"openai": openai.read_completion, "anthropic": anthropic.read_message}.get(str(dialect))
