"""An answer on its way to the client: status, headers, and the chunks of its body with what each one tells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from token_meter.testing.provider.account import Billed


class Chunk(bytes):
    """One stream event, or one whole plain body; `tells` are the lines whose final counts stand in it."""

    tells: tuple[Billed, ...] = ()


class Event(NamedTuple):
    """One server-sent event before it is written down. A `document` that is text is sent as it is."""

    document: Any
    name: str | None = None
    tells: tuple[Billed, ...] = ()


@dataclass(slots=True)
class Reply:
    """What the provider answers. A handler given to `LoopbackProvider.script` returns one.

    `chunks` are sent as they are iterated: one HTTP chunk each if `streamed`, otherwise together with their
    length. `whole` is false when a fault left the end out, `document` is the JSON document of a plain body.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: Iterable[bytes] = ()
    streamed: bool = False
    billed: tuple[Billed, ...] = ()
    document: Any = None
    whole: bool = True

    @classmethod
    def json(cls, document: Any, *, status: int = 200) -> Reply:
        """A plain JSON body."""
        return cls(status, {"content-type": "application/json"}, [encode(document)], document=document)

    @classmethod
    def sse(cls, events: Iterable[Any]) -> Reply:
        """A stream of server-sent events without names; text, like `[DONE]`, is sent as it is."""
        return cls(200, {"content-type": "text/event-stream"}, (frame(Event(each)) for each in events), streamed=True)


def encode(document: Any) -> bytes:
    """JSON as providers write it: compact, not escaped. Text is a body already."""
    if isinstance(document, str):
        return document.encode()
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def frame(event: Event, *, line_end: bytes = b"\n") -> Chunk:
    """One server-sent event as bytes."""
    name = b"event: " + event.name.encode() + line_end if event.name else b""
    chunk = Chunk(name + b"data: " + encode(event.document) + line_end + line_end)
    if event.tells:
        chunk.tells = event.tells
    return chunk
