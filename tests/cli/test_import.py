"""`token-meter import`: files and APIs of partners, from the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.journals import delivering
from tests.partners.kit import (
    EXPORT,
    GENERATION,
    KEY,
    LOG,
    SPEND_LOG,
    FakeCloudflare,
    FakeLiteLLM,
    FakeOpenRouter,
    log_of,
    stamp,
    varied,
    write_lines,
)
from token_meter import Meter
from token_meter.ledger import Ledger
from token_meter.partners import client
from token_meter.sinks import MemorySink
from token_meter.usage import Usage


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting between attempts is not what is tested."""
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def logs() -> Path:
    """Three rows of LiteLLM's spend log, one of them without a customer."""
    rows = [SPEND_LOG, varied(SPEND_LOG, request_id="b", model="gpt-5"), varied(SPEND_LOG, request_id="c", end_user="")]
    return write_lines(Path("log.jsonl"), rows)


def events() -> int:
    """How many events are in the ledger here."""
    with Ledger("usage.db") as ledger:
        return len(ledger.events())


def test_a_file_is_brought_into_the_ledger_and_shown(cli: Cli, logs: Path) -> None:
    result = cli("import", "litellm", str(logs), "--dimension", "team=team_id")

    assert result.code == 0
    assert result.lines == [
        "customer  provider   model                       events  input  cached input  cache write  output",
        "─" * 97,
        "(none)    anthropic  claude-sonnet-4-5-20250929       1    500           300          200     500",
        "acme      anthropic  claude-sonnet-4-5-20250929       1    500           300          200     500",
        "acme      anthropic  gpt-5                            1    500           300          200     500",
        "3 rows read: 3 events recorded",
    ]
    assert "1 event without a customer: --customer-field names the field" in result.err
    assert events() == 3


def test_importing_again_changes_nothing(cli: Cli, logs: Path) -> None:
    cli("import", "litellm", str(logs))
    usage = cli("usage", "--json").json["total"]

    again = cli("import", "litellm", str(logs), str(logs))

    assert again.lines[-1] == "6 rows read: 3 events recorded; 3 repetitions"
    assert cli("usage", "--json").json["total"] == usage
    assert cli("doctor", "--json").json is not None


def test_json_has_everything(cli: Cli, logs: Path) -> None:
    result = cli("import", "litellm", str(logs), "--json").json

    assert (result["ledger"], result["delivered"], result["events"], result["recorded"]) == ("usage.db", 3, 3, True)
    assert result["usage"]["reasoning"] == 360
    assert result["rows"][1] == {
        "customer": "acme", "provider": "anthropic", "model": "claude-sonnet-4-5-20250929", "events": 1, "tokens": 1500,
        "usage": {"input": 500, "cache_read": 300, "cache_write_1h": 150, "cache_write_5m": 50, "output": 380, "reasoning": 120},
    }  # fmt: skip


def test_a_dry_run_shows_what_would_be_and_makes_nothing(cli: Cli, logs: Path) -> None:
    result = cli("import", "litellm", str(logs), "--dry-run")

    assert result.lines[-1] == "3 rows read: 3 events would be recorded"
    assert not Path("usage.db").exists() and not Path("usage.db.journal").exists()


def test_the_customer_may_be_named_by_a_path_or_be_the_same_for_all(cli: Cli, logs: Path) -> None:
    by_path = cli(
        "import", "litellm", str(logs), "--customer-field", "metadata.spend_logs_metadata.tenant", "--dry-run"
    )
    by_name = cli("import", "litellm", str(logs), "--customer-name", "initech", "--dry-run", "--json")

    assert {line.split()[0] for line in by_path.lines[2:-1]} == {"globex"}
    assert {row["customer"] for row in by_name.json["rows"]} == {"initech"}


def test_bad_rows_are_listed_by_place_and_keep_everything_out(cli: Cli, logs: Path) -> None:
    with logs.open("a", encoding="utf-8") as file:
        file.write('not json\n{"a": 1}\n')

    result = cli("import", "litellm", str(logs))

    assert result.code == 1
    assert "log.jsonl:4: the line is no JSON: Expecting value at character 1\n" in result.err
    assert "log.jsonl:5: is no record of LiteLLM: it has 'a'" in result.err
    assert "2 rows of 5 cannot be read, so nothing was brought in" in result.err
    assert not Path("usage.db").exists() or events() == 0


