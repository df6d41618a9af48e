"""The sink that records an OpenTelemetry metric: names and numbers as the conventions want them, read by the real SDK."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as names
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import server_attributes

from token_meter.errors import MissingExtra
from token_meter.sinks import OpenTelemetrySink
from token_meter.sinks.opentelemetry import COUNTED, LEFT_OUT, OPERATIONS, PROVIDERS, TOKEN_USAGE
from token_meter.testing.builders import full_event, make_event, make_events
from token_meter.testing.conformance import SinkConformance
from token_meter.usage import QUANTITY_MAX, TOKEN_TYPES, Usage


@pytest.fixture
def reader():
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader):
    provider = MeterProvider([reader])
    yield provider
    provider.shutdown()


def collected(reader):
    """Every instrument by name."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        each.name: each for group in data.resource_metrics for scope in group.scope_metrics for each in scope.metrics
    }


def usage(reader):
    """The sum and the number of measurements by token type, if each has one time series."""
    instruments = collected(reader)
    points = instruments[TOKEN_USAGE].data.data_points if TOKEN_USAGE in instruments else []
    found = {point.attributes["gen_ai.token.type"]: (point.sum, point.count) for point in points}
    assert len(found) == len(points)
    return found


def left_out(reader):
    instruments = collected(reader)
    points = instruments[LEFT_OUT].data.data_points if LEFT_OUT in instruments else []
    return {point.attributes["token_meter.reason"]: point.value for point in points}


class TestConformance(SinkConformance):
    """As far as it applies: a metric holds no events."""

    @pytest.fixture
    def sink(self, provider):
        yield OpenTelemetrySink(provider)


def test_tokens_are_recorded_as_the_conventions_describe_it(reader, provider):
    OpenTelemetrySink(provider).send(make_events(2))

    metric = collected(reader)[gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE]
    by_type = {point.attributes[names.GEN_AI_TOKEN_TYPE]: point for point in metric.data.data_points}
    shared = {
        names.GEN_AI_OPERATION_NAME: "chat",
        names.GEN_AI_PROVIDER_NAME: "openai",
        names.GEN_AI_REQUEST_MODEL: "gpt-5",
        names.GEN_AI_RESPONSE_MODEL: "gpt-5-2025-08-07",
        server_attributes.SERVER_ADDRESS: "api.openai.com",
    }
    assert (metric.unit, metric.description) == ("{token}", "Number of input and output tokens used.")
    assert {kind: dict(point.attributes) for kind, point in by_type.items()} == {
        "input": {**shared, "gen_ai.token.type": "input"},
        "output": {**shared, "gen_ai.token.type": "output"},
    }
    assert (by_type["input"].sum, by_type["input"].count, by_type["output"].sum) == (6, 2, 2)
    assert by_type["input"].explicit_bounds == (
        1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
    )  # fmt: skip


def test_the_names_are_those_of_the_conventions():
    operations = {each.value for each in names.GenAiOperationNameValues}
    providers = {each.value for each in names.GenAiProviderNameValues} | {"moonshot_ai"}

    assert set(OPERATIONS.values()) <= operations
    assert set(PROVIDERS.values()) <= providers
    assert set(COUNTED) == {each.value for each in names.GenAiTokenTypeValues}


def test_input_contains_cached_tokens_and_output_contains_reasoning(reader, provider):
    event = make_event(
        1, usage=Usage(input=1, cache_read=20, cache_write_5m=300, output=4000, reasoning=50_000, web_search=7)
    )
    OpenTelemetrySink(provider).send([event])

    assert usage(reader) == {"input": (321, 1), "output": (54_000, 1)}


def test_every_kind_of_token_is_counted_once():
    counted = [name for types in COUNTED.values() for name in types]

    assert sorted(counted) == sorted(name for name, row in TOKEN_TYPES.items() if row.unit == "token")


def test_what_was_not_used_is_not_measured(reader, provider):
    embedding = make_event(1, usage=Usage(input=5), operation="embeddings")
    OpenTelemetrySink(provider).send([embedding, make_event(2, usage=Usage(images=1), operation="images")])

    assert usage(reader) == {"input": (5, 1)}


def test_large_quantities_are_exact(reader, provider):
    OpenTelemetrySink(provider).send([make_event(1, usage=Usage(input=QUANTITY_MAX, cache_read=QUANTITY_MAX))])

    assert usage(reader) == {"input": (2 * QUANTITY_MAX, 1)}


def test_estimates_are_left_out_and_counted(reader, provider):
    batch = [
        make_event(1),
        make_event(2, status="partial"),
        make_event(3, status="estimated", estimator="bytes/4"),
        make_event(4, status="estimated", estimator="bytes/4"),
        make_event(5, status="unmetered", usage=Usage()),
        make_event(6, corrects="evt_1"),
        make_event(7, corrects="evt_3", status="estimated"),
    ]
    OpenTelemetrySink(provider).send(batch)

    assert usage(reader) == {"input": (6, 2), "output": (2, 2)}
    assert left_out(reader) == {"estimated": 2, "unmetered": 1, "correction": 2}
    assert collected(reader)[LEFT_OUT].unit == "{event}"


def test_meters_of_ones_own_are_no_tokens_of_a_model(reader, provider):
    OpenTelemetrySink(provider).send([make_event(1, meter="pages", usage=Usage(units=12, input=3), status="estimated")])

    assert (usage(reader), left_out(reader)) == ({}, {})


def test_an_event_that_comes_again_counts_again(reader, provider):
    """A metric cannot tell: this is why nobody may bill from it."""
    sink = OpenTelemetrySink(provider)
    sink.send(make_events(2))
    sink.send(make_events(2))

    assert usage(reader) == {"input": (12, 4), "output": (4, 4)}


