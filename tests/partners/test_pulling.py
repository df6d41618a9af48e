"""Pulling from an API: everything once, whatever the order of pages, crashes and late rows, and the key is told to nobody."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.partners.kit import (
    ACTIVITY,
    GENERATION,
    KEY,
    LOG,
    SPEND_LOG,
    VERCEL_GENERATION,
    FakeCloudflare,
    FakeGateway,
    FakeLiteLLM,
    FakeOpenRouter,
    FakeVercel,
    log_of,
    metering,
    stamp,
    varied,
    write_lines,
)
from token_meter import Meter, Usage
from token_meter.partners import Imported, PartnerError, UnreadableRows, client, import_file, pull
from token_meter.sinks import MemorySink
from token_meter.testing.backends.base import Response

SINCE = datetime(2026, 11, 20, tzinfo=UTC)
UNTIL = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting between attempts is not what is tested."""
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def litellm() -> Iterator[FakeLiteLLM]:
    with FakeLiteLLM() as server:
        yield server


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[Meter]:
    with metering(tmp_path) as meter:
        yield meter


def pulled(meter: Meter, server: FakeGateway, **keywords: Any) -> Imported:
    """A pull from LiteLLM's server in pages of ten, of a day unless told otherwise."""
    given = {"key": KEY, "since": SINCE, "until": UNTIL, "parameters": {"page_size": "10"}, **keywords}
    return pull(meter, "litellm", url=server.url, **given)


def cursor_of(meter: Meter) -> Path:
    assert meter.journal_folder is not None
    (path,) = (meter.journal_folder / "partners").glob("*.json")
    return path


# ---- all of it, once ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("descending", [False, True], ids=["oldest first", "newest first"])
@pytest.mark.parametrize(
    ("count", "every"),
    [(0, 60), (1, 60), (9, 60), (10, 60), (11, 60), (25, 60), (35, 0.1), (25, 0)],
)
def test_every_row_is_pulled_once(
    meter: Meter, litellm: FakeLiteLLM, count: int, every: float, descending: bool
) -> None:
    litellm.rows = log_of(count, every=timedelta(seconds=every))
    litellm.descending = descending

    report = pulled(meter, litellm)

    assert (report.events, report.bad_rows, report.reached) == (count, 0, UNTIL)
    assert len(meter.events()) == count
    assert report.usage.tokens == 1_500 * count
    assert litellm.errors == []


def test_the_next_pull_begins_where_the_last_ended_and_reads_a_little_again(meter: Meter, litellm: FakeLiteLLM) -> None:
    litellm.rows = log_of(3, start=datetime(2026, 11, 20, 23, tzinfo=UTC))
    pulled(meter, litellm, since=SINCE)
    litellm.rows += log_of(5, start=datetime(2026, 11, 21, 10, tzinfo=UTC))[3:]
    late = varied(SPEND_LOG, request_id="late", startTime=stamp(datetime(2026, 11, 20, 22, 30, tzinfo=UTC)))
    litellm.rows.append(late)

    second = pulled(meter, litellm, since=SINCE, until=UNTIL + timedelta(days=1))

    assert litellm.asked[-1]["start_date"] == "2026-11-20 22:00:00"  # two hours before the end of the first
    assert (second.events, second.duplicates) == (3, 3)
    assert len(meter.events()) == 6


def test_a_pull_with_nothing_new_records_nothing_again(tmp_path: Path, litellm: FakeLiteLLM) -> None:
    litellm.rows = log_of(35, start=datetime(2026, 11, 20, 23, tzinfo=UTC), every=timedelta(seconds=60))
    sink = MemorySink()

    with Meter(sink, journal=tmp_path / "journal") as meter:
        for _ in range(3):
            pulled(meter, litellm)
        assert meter.flush()

    assert len(sink.events) == len({event.id for event in sink.events}) == 35


def test_what_was_pulled_and_is_imported_from_a_file_is_there_once(
    tmp_path: Path, meter: Meter, litellm: FakeLiteLLM
) -> None:
    litellm.rows = log_of(10)
    path = write_lines(tmp_path / "export.jsonl", litellm.rows)

    pulled(meter, litellm)
    import_file(meter, "litellm", path)

    assert len(meter.events()) == 10
    assert meter.ledger.conflicts() == []


