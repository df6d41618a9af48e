"""Token usage as an OpenTelemetry metric, through the application's meter provider: to look at, not to bill from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from token_meter.errors import MissingExtra
from token_meter.event import MeterEvent
from token_meter.sinks.mapping import LLM_TOKENS, types_of

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram, Meter, MeterProvider

TOKEN_USAGE: Final = "gen_ai.client.token.usage"
LEFT_OUT: Final = "token_meter.client.token.usage.left_out"
BOUNDARIES: Final = tuple(4**power for power in range(14))
"""The buckets that the semantic conventions want: 1, 4, 16, … 67,108,864 tokens."""

COUNTED: Final[Mapping[str, tuple[str, ...]]] = {
    "input": types_of("input", "cached input", "cache write"),
    "output": types_of("output", "cached output"),
}
"""What `gen_ai.token.type` sums: there, input contains what was read from a cache or written to one."""

OPERATIONS: Final = {"completions": "text_completion", "messages": "chat", "responses": "chat"}
PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "google": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "vertex": "gcp.vertex_ai",
    "xai": "x_ai",
}
"""What the conventions call otherwise than we do. Names that they do not know are ours."""
OTHER: Final = "_OTHER"
"""Stands for an operation or provider that was not named: both attributes are required."""

Attributes = dict[str, str | int]


class OpenTelemetrySink:
    """Records the histogram `gen_ai.client.token.usage` of the semantic conventions for generative AI.

    For dashboards and alerts, not for bills: a metric has no ids, so an event that comes again counts again, and what
    the application does not export is lost. It is fed from meter events only. Spans are never read: SDKs emit their
    own, which would count a call twice.

    Only what a provider counted goes in. Estimated and unmetered events and corrections are counted in
    `token_meter.client.token.usage.left_out` instead, by reason. `attributes` are names of dimensions, or "customer",
    that each measurement carries as `token_meter.<name>`. Every value makes time series of its own, so there are none
    by default. The meter provider is the application's, the global one if none is given; it is never shut down here.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        *,
        attributes: Sequence[str] = (),
        name: str = "opentelemetry",
    ) -> None:
        if isinstance(attributes, str):
            raise TypeError(f"attributes must be a sequence of names, for example ({attributes!r},), not a string")
        try:
            from opentelemetry import metrics
        except ImportError:
            raise MissingExtra("OpenTelemetry needs: pip install 'token-meter[opentelemetry]'") from None
        self.name = name
        self._attributes = tuple(attributes)
        provider = metrics.get_meter_provider() if meter_provider is None else meter_provider
        meter = provider.get_meter("token_meter", _version())
        self._usage = _histogram(meter)
        self._left_out = meter.create_counter(
            LEFT_OUT, unit="{event}", description="Events whose tokens no provider counted, and corrections."
        )

    def send(self, events: Sequence[MeterEvent]) -> None:
        """Record the tokens of the events; other meters than that of model calls are passed over."""
        for event in events:
            if event.meter != LLM_TOKENS:
                continue
            attributes = self._attributes_of(event)
            if reason := _why_left_out(event):
                self._left_out.add(1, {**attributes, "token_meter.reason": reason})
                continue
            for kind, types in COUNTED.items():
                if tokens := sum(event.usage.get(name, 0) for name in types):
                    self._usage.record(tokens, {**attributes, "gen_ai.token.type": kind})

    def close(self) -> None:
        """Nothing to close: the meter provider belongs to the application."""

    def _attributes_of(self, event: MeterEvent) -> Attributes:
        found: dict[str, str | int | None] = {
            "gen_ai.operation.name": OPERATIONS.get(event.operation or OTHER, event.operation or OTHER),
            "gen_ai.provider.name": PROVIDERS.get(event.provider or OTHER, event.provider or OTHER),
            "gen_ai.request.model": event.model_requested,
            "gen_ai.response.model": event.model,
            **_server(event.host),
        }
        for name in self._attributes:
            found[f"token_meter.{name}"] = event.customer if name == "customer" else event.dimensions.get(name)
        return {name: value for name, value in found.items() if value is not None}


def _why_left_out(event: MeterEvent) -> str | None:
    """The conventions allow no estimates, and a histogram can take nothing back."""
    if event.corrects is not None:
        return "correction"
    return event.status if event.status in ("estimated", "unmetered") else None


def _server(host: str | None) -> Attributes:
    """The address, and the port where it is not the usual one."""
    try:
        place = urlsplit(f"//{host or ''}")
        address, port = place.hostname, place.port
    except ValueError:
        address, port = host, None
    if not address:
        return {}
    return {"server.address": address} if port is None else {"server.address": address, "server.port": port}


def _histogram(meter: Meter) -> Histogram:
    description = "Number of input and output tokens used."
    try:
        return meter.create_histogram(
            TOKEN_USAGE, unit="{token}", description=description, explicit_bucket_boundaries_advisory=BOUNDARIES
        )
    except TypeError:
        # Older versions take no advice; a view of the application can set the buckets.
        return meter.create_histogram(TOKEN_USAGE, unit="{token}", description=description)


def _version() -> str:
    try:
        return metadata.version("token-meter")
    except metadata.PackageNotFoundError:
        return ""
