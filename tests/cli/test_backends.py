"""The commands about billing backends: deliver check, --dry-run, retry, quarantine drop, reconcile sink."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, recent, store
from tests.cli.journals import delivering, write_journal
from token_meter.accounts import CustomerBook
from token_meter.deliver import quarantined
from token_meter.errors import Retry
from token_meter.event import MeterEvent
from token_meter.folder import JournalFolder
from token_meter.ledger import Ledger
from token_meter.sinks import LagoSink
from token_meter.testing.backends import FakeLago, FakeOpenMeter, WebhookReceiver
from token_meter.testing.backends.webhook import SECRET
from token_meter.usage import Usage

JOURNAL = Path("usage.db.journal")
KEY = "lago-secret-key"


@pytest.fixture
def lago(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLago]:
    """A Lago with two metrics and one subscription, set up in the environment."""
    metrics = {"llm_input_tokens": "value", "llm_output_tokens": "value"}
    with FakeLago(key=KEY, strict=True, subscriptions={"sub_1": "acme"}, metrics=metrics) as lago:
        monkeypatch.setenv("LAGO_API_KEY", KEY)
        monkeypatch.setenv("LAGO_API_URL", lago.url)
        yield lago
    assert lago.errors == []


def customer(id: str, **external: str) -> None:
    """Enter a customer of the ledger."""
    with Ledger("usage.db") as ledger:
        CustomerBook(ledger).edit(id, external_ids=external)


def metered(*events: MeterEvent, sinks: tuple[str, ...] = ("lago",)) -> None:
    """These are in the ledger and wait in the journal."""
    store(events)
    write_journal(JOURNAL, events, sinks=sinks)


@pytest.fixture
def waiting(lago: FakeLago) -> list[MeterEvent]:
    """Three events wait: one of a customer that Lago knows, one of another, one of nobody."""
    events = [recent(1), recent(2, customer="globex"), recent(3, customer=None)]
    customer("acme", lago="sub_1")
    metered(*events)
    return events


# ---- deliver check ----


@pytest.mark.usefixtures("lago")
def test_check_says_what_is_right(cli: Cli) -> None:
    result = cli("deliver", "check", "--sink", "lago", "--sink", "ledger")

    assert (result.code, result.err) == (0, "")
    assert result.lines[:3] == [
        "lago: Lago takes the key: 2 billable metrics",
        "lago: billable metric llm_input_tokens is there",
        "lago: billable metric llm_output_tokens is there",
    ]
    assert result.lines[3].startswith(
        "lago: Lago takes usage of codes without a billable metric and never bills it: llm_"
    )
    assert result.lines[4:] == ["ledger: takes an empty batch (it has no check of its own)"]


def test_check_sends_no_usage(cli: Cli, lago: FakeLago, waiting: list[MeterEvent]) -> None:
    cli("deliver", "check", "--sink", "lago")

    assert {method for method, _, _ in lago.seen} == {"GET"}
    assert lago.counted == []


@pytest.mark.usefixtures("lago")
def test_check_of_a_wrong_key_fails_and_shows_no_key(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAGO_API_KEY", "revoked-secret")

    result = cli("deliver", "check", "--sink", "lago", "--sink", "ledger")

    assert result.code == 1
    assert result.lines[0].startswith("lago: WRONG: Lago refuses the key (HTTP 401): ")
    assert result.lines[1].startswith("ledger: takes")
    assert "revoked-secret" not in result.out + result.err


def test_check_without_a_key_says_which_variable(cli: Cli) -> None:
    result = cli("deliver", "check", "--sink", "lago:base_url=http://127.0.0.1:1")

    assert (result.code, result.out) == (
        1,
        "lago: WRONG: Lago needs a key and has none: set $LAGO_API_KEY, or give the key (or a function) to the sink\n",
    )


def test_check_of_a_missing_meter_fails(cli: Cli) -> None:
    with FakeOpenMeter() as openmeter:
        openmeter.add_meter("tokens_total", "prompt", "$.tokens")
        here = f"openmeter:base_url={openmeter.url}"
        right, wrong = (cli("deliver", "check", "--sink", sink) for sink in (here, f"{here},event_type=llm"))

    assert (right.code, wrong.code) == (0, 1)
    assert "openmeter: meter tokens_total counts events of type prompt" in right.lines
    assert wrong.lines[0].startswith(
        "openmeter: WRONG: OpenMeter has no meter that sums $.tokens of events of type 'llm'"
    )


def test_check_of_a_backend_that_is_down_fails(cli: Cli, lago: FakeLago) -> None:
    lago.stop()

    result = cli("deliver", "check", "--sink", "lago")

    assert result.code == 1
    assert result.lines == [f"lago: WRONG: Lago cannot be reached at {lago.url}: Connection refused"]


def test_check_in_json(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with WebhookReceiver() as receiver:
        monkeypatch.setenv("TOKEN_METER_WEBHOOK_URL", receiver.url)
        monkeypatch.setenv("TOKEN_METER_WEBHOOK_SECRET", SECRET)
        right = cli("deliver", "check", "--sink", "webhook", "--json")
        receiver.rotate("whsec_b3RoZXI=")
        wrong = cli("deliver", "check", "--sink", "webhook", "--json")

    assert (right.code, right.json) == (
        0,
        [{"sink": "webhook", "lines": ["the webhook takes our signature"], "problem": None}],
    )
    assert (wrong.code, wrong.json[0]["lines"]) == (1, [])
    assert wrong.json[0]["problem"].startswith("the webhook refuses the signature (HTTP 401)")


@pytest.mark.parametrize(
    ("sink", "said"),
    [
        ("nowhere", "'nowhere' names no sink: use ledger, jsonl:PATH, files:FOLDER, stripe, lago, amberflo, "),
        ("lago:colour=red", "lago: the sink 'lago' has no option 'colour'. It has: base_url, customers, mode, name"),
        ("lago:api_key=sk_1", "lago: api_key does not belong on a command line: set the environment variable"),
        ("webhook", "webhook: WebhookSink needs a URL: give it one, or set $TOKEN_METER_WEBHOOK_URL"),
    ],
)
def test_a_sink_that_cannot_be_made_is_wrong_usage(cli: Cli, sink: str, said: str) -> None:
    result = cli("deliver", "check", "--sink", sink)

    assert result.code == 2
    assert result.err.startswith(f"token-meter: {said}")
    assert "sk_1" not in result.err


# ---- deliver run --dry-run ----


@pytest.mark.parametrize("command", [["deliver", "run"], ["deliver"]])
def test_a_dry_run_shows_what_would_be_sent_and_refused(
    cli: Cli, lago: FakeLago, waiting: list[MeterEvent], command: list[str]
) -> None:
    result = cli(*command, "--sink", "lago", "--dry-run")

    url, body = result.lines
    assert (result.code, url) == (0, f"POST {lago.url}/api/v1/events/batch")
    assert [each["transaction_id"] for each in json.loads(body)["events"]] == [
        "evt_1:llm_input_tokens",
        "evt_1:llm_output_tokens",
    ]
    assert "would be quarantined: evt_2: customer 'globex' has no id at Lago" in result.err
    assert "would be quarantined: evt_3: it has no customer" in result.err
    assert result.err.endswith("lago: 3 events, 1 request, 2 refused. Nothing was sent\n")
    assert KEY not in result.out + result.err


def test_a_dry_run_changes_nothing(cli: Cli, lago: FakeLago, waiting: list[MeterEvent]) -> None:
    files = {path: path.read_bytes() for path in JOURNAL.rglob("*") if path.is_file()}

    cli("deliver", "run", "--sink", "lago", "--dry-run")
    cli("deliver", "run", "--sink", "lago", "--dry-run", "--last", "2")

    assert lago.seen == {}
    assert {path: path.read_bytes() for path in JOURNAL.rglob("*") if path.is_file()} == files
    assert cli("deliver", "run", "--sink", "lago").code == 0
    assert sum(lago.totals().values()) == 4


def test_a_dry_run_of_the_last_events_of_the_ledger(cli: Cli, waiting: list[MeterEvent]) -> None:
    delivered = cli("deliver", "run", "--sink", "lago")

    nothing = cli("deliver", "run", "--sink", "lago", "--dry-run")
    last = cli("deliver", "run", "--sink", "lago", "--dry-run", "--last", "2")
    more = cli("deliver", "run", "--sink", "lago", "--dry-run", "--last", "50")

    assert delivered.code == 0
    assert (nothing.out, nothing.err) == (
        "",
        "lago: nothing waits (--last N shows what the ledger's last N events would make)\n",
    )
    assert (last.out, last.err.splitlines()[-1]) == ("", "lago: 2 events, 0 requests, 2 refused. Nothing was sent")
    assert more.err.splitlines()[-1] == "lago: 3 events, 1 request, 2 refused. Nothing was sent"


def test_a_dry_run_shows_what_was_refused_and_would_go_out_again(
    cli: Cli, lago: FakeLago, waiting: list[MeterEvent]
) -> None:
    cli("deliver", "run", "--sink", "lago")
    customer("globex", lago="sub_2")
    id_is_there = cli("deliver", "run", "--sink", "lago", "--dry-run")
    cli("deliver", "quarantine", "release", "lago", "--all")
    released = cli("deliver", "run", "--sink", "lago", "--dry-run")

    _, body = id_is_there.lines
    assert {each["transaction_id"].split(":")[0] for each in json.loads(body)["events"]} == {"evt_2"}
    assert id_is_there.err.splitlines() == [
        "lago: 1 event that it refused before goes out again:",
        "lago: 1 event, 1 request, 0 refused. Nothing was sent",
    ]
    assert "lago: 2 events that it refused before go out again:" in released.err
    assert released.err.endswith("lago: 2 events, 1 request, 1 refused. Nothing was sent\n")


def test_a_dry_run_says_when_it_cannot_tell_what_goes_out_again(
    cli: Cli, lago: FakeLago, waiting: list[MeterEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("deliver", "run", "--sink", "lago")

    def away(sink: LagoSink, awaits: str) -> bool:
        raise Retry("the directory is away")

    monkeypatch.setattr(LagoSink, "ready", away)
    result = cli("deliver", "run", "--sink", "lago", "--dry-run")

    assert result.code == 0
    assert "lago: cannot tell whether what refused events wait for is there: the directory is away\n" in result.err
    assert "lago: nothing waits" in result.err


def test_a_dry_run_of_an_empty_ledger(cli: Cli, lago: FakeLago) -> None:
    customer("acme")
    write_journal(JOURNAL, [], sinks=["lago"])

    result = cli("deliver", "--sink", "lago", "--dry-run", "--last", "5")

    assert (result.code, result.out, result.err) == (0, "", "lago: the ledger has no events\n")


def test_a_dry_run_in_json_is_a_line_for_each_request_and_refusal(
    cli: Cli, lago: FakeLago, waiting: list[MeterEvent]
) -> None:
    result = cli("deliver", "run", "--sink", "lago", "--dry-run", "--json")

    request, *refused = [json.loads(line) for line in result.lines]
    assert (request["sink"], request["method"], request["url"]) == ("lago", "POST", f"{lago.url}/api/v1/events/batch")
    assert len(request["body"]["events"]) == 2
    assert [(each["sink"], each["refused"]) for each in refused] == [("lago", "evt_2"), ("lago", "evt_3")]
    assert "no id at Lago" in refused[0]["reason"]


def test_a_dry_run_names_some_refusals_and_counts_the_others(cli: Cli, lago: FakeLago) -> None:
    metered(*(recent(number, customer=None) for number in range(1, 31)))

    result = cli("deliver", "run", "--sink", "lago", "--dry-run")

    assert result.err.count("would be quarantined: ") == 20
    assert "and 10 events more that would be quarantined\n" in result.err


def test_a_dry_run_of_a_sink_that_is_new_shows_what_replay_would_send(
    cli: Cli, lago: FakeLago, waiting: list[MeterEvent]
) -> None:
    result = cli("deliver", "run", "--sink", "trial=lago:customers=same,mode=live", "--dry-run")

    assert result.err.startswith("trial is new to this journal: all that is still in it, as --replay would send it\n")
    assert "trial: 3 events, 1 request, 1 refused" in result.err
    assert JournalFolder(JOURNAL).registered() == ("lago",)


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sink", "ledger", "--dry-run"], "the sink 'ledger' makes no requests that could be shown"),
        (["--sink", "lago", "--last", "3"], "--last belongs to --dry-run: what is delivered is what waits"),
        (
            ["--sink", "lago", "--dry-run", "--watch"],
            "--dry-run changes nothing: leave out --watch, --add and --replay",
        ),
        (
            ["--sink", "lago", "--dry-run", "--replay"],
            "--dry-run changes nothing: leave out --watch, --add and --replay",
        ),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    cli: Cli, lago: FakeLago, arguments: list[str], said: str
) -> None:
    result = cli("deliver", "run", *arguments)

    assert (result.code, result.err) == (2, f"token-meter: {said}\n")
    assert lago.counted == []


# ---- deliver retry ----


def test_retry_asks_whoever_delivers(cli: Cli, waiting: list[MeterEvent]) -> None:
    hurry = JournalFolder(JOURNAL).hurry / "lago"

    nobody = cli("deliver", "retry")
    with delivering(JOURNAL, "lago"):
        somebody = cli("deliver", "retry", "lago")
        document = cli("deliver", "retry", "lago", "--json").json

    assert hurry.exists()
    assert (nobody.code, nobody.lines) == (0, ["lago: nobody delivers to it now"])
    assert "the program that delivers starts with it; or `token-meter deliver run --sink ...`" in nobody.err
    assert somebody.lines[0].startswith("lago: process ")
    assert somebody.lines[0].endswith(" tries again")
    assert (document[0]["sink"], document[0]["process"] is not None) == ("lago", True)


def test_retry_of_a_sink_that_is_not_there_names_those_that_are(cli: Cli, waiting: list[MeterEvent]) -> None:
    result = cli("deliver", "retry", "lgao")

    assert (result.code, result.err) == (
        2,
        "token-meter: this journal has no sink 'lgao'. It has: lago. Did you mean 'lago'?\n",
    )


def test_retry_without_a_journal_is_told(cli: Cli) -> None:
    assert cli("deliver", "retry").code == 3


# ---- quarantine ----


def test_what_is_dropped_stays_on_record(cli: Cli, lago: FakeLago, waiting: list[MeterEvent]) -> None:
    cli("deliver", "run", "--sink", "lago")

    result = cli("deliver", "quarantine", "drop", "lago", "evt_3", "--reason", "a trial")
    rest = cli("deliver", "quarantine", "drop", "lago", "--all", "--reason", "the rest", "--json")

    assert (result.code, result.out) == (0, "lago: discarded 1 entry\n")
    assert rest.json == {"sink": "lago", "discarded": ["evt_2"], "already_decided": []}
    assert {each.id: (each.state, each.decision) for each in quarantined(JOURNAL, "lago")} == {
        "evt_2": ("discarded", "the rest"),
        "evt_3": ("discarded", "a trial"),
    }


def test_dropping_needs_a_reason_and_a_choice(cli: Cli, waiting: list[MeterEvent]) -> None:
    cli("deliver", "run", "--sink", "lago")

    codes = [
        cli("deliver", "quarantine", "drop", "lago", "evt_3").code,
        cli("deliver", "quarantine", "drop", "lago", "--reason", "x").code,
        cli("deliver", "quarantine", "drop", "lago", "evt_9", "--reason", "x").code,
    ]

    assert codes == [2, 2, 2]


def test_a_customers_id_sets_what_waited_free(cli: Cli, lago: FakeLago, waiting: list[MeterEvent]) -> None:
    cli("deliver", "run", "--sink", "lago")
    lago.subscriptions = {"sub_1": "acme", "sub_2": "globex"}

    done = cli("customers", "set", "globex", "--external", "lago=sub_2")
    cli("deliver", "run", "--sink", "lago")

    assert done.code == 0
    assert {key[0]: value for key, value in lago.totals().items() if key[1] == "llm_input_tokens"} == {
        "sub_1": 3,
        "sub_2": 3,
    }


# ---- reconcile sink ----


def test_reconcile_compares_by_customer_and_meter(cli: Cli, lago: FakeLago, waiting: list[MeterEvent]) -> None:
    before = cli("reconcile", "sink", "lago")
    cli("deliver", "run", "--sink", "lago")
    quiet = cli("reconcile", "sink", "lago")
    everything = cli("reconcile", "sink", "lago", "--all")

    assert [result.code for result in (before, quiet, everything)] == [0, 0, 0]
    heading, _, *rows = before.lines
    assert heading.split("  ")[0] == "customer"
    assert [row.split() for row in rows] == [
        ["acme", "sub_1", "llm_input_tokens", "3", "0", "3", "0", "0", "0", "0"],
        ["acme", "sub_1", "llm_output_tokens", "1", "0", "1", "0", "0", "0", "0"],
    ]
    assert len(quiet.lines) == 2  # nothing but the heading
    assert "they agree" in quiet.err
    assert "1 event on neither side: customer 'globex' has no id at Lago" in quiet.err
    assert [row.split()[3:5] for row in everything.lines[2:]] == [["3", "3"], ["1", "1"]]


def test_what_is_unexplained_ends_with_exit_code_1(cli: Cli, lago: FakeLago) -> None:
    customer("acme", lago="sub_1")
    store([recent(1)])
    metered(recent(2))
    cli("deliver", "run", "--sink", "lago")

    result = cli("reconcile", "sink", "lago", "--csv")

    assert result.code == 1
    assert result.out.splitlines() == [
        "customer,there_as,meter,ledger,there,in_flight,quarantined,given_up,unexplained,estimated",
        "acme,sub_1,llm_input_tokens,6,3,0,0,0,3,0",
        "acme,sub_1,llm_output_tokens,2,1,0,0,0,1,0",
    ]
    assert "unexplained: usage from before the sink was added" in result.err


def test_reconcile_in_json(cli: Cli, waiting: list[MeterEvent]) -> None:
    cli("deliver", "run", "--sink", "lago")
    cli("deliver", "quarantine", "drop", "lago", "evt_2", "--reason", "x")

    document = cli("reconcile", "sink", "lago:customers=same", "--json").json

    assert (document["sink"], document["agrees"], document["events"], document["left_out"]) == ("lago", True, 3, 0)
    assert list(document["refused"].values()) == [1]
    assert document["lines"][0] == {
        "customers": ["globex"], "there_as": "globex", "meter": "llm_input_tokens", "ledger": 3, "there": 0,
        "in_flight": 0, "quarantined": 0, "given_up": 3, "unexplained": 0, "estimated": 0,
    }  # fmt: skip


def test_estimated_and_left_out_usage_is_told(cli: Cli, lago: FakeLago) -> None:
    customer("acme", lago="sub_1")
    metered(recent(1, status="estimated"), recent(2, mode="test"), recent(3, usage=Usage(input=2)))
    cli("deliver", "run", "--sink", "lago")

    result = cli("reconcile", "sink", "lago", "--all")

    assert [(row.split()[3], row.split()[-1]) for row in result.lines[2:]] == [("5", "3"), ("1", "1")]
    assert "1 event not for this sink (filtered, test usage, or nothing it reports)" in result.err


@pytest.mark.parametrize(
    ("arguments", "events"),
    [
        ([], 2),
        (["--period", "{month}"], 2),
        (["--period", "{day}"], 2),
        (["--period", "today"], 2),
        (["--period", "{other}"], 1),
        (["--since", "{day}"], 2),
        (["--since", "{other}"], 3),
        (["--until", "{day}"], 1),
        (["--since", "{other}", "--until", "{day}"], 1),
    ],
)
def test_periods(cli: Cli, lago: FakeLago, arguments: list[str], events: int) -> None:
    now = datetime.now(UTC)
    other = (now.replace(day=1) - timedelta(days=1)).replace(hour=12)
    customer("acme", lago="sub_1")
    metered(recent(1, time=now), recent(2, time=now), recent(3, time=other))
    cli("deliver", "run", "--sink", "lago")
    words = {"month": f"{now:%Y-%m}", "day": f"{now:%Y-%m-%d}", "other": f"{other:%Y-%m-%d}"}

    result = cli("reconcile", "sink", "lago", *(each.format(**words) for each in arguments), "--json")

    assert (result.json["events"], result.json["agrees"]) == (events, True)


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lago", "--period", "2026-13"], "'2026-13' is no time: use one of 2026-11-01, 2026-11"),
        (["lago", "--period", "soon"], "'soon' is no time: use one of"),
        (["lago", "--period", "2026-11", "--since", "7d"], "say --period, or --since and --until"),
        (["lago", "--since", "2026-11", "--until", "2026-10"], "the period ends before it begins"),
        (["ledger"], "the destination of 'ledger' cannot be asked what it has"),
        (["jsonl:x.jsonl"], "the destination of 'jsonl' cannot be asked what it has"),
        (["webhook:url=http://127.0.0.1:1"], "the destination of 'webhook' cannot be asked what it has"),
        (["nowhere"], "'nowhere' names no sink"),
    ],
)
def test_what_cannot_be_compared_is_wrong_usage(cli: Cli, arguments: list[str], said: str) -> None:
    result = cli("reconcile", "sink", *arguments)

    assert result.code == 2
    assert result.err.startswith(f"token-meter: {said}")


def test_a_backend_that_cannot_tell_now_is_trouble(cli: Cli, lago: FakeLago, waiting: list[MeterEvent]) -> None:
    lago.down = True

    result = cli("reconcile", "sink", "lago")

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("token-meter: Lago answered HTTP 503")


def test_without_a_ledger_there_is_nothing_to_compare_with(cli: Cli, lago: FakeLago) -> None:
    assert cli("reconcile", "sink", "lago").code == 3


def test_it_works_as_a_program_of_its_own(program: Cli, lago: FakeLago, waiting: list[MeterEvent]) -> None:
    """The table is too wide for a narrow terminal: a pipe gets all of it."""
    environment: dict[str, Any] = {"LAGO_API_KEY": KEY, "LAGO_API_URL": lago.url}

    ran = program("deliver", "run", "--sink", "lago", **environment)
    told = program("reconcile", "sink", "lago", "--all", "--markdown", **environment)

    assert (ran.code, told.code) == (0, 0)
    assert told.lines[0].startswith("| customer | there as | meter | ledger | there | in flight |")
    assert KEY not in ran.out + ran.err + told.out + told.err