def test_rows_that_come_in_while_pages_are_read_are_not_lost(meter: Meter, litellm: FakeLiteLLM) -> None:
    litellm.rows = log_of(25)

    def one_more_in_between() -> None:
        number = len(litellm.rows)
        litellm.rows.append(varied(SPEND_LOG, request_id=f"new-{number}", litellm_call_id=f"new-{number}"))

    litellm.on_request = one_more_in_between
    pulled(meter, litellm)
    litellm.on_request = None
    pulled(meter, litellm, overlap=timedelta(days=1))

    assert len(meter.events()) == len(litellm.rows)


def test_a_server_that_gives_shorter_pages_than_asked_for_is_read_to_the_end(
    meter: Meter, litellm: FakeLiteLLM
) -> None:
    litellm.rows = log_of(13)
    litellm.page_size_max = 5

    assert pulled(meter, litellm).events == 13


def test_a_server_that_knows_no_pages_is_found_out(meter: Meter, litellm: FakeLiteLLM) -> None:
    litellm.rows = log_of(15, every=timedelta(0))
    answer = litellm.listed
    litellm.listed = lambda path, query: answer(path, {**query, "page": "1"})  # type: ignore[method-assign]

    with pytest.raises(PartnerError, match="does it know pages"):
        pulled(meter, litellm)


# ---- the cursor ---------------------------------------------------------------------------------------------------


def test_the_first_pull_must_be_told_from_when_on(meter: Meter, litellm: FakeLiteLLM) -> None:
    with pytest.raises(ValueError, match="first pull from LiteLLM: say from when on"):
        pulled(meter, litellm, since=None)


def test_the_cursor_never_lies_ahead_of_the_clock(meter: Meter, litellm: FakeLiteLLM) -> None:
    before = datetime.now(UTC)

    report = pulled(meter, litellm, until=before + timedelta(days=300))

    assert report.reached is not None
    assert before <= report.reached <= datetime.now(UTC)


def test_a_process_killed_between_journal_and_cursor_counts_nothing_twice(tmp_path: Path, litellm: FakeLiteLLM) -> None:
    litellm.rows = log_of(25)
    program = (
        "import os, sys\n"
        "from datetime import datetime, UTC\n"
        "from token_meter import Meter\n"
        "from token_meter.partners import pull\n"
        "from token_meter.partners.state import Cursor\n"
        "saved = []\n"
        "save = Cursor.save\n"
        "def dying(self, position):\n"
        "    if saved: os._exit(9)\n"  # the second page is in the journal, its cursor is not
        "    saved.append(save(self, position))\n"
        "Cursor.save = dying\n"
        f"pull(Meter(sys.argv[1]), 'litellm', url=sys.argv[2], key='{KEY}',\n"
        "     since=datetime(2026, 11, 20, tzinfo=UTC), until=datetime(2026, 11, 21, tzinfo=UTC),\n"
        "     parameters={'page_size': '10'})\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "usage.db"), litellm.url]
    killed = subprocess.run(command, check=False)

    with metering(tmp_path) as meter:
        cursor = json.loads(cursor_of(meter).read_text("utf-8"))
        pulled(meter, litellm)
        events = meter.events()

    assert killed.returncode == 9
    assert cursor["reached"] == "2026-11-20T10:09:00.000000Z"  # where the first page ended
    assert len(events) == len({event.id for event in events}) == 25


def test_a_pull_that_breaks_off_goes_on_from_the_last_page(meter: Meter, litellm: FakeLiteLLM) -> None:
    litellm.rows = log_of(25)
    litellm.chaos.script = [None, *["unavailable"] * 6]

    with pytest.raises(PartnerError, match=r"answered HTTP 503.*Tried 6 times"):
        pulled(meter, litellm)
    before = len(meter.events())
    report = pulled(meter, litellm)

    assert before == 10
    assert report.events == 15
    assert len(meter.events()) == 25


def test_what_a_failing_disk_did_not_take_is_taken_when_it_comes_again(tmp_path: Path, litellm: FakeLiteLLM) -> None:
    litellm.rows = log_of(15)
    sink = MemorySink()

    with Meter(sink, journal=tmp_path / "journal") as meter:

        def full() -> None:
            if len(litellm.asked) == 2:  # the second page
                resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))

        litellm.on_request = full
        try:
            with pytest.raises(PartnerError, match="the disk of the journal"):
                pulled(meter, litellm, cursor=tmp_path / "cursor.json")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        litellm.on_request = None
        report = pulled(meter, litellm, cursor=tmp_path / "cursor.json")
        assert meter.flush()

    assert report.events == 15  # the ids of the first page could not be written down either
    assert len({event.id for event in sink.events}) == 15


