"""The billing backends that are delivered to: the fake, the sink for it, and what should have been counted in the end.

What should have been counted is worked out here from the plan, by tables of its own: a rule of a sink's mapping that
is wrong must not be right because it was asked twice.
"""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from bench.plan import CUSTOMERS, OWN_METER, Planned
from token_meter.testing.backends import (
    FakeAmberflo,
    FakeBackend,
    FakeLago,
    FakeOpenMeter,
    FakeStripe,
    WebhookReceiver,
)

STRIPE_KEY: Final = "sk_live_bench"
LAGO_KEY: Final = "lago-bench"
AMBERFLO_KEY: Final = "amberflo-bench"
OPENMETER_KEY: Final = "openmeter-bench"
WEBHOOK_SECRET: Final = "whsec_" + base64.b64encode(b"a secret of no one, only for benches").decode()

Key = tuple[str, ...]
"""Customer as the backend knows them, meter there, and what usage is split by."""


class Expected(NamedTuple):
    """One record that should be counted, once."""

    key: Key
    value: int


@dataclass(frozen=True, slots=True)
class Kind:
    """One sink and its backend. `expected` says which records an event should make there."""

    name: str
    fake: Callable[[int], FakeBackend]
    sink: Callable[..., Any]
    expected: Callable[[Planned], Iterator[Expected]]


def external_ids(customer: str) -> dict[str, str]:
    """What the backends know a customer by; Amberflo, OpenMeter and the webhook know them by our own id."""
    return {"stripe": f"cus_{customer.replace('-', '')}", "lago": f"sub_{customer}"}


# ---- Stripe ----

_STRIPE_TYPES: Final[Mapping[str, str]] = {
    "input": "input", "input_audio": "input", "input_image": "input", "cache_write_5m": "input",
    "cache_write_1h": "input", "cache_read": "cached_input", "output": "output", "reasoning": "output",
}  # fmt: skip
_STRIPE_MODELS: Final[Mapping[str, str]] = {
    "gpt-5-2025-08-07": "openai/gpt-5",
    "gpt-4o-mini": "openai/gpt-4o-mini",
    "claude-sonnet-4-5-20250929": "anthropic/claude-sonnet-4.5",
    "gemini-2.5-pro": "google/gemini-2.5-pro",
}


def _fake_stripe(**strictness: Any) -> Callable[[int], FakeBackend]:
    def make(port: int = 0) -> FakeStripe:
        ids = [external_ids(customer)["stripe"] for customer in CUSTOMERS]
        fake = FakeStripe(port=port, key=STRIPE_KEY, customers=ids, **strictness)
        fake.add_token_billing_meter()
        return fake

    return make


def _stripe_sink(api: str) -> Callable[..., Any]:
    def make(url: str, *, name: str, now: Callable[[], float] = time.time) -> Any:
        from token_meter.sinks import StripeSink

        return StripeSink(STRIPE_KEY, api=api, base_url=url, name=name, now=now)  # type: ignore[arg-type]

    return make


def _stripe_expected(event: Planned) -> Iterator[Expected]:
    """One record for each spelling of a token type; meters of one's own are not reported."""
    sums: Counter[str] = Counter()
    for name, value in event.usage.items():
        if name in _STRIPE_TYPES:
            sums[_STRIPE_TYPES[name]] += value
    customer = external_ids(event.customer)["stripe"]
    for token_type, value in sums.items():
        yield Expected((customer, "token-billing-tokens", _STRIPE_MODELS[event.model or ""], token_type), value)


# ---- Lago ----

_LAGO_CODES: Final[Mapping[str, str]] = {
    "input": "llm_input_tokens", "input_audio": "llm_audio_input_tokens", "input_image": "llm_image_input_tokens",
    "cache_read": "llm_cached_input_tokens", "cache_write_5m": "llm_cache_write_5m_tokens",
    "cache_write_1h": "llm_cache_write_1h_tokens", "output": "llm_output_tokens", "reasoning": "llm_reasoning_tokens",
    "web_search": "llm_tool_calls",
}  # fmt: skip


