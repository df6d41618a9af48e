"""The tools that are compared, each set up as its own documentation says, and what the backend then has from it.

A tool's events are read by its own definitions: `lago-agent-sdk` counts cached tokens within the input on OpenAI and
Gemini and beside it on Anthropic, and so on; its own table says which. What is compared are the four kinds of tokens
that are priced apart everywhere.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from token_meter.testing.backends import FakeAmberflo, FakeLago
from token_meter.testing.backends.base import Counted
from token_meter.usage import TOKEN_TYPES, Usage

KEY: Final = "comparison-key"
CUSTOMER: Final = "acme"


class Split(NamedTuple):
    """Tokens by what they are priced as. Output includes reasoning."""

    input: int = 0
    cached: int = 0
    written: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        return sum(self)

    def __or__(self, other: Split) -> Split:
        """Both together."""
        return Split(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


HEADLINES: Final = {
    "input": "input",
    "cached input": "cached",
    "cache write": "written",
    "output": "output",
    "cached output": "output",
}


def split_of(usage: Usage) -> Split:
    """Disjoint token types by headline."""
    sums: Counter[str] = Counter()
    for name, quantity in usage.items():
        if TOKEN_TYPES[name].headline in HEADLINES:
            sums[HEADLINES[TOKEN_TYPES[name].headline]] += quantity
    return Split(**sums)


@dataclass(slots=True)
class Result:
    """What a backend has from a tool, and what the tool says about it."""

    events: int
    split: Split
    statuses: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool, running. `wrap` takes a client, `metered` is put around functions, `finish` flushes and reads back."""

    wrap: Callable[[Any], Any]
    metered: Callable[[Any], Any]
    finish: Callable[[], Result]


def same(thing: Any) -> Any:
    """Neither wrapped nor decorated."""
    return thing


def bare(url: str | None = None) -> Tool:
    """No tool: what the application sees without one."""
    return Tool(same, same, lambda: Result(0, Split()))


def lago_agent_sdk(url: str | None = None) -> Tool:
    """Its README: `LagoSDK(...)`, `sdk.wrap(client)`, `sdk.flush()`."""
    from lago_agent_sdk import LagoSDK

    lago = None if url else FakeLago(key=KEY).start()
    sdk = LagoSDK(api_key=KEY, api_url=f"{url or lago.url}/api/v1", default_subscription_id=CUSTOMER)  # type: ignore[union-attr]

    def finish() -> Result:
        sdk.flush(timeout=10)
        sdk.shutdown()
        counted = lago.counted if lago else []
        return Result(len(counted), _agent_sdk_split(counted))

    return Tool(sdk.wrap, same, finish)


def _agent_sdk_split(counted: Iterable[Counted]) -> Split:
    """By the SDK's own table of what contains what."""
    from lago_agent_sdk import token_semantics
    from lago_agent_sdk.config import DEFAULT_METRIC_CODES

    fields = {code: name for name, code in DEFAULT_METRIC_CODES.items()}
    sums: dict[str, Counter[str]] = {}
    for each in counted:
        provider = each.group[-1] if each.group else ""
        sums.setdefault(provider, Counter())[fields.get(each.meter, each.meter)] += each.value
    split = Split()
    for provider, of in sums.items():
        inside = of["cache_read"] if provider in token_semantics.INPUT_INCLUDES_CACHE_READ else 0
        beside = 0 if provider in token_semantics.OUTPUT_INCLUDES_REASONING else of["reasoning"]
        # Writes that last 5 minutes and an hour are parts of `cache_write`, where that is reported too.
        written = max(of["cache_write"], of["cache_write_5m"] + of["cache_write_1h"])
        split |= Split(of["input"] - inside, of["cache_read"], written, of["output"] + beside)
    return split


def amberflo_meter_llm(url: str | None = None) -> Tool:
    """Its docstrings and samples: `@meter_llm(...)` around the function that calls the model, `client.flush()`."""
    from metering.ingest import create_ingest_client
    from metering.llms import meter_llm
    from metering.session import IngestSession

    amberflo = None if url else FakeAmberflo(key=KEY).start()
    IngestSession.root_url = url or amberflo.url  # type: ignore[union-attr]
    client = create_ingest_client(api_key=KEY)

    def finish() -> Result:
        client.shutdown()
        counted = amberflo.counted if amberflo else []
        sums: Counter[str] = Counter()
        for each in counted:
            sums[each.meter] += each.value
        return Result(len(counted), Split(input=sums["input_tokens"], output=sums["output_tokens"]))

    return Tool(same, meter_llm(customer_id_getter=lambda given: CUSTOMER, metering_client=client), finish)


def token_meter_lago(url: str | None = None, *, journal: Path | None = None) -> Tool:
    """`Meter(LagoSink(...))`, `meter.wrap(client)`."""
    from token_meter.sinks import LagoSink

    lago = None if url else FakeLago(key=KEY).start()
    sink = LagoSink(KEY, base_url=url or lago.url, customers="same")  # type: ignore[union-attr]
    return _token_meter(sink, lambda: lago.counted if lago else [], journal)


def token_meter_amberflo(url: str | None = None, *, journal: Path | None = None) -> Tool:
    """`Meter(AmberfloSink(...))`, `meter.wrap(client)`."""
    from token_meter.sinks import AmberfloSink

    amberflo = None if url else FakeAmberflo(key=KEY).start()
    sink = AmberfloSink(KEY, ingest_url=url or amberflo.url)  # type: ignore[union-attr]
    return _token_meter(sink, lambda: amberflo.counted if amberflo else [], journal)


def _token_meter(sink: Any, read: Callable[[], Iterable[Counted]], journal: Path | None) -> Tool:
    from token_meter import Meter
    from token_meter.sinks import MemorySink
    from token_meter.sinks.lago import CODES

    events = MemorySink()
    meter = Meter(sink, events, journal=journal or Path(tempfile.mkdtemp()) / "journal")
    # The provider on this machine stands in OpenAI's place, of which this is known.
    meter.allow_include_usage("127.0.0.1:*")
    types = {code: name for name, code in CODES.items()}

    def finish() -> Result:
        meter.flush(30)
        meter.close()
        counted = list(read())
        sums: Counter[str] = Counter()
        for each in counted:
            name = each.group[-1] if each.meter == "llm_tokens" else types.get(each.meter)
            if name is not None:
                sums[name] += each.value
        return Result(len(counted), split_of(Usage(sums)), [event.status for event in events.events])

    def wrap(client: Any) -> Any:
        return meter.wrap(client, customer=CUSTOMER)

    return Tool(wrap, same, finish)


TOOLS: Final[dict[str, Callable[..., Tool]]] = {
    "lago-agent-sdk": lago_agent_sdk,
    "token_meter, LagoSink": token_meter_lago,
    "amberflo meter_llm": amberflo_meter_llm,
    "token_meter, AmberfloSink": token_meter_amberflo,
}