def test_a_cursor_may_be_kept_elsewhere(tmp_path: Path, meter: Meter, litellm: FakeLiteLLM) -> None:
    path = tmp_path / "somewhere" / "cursor.json"

    pulled(meter, litellm, cursor=path)

    assert json.loads(path.read_text("utf-8"))["reached"] == "2026-11-21T00:00:00.000000Z"
    assert not list((tmp_path / "usage.db.journal" / "partners").glob("*"))


def test_other_parameters_are_another_pull_with_a_cursor_of_its_own(meter: Meter, litellm: FakeLiteLLM) -> None:
    litellm.rows = [varied(row, team_id=f"team-{number % 2}") for number, row in enumerate(log_of(10))]

    first = pulled(meter, litellm, parameters={"team_id": "team-0"})
    second = pulled(meter, litellm, parameters={"team_id": "team-1"})

    assert (first.events, second.events) == (5, 5)
    assert meter.journal_folder is not None
    assert len(list((meter.journal_folder / "partners").glob("*.json"))) == 2


def test_the_cursor_of_another_pull_is_refused(tmp_path: Path, meter: Meter, litellm: FakeLiteLLM) -> None:
    path = tmp_path / "cursor.json"
    pulled(meter, litellm, cursor=path)

    with pytest.raises(PartnerError, match="is not the position of this pull"):
        pulled(meter, litellm, cursor=path, parameters={"team_id": "x"})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"about": 1}', '{"schema": 1, "reached": "x"}'])
def test_a_broken_cursor_is_never_taken_for_a_beginning(
    tmp_path: Path, meter: Meter, litellm: FakeLiteLLM, text: str
) -> None:
    path = tmp_path / "cursor.json"
    path.write_text(text, "utf-8")

    with pytest.raises(PartnerError, match=r"cursor\.json"):
        pulled(meter, litellm, cursor=path)


def test_two_pulls_at_the_same_time_do_not_share_a_cursor(meter: Meter, litellm: FakeLiteLLM) -> None:
    refused: list[BaseException] = []

    def again() -> None:
        litellm.on_request = None
        try:
            pulled(meter, litellm)
        except PartnerError as error:
            refused.append(error)

    litellm.on_request = again
    pulled(meter, litellm)

    assert "another process is pulling" in str(refused[0])


def test_going_back_further_fills_what_was_before_and_a_crash_in_it_loses_nothing(
    meter: Meter, litellm: FakeLiteLLM
) -> None:
    litellm.rows = log_of(40, every=timedelta(minutes=10))  # until 16:30
    noon = datetime(2026, 11, 20, 15, tzinfo=UTC)
    pulled(meter, litellm, since=noon)
    litellm.chaos.script = [None, *["unavailable"] * 6]
    with pytest.raises(PartnerError):
        pulled(meter, litellm, since=SINCE)

    pulled(meter, litellm, since=SINCE)

    assert len(meter.events()) == 40


def test_a_later_since_leaves_no_gap(meter: Meter, litellm: FakeLiteLLM) -> None:
    litellm.rows = log_of(40, every=timedelta(minutes=10))
    pulled(meter, litellm, until=datetime(2026, 11, 20, 12, tzinfo=UTC))

    pulled(meter, litellm, since=datetime(2026, 11, 20, 16, tzinfo=UTC))

    assert len(meter.events()) == 40


