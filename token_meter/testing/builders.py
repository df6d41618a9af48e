"""Meter events for tests: one with sensible fields, one with every field, and hypothesis strategies.

`hypothesis` is imported when a strategy is first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack

from token_meter.event import STATUSES, MeterEvent, Status
from token_meter.usage import QUANTITY_MAX, TOKEN_TYPES, Usage

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""When the first event of a test happens; each following one a second later."""


class EventFields(TypedDict, total=False):
    """The fields of an event that `make_event` takes."""

    id: str
    time: datetime
    usage: Usage
    duration_ms: int | None
    meter: str
    customer: str | None
    provider: str | None
    publisher: str | None
    model: str | None
    model_requested: str | None
    operation: str | None
    status: Status
    estimator: str | None
    anomalies: tuple[str, ...]
    price_context: Mapping[str, Any]
    dimensions: Mapping[str, str]
    response_id: str | None
    host: str | None
    mode: Literal["live", "test"]
    corrects: str | None
    raw_usage: Mapping[str, Any] | None


def make_event(number: int = 1, **fields: Unpack[EventFields]) -> MeterEvent:
    """The event `evt_<number>`, which happened at second `number` of 2026; any field can be given."""
    event = MeterEvent(
        id=f"evt_{number}",
        time=EPOCH + timedelta(seconds=number),
        usage=Usage(input=3, output=1),
        customer="acme",
        provider="openai",
        publisher="openai",
        model="gpt-5-2025-08-07",
        model_requested="gpt-5",
        operation="chat",
        response_id=f"chatcmpl-{number}",
        host="api.openai.com",
    )
    return replace(event, **fields)


def make_events(count: int, **fields: Unpack[EventFields]) -> list[MeterEvent]:
    """The events `evt_1` to `evt_<count>`, alike but for id, time and response id."""
    return [make_event(number, **fields) for number in range(1, count + 1)]


def full_event(number: int = 1) -> MeterEvent:
    """An event in which no field is empty and every token type counts."""
    return make_event(
        number,
        usage=Usage({name: place for place, name in enumerate(TOKEN_TYPES, start=1)}),
        duration_ms=1234,
        meter="llm_tokens",
        status="estimated",
        estimator="tiktoken/o200k_base",
        anomalies=("identity", "no_response"),
        price_context={"service_tier": "flex", "batch": True, "speed": "fast", "geo": "eu", "context_tokens": 200_001},
        dimensions={"feature": "chat", "Straße": "日本語 🜚", "empty": ""},
        mode="test",
        corrects="evt_0",
        raw_usage={"prompt_tokens": 3, "details": {"tier": "default", "cached": 0}},
    )


def usages(*, quantity_max: int = QUANTITY_MAX) -> SearchStrategy[Usage]:
    """Usages of a few token types, large quantities among them."""
    from hypothesis import strategies as st

    quantities = st.integers(min_value=0, max_value=quantity_max)
    return st.dictionaries(st.sampled_from(list(TOKEN_TYPES)), quantities, max_size=4).map(Usage)


def single_events(*, quantity_max: int = QUANTITY_MAX) -> SearchStrategy[MeterEvent]:
    """One event with an id of its own."""
    from hypothesis import strategies as st

    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
    name = st.none() | st.sampled_from(["acme", "globex", "Ω 株式会社"])
    times = st.datetimes(datetime(2025, 12, 1), datetime(2026, 3, 1), timezones=st.just(UTC))  # noqa: DTZ001
    return st.builds(
        make_event,
        st.integers(min_value=1, max_value=2**30),
        time=times,
        usage=usages(quantity_max=quantity_max),
        customer=name,
        provider=st.sampled_from(["openai", "anthropic", "google", "azure"]),
        model=st.none() | st.sampled_from(["gpt-5-2025-08-07", "claude-sonnet-4-5-20250929", "gemini-2.5-flash"]),
        status=st.sampled_from(STATUSES),
        anomalies=st.lists(text.filter(bool), max_size=2).map(tuple),
        dimensions=st.dictionaries(text.filter(bool), text, max_size=2),
        duration_ms=st.none() | st.integers(min_value=0, max_value=10**7),
    )


def events(
    *, min_size: int = 0, max_size: int = 20, quantity_max: int = QUANTITY_MAX
) -> SearchStrategy[list[MeterEvent]]:
    """Lists of events, each with an id of its own.

    A test that adds usages up passes a smaller `quantity_max`: sums of the largest do not fit a database.
    """
    from hypothesis import strategies as st

    element = single_events(quantity_max=quantity_max)
    return st.lists(element, min_size=min_size, max_size=max_size, unique_by=lambda event: event.id)