def attributes_of(reader, provider, event, **options):
    OpenTelemetrySink(provider, **options).send([event])
    first, *_ = collected(reader)[TOKEN_USAGE].data.data_points
    return dict(first.attributes)


def test_customers_and_dimensions_are_no_attributes_unless_asked_for(reader, provider):
    found = attributes_of(reader, provider, make_event(1, dimensions={"feature": "search", "user": "u_1"}))

    assert not {"search", "u_1", "acme"} & set(found.values())
    assert not [name for name in found if name.startswith("token_meter")]


def test_attributes_that_were_asked_for_are_there(reader, provider):
    event = make_event(1, dimensions={"feature": "search", "user": "u_1"})
    found = attributes_of(reader, provider, event, attributes=("customer", "feature", "absent"))

    own = {name: value for name, value in found.items() if name.startswith("token_meter")}
    assert own == {"token_meter.customer": "acme", "token_meter.feature": "search"}


def test_one_string_of_attributes_is_a_mistake(provider):
    with pytest.raises(TypeError, match=r"for example \('customer',\)"):
        OpenTelemetrySink(provider, attributes="customer")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("api.openai.com", {"server.address": "api.openai.com"}),
        ("localhost:11434", {"server.address": "localhost", "server.port": 11434}),
        ("[::1]:8080", {"server.address": "::1", "server.port": 8080}),
        ("proxy:port", {"server.address": "proxy:port"}),
        ("", {}),
        (None, {}),
    ],
)
def test_the_host_is_address_and_port(reader, provider, host, expected):
    found = attributes_of(reader, provider, make_event(1, host=host))

    assert {name: value for name, value in found.items() if name.startswith("server")} == expected


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("messages", "chat"),
        ("responses", "chat"),
        ("completions", "text_completion"),
        ("audio", "audio"),
        (None, "_OTHER"),
    ],
)
def test_operations_have_the_names_of_the_conventions(reader, provider, operation, expected):
    assert attributes_of(reader, provider, make_event(1, operation=operation))["gen_ai.operation.name"] == expected


@pytest.mark.parametrize(
    ("ours", "expected"),
    [("google", "gcp.gemini"), ("bedrock", "aws.bedrock"), ("openrouter", "openrouter"), (None, "_OTHER")],
)
def test_providers_have_the_names_of_the_conventions(reader, provider, ours, expected):
    assert attributes_of(reader, provider, make_event(1, provider=ours))["gen_ai.provider.name"] == expected


def test_what_is_not_known_is_no_attribute(reader, provider):
    found = attributes_of(reader, provider, make_event(1, model=None, model_requested=None, host=None))

    assert set(found) == {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.token.type"}


def test_only_events_are_taken_never_spans(provider):
    """Anything else is refused loudly; nothing here could be registered as an exporter or processor of spans."""
    sink = OpenTelemetrySink(provider)
    with pytest.raises(AttributeError):
        sink.send([object()])

    assert not {"on_start", "on_end", "export", "force_flush", "shutdown"} & set(dir(sink))


class Older(metrics.MeterProvider):
    """A meter provider whose `create_histogram` has no advice about buckets, as before version 1.30."""

    def __init__(self, real):
        self.real = real

    def get_meter(self, name, version=None, schema_url=None, attributes=None):
        meter = self.real.get_meter(name, version)
        create = meter.create_histogram
        meter.create_histogram = lambda name, unit="", description="": create(name, unit, description)
        return meter


def test_an_older_api_gives_the_same_numbers_in_other_buckets(reader, provider):
    OpenTelemetrySink(Older(provider)).send(make_events(2))

    assert usage(reader) == {"input": (6, 2), "output": (2, 2)}
    assert collected(reader)[TOKEN_USAGE].unit == "{token}"


def test_without_its_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    with pytest.raises(MissingExtra, match=r"pip install 'token-meter\[opentelemetry\]'"):
        OpenTelemetrySink()


def test_closing_leaves_the_meter_provider_running(reader, provider):
    sink = OpenTelemetrySink(provider, name="observed")
    sink.close()
    sink.send([full_event(1), make_event(2)])

    assert sink.name == "observed"
    assert usage(reader) == {"input": (3, 1), "output": (1, 1)}


GLOBAL = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import anthropic
from token_meter import Meter
from token_meter.sinks import MemorySink, OpenTelemetrySink
from token_meter.testing import LoopbackProvider

sink = OpenTelemetrySink()  # made before the application has set up anything
spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(tracers)
metrics.set_meter_provider(MeterProvider([reader]))

memory = MemorySink()
with LoopbackProvider() as provider, Meter(memory, sink, journal="journal") as meter:
    with meter.wrap(anthropic.Anthropic(base_url=provider.anthropic_url, api_key="none")) as client:
        for _ in range(2):
            client.messages.create(model="claude-sonnet-4-5", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
    assert meter.flush()

told = [span for span in spans.get_finished_spans() if "gen_ai.usage.input_tokens" in span.attributes]
(metric,) = [m for s in reader.get_metrics_data().resource_metrics[0].scope_metrics for m in s.metrics]
recorded = {point.attributes["gen_ai.token.type"]: (point.sum, point.count) for point in metric.data.data_points}
events = memory.events
print(len(told), metric.name, recorded == {
    "input": (sum(event.usage.input for event in events), 2), "output": (sum(event.usage.output for event in events), 2)
})
"""


def test_an_sdk_that_emits_spans_of_its_own_does_not_double_the_tokens(tmp_path):
    """The real anthropic SDK tells a tracer about both calls; the metric has each once, from the meter's events."""
    ran = subprocess.run([sys.executable, "-c", GLOBAL], capture_output=True, text=True, cwd=tmp_path)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "2 gen_ai.client.token.usage True\n"