def test_a_dry_run_moves_nothing(tmp_path: Path, meter: Meter, litellm: FakeLiteLLM) -> None:
    litellm.rows = log_of(3)

    report = pulled(meter, litellm, dry_run=True)

    assert (report.events, report.recorded) == (3, False)
    assert meter.events() == []
    assert not (tmp_path / "usage.db.journal" / "partners").exists()


# ---- what may be wrong --------------------------------------------------------------------------------------------


def test_a_bad_row_stops_before_its_page_and_can_be_left_out(meter: Meter, litellm: FakeLiteLLM) -> None:
    litellm.rows = log_of(15)
    litellm.rows[12]["prompt_tokens"] = "many"

    with pytest.raises(UnreadableRows, match=r"nothing of page 2 was brought in: page 2:\d: prompt_tokens is 'many'"):
        pulled(meter, litellm)
    before = len(meter.events())
    report = pulled(meter, litellm, skip_bad=True)

    assert before == 10
    assert report.bad_rows == 1
    assert len(meter.events()) == 14


@pytest.mark.parametrize("fault", ["error_before", "unavailable", "throttled", "reset_before", "reset_after"])
def test_what_may_pass_is_tried_again(meter: Meter, litellm: FakeLiteLLM, fault: Any) -> None:
    litellm.rows = log_of(3)
    litellm.chaos.script = [fault, fault, None]

    assert pulled(meter, litellm).events == 3


def test_a_server_is_given_the_time_that_it_asks_for(litellm: FakeLiteLLM) -> None:
    litellm.chaos.script = ["throttled", "throttled"]
    litellm.chaos.retry_after = 7
    slept: list[float] = []

    with client.Client(litellm.url, title="LiteLLM", key=lambda: KEY, sleep=slept.append) as asking:
        asking.get("/spend/logs/v2", {"start_date": "2026-11-20 00:00:00", "end_date": "2026-11-21 00:00:00", "page": "1", "page_size": "1"})  # fmt: skip

    assert slept == [7.0, 7.0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, b"{}"), "has nothing at .*/spend/logs/v2"),
        ((422, b'{"detail": "page_size too large"}'), "refuses /spend/logs/v2 .HTTP 422.: .*page_size too large"),
        ((200, b"<html>"), "something else than JSON"),
        ((200, b"[]"), "which is no object"),
        ((200, b'{"rows": []}'), "without a list under 'data'"),
        ((200, b'{"data": {}}'), "without a list under 'data'"),
        ((302, b""), "redirects"),
    ],
)
def test_an_answer_that_is_none_is_told(
    meter: Meter, litellm: FakeLiteLLM, answer: tuple[int, bytes], reason: str
) -> None:
    litellm.listed = lambda path, query: Response(*answer, {"Location": "http://elsewhere.invalid/"})  # type: ignore[method-assign]

    with pytest.raises(PartnerError, match=reason):
        pulled(meter, litellm)