def _fake_lago(port: int = 0) -> FakeBackend:
    subscriptions = {external_ids(customer)["lago"]: customer for customer in CUSTOMERS}
    metrics = dict.fromkeys((*_LAGO_CODES.values(), OWN_METER), "value")
    return FakeLago(port=port, key=LAGO_KEY, subscriptions=subscriptions, metrics=metrics, strict=True)


def _lago_sink(url: str, *, name: str) -> Any:
    from token_meter.sinks import LagoSink

    return LagoSink(LAGO_KEY, base_url=url, name=name)


def _lago_expected(event: Planned) -> Iterator[Expected]:
    """One record for each billable metric; none of the planned types share one."""
    subscription = external_ids(event.customer)["lago"]
    if event.meter == OWN_METER:
        yield Expected((subscription, OWN_METER), event.usage["units"])
        return
    for name, value in event.usage.items():
        yield Expected((subscription, _LAGO_CODES[name], event.model or "", event.provider or ""), value)


# ---- Amberflo ----


def _fake_amberflo(port: int = 0) -> FakeBackend:
    return FakeAmberflo(port=port, key=AMBERFLO_KEY, meters=["llm_tokens", "api_calls", OWN_METER])


def _amberflo_sink(url: str, *, name: str) -> Any:
    from token_meter.sinks import AmberfloSink

    return AmberfloSink(AMBERFLO_KEY, ingest_url=url, name=name)


def _amberflo_expected(event: Planned) -> Iterator[Expected]:
    """One record for each token type, and one for the call."""
    if event.meter == OWN_METER:
        yield Expected((event.customer, OWN_METER), event.usage["units"])
        return
    model = (event.model or "", event.provider or "")
    for name, value in event.usage.items():
        yield Expected((event.customer, "llm_tokens", *model, name), value)
    yield Expected((event.customer, "api_calls", *model), 1)


# ---- OpenMeter ----


def _fake_openmeter(port: int = 0) -> FakeBackend:
    fake = FakeOpenMeter(port=port, key=OPENMETER_KEY)
    fake.add_meter("prompt", "prompt", "$.tokens", group_by=["model", "type"])
    fake.add_meter(OWN_METER, OWN_METER, "$.tokens")
    return fake


def _openmeter_sink(url: str, *, name: str) -> Any:
    from token_meter.sinks import OpenMeterSink

    return OpenMeterSink(OPENMETER_KEY, base_url=url, name=name)


def _openmeter_expected(event: Planned) -> Iterator[Expected]:
    """One record for each token type."""
    if event.meter == OWN_METER:
        yield Expected((event.customer, OWN_METER), event.usage["units"])
        return
    for name, value in event.usage.items():
        yield Expected((event.customer, "prompt", event.model or "", event.provider or "", name), value)


# ---- a webhook ----


def _fake_webhook(port: int = 0) -> FakeBackend:
    return WebhookReceiver(port=port, secret=WEBHOOK_SECRET)


def _webhook_sink(url: str, *, name: str) -> Any:
    from token_meter.sinks import WebhookSink

    return WebhookSink(f"{url}/usage", secret=WEBHOOK_SECRET, name=name)


def _webhook_expected(event: Planned) -> Iterator[Expected]:
    """The whole event, which the receiver splits by token type."""
    for name, value in event.usage.items():
        model = [text for text in (event.model, event.provider) if text is not None]
        yield Expected((event.customer, event.meter, *model, name), value)


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("stripe-stream", _fake_stripe(), _stripe_sink("stream"), _stripe_expected),
        Kind(
            "stripe-v2",
            _fake_stripe(strict_identifiers="refuse", busy="conflict"),
            _stripe_sink("v2"),
            _stripe_expected,
        ),
        Kind("stripe-v1", _fake_stripe(strict_identifiers="refuse"), _stripe_sink("v1"), _stripe_expected),
        Kind("lago", _fake_lago, _lago_sink, _lago_expected),
        Kind("amberflo", _fake_amberflo, _amberflo_sink, _amberflo_expected),
        Kind("openmeter", _fake_openmeter, _openmeter_sink, _openmeter_expected),
        Kind("webhook", _fake_webhook, _webhook_sink, _webhook_expected),
    )
}