def test_bad_rows_can_be_left_out(cli: Cli, logs: Path) -> None:
    with logs.open("a", encoding="utf-8") as file:
        file.write("not json\n")

    result = cli("import", "litellm", str(logs), "--skip-bad")

    assert result.code == 0
    assert result.lines[-1] == "4 rows read: 3 events recorded; 1 row left out as unreadable"
    assert "log.jsonl:4: the line is no JSON" in result.err
    assert events() == 3


def test_bad_rows_are_in_the_json_too(cli: Cli, logs: Path) -> None:
    logs.write_text("{}\n", "utf-8")

    result = cli("import", "litellm", str(logs), "--json")

    assert result.code == 1
    assert (result.json["bad_rows"], result.json["bad"][0]["number"], result.json["recorded"]) == (1, 1, False)


def test_what_other_people_wrote_does_not_steer_the_terminal(cli: Cli) -> None:
    rows = [varied(SPEND_LOG, end_user="\x1b[31mred", model="m\x07")]
    path = write_lines(Path("log.jsonl"), rows)

    shown = cli("import", "litellm", str(path))
    refused = cli("import", "litellm", str(write_lines(path, [{"\x1b[31mred": 1}])))

    assert "\x1b" not in shown.out and "\\x1b[31mred" in shown.out
    assert "\x1b" not in refused.err


def test_skipped_and_flagged_rows_are_told(cli: Cli) -> None:
    rows = [varied(SPEND_LOG, cache_hit="True"), varied(SPEND_LOG, request_id="b", metadata={})]

    result = cli("import", "litellm", str(write_lines(Path("log.jsonl"), rows)))

    assert result.lines[-1] == "2 rows read: 1 event recorded; 1 skipped: answered from the gateway's cache"
    assert "only_totals: 1 event: only totals are known" in result.err


def test_the_time_can_be_narrowed(cli: Cli) -> None:
    path = write_lines(Path("log.jsonl"), log_of(10, every=timedelta(hours=3)))  # from 10:00 on the 20th

    result = cli("import", "litellm", str(path), "--since", "2026-11-21", "--time-zone", "Europe/Berlin", "--json")

    assert (result.json["events"], result.json["first"]) == (5, "2026-11-21T01:00:02.000000Z")


def test_a_csv_export_is_read(cli: Cli) -> None:
    Path("activity.csv").write_text(EXPORT, "utf-8")

    result = cli("import", "openrouter", "activity.csv", "--json")

    assert (result.code, result.json["events"], result.json["without_customer"]) == (0, 2, 1)


def test_other_sinks_of_the_journal_get_it_from_the_program_that_runs(cli: Cli, logs: Path) -> None:
    sink = MemorySink()
    with Meter("usage.db", sink):
        pass

    cli("import", "litellm", str(logs))
    with Meter("usage.db", sink) as meter:
        assert meter.flush()

    assert len(sink.events) == 3


def test_it_works_while_a_program_delivers(cli: Cli, logs: Path) -> None:
    with Meter("usage.db"):
        pass

    with delivering(Path("usage.db.journal"), "ledger"):
        result = cli("import", "litellm", str(logs), "--json")

    assert (result.code, result.json["events"], result.json["delivered"]) == (0, 3, 0)
    assert cli("usage", "--json").json["total"]["events"] == 3


# ---- from the API -------------------------------------------------------------------------------------------------


