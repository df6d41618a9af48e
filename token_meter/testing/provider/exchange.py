"""One request being answered: what an endpoint function works with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.answer import TEXT, Answer, example, json_answer, limit_answer, write_answer
from token_meter.testing.provider.faults import Faults
from token_meter.testing.provider.models import answered
from token_meter.testing.provider.reply import Chunk, Event, Reply, encode, frame
from token_meter.testing.provider.request import Request
from token_meter.testing.provider.state import Block, State, check_types
from token_meter.usage import Usage


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, the provider's state, and the ways to answer. `batch`: the request is a line of a batch."""

    request: Request
    state: State
    serve: Callable[[Exchange], Reply]
    batch: bool = False

    @property
    def document(self) -> Mapping[str, Any]:
        return self.request.document

    @property
    def faults(self) -> Faults:
        return self.request.faults

    @property
    def model(self) -> str:
        """The model that answers."""
        return answered(self.request.model or "unknown")

    @property
    def now(self) -> int:
        """Unix time in seconds."""
        return int(time.time())

    def new_id(self, prefix: str) -> str:
        """An id that nothing else has."""
        return self.state.new_id(prefix)

    def answer(self, *, limit: Any = None, schema: Any = None) -> Answer:
        """The text of the answer: at most `limit` tokens, or JSON that fits the schema."""
        tokens_max = int(limit) if limit else None
        if schema is not None:
            return limit_answer(json_answer(example(schema)).deltas, tokens_max)
        faults, text = self.faults, self.state.text
        words = len(text.split(" ")) if text is not None else faults.events
        return write_answer(words=words, size=faults.size, limit=tokens_max, text=TEXT if text is None else text)

    def within(self, document: Mapping[str, Any], path: str) -> Exchange:
        """The exchange for one line of a batch."""
        request = Request("POST", path, headers=self.request.headers, document=document, faults=Faults())
        return replace(self, request=request, batch=True)

    def bill(
        self,
        api: str,
        usage: Usage,
        *,
        block: Callable[[Usage], Block] | None,
        types: frozenset[str],
        response_id: str | None = None,
        model: str | None = None,
        kind: str = "message",
    ) -> Billed:
        """Charge for a response: what follows from the request, or what a test set in its place.

        `block` writes the usage down as the API does (None: the response carries none), `types` are those it
        can tell.
        """
        requested = self.request.model
        scripted = self.state.scripted_for(api, requested or "") if kind == "message" else None
        if scripted and scripted.usage is not None:
            check_types(api, scripted.usage, types)
            usage = scripted.usage
        reported = block(usage) if block else None
        if scripted and scripted.raw is not None:
            reported = scripted.raw
        if self.faults.nousage or self.faults.nullusage:
            reported = None
        line = Billed(api, model or self.model, usage, reported, response_id, requested, kind=kind, batch=self.batch)
        self.state.account.add(line)
        return line

    def json(self, document: Any, *billed: Billed, status: int = 200) -> Reply:
        """A plain JSON body that carries the final counts of the lines."""
        document = self.faults.distort(document)
        return self.body(encode(document), "application/json", *billed, status=status, document=document)

    def body(self, data: bytes, content_type: str, *billed: Billed, status: int = 200, document: Any = None) -> Reply:
        """A plain body of any kind."""
        chunk = Chunk(data)
        chunk.tells = billed
        return Reply(status, {"content-type": content_type}, [chunk], billed=billed, document=document)

    def stream(self, events: Iterable[Event], *billed: Billed, errors: Iterable[Event] = ()) -> Reply:
        """Server-sent events; `errors` are what the vendor sends when it fails in the middle."""
        reply = Reply(200, {"content-type": "text/event-stream"}, streamed=True, billed=billed)
        reply.chunks = self._framed(events, tuple(errors), reply)
        return reply

    def _framed(self, events: Iterable[Event], errors: tuple[Event, ...], reply: Reply) -> Iterator[bytes]:
        faults = self.faults
        line_end = b"\r\n" if faults.crlf else b"\n"
        ahead: Event | None = None
        for place, event in enumerate(events):
            if ahead is not None:
                yield self._frame(ahead, line_end)
            ahead = event
            if place == faults.errmid:
                reply.whole = False
                yield from (frame(error, line_end=line_end) for error in errors)
                return
        if faults.no_done:
            reply.whole = False
        elif ahead is not None:
            yield self._frame(ahead, line_end)

    def _frame(self, event: Event, line_end: bytes) -> Chunk:
        if isinstance(event.document, str):
            return frame(event, line_end=line_end)
        return frame(event._replace(document=self.faults.distort(event.document)), line_end=line_end)
