"""Bringing records in: once, to the right customer, all or nothing, with every row accounted for."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.partners.kit import (
    ACTIVITY,
    EXPORT,
    GENERATION,
    LOG,
    PUSH,
    REPORT,
    SPEND_LOG,
    VERCEL_GENERATION,
    log_of,
    metering,
    varied,
    write_lines,
)
from token_meter import Meter, MeterEvent, TokenMeterError, Usage
from token_meter.partners import Imported, PartnerError, UnreadableRows, import_file, import_records
from token_meter.partners.fields import attributing
from token_meter.partners.intake import Intake
from token_meter.partners.known import PARTNERS
from token_meter.sinks import MemorySink


def test_what_a_file_says_is_in_the_ledger(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", [SPEND_LOG, varied(SPEND_LOG, request_id="b", end_user="")])

    with metering(tmp_path) as meter:
        report = import_file(meter, "litellm", path, dimensions={"team": "team_id"})
        events = meter.events()

    assert report == Imported(
        partner="litellm",
        read=2,
        events=2,
        duplicates=0,
        skipped={},
        bad_rows=0,
        bad=(),
        without_customer=1,
        flagged={},
        by_status={"complete": 2},
        usage=Usage(input=1000, cache_read=600, cache_write_5m=100, cache_write_1h=300, output=760, reasoning=240),
        first=datetime(2026, 11, 20, 10, 0, 2, 500_000, UTC),
        last=datetime(2026, 11, 20, 10, 0, 2, 500_000, UTC),
        recorded=True,
    )
    assert {event.customer for event in events} == {"acme", None}
    assert [event.dimensions for event in events] == [{"team": "team-1"}] * 2
    assert sum((event.usage for event in events), Usage()) == report.usage


@pytest.mark.parametrize(
    ("partner", "records"),
    [
        ("litellm", log_of(5)),
        ("openrouter", [GENERATION, ACTIVITY]),
        ("vercel", [VERCEL_GENERATION, REPORT]),
        ("cloudflare", [LOG, PUSH]),
    ],
)
def test_importing_twice_is_importing_once(tmp_path: Path, partner: str, records: list[dict[str, Any]]) -> None:
    lines = write_lines(tmp_path / "lines.jsonl", records)
    array = tmp_path / "array.json"
    array.write_text(json.dumps(records, indent=1), "utf-8")

    with metering(tmp_path) as meter:
        first = import_file(meter, partner, lines)
        second = import_file(meter, partner, array)
        import_records(meter, partner, records)
        events = meter.events()
        conflicts = meter.ledger.conflicts()

    assert first.events == second.events == len(records) == len(events)
    assert sum((event.usage for event in events), Usage()) == first.usage
    assert conflicts == []


def test_repetitions_in_the_files_are_told(tmp_path: Path) -> None:
    one = write_lines(tmp_path / "one.jsonl", log_of(3))
    two = write_lines(tmp_path / "two.jsonl", log_of(4))

    with metering(tmp_path) as meter:
        report = import_file(meter, "litellm", one, two)

    assert (report.read, report.events, report.duplicates) == (7, 4, 3)


def test_every_sink_gets_what_was_imported(tmp_path: Path) -> None:
    sink = MemorySink()
    path = write_lines(tmp_path / "log.jsonl", log_of(3))

    with Meter(tmp_path / "usage.db", sink) as meter:
        import_file(meter, "litellm", path)
        assert meter.flush()

    assert len({event.id for event in sink.events}) == 3


def test_the_export_of_openrouter_is_read_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "activity.csv"
    path.write_text(EXPORT, "utf-8")

    with metering(tmp_path) as meter:
        report = import_file(meter, "openrouter", path)
        events = {event.response_id: event for event in meter.events()}

    assert (report.events, report.without_customer, report.flagged) == (2, 1, {"cache_write_unknown": 1})
    assert (events["gen-1"].customer, events["gen-2"].customer) == ("acme", None)
    assert report.by_status == {"complete": 1, "partial": 1}


@pytest.mark.parametrize(
    ("field", "customer"),
    [
        ("end_user", "acme"),
        ("metadata.spend_logs_metadata.tenant", "globex"),
        ("request_tags.1", "eu"),
        ("prompt_tokens", "1000"),
        ("metadata.nothing.there", None),
        ("request_tags.9", None),
        (lambda row: row["team_id"].removeprefix("team-"), "1"),
        (lambda row: None, None),
    ],
)
def test_the_field_that_names_the_customer_is_configurable(
    tmp_path: Path, field: str | Callable[[Any], Any], customer: str | None
) -> None:
    with metering(tmp_path) as meter:
        import_records(meter, "litellm", [SPEND_LOG], customer_field=field)
        (event,) = meter.events()

    assert event.customer == customer


def test_a_path_leads_into_text_that_holds_json(tmp_path: Path) -> None:
    with metering(tmp_path) as meter:
        import_records(
            meter, "cloudflare", [LOG], customer_field="metadata.tenant", dimensions={"team": "metadata.team"}
        )
        (event,) = meter.events()

    assert (event.customer, event.dimensions) == ("acme", {"team": "7"})


def test_a_column_may_be_called_like_a_path() -> None:
    chosen = attributing("metadata.tenant", None, default=())
    row = {"metadata.tenant": "from the column", "metadata": {"tenant": "inside"}}

    event = chosen.attributed(PARTNERS["litellm"].read(SPEND_LOG), row)

    assert event.customer == "from the column"


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("metadata", "metadata gives .* which is no name"),
        ("request_tags", "request_tags gives .* which is no name"),
        (lambda row: row["not there"], "the function that names a customer or dimension failed: KeyError"),
    ],
)
def test_a_field_that_holds_no_name_makes_the_row_bad(
    tmp_path: Path, field: str | Callable[[Any], Any], reason: str
) -> None:
    with metering(tmp_path) as meter, pytest.raises(UnreadableRows, match=reason):
        import_records(meter, "litellm", [SPEND_LOG], customer_field=field)


@pytest.mark.parametrize("given", ["", "  ", 7])
def test_what_is_no_field_is_refused(tmp_path: Path, given: Any) -> None:
    with metering(tmp_path) as meter, pytest.raises(ValueError, match="wants a field's name"):
        import_records(meter, "litellm", [], customer_field=given)


def test_one_bad_row_keeps_everything_out(tmp_path: Path) -> None:
    good = write_lines(tmp_path / "good.jsonl", log_of(3))
    bad = write_lines(tmp_path / "bad.jsonl", [SPEND_LOG, varied(SPEND_LOG, endTime="never"), {"a": 1}])

    with metering(tmp_path) as meter:
        with pytest.raises(UnreadableRows, match=r"2 of 6 rows cannot be read, so nothing was brought in") as caught:
            import_file(meter, "litellm", good, bad)
        assert meter.events() == []

    report = caught.value.report
    assert not report.recorded
    assert [(Path(each.place).name, each.number) for each in report.bad] == [("bad.jsonl", 2), ("bad.jsonl", 3)]
    assert str(report.bad[0]).endswith("bad.jsonl:2: endTime is 'never', which is no time")


def test_bad_rows_can_be_left_out_and_are_told(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{json.dumps(SPEND_LOG)}\nnot json\n{json.dumps(varied(SPEND_LOG, request_id='b'))}\n", "utf-8")

    with metering(tmp_path) as meter:
        report = import_file(meter, "litellm", path, skip_bad=True)
        assert len(meter.events()) == 2

    assert (report.read, report.events, report.bad_rows, report.recorded) == (3, 2, 1, True)
    assert [each.number for each in report.bad] == [2]


def test_many_bad_rows_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", [{"a": number} for number in range(250)])

    with metering(tmp_path) as meter:
        report = import_file(meter, "litellm", path, skip_bad=True)

    assert (report.bad_rows, len(report.bad)) == (250, 100)


def test_a_dry_run_says_the_same_and_records_nothing(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", log_of(3))
    seen: list[MeterEvent] = []

    with metering(tmp_path) as meter:
        dry = import_file(meter, "litellm", path, dry_run=True, watch=seen.append)
        assert meter.events() == []
        real = import_file(meter, "litellm", path)
        assert {event.id for event in meter.events()} == {event.id for event in seen}

    assert not dry.recorded and real.recorded
    assert dry.to_json() | {"recorded": True} == real.to_json()


def test_only_what_happened_in_the_time_asked_for_is_taken(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", log_of(10))
    since, until = (datetime(2026, 11, 20, 10, minute, 2, tzinfo=UTC) for minute in (3, 7))

    with metering(tmp_path) as meter:
        report = import_file(meter, "litellm", path, since=since, until=until)

    assert (report.events, report.skipped) == (4, {"outside the time asked for": 6})
    assert (report.first, report.last) == (since, datetime(2026, 11, 20, 10, 6, 2, tzinfo=UTC))


def test_skipped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [
        varied(SPEND_LOG, request_id="a", cache_hit="True"),
        varied(SPEND_LOG, request_id="b", cache_hit="True"),
        varied(SPEND_LOG, request_id="c", status="failure", metadata={}, prompt_tokens=0, completion_tokens=0, total_tokens=0, spend=0),
        SPEND_LOG,
    ]  # fmt: skip

    with metering(tmp_path) as meter:
        report = import_records(meter, "litellm", rows)

    assert report.events == 1
    assert report.skipped == {"answered from the gateway's cache": 2, "failed before anything was consumed": 1}


def test_an_unknown_partner_is_named_with_the_known(tmp_path: Path) -> None:
    with metering(tmp_path) as meter, pytest.raises(ValueError, match=r"Known: litellm, .*Did you mean 'litellm'\?"):
        import_file(meter, "lite-llm", tmp_path / "x")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with metering(tmp_path) as meter, pytest.raises(FileNotFoundError):
        import_file(meter, "litellm", tmp_path / "nowhere.jsonl")


def test_a_meter_that_is_switched_off_takes_nothing_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_METER_DISABLED", "1")

    with Meter(tmp_path / "usage.db") as meter, pytest.raises(TokenMeterError, match="switched off"):
        import_records(meter, "litellm", [SPEND_LOG])


def test_events_of_a_trial_are_marked_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_METER_MODE", "test")

    with metering(tmp_path) as meter:
        import_records(meter, "litellm", [SPEND_LOG])
        (event,) = meter.events(mode="test")

    assert event.mode == "test"


def test_a_killed_import_is_finished_by_the_next(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", log_of(60))
    program = (
        "import os, sys\n"
        "from token_meter import Meter\n"
        "from token_meter.partners import import_file\n"
        "seen = []\n"
        "def watch(event):\n"
        "    seen.append(event)\n"
        "    if len(seen) == 40: os._exit(9)\n"
        "import_file(Meter(sys.argv[1]), 'litellm', sys.argv[2], watch=watch)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "usage.db"), str(path)], check=False)

    with metering(tmp_path) as meter:
        import_file(meter, "litellm", path)
        events = meter.events()

    assert killed.returncode == 9
    assert len({event.id for event in events}) == len(events) == 60


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    sink = MemorySink()

    with Meter(sink, journal=tmp_path / "journal") as meter:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
        try:
            with pytest.raises(PartnerError, match="the disk of the journal does not take everything"):
                import_records(meter, "litellm", log_of(3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        report = import_records(meter, "litellm", log_of(3))
        assert meter.flush()

    assert report.events == 3
    assert len({event.id for event in sink.events}) == 3


rows_of_any_kind = st.lists(
    st.one_of(
        st.integers(0, 3).map(lambda number: varied(SPEND_LOG, request_id=f"r{number}")),
        st.integers(0, 3).map(lambda number: varied(SPEND_LOG, request_id=f"c{number}", cache_hit="True")),
        st.dictionaries(st.sampled_from(sorted(SPEND_LOG)), st.none() | st.integers() | st.text(max_size=5)).map(
            lambda fields: {**SPEND_LOG, **fields}
        ),
        st.sampled_from([None, 7, [], "x", {}]),
    ),
    max_size=12,
)


@settings(max_examples=80, deadline=None)
@given(rows=rows_of_any_kind)
def test_every_row_is_accounted_for(rows: list[Any]) -> None:
    intake = Intake(PARTNERS["litellm"], attributing("end_user", {"team": "team_id"}, default=()))

    events = [event for number, row in enumerate(rows) if (event := intake.take(row, "rows", number)) is not None]

    report = intake.report(recorded=False)
    assert report.read == len(rows)
    assert report.read == report.events + report.duplicates + sum(report.skipped.values()) + report.bad_rows
    assert report.events == len(events) == len({event.id for event in events})
    assert report.usage == sum((event.usage for event in events), Usage())
