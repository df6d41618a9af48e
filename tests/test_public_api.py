"""What others build on: names, signatures, fields. A change here is a change for users, so it is made on purpose.

Then: `python -m pytest tests/test_public_api.py -n0 --inline-snapshot=fix`, and a line in CHANGELOG.md.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from typing import Any

from inline_snapshot import snapshot

import token_meter
import token_meter.partners
import token_meter.sinks
import token_meter.testing
from tests.doc_tables import every_command
from token_meter import Customer, CustomerScope, Meter, MeterEvent, Tally, TokenMeterError, Usage
from token_meter.accounts import CustomerBook, CustomerChanges, Edited, check_csv, export_csv, import_csv
from token_meter.charging import Charging
from token_meter.event import STATUSES
from token_meter.health import Health
from token_meter.ledger import Ledger, UsageRow
from token_meter.testing.builders import full_event


def signatures(thing: Any) -> dict[str, list[str]]:
    """The public methods of a class with their parameters; properties without."""
    return {name: signature(each) for name, each in vars(thing).items() if name == "__init__" or name[0] != "_"}


def signature(each: Any) -> list[str]:
    """The parameters of a function, one text each, and what it returns."""
    if isinstance(each, property):
        return ["property"]
    found = inspect.signature(each.__func__ if isinstance(each, classmethod) else each)
    shown: list[str] = []
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in "".join(shown):
            shown.append("*")
        text = re.sub(r"<(?:built-in )?function (\w+)[^>]*>", r"\1", str(parameter))
        shown.append(text.replace("'", "").replace('"', ""))
    returned = found.return_annotation
    return [*shown, f"-> {returned}"] if isinstance(returned, str) else shown


def tree(error: type, depth: int = 0) -> list[str]:
    """An error and those below it, indented; bases of the standard library in brackets."""
    others = [base.__name__ for base in error.__bases__ if not issubclass(base, TokenMeterError)]
    line = "  " * depth + error.__name__ + (f" ({', '.join(others)})" if others and depth else "")
    below = [each for each in error.__subclasses__() if each.__module__ == "token_meter.errors"]
    return [line, *(inner for each in below for inner in tree(each, depth + 1))]


def test_names() -> None:
    assert token_meter.__all__ == snapshot(
        [
            "HEADLINES",
            "TOKEN_TYPES",
            "BudgetExceeded",
            "Customer",
            "CustomerScope",
            "InvalidCustomer",
            "InvalidEvent",
            "JournalError",
            "Meter",
            "MeterEvent",
            "MeteringUnavailable",
            "MissingExtra",
            "NewerSchema",
            "NoLedger",
            "Rejected",
            "Retry",
            "SinkError",
            "Tally",
            "TokenMeterError",
            "TokenType",
            "UnsupportedClient",
            "Usage",
        ]
    )
    assert token_meter.sinks.__all__ == snapshot(
        [
            "AmberfloSink",
            "CallbackSink",
            "FilesSink",
            "JsonlSink",
            "LagoSink",
            "LedgerSink",
            "Measure",
            "MemorySink",
            "OpenMeterSink",
            "OpenTelemetrySink",
            "Refusal",
            "Rejected",
            "Retry",
            "Rule",
            "Sink",
            "StripeSink",
            "WebhookSink",
        ]
    )
    assert token_meter.testing.__all__ == snapshot(
        [
            "Captured",
            "FakeClock",
            "LoopbackProvider",
            "SequentialIds",
            "SinkConformance",
            "capture",
            "events",
            "make_event",
            "sink_conformance",
        ]
    )


def test_every_name_can_be_imported() -> None:
    for module in (token_meter, token_meter.sinks, token_meter.testing):
        assert all(getattr(module, name) is not None for name in module.__all__)


def test_meter() -> None:
    assert signatures(Meter) == snapshot(
        {
            "__init__": [
                "self",
                "*sinks: Sink | str | os.PathLike[str]",
                "journal: str | os.PathLike[str] | None = None",
                "prices: Prices = None",
                "dimensions: Sequence[str] = ()",
                "on_error: Callable[[str, BaseException], object] | None = None",
                "-> None",
            ],
            "from_env": ["cls", "-> Meter"],
            "wrap": ["self", "client: Client", "*", "customer: str | None = None", "**dimensions: object", "-> Client"],
            "unwrap": ["self", "client: Client", "-> Client"],
            "instrument": ["self", "*names: str", "-> Undo"],
            "allow_include_usage": ["self", "*hosts: str", "-> None"],
            "customer": [
                "self",
                "id: str | None = None",
                "*",
                "from_: Callable[..., Any] | None = None",
                "**dimensions: object",
                "-> CustomerScope",
            ],
            "record": [
                "self",
                "usage: Usage | Mapping[str, int] | int",
                "*",
                "model: str | None = None",
                "provider: str | None = None",
                "customer: str | None = None",
                "meter: str = llm_tokens",
                "id: str | None = None",
                "time: datetime | None = None",
                "operation: str | None = None",
                "dimensions: Mapping[str, object] | None = None",
                "price_context: Mapping[str, Any] | None = None",
                "response_id: str | None = None",
                "corrects: str | None = None",
                "status: Status = complete",
                "-> MeterEvent",
            ],
            "take_report": ["self", "sink: str", "body: bytes", "headers: Mapping[str, str]", "-> Report | None"],
            "record_event": ["self", "event: MeterEvent", "-> None"],
            "sync": ["self", "-> bool"],
            "ledger": ["property"],
            "customers": ["property"],
            "events": [
                "self",
                "*",
                "customer: str | object | None = Ellipsis",
                "limit: int | None = None",
                "**filters: Any",
                "-> list[MeterEvent]",
            ],
            "usage": [
                "self",
                "customer: str | object | None = Ellipsis",
                "*",
                "by: Sequence[str] | str = (model,)",
                "since: Moment = None",
                "until: Moment = None",
                "bucket: Literal[hour, day, month] | None = None",
                "time_zone: str = UTC",
                "**filters: Any",
                "-> list[UsageRow]",
            ],
            "health": ["self", "-> Health"],
            "on_notice": ["self", "callback: Callable[[Mapping[str, Any]], object]", "*kinds: str", "-> None"],
            "journal_folder": ["property"],
            "flush": ["self", "timeout: float | None = 10.0", "-> bool"],
            "close": ["self", "timeout: float = 5.0", "-> None"],
        }
    )


def test_attribution() -> None:
    assert signatures(Tally) == snapshot(
        {
            "__init__": ["self", "-> None"],
            "usage": ["property"],
            "calls": ["property"],
            "add": ["self", "usage: Usage", "*", "calls: int = 1", "-> None"],
            "add_later": ["self", "read: Callable[[], Usage]", "-> None"],
        }
    )
    assert [name for name in vars(CustomerScope) if name in ("__enter__", "__aenter__", "__call__")] == snapshot(
        ["__enter__", "__aenter__", "__call__"]
    )


def test_usage() -> None:
    assert signatures(Usage) == snapshot(
        {
            "__init__": ["self", "quantities: Mapping[str, int] | None = None", "**more: int", "-> None"],
            "of": ["cls", "quantities: dict[str, int]", "-> Usage"],
            "items": ["self", "-> ItemsView[str, int]"],
            "keys": ["self", "-> KeysView[str]"],
            "values": ["self", "-> ValuesView[int]"],
            "tokens": ["property"],
            "by_headline": ["self", "-> dict[str, int]"],
        }
    )
    assert list(token_meter.HEADLINES) == snapshot(
        ["input", "cached input", "cache write", "output", "cached output", "other"]
    )
    assert {name: (row.headline, row.unit) for name, row in token_meter.TOKEN_TYPES.items()} == snapshot(
        {
            "input": ("input", "token"),
            "input_audio": ("input", "token"),
            "input_image": ("input", "token"),
            "input_video": ("input", "token"),
            "input_document": ("input", "token"),
            "tool_input": ("input", "token"),
            "cache_read": ("cached input", "token"),
            "cache_read_audio": ("cached input", "token"),
            "cache_read_image": ("cached input", "token"),
            "cache_read_video": ("cached input", "token"),
            "cache_write_5m": ("cache write", "token"),
            "cache_write_30m": ("cache write", "token"),
            "cache_write_1h": ("cache write", "token"),
            "cache_write_12h": ("cache write", "token"),
            "output": ("output", "token"),
            "output_audio": ("output", "token"),
            "output_image": ("output", "token"),
            "output_video": ("output", "token"),
            "reasoning": ("output", "token"),
            "cached_output": ("cached output", "token"),
            "web_search": ("other", "call"),
            "file_search": ("other", "call"),
            "code_interpreter": ("other", "call"),
            "image_generation": ("other", "call"),
            "audio_ms": ("other", "millisecond"),
            "video_ms": ("other", "millisecond"),
            "characters": ("other", "character"),
            "images": ("other", "image"),
            "units": ("other", "unit"),
        }
    )


def test_event() -> None:
    defaults = {each.name: "" if each.default is MISSING else repr(each.default) for each in fields(MeterEvent)}

    assert {each.name: (str(each.type), defaults[each.name]) for each in fields(MeterEvent)} == snapshot(
        {
            "id": ("str", ""),
            "time": ("datetime", ""),
            "usage": ("Usage", ""),
            "duration_ms": ("int | None", "None"),
            "meter": ("str", "'llm_tokens'"),
            "customer": ("str | None", "None"),
            "provider": ("str | None", "None"),
            "publisher": ("str | None", "None"),
            "model": ("str | None", "None"),
            "model_requested": ("str | None", "None"),
            "operation": ("str | None", "None"),
            "status": ("Status", "'complete'"),
            "estimator": ("str | None", "None"),
            "anomalies": ("tuple[str, ...]", "()"),
            "price_context": ("Mapping[str, Any]", ""),
            "dimensions": ("Mapping[str, str]", ""),
            "response_id": ("str | None", "None"),
            "host": ("str | None", "None"),
            "mode": ("Literal['live', 'test']", "'live'"),
            "corrects": ("str | None", "None"),
            "raw_usage": ("Mapping[str, Any] | None", "None"),
            "schema": ("int", "1"),
        }
    )
    assert list(STATUSES) == snapshot(["complete", "partial", "estimated", "unmetered"])


def test_json_form_of_an_event() -> None:
    event = full_event(1)
    document = event.to_json()

    assert MeterEvent.from_json(document) == event
    assert {name: value for name, value in document.items() if name != "usage"} == snapshot(
        {
            "schema": 1,
            "id": "evt_1",
            "time": "2026-01-01T00:00:01.000000Z",
            "status": "estimated",
            "meter": "llm_tokens",
            "customer": "acme",
            "provider": "openai",
            "publisher": "openai",
            "model": "gpt-5-2025-08-07",
            "model_requested": "gpt-5",
            "operation": "chat",
            "estimator": "tiktoken/o200k_base",
            "anomalies": ["identity", "no_response"],
            "price_context": {
                "service_tier": "flex",
                "batch": True,
                "speed": "fast",
                "geo": "eu",
                "context_tokens": 200001,
            },
            "dimensions": {"feature": "chat", "Straße": "日本語 🜚", "empty": ""},
            "response_id": "chatcmpl-1",
            "host": "api.openai.com",
            "mode": "test",
            "corrects": "evt_0",
            "duration_ms": 1234,
            "raw_usage": {"prompt_tokens": 3, "details": {"tier": "default", "cached": 0}},
        }
    )


def test_sinks() -> None:
    made = {name: getattr(token_meter.sinks, name) for name in token_meter.sinks.__all__}

    assert {name: signature(each.__init__) for name, each in made.items()} == snapshot(
        {
            "AmberfloSink": [
                "self",
                "api_key: Secret | None = None",
                "*",
                "template: Template = token_types",
                "mapping: Sequence[Rule] | Mapped | None = None",
                "properties: Properties | None = None",
                "dimensions: Sequence[str] = ()",
                "customers: Customers = same",
                "unattributed: str | None = None",
                "mode: Mode = live",
                "where: Callable[[MeterEvent], bool] | None = None",
                "name: str = amberflo",
                "ingest_url: str = https://ingest.amberflo.io",
                "api_url: str | None = None",
                "-> None",
            ],
            "CallbackSink": [
                "self",
                "function: Callable[[list[MeterEvent]], object]",
                "*",
                "name: str = callback",
                "-> None",
            ],
            "FilesSink": [
                "self",
                "folder: str | os.PathLike[str]",
                "*",
                "format: Name = jsonl",
                "part_events: int = 10000",
                "fsync: Literal[always, never] = always",
                "name: str = files",
                "-> None",
            ],
            "JsonlSink": [
                "self",
                "path: str | os.PathLike[str]",
                "*",
                "rotate_bytes: int = 67108864",
                "keep: int | None = None",
                "fsync: Literal[always, never] = always",
                "name: str = jsonl",
                "-> None",
            ],
            "LagoSink": [
                "self",
                "api_key: Secret | None = None",
                "*",
                "base_url: str | None = None",
                "codes: Mapping[str, str] = {input: llm_input_tokens, input_document: llm_input_tokens, input_video: llm_input_tokens, tool_input: llm_input_tokens, input_audio: llm_audio_input_tokens, input_image: llm_image_input_tokens, cache_read: llm_cached_input_tokens, cache_read_audio: llm_cached_input_tokens, cache_read_image: llm_cached_input_tokens, cache_read_video: llm_cached_input_tokens, cache_write_5m: llm_cache_write_5m_tokens, cache_write_30m: llm_cache_creation_tokens, cache_write_1h: llm_cache_write_1h_tokens, cache_write_12h: llm_cache_creation_tokens, output: llm_output_tokens, output_image: llm_output_tokens, output_video: llm_output_tokens, cached_output: llm_output_tokens, output_audio: llm_audio_output_tokens, reasoning: llm_reasoning_tokens, web_search: llm_tool_calls, file_search: llm_tool_calls, code_interpreter: llm_tool_calls, image_generation: llm_tool_calls, audio_ms: llm_audio_milliseconds, video_ms: llm_video_milliseconds, characters: llm_characters, images: llm_images, units: llm_units}",
                "mapping: Sequence[Rule] | Mapped | None = None",
                "properties: Properties | None = None",
                "dimensions: Sequence[str] = ()",
                "customers: Customers = registered",
                "unattributed: str | None = None",
                "mode: Mode = live",
                "where: Callable[[MeterEvent], bool] | None = None",
                "price: Price | None = None",
                "name: str = lago",
                "-> None",
            ],
            "LedgerSink": [
                "self",
                "url: str | os.PathLike[str]",
                "*",
                "dimensions: Sequence[str] = ()",
                "name: str = ledger",
                "rater: Rater | None = None",
                "-> None",
            ],
            "Measure": [
                "self",
                "*",
                "key: str",
                "meter: str",
                "value: int",
                "properties: Mapping[str, str] = <factory>",
                "types: tuple[str, ...] = ()",
            ],
            "MemorySink": ["self", "name: str = memory", "-> None"],
            "OpenMeterSink": [
                "self",
                "api_key: Secret | None = None",
                "*",
                "base_url: str | None = None",
                "event_type: str = prompt",
                "source: str = token_meter",
                "mapping: Sequence[Rule] | Mapped | None = None",
                "properties: Properties | None = None",
                "dimensions: Sequence[str] = ()",
                "customers: Customers = same",
                "unattributed: str | None = None",
                "mode: Mode = live",
                "where: Callable[[MeterEvent], bool] | None = None",
                "name: str = openmeter",
                "now: Callable[[], float] = time",
                "-> None",
            ],
            "OpenTelemetrySink": [
                "self",
                "meter_provider: MeterProvider | None = None",
                "*",
                "attributes: Sequence[str] = ()",
                "name: str = opentelemetry",
                "-> None",
            ],
            "Refusal": ["self", "*args", "**kwargs"],
            "Rejected": ["self", "events: Sequence[MeterEvent]", "reason: str", "-> None"],
            "Retry": ["self", "message: str = try again later", "*", "after: float | None = None", "-> None"],
            "Rule": [
                "self",
                "*",
                "key: str",
                "meter: str",
                "types: tuple[str, ...] = ()",
                "properties: Mapping[str, str] = <factory>",
                "source: str = llm_tokens",
            ],
            "Sink": ["self", "*args", "**kwargs"],
            "StripeSink": [
                "self",
                "api_key: Secret | None = None",
                "*",
                "mapping: Sequence[Rule] | Mapped | None = None",
                "properties: Properties | None = None",
                "token_types: Mapping[str, str] = {input: input, cached input: cached_input, cache write: input, output: output, cached output: output}",
                "model: Callable[[MeterEvent], str] = stripe_model",
                "event_name: str = token-billing-tokens",
                "api: wire.Api = v2",
                "in_flight: int = 8",
                "customer_key: str = stripe_customer_id",
                "value_key: str = value",
                "customers: Customers = registered",
                "unattributed: str | None = None",
                "mode: Mode | None = None",
                "where: Callable[[MeterEvent], bool] | None = None",
                "name: str = stripe",
                "base_url: str = https://api.stripe.com",
                "stream_url: str | None = None",
                "webhook_secret: Secret | None = None",
                "now: Callable[[], float] = time",
                "-> None",
            ],
            "WebhookSink": [
                "self",
                "url: str | None = None",
                "*",
                "secret: Secret | None = None",
                "source: str = token_meter",
                "content: Content | None = None",
                "where: Callable[[MeterEvent], bool] | None = None",
                "name: str = webhook",
                "-> None",
            ],
        }
    )
    assert signature(token_meter.sinks.Sink.send) == snapshot(["self", "events: Sequence[MeterEvent]", "-> None"])


def test_errors() -> None:
    assert tree(TokenMeterError) == snapshot(
        [
            "TokenMeterError",
            "  UnsupportedClient",
            "  MeteringUnavailable",
            "  BudgetExceeded",
            "  NoLedger",
            "  JournalError",
            "  NewerSchema",
            "  InvalidEvent (ValueError)",
            "  InvalidCustomer (ValueError)",
            "  InvalidDocument (ValueError)",
            "    InvalidPrices",
            "    InvalidPlan",
            "  InvalidInvoice (ValueError)",
            "  InvalidCredit (ValueError)",
            "  NotVerified",
            "  InvalidBudget (ValueError)",
            "  InvalidEndpoint (ValueError)",
            "  InvalidReport (ValueError)",
            "  MissingExtra (ImportError)",
            "  SinkError",
            "    Retry",
            "    Rejected",
        ]
    )


def test_ledger() -> None:
    assert signatures(Ledger) == snapshot(
        {
            "__init__": [
                "self",
                "url: str | os.PathLike[str]",
                "*",
                "dimensions: Sequence[str] = ()",
                "rater: Rater | None = None",
                "-> None",
            ],
            "record": ["self", "events: Sequence[MeterEvent]", "-> Recorded"],
            "rate_again": [
                "self",
                "*",
                "pending_only: bool = False",
                "reason: str",
                "progress: Callable[[int], object] | None = None",
                "**filters: Unpack[EventFilters]",
                "-> int",
            ],
            "rebuild_rollups": ["self", "-> None"],
            "event": ["self", "id: str", "-> MeterEvent | None"],
            "iter_events": [
                "self",
                "*",
                "after: Cursor | str | None = None",
                "order: Order = asc",
                "page_size: int = 1000",
                "**filters: Unpack[EventFilters]",
                "-> Iterator[MeterEvent]",
            ],
            "events": [
                "self",
                "*",
                "limit: int | None = None",
                "order: Order = asc",
                "**filters: Unpack[EventFilters]",
                "-> list[MeterEvent]",
            ],
            "page": [
                "self",
                "*",
                "after: Cursor | str | None = None",
                "order: Order = desc",
                "limit: int = 100",
                "**filters: Unpack[EventFilters]",
                "-> EventPage",
            ],
            "usage": [
                "self",
                "*",
                "by: str | Sequence[str] = (model,)",
                "bucket: Bucket | None = None",
                "**filters: Unpack[EventFilters]",
                "-> list[UsageRow]",
            ],
            "costs": [
                "self",
                "*",
                "by: str | Sequence[str] = (model,)",
                "bucket: Bucket | None = None",
                "**filters: Unpack[EventFilters]",
                "-> list[CostRow]",
            ],
            "pending": ["self", "-> int"],
            "summary": ["self", "-> LedgerSummary"],
            "conflicts": ["self", "limit: int = 100", "-> list[Conflict]"],
            "reading": ["self", "-> Iterator[tuple[Store, Connection]]"],
            "writing": ["self", "-> Iterator[tuple[Store, Connection]]"],
            "quickly": ["self", "action: Callable[[Any], Result]", "-> Result"],
            "closing": ["self", "-> Iterator[tuple[Store, Connection]]"],
            "close": ["self", "-> None"],
        }
    )
    assert [each.name for each in fields(UsageRow)] == snapshot(["group", "usage", "events"])


def test_customers() -> None:
    defaults = {each.name: "" if each.default is MISSING else repr(each.default) for each in fields(Customer)}

    assert {each.name: (str(each.type), defaults[each.name]) for each in fields(Customer)} == snapshot(
        {
            "id": ("str", ""),
            "name": ("str | None", "None"),
            "email": ("str | None", "None"),
            "currency": ("str | None", "None"),
            "time_zone": ("str | None", "None"),
            "external_ids": ("Mapping[str, str]", ""),
            "details": ("Mapping[str, str]", ""),
            "status": ("CustomerStatus", "'active'"),
            "mode": ("Mode", "'live'"),
            "created": ("datetime | None", "None"),
            "updated": ("datetime | None", "None"),
        }
    )
    assert signatures(CustomerBook) == snapshot(
        {
            "__init__": ["self", "ledger: Ledger", "-> None"],
            "get": ["self", "id: str", "*", "mode: Mode = live", "-> Customer | None"],
            "list": [
                "self",
                "*",
                "mode: Mode = live",
                "status: CustomerStatus | None = None",
                "limit: int | None = None",
                "-> Customers",
            ],
            "iterate": [
                "self",
                "*",
                "mode: Mode = live",
                "status: CustomerStatus | None = None",
                "-> Iterator[Customer]",
            ],
            "external_ids": [
                "self",
                "ids: Collection[str]",
                "*",
                "backend: str",
                "mode: Mode = live",
                "-> dict[str, str]",
            ],
            "customers_of": ["self", "external_id: str", "*", "backend: str", "mode: Mode = live", "-> Ids"],
            "edit": ["self", "id: str", "*", "mode: Mode = live", "**changes: Unpack[CustomerChanges]", "-> Customer"],
            "edit_many": ["self", "edits: Edits", "*", "mode: Mode = live", "-> Edited"],
            "preview": ["self", "edits: Edits", "*", "mode: Mode = live", "-> Edited"],
            "save": ["self", "customer: Customer", "-> Customer"],
        }
    )
    assert list(CustomerChanges.__annotations__) == snapshot(
        ["name", "email", "currency", "time_zone", "external_ids", "details", "status"]
    )
    assert [each.name for each in fields(Edited)] == snapshot(["added", "changed", "unchanged", "refused"])
    made = {each.__name__: signature(each) for each in (import_csv, check_csv, export_csv)}
    assert made == snapshot(
        {
            "import_csv": [
                "book: CustomerBook",
                "source: str | os.PathLike[str] | bytes",
                "*",
                "mode: Mode = live",
                "-> Edited",
            ],
            "check_csv": [
                "book: CustomerBook | None",
                "source: str | os.PathLike[str] | bytes",
                "*",
                "mode: Mode = live",
                "-> Edited",
            ],
            "export_csv": ["book: CustomerBook", "*", "mode: Mode = live", "-> Iterator[str]"],
        }
    )


def test_json_form_of_a_customer() -> None:
    customer = Customer(
        id="acme", name="Acme Inc.", email="billing@acme.example", currency="EUR", time_zone="Europe/Berlin",
        external_ids={"stripe": "cus_1"}, details={"tax_id": "DE123"}, status="paused", mode="test",
        created=datetime(2026, 1, 1, tzinfo=UTC), updated=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip
    document = customer.to_json()

    assert Customer.from_json(document) == customer
    assert document == snapshot(
        {
            "id": "acme",
            "mode": "test",
            "status": "paused",
            "name": "Acme Inc.",
            "email": "billing@acme.example",
            "currency": "EUR",
            "time_zone": "Europe/Berlin",
            "external_ids": {"stripe": "cus_1"},
            "details": {"tax_id": "DE123"},
            "created": "2026-01-01T00:00:00.000000Z",
            "updated": "2026-01-02T00:00:00.000000Z",
        }
    )


def test_health() -> None:
    assert [each.name for each in fields(Health)] == snapshot(
        [
            "journal",
            "deliveries",
            "counters",
            "pending",
            "lost",
            "journal_bytes",
            "segments",
            "invalid_lines",
            "problems",
            "flags",
        ]
    )


def test_testing() -> None:
    made = {name: getattr(token_meter.testing, name) for name in token_meter.testing.__all__}

    assert {name: signature(each) for name, each in made.items()} == snapshot(
        {
            "Captured": ["meter: Meter", "sink: MemorySink", "-> None"],
            "FakeClock": ["start_ns: int = 1767225600000000000", "-> None"],
            "LoopbackProvider": ["*", "port: int = 0", "-> None"],
            "SequentialIds": ["prefix: str = evt_", "-> None"],
            "SinkConformance": [],
            "capture": [
                "*",
                "instrument: Sequence[str] = (openai, anthropic, google)",
                "clock: FakeClock | None = None",
                "-> Iterator[Captured]",
            ],
            "events": [
                "*",
                "min_size: int = 0",
                "max_size: int = 20",
                "quantity_max: int = 9223372036854775807",
                "-> SearchStrategy[list[MeterEvent]]",
            ],
            "make_event": ["number: int = 1", "**fields: Unpack[EventFields]", "-> MeterEvent"],
            "sink_conformance": [
                "make_sink: Callable[[], Any]",
                "received: Received | None = None",
                "*",
                "deduplicates: bool = False",
                "broken: Broken | None = None",
                "refused: MeterEvent | None = None",
                "-> None",
            ],
        }
    )


def test_charging() -> None:
    assert signatures(Charging) == snapshot(
        {
            "ledger": ["property"],
            "record_event": ["self", "event: MeterEvent", "-> None"],
            "costs": [
                "self",
                "customer: str | object | None = Ellipsis",
                "*",
                "by: Sequence[str] | str = (model,)",
                "since: Moment = None",
                "until: Moment = None",
                "bucket: Literal[hour, day, month] | None = None",
                "time_zone: str = UTC",
                "**filters: Any",
                "-> list[CostRow]",
            ],
            "plans": ["property"],
            "invoices": ["property"],
            "credits": ["property"],
            "budgets": ["property"],
            "budget": [
                "self",
                "customer: str | None",
                "limit: Decimal | str | int",
                "*",
                "per: str = month",
                "of: Literal[charge, cost, tokens, requests] = charge",
                "enforce: Literal[strict, bounded, soft] | None = None",
                "currency: str = USD",
                "time_zone: str | None = None",
                "scope: Mapping[str, str] | None = None",
                "unpriced: Literal[block, dearest, allow] | None = None",
                "cut_off: bool | None = None",
                "tokenize: bool | None = None",
                "thresholds: Sequence[int] | None = None",
                "name: str | None = None",
                "if_missing: bool = False",
                "-> Budget",
            ],
            "credit": [
                "self",
                "customer: str",
                "amount: Decimal | str | int",
                "*",
                "kind: Literal[paid, promotional] = promotional",
                "currency: str = USD",
                "priority: int = 50",
                "expires: Moment = None",
                "id: str | None = None",
                "-> CreditGrant",
            ],
            "load_plans": [
                "self",
                "file: str | os.PathLike[str] | Mapping[str, Any]",
                "*",
                "effective_from: Moment = None",
                "-> list[str]",
            ],
            "subscribe": [
                "self",
                "customer: str",
                "plan: str",
                "*",
                "start: Moment = None",
                "stop: Moment = None",
                "-> Subscription",
            ],
            "invoice": ["self", "customer: str", "period: Period | str | None = None", "-> Invoice"],
            "void": ["self", "event_id: str", "*", "reason: str", "-> list[str]"],
            "reassign": ["self", "event_id: str", "customer: str", "*", "reason: str", "-> list[str]"],
        }
    )


def test_command_line() -> None:
    assert sorted(every_command()) == snapshot(
        [
            "budgets holds",
            "budgets list",
            "budgets remove",
            "budgets reset",
            "budgets set",
            "budgets show",
            "budgets unreachable",
            "budgets watch",
            "credits balance",
            "credits buy",
            "credits expire",
            "credits grant",
            "credits journal",
            "credits list",
            "credits policy",
            "credits recharge",
            "credits refund",
            "credits void",
            "customers export",
            "customers import",
            "customers list",
            "customers pause",
            "customers resume",
            "customers set",
            "customers show",
            "deliver check",
            "deliver forget",
            "deliver quarantine discard",
            "deliver quarantine drop",
            "deliver quarantine list",
            "deliver quarantine release",
            "deliver retry",
            "deliver run",
            "deliver status",
            "demo",
            "doctor",
            "events export",
            "events reassign",
            "events show",
            "events tail",
            "events void",
            "import",
            "invoice accrual",
            "invoice credit-note",
            "invoice export",
            "invoice finalise",
            "invoice list",
            "invoice pay",
            "invoice run",
            "invoice seller",
            "invoice show",
            "invoice verify",
            "invoice void",
            "notices add",
            "notices deliver",
            "notices enable",
            "notices endpoints",
            "notices list",
            "notices remove",
            "notices replay",
            "notices rotate",
            "notices test",
            "plans apply",
            "plans cancel",
            "plans default",
            "plans estimated",
            "plans example",
            "plans list",
            "plans show",
            "plans subscribe",
            "plans subscriptions",
            "plans unsubscribe",
            "prices accept",
            "prices check",
            "prices diff",
            "prices held",
            "prices history",
            "prices list",
            "prices reject",
            "prices show",
            "prices sync",
            "reconcile sink",
            "setup",
            "usage",
            "version",
        ]
    )


def test_partners() -> None:
    made = {name: getattr(token_meter.partners, name) for name in token_meter.partners.__all__}

    assert {name: signature(each) for name, each in made.items() if inspect.isfunction(each)} == snapshot(
        {
            "import_file": [
                "meter: Meter | Recording",
                "partner: str",
                "*files: str | os.PathLike[str]",
                "customer_field: Field | None = None",
                "dimensions: Mapping[str, Field] | None = None",
                "since: datetime | None = None",
                "until: datetime | None = None",
                "skip_bad: bool = False",
                "dry_run: bool = False",
                "watch: Callable[[MeterEvent], object] | None = None",
                "moved: Callable[[int], object] | None = None",
                "-> Imported",
            ],
            "import_records": [
                "meter: Meter | Recording",
                "partner: str",
                "records: Iterable[Row]",
                "*",
                "customer_field: Field | None = None",
                "dimensions: Mapping[str, Field] | None = None",
                "skip_bad: bool = False",
                "-> Imported",
            ],
            "pull": [
                "meter: Meter | Pulling",
                "partner: str",
                "*",
                "url: str | None = None",
                "key: Key | None = None",
                "since: datetime | None = None",
                "until: datetime | None = None",
                "ids: Iterable[str] | None = None",
                "customer_field: Field | None = None",
                "dimensions: Mapping[str, Field] | None = None",
                "parameters: Mapping[str, str] | None = None",
                "overlap: timedelta | None = None",
                "cursor: str | os.PathLike[str] | None = None",
                "skip_bad: bool = False",
                "dry_run: bool = False",
                "watch: Callable[[MeterEvent], object] | None = None",
                "-> Imported",
            ],
        }
    )
    assert sorted(made) == snapshot(
        [
            "BadRow",
            "Imported",
            "LiteLLMCallback",
            "PartnerError",
            "UnreadableRows",
            "import_file",
            "import_records",
            "pull",
        ]
    )
    assert [each.name for each in fields(token_meter.partners.Imported)] == snapshot(
        [
            "partner",
            "read",
            "events",
            "duplicates",
            "skipped",
            "bad_rows",
            "bad",
            "without_customer",
            "flagged",
            "by_status",
            "usage",
            "first",
            "last",
            "recorded",
            "reached",
        ]
    )