def test_a_row_that_is_no_object_is_bad(meter: Meter, litellm: FakeLiteLLM) -> None:
    litellm.listed = lambda path, query: Response.json({"data": [7, None, SPEND_LOG]})  # type: ignore[method-assign]

    report = pulled(meter, litellm, skip_bad=True)

    assert (report.events, report.bad_rows) == (1, 2)


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"url": "ftp://x"}, "is no URL of a server"),
        ({"url": "http://user:secret@x"}, "give the key as key="),
        ({"key": ""}, r"needs a key and there is none: set \$LITELLM_API_KEY"),
        ({"key": "two\nlines"}, "characters that no header takes"),
    ],
)
def test_a_place_or_key_that_cannot_be_is_refused(
    meter: Meter, litellm: FakeLiteLLM, keywords: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LITELLM_API_KEY", raising=False)

    with pytest.raises(PartnerError, match=reason) as caught:
        pull(meter, "litellm", **{"url": litellm.url, "key": KEY, "since": SINCE, **keywords})

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("partner", "keywords", "reason"),
    [
        ("litellm", {"url": None}, "runs at a place of your own"),
        ("litellm", {"parameters": {"nonsense": "1"}}, "takes no parameter 'nonsense'. Known: api_key, "),
        ("litellm", {"ids": ["x"]}, "gives no single records"),
        ("cloudflare", {}, "needs the parameter account and gateway"),
        ("nobody", {}, "no partner is called 'nobody'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    meter: Meter, litellm: FakeLiteLLM, partner: str, keywords: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        pull(meter, partner, **{"url": litellm.url, "key": KEY, "since": SINCE, **keywords})


def test_the_key_is_told_to_nobody(
    tmp_path: Path, meter: Meter, litellm: FakeLiteLLM, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "sk-another-secret-0815"
    litellm.rows = log_of(2)

    with pytest.raises(PartnerError, match="does not take the key") as caught:
        pulled(meter, litellm, key=wrong)
    pulled(meter, litellm, key=lambda: f"  {KEY}\n")
    litellm.chaos.script = ["reset_before"] * 6
    with pytest.raises(PartnerError) as unreachable:
        pulled(meter, litellm)

    told = f"{caught.value!r} {unreachable.value!r} {caplog.text}"
    kept = " ".join(path.read_text("utf-8", "replace") for path in tmp_path.rglob("*") if path.is_file())
    assert wrong not in told and KEY not in told
    assert wrong not in kept and KEY not in kept


def test_without_requests_the_extra_is_named(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['requests'] = None\n"
        "from datetime import datetime\n"
        "from token_meter import Meter, MissingExtra\n"
        "from token_meter.partners import pull\n"
        "with Meter(sys.argv[1]) as meter:\n"
        "    try: pull(meter, 'litellm', url='http://127.0.0.1:1', key='k', since=datetime(2026, 11, 1))\n"
        "    except MissingExtra as error: print(error)\n"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "usage.db")], capture_output=True, text=True, check=True
    )

    assert ran.stdout == "pulling from a partner needs the package requests: pip install 'token-meter[partners]'\n"


def test_the_key_comes_from_the_environment(
    meter: Meter, litellm: FakeLiteLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_API_KEY", KEY)
    litellm.rows = log_of(1)

    assert pulled(meter, litellm, key=None).events == 1


# ---- the other partners -------------------------------------------------------------------------------------------


def test_cloudflares_log_is_walked_through(meter: Meter) -> None:
    with FakeCloudflare() as server:
        began = datetime(2026, 11, 20, 10, tzinfo=UTC)
        server.rows = [varied(LOG, id=f"log-{number}", created_at=stamp(began + timedelta(seconds=number // 60))) for number in range(230)]  # fmt: skip

        report = pull(
            meter,
            "cloudflare",
            url=server.url,
            key=KEY,
            since=SINCE,
            until=UNTIL,
            parameters={"account": "acc 1", "gateway": "prod"},
            customer_field="metadata.tenant",
        )

    assert (report.events, report.without_customer, report.flagged) == (230, 0, {"only_totals": 230})
    assert len(meter.events(customer="acme")) == 230


def test_openrouters_days_are_taken_when_they_are_over(meter: Meter) -> None:
    with FakeOpenRouter() as server:
        server.rows = [varied(ACTIVITY, date=f"2026-11-{day}") for day in range(15, 25)]

        report = pull(
            meter, "openrouter", url=server.url, key=KEY, since=SINCE, until=datetime(2026, 11, 23, 5, tzinfo=UTC)
        )

    assert [each["date"] for each in server.asked] == ["2026-11-20", "2026-11-21"]  # the 22nd has just ended
    assert (report.events, report.flagged) == (2, {"aggregated": 2})
    assert report.reached == datetime(2026, 11, 22, tzinfo=UTC)


def test_a_day_that_changed_after_it_was_billed_is_a_conflict_that_a_human_sees(meter: Meter) -> None:
    with FakeOpenRouter() as server:
        server.rows = [dict(ACTIVITY)]
        pull(meter, "openrouter", url=server.url, key=KEY, since=SINCE, until=UNTIL + timedelta(hours=7))
        server.rows = [varied(ACTIVITY, prompt_tokens=700)]
        assert meter.journal_folder is not None
        (cursor,) = (meter.journal_folder / "partners").glob("*.json")
        cursor.unlink()

        pull(meter, "openrouter", url=server.url, key=KEY, since=SINCE, until=UNTIL + timedelta(hours=7))

    assert [event.usage.input for event in meter.events()] == [300]
    assert len(meter.ledger.conflicts()) == 1


def test_days_of_one_key_are_a_customers(meter: Meter) -> None:
    with FakeOpenRouter() as server:
        server.rows = [dict(ACTIVITY)]

        pull(
            meter,
            "openrouter",
            url=server.url,
            key=KEY,
            since=SINCE,
            until=UNTIL + timedelta(hours=7),
            parameters={"api_key_hash": "ab12"},
            customer_field=lambda row: {"ab12": "acme"}[row["api_key_hash"]],
        )

    assert [event.customer for event in meter.events()] == ["acme"]


def test_single_generations_are_looked_up_by_id(meter: Meter) -> None:
    with FakeOpenRouter() as server:
        server.rows = [varied(GENERATION, id=f"gen-{number}") for number in range(3)]

        report = pull(meter, "openrouter", url=server.url, key=KEY, ids=["gen-0", "gen-2", "gen-0"])
        with pytest.raises(UnreadableRows, match="ids:2: there is no record with this id"):
            pull(meter, "openrouter", url=server.url, key=KEY, ids=["gen-1", "gen-9"])

    assert (report.events, report.duplicates) == (2, 1)
    assert {event.response_id for event in meter.events()} == {"gen-0", "gen-1", "gen-2"}


def test_vercels_generations_are_looked_up_by_id(meter: Meter) -> None:
    with FakeVercel() as server:
        server.rows = [dict(VERCEL_GENERATION)]

        report = pull(meter, "vercel", url=server.url, key=KEY, ids=[VERCEL_GENERATION["id"]])

    assert report.usage == Usage(cache_read=20, cache_write_5m=5, input=75, reasoning=7, output=43, web_search=2)


def calls_of_vercel() -> list[dict[str, Any]]:
    return [
        {"day": "2026-11-20", "user": user, "model": model, "input_tokens": count, "output_tokens": 1, "total_cost": 0.1}
        for user, model, count in [
            ("acme", "openai/gpt-5", 10), ("acme", "openai/gpt-5", 20), ("acme", "xai/grok-4", 3),
            ("globex", "openai/gpt-5", 7), (None, "openai/gpt-5", 100), (None, "mistral/large", 1_000),
        ]
    ]  # fmt: skip


def test_vercels_report_is_split_by_user_and_model_and_what_is_left_is_nobodys(meter: Meter) -> None:
    with FakeVercel() as server:
        server.rows = calls_of_vercel()

        report = pull(meter, "vercel", url=server.url, key=KEY, since=SINCE, until=UNTIL + timedelta(hours=7))

    found = {(event.customer, event.model): event.usage.input for event in meter.events()}
    assert found == {
        ("acme", "openai/gpt-5"): 30,
        ("acme", "xai/grok-4"): 3,
        ("globex", "openai/gpt-5"): 7,
        (None, "openai/gpt-5"): 100,
        (None, "mistral/large"): 1_000,
    }
    assert report.usage.input == sum(row["input_tokens"] for row in calls_of_vercel())
    assert report.without_customer == 2


def test_one_user_of_vercel_can_be_asked_for_and_is_the_same_event(meter: Meter) -> None:
    with FakeVercel() as server:
        server.rows = calls_of_vercel()
        span = {"url": server.url, "key": KEY, "since": SINCE, "until": UNTIL + timedelta(hours=7)}

        one = pull(meter, "vercel", parameters={"user_id": "acme"}, **span)  # type: ignore[arg-type]
        pull(meter, "vercel", **span)  # type: ignore[arg-type]

    assert one.events == 2
    assert len(meter.events()) == 5
    assert meter.ledger.conflicts() == []


def test_a_report_that_cannot_be_read_is_told(meter: Meter) -> None:
    with FakeVercel() as server:
        server.rows = [{**calls_of_vercel()[0], "input_tokens": -5}]

        with pytest.raises(PartnerError, match="input_tokens is -5"):
            pull(meter, "vercel", url=server.url, key=KEY, since=SINCE, until=UNTIL + timedelta(hours=7))