def test_pulling_goes_on_where_it_ended(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_API_KEY", KEY)
    with FakeLiteLLM() as server:
        server.rows = log_of(5, start=datetime.now(UTC) - timedelta(minutes=30))
        first = cli("import", "litellm", "--pull", "--url", server.url, "--since", "1d")
        server.rows += log_of(7, start=datetime.now(UTC) - timedelta(minutes=30))[5:]
        second = cli("import", "litellm", "--pull", "--url", server.url)

    assert first.lines[-1] == "5 rows read: 5 events recorded"
    assert second.lines[-1] == "7 rows read: 2 events recorded; 5 repetitions"
    assert events() == 7


def test_the_key_may_be_in_another_variable(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", KEY)
    with FakeLiteLLM() as server:
        missing = cli("import", "litellm", "--pull", "--url", server.url, "--since", "1d", "--key-env", "NOT_THERE")
        found = cli("import", "litellm", "--pull", "--url", server.url, "--since", "1d", "--key-env", "OUR_KEY")
        wrong = cli("import", "litellm", "--pull", "--url", server.url, "--since", "1d", "--key-env", "PATH")

    assert (missing.code, found.code, wrong.code) == (2, 0, 1)
    assert "$NOT_THERE is not set" in missing.err
    assert "LiteLLM does not take the key" in wrong.err


def test_parameters_and_a_cursor_of_ones_own(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", KEY)
    with FakeCloudflare() as server:
        server.rows = [varied(LOG, created_at=stamp(datetime.now(UTC) - timedelta(minutes=5)))]
        result = cli(
            "import", "cloudflare", "--pull", "--url", server.url, "--since", "1d", "--cursor", "position.json",
            "--parameter", "account=acc 1", "--parameter", "gateway=prod", "--customer-field", "metadata.tenant",
        )  # fmt: skip

    assert result.lines[2].split()[:4] == ["acme", "azure", "gpt-4o-mini", "1"]
    assert json.loads(Path("position.json").read_text("utf-8"))["about"]["parameters"]["gateway"] == "prod"


def test_generations_are_looked_up_by_ids_from_a_file_or_standard_input(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)
    Path("ids").write_text("gen-1\n\n gen-2 \n", "utf-8")
    with FakeOpenRouter() as server:
        server.rows = [varied(GENERATION, id=f"gen-{number}") for number in range(1, 4)]
        from_file = cli("import", "openrouter", "--pull", "--url", server.url, "--ids-from", "ids", "--json")
        piped = cli("import", "openrouter", "--pull", "--url", server.url, "--ids-from", "-", input="gen-3\ngen-9\n")

    assert from_file.json["usage"] == dict(Usage(cache_read=80, input=120, reasoning=40, output=60))
    assert piped.code == 1
    assert "ids:2: there is no record with this id" in piped.err
    assert events() == 3


def test_a_server_that_fails_is_told_and_what_was_read_is_kept(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_API_KEY", KEY)
    with FakeLiteLLM() as server:
        server.rows = log_of(150, every=timedelta(seconds=1), start=datetime.now(UTC) - timedelta(minutes=30))
        server.chaos.script = [None, *["unavailable"] * 6]
        broken = cli("import", "litellm", "--pull", "--url", server.url, "--since", "1d")
        kept = events()
        again = cli("import", "litellm", "--pull", "--url", server.url)

    assert broken.code == 1
    assert "LiteLLM answered HTTP 503" in broken.err and "try again later" in broken.err
    assert (kept, events(), again.code) == (100, 150, 0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ["litelm", "x"],
            "no partner is called 'litelm'. Known: litellm, openrouter, vercel, cloudflare. Did you mean",
        ),
        (["litellm"], "name files to import, or say --pull"),
        (["litellm", "x", "--pull"], "--pull reads the API, not files"),
        (["litellm", "x", "--url", "http://x"], "--url goes with --pull"),
        (["litellm", "x", "--ids-from", "y"], "--ids-from goes with --pull"),
        (["litellm", "x", "--parameter", "a=b"], "--parameter goes with --pull"),
        (["litellm", "x", "--dimension", "team"], "--dimension wants NAME=PATH"),
        (["litellm", "x", "--customer-field", "a", "--customer-name", "b"], "exclude each other"),
        (["litellm", "--pull"], "LiteLLM runs at a place of your own"),
        (["openrouter", "--pull", "--parameter", "nonsense=1"], "OpenRouter takes no parameter 'nonsense'"),
        (["openrouter", "--pull"], "this is the first pull from OpenRouter: say from when on"),
        (["cloudflare", "--pull"], "needs the parameter account and gateway"),
        (["litellm", "x", "--since", "nonsense"], "is no time"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(cli: Cli, arguments: list[str], reason: str) -> None:
    result = cli("import", *arguments)

    assert (result.code, reason in result.err) == (2, True), result.err


def test_a_file_that_is_not_there_is_told(cli: Cli) -> None:
    result = cli("import", "litellm", "nowhere.jsonl")

    assert (result.code, result.err) == (1, "token-meter: nowhere.jsonl: No such file or directory\n")


def test_a_ledger_whose_journal_is_not_known_is_not_guessed_at(cli: Cli, logs: Path) -> None:
    result = cli("import", "litellm", str(logs), "--ledger", "postgresql://db.invalid/usage")

    assert result.code == 2
    assert "which journal belongs to postgresql://db.invalid/usage?" in result.err


def test_where_metering_is_switched_off_nothing_is_brought_in(
    cli: Cli, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_METER_DISABLED", "1")

    assert cli("import", "litellm", str(logs)).code == 2


def test_events_of_a_trial_are_marked(cli: Cli, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_METER_MODE", "test")

    cli("import", "litellm", str(logs))

    with Ledger("usage.db") as ledger:
        assert {event.mode for event in ledger.events(mode="test")} == {"test"}
