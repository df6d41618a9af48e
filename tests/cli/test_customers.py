"""`token-meter customers`: who they are, editing them, and files of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.conftest import EVENTS, Cli, store
from tests.cli.journals import write_journal
from token_meter.event import MeterEvent
from token_meter.testing.builders import make_event
from token_meter.usage import Usage

Events = tuple[MeterEvent, ...]
SHEET = "id,name,currency,stripe_id\nacme,Acme Inc.,EUR,cus_1\ninitech,Initech,,cus_2\n"


# list


def test_the_list_tells_who_they_are_and_what_they_used(cli: Cli, ledger: Events) -> None:
    cli("customers", "set", "acme", "--name", "Acme Inc.", "--external", "stripe=cus_1", "--external", "lago=sub_1")
    cli("customers", "set", "initech", "--status", "paused")

    result = cli("customers", "list")

    assert result.lines[0].split() == [
        "customer", "name", "status", "external", "ids", "calls", "tokens", "first", "seen", "last", "seen",
    ]  # fmt: skip
    assert [" ".join(line.split()) for line in result.lines[2:]] == [
        "acme Acme Inc. active lago=sub_1 stripe=cus_1 2 1,622 2026-01-01 00:00:01 2026-01-01 00:00:02",
        "globex active 2 55 2026-01-01 00:00:03 2026-01-01 00:00:04",
        "(none) 1 2 2026-01-01 00:00:05 2026-01-01 00:00:05",
        "initech paused 0 0",
    ]


def test_the_list_for_programs(cli: Cli, ledger: Events) -> None:
    cli("customers", "set", "acme", "--name", "Acme Inc.", "--external", "stripe=cus_1")

    found = cli("customers", "list", "--json").json
    lines = cli("customers", "list", "--csv", "--time-zone", "Europe/Berlin").out.splitlines()

    assert found[0] == {
        "customer": "acme", "name": "Acme Inc.", "status": "active", "external_ids": {"stripe": "cus_1"},
        "calls": 2, "tokens": 1622, "first": "2026-01-01T00:00:01.000000Z", "last": "2026-01-01T00:00:02.000000Z",
    }  # fmt: skip
    assert found[2]["customer"] is None and found[2]["status"] is None
    assert lines == [
        "customer,name,status,external_ids,calls,tokens,first,last",
        "acme,Acme Inc.,active,stripe=cus_1,2,1622,2026-01-01 01:00:01,2026-01-01 01:00:02",
        "globex,,active,,2,55,2026-01-01 01:00:03,2026-01-01 01:00:04",
        ",,,,1,2,2026-01-01 01:00:05,2026-01-01 01:00:05",
    ]
    assert "| acme | Acme Inc. | active |" in cli("customers", "list", "--markdown").out


def test_test_customers_are_listed_when_asked_for(cli: Cli, ledger: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    store([replace(make_event(6, usage=Usage(input=7)), mode="test"), make_event(7, customer="umbrella", mode="test")])

    live = [row["customer"] for row in cli("customers", "list", "--json").json]
    test = cli("customers", "list", "--mode", "test", "--json").json
    monkeypatch.setenv("TOKEN_METER_MODE", "test")

    assert live == ["acme", "globex", None]
    assert [(row["customer"], row["tokens"], row["first"][17:19]) for row in test] == [
        ("acme", 7, "06"),
        ("umbrella", 4, "07"),
    ]
    assert cli("customers", "list", "--json").json == test
    assert [row["customer"] for row in cli("customers", "list", "--mode", "live", "--json").json] == live


def test_a_mode_that_there_is_not_is_refused(cli: Cli, ledger: Events) -> None:
    result = cli("customers", "list", "--mode", "prod")

    assert (result.code, result.err) == (2, "token-meter: --mode is live or test, not 'prod'\n")


def test_customers_who_wait_in_the_journal_are_there_too(cli: Cli, ledger: Events) -> None:
    write_journal(Path("usage.db.journal"), [make_event(9, customer="umbrella")], sinks=("ledger",))

    result = cli("customers", "pause", "umbrella")

    assert (result.code, result.out) == (0, "umbrella: paused\n")
    assert "delivered 1 event from the journal first" in result.err


def test_a_list_of_nobody_says_so(cli: Cli, ledger: Events) -> None:
    result = cli("customers", "list", "--mode", "test")

    assert result.code == 0
    assert "usage.db has no test customers yet" in result.err


# show, set, pause, resume


def test_what_is_set_is_shown(cli: Cli, ledger: Events) -> None:
    done = cli(
        "customers", "set", "acme", "--name", "Acme Inc.", "--email", "billing@acme.example", "--currency", "EUR",
        "--time-zone", "Europe/Berlin", "--external", "stripe=cus_1", "--detail", "tax_id=DE=123",
        "--detail", "address=Street 1\nBerlin", "--status", "paused",
    )  # fmt: skip
    shown = cli("customers", "show", "acme")
    document = cli("customers", "show", "acme", "--json").json

    assert (done.code, done.out) == (0, "acme: changed\n")
    assert [" ".join(line.split()) for line in shown.lines[2:-2]] == [
        "id acme", "mode live", "status paused", "name Acme Inc.", "email billing@acme.example", "currency EUR",
        "time zone Europe/Berlin", "external stripe cus_1", "detail address Street 1 / Berlin", "detail tax_id DE=123",
    ]  # fmt: skip
    assert {name: value for name, value in document.items() if name not in ("created", "updated")} == {
        "id": "acme", "mode": "live", "status": "paused", "name": "Acme Inc.", "email": "billing@acme.example",
        "currency": "EUR", "time_zone": "Europe/Berlin", "external_ids": {"stripe": "cus_1"},
        "details": {"tax_id": "DE=123", "address": "Street 1\nBerlin"},
    }  # fmt: skip
    assert document["created"] < document["updated"]


def test_an_empty_value_takes_away_and_what_is_not_named_stays(cli: Cli, ledger: Events) -> None:
    cli(
        "customers",
        "set",
        "acme",
        "--name",
        "Acme",
        "--currency",
        "EUR",
        "--external",
        "stripe=cus_1",
        "--detail",
        "a=b",
    )

    again = cli("customers", "set", "acme", "--name", "", "--external", "stripe=", "--external", "lago=sub_1", "--json")

    assert again.json["external_ids"] == {"lago": "sub_1"}
    assert "name" not in again.json
    assert (again.json["currency"], again.json["details"]) == ("EUR", {"a": "b"})
    assert cli("customers", "set", "acme", "--currency", "EUR").out == "acme: nothing to change\n"


def test_setting_somebody_new_says_so_and_whom_it_may_have_meant(cli: Cli, ledger: Events) -> None:
    near = cli("customers", "set", "acmee", "--external", "stripe=cus_1")
    far = cli("customers", "set", "umbrella", "--mode", "test")

    assert (near.out, near.err) == (
        "acmee: new live customer\n",
        "'acmee' was not there before. Did you mean 'acme'?\n",
    )
    assert (far.out, far.err) == ("umbrella: new test customer\n", "")
    assert cli("customers", "show", "umbrella").code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--currency", "usd"], "customer 'acme': its currency is three capital letters such as USD or EUR, not 'usd'"),
        (["--time-zone", "Mars"], "customer 'acme': no time zone is called 'Mars' on this machine: use a name such as"),
        (["--status", "gone"], "customer 'acme': its status is active or paused, not 'gone'"),
        (["--status", ""], "customer 'acme': its status is active or paused, not None"),
        (["--email", "nowhere"], "customer 'acme': its email is no address: 'nowhere'"),
        (["--external", "cus_1"], "--external is NAME=VALUE, not 'cus_1'; NAME= takes the value away"),
        (["--external", "=cus_1"], "--external is NAME=VALUE, not '=cus_1'"),
        (["--detail", "a=1", "--detail", "a=2"], "--detail names 'a' twice"),
        (
            ["--external", "Stripe=cus_1"],
            "customer 'acme': 'Stripe' cannot be a name in external_ids: it has 1 to 64 of",
        ),
    ],
)
def test_what_cannot_be_set_is_wrong_usage_and_changes_nothing(
    cli: Cli, ledger: Events, arguments: list[str], said: str
) -> None:
    before = cli("customers", "show", "acme", "--json").json

    result = cli("customers", "set", "acme", "--name", "Other", *arguments)

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"token-meter: {said}") and result.err.count("\n") == 1
    assert cli("customers", "show", "acme", "--json").json == before


def test_pausing_and_resuming(cli: Cli, ledger: Events) -> None:
    assert cli("customers", "pause", "acme").out == "acme: paused\n"
    assert cli("customers", "pause", "acme").out == "acme: paused already\n"
    assert cli("customers", "pause", "globex", "--json").json["status"] == "paused"
    assert cli("customers", "resume", "acme").out == "acme: active\n"
    assert cli("customers", "resume", "acme", "--json").json["status"] == "active"
    store([make_event(9, customer="globex")])
    assert [(row["customer"], row["status"]) for row in cli("customers", "list", "--json").json] == [
        ("acme", "active"),
        ("globex", "paused"),
        (None, None),
    ]


@pytest.mark.parametrize("command", ["show", "pause", "resume"])
def test_an_unknown_customer_is_not_made_and_near_ones_are_named(cli: Cli, ledger: Events, command: str) -> None:
    store([make_event(9, customer="umbrella", mode="test")])

    near, far, other = (cli("customers", command, id) for id in ("acmee", "zzz", "umbrella"))

    assert (near.code, near.out) == (1, "")
    assert near.err == "token-meter: there is no live customer 'acmee'. Did you mean 'acme'?\n"
    assert far.err == "token-meter: there is no live customer 'zzz'. `token-meter customers list` shows them all.\n"
    assert other.err == (
        "token-meter: there is no live customer 'umbrella'. There is one in test mode: say --mode test.\n"
    )
    assert [row["customer"] for row in cli("customers", "list", "--json").json] == ["acme", "globex", None]


def test_names_that_would_steer_a_terminal_are_shown_as_escapes(cli: Cli, ledger: Events) -> None:
    cli("customers", "set", "\x1b[31mred", "--name", "x")

    assert "\x1b" not in cli("customers", "set", "\x1b[31mred", "--name", "y").out
    assert "\x1b" not in cli("customers", "show", "\x1b[31mred").out + cli("customers", "pause", "\x1b[31mred").out
    assert "\\x1b[31mred" in cli("customers", "list").out


# import, export


def test_a_file_is_imported(cli: Cli, ledger: Events) -> None:
    Path("customers.csv").write_text(SHEET)

    dry = cli("customers", "import", "customers.csv", "--dry-run")
    unchanged = cli("customers", "show", "acme", "--json").json
    done = cli("customers", "import", "customers.csv")
    again = cli("customers", "import", "customers.csv", "--json")

    assert dry.out == "1 would be new, 1 would be changed, 0 unchanged\n"
    assert "name" not in unchanged
    assert done.out == "1 new, 1 changed, 0 unchanged\n"
    assert again.json == {
        "dry_run": False, "added": [], "changed": [], "unchanged": ["acme", "initech"], "problems": [],
    }  # fmt: skip
    assert cli("customers", "show", "initech", "--json").json["external_ids"] == {"stripe": "cus_2"}


def test_a_wrong_file_is_told_line_by_line_and_nothing_is_changed(cli: Cli, ledger: Events) -> None:
    Path("customers.csv").write_text(SHEET + "umbrella,,usd,\nshort\n")
    wrong = [
        {
            "line": 4,
            "reason": "customer 'umbrella': its currency is three capital letters such as USD or EUR, not 'usd'",
        },
        {"line": 5, "reason": "the first line names 4 columns, here are 1"},
    ]

    for arguments in ([], ["--dry-run"]):
        result = cli("customers", "import", "customers.csv", *arguments)
        assert result.code == 1
        assert result.err == "token-meter: customers.csv: 2 lines are wrong; nothing was changed\n"
        assert [line.split(maxsplit=1) for line in result.lines[2:]] == [
            [str(each["line"]), each["reason"]] for each in wrong
        ]
        result = cli("customers", "import", "customers.csv", "--json", *arguments)
        assert (result.code, result.json["problems"], result.json["added"]) == (1, wrong, [])
    assert [row["customer"] for row in cli("customers", "list", "--json").json] == ["acme", "globex", None]


def test_of_very_many_wrong_lines_some_are_shown_and_all_are_in_json(cli: Cli, ledger: Events) -> None:
    data = "id,currency\n" + "".join(f"c{number},x\n" for number in range(60))

    shown = cli("customers", "import", "-", input=data)
    every = cli("customers", "import", "-", "--json", input=data)

    assert len(shown.lines) == 52
    assert "and 10 more lines: --json has them all" in shown.err
    assert "standard input: 60 lines are wrong; nothing was changed" in shown.err
    assert len(every.json["problems"]) == 60


def test_an_export_is_imported_into_the_other_mode(cli: Cli, ledger: Events) -> None:
    cli("customers", "import", "-", input=SHEET)
    cli("customers", "set", "=1+1", "--detail", "address=Street 1\nBerlin")

    exported = cli("customers", "export")
    done = cli("customers", "import", "-", "--mode", "test", input=exported.out)

    assert exported.out.splitlines()[0] == "id,name,email,currency,time_zone,status,external.stripe,detail.address"
    assert "'=1+1," in exported.out
    assert done.out == "4 new, 0 changed, 0 unchanged\n"
    assert cli("customers", "export", "--mode", "test").out == exported.out
    lines = [json.loads(line) for line in cli("customers", "export", "--json").out.splitlines()]
    assert [each["id"] for each in lines] == ["=1+1", "acme", "globex", "initech"]
    assert lines[0]["details"] == {"address": "Street 1\nBerlin"}


def test_customers_can_be_entered_before_there_is_a_ledger(cli: Cli) -> None:
    Path("customers.csv").write_text(SHEET)

    dry = cli("customers", "import", "customers.csv", "--dry-run")
    wrong = cli("customers", "import", "-", input="id,nmae\n")
    assert (dry.out, wrong.code) == ("2 would be new, 0 would be changed, 0 unchanged\n", 1)
    assert not Path("usage.db").exists()
    done = cli("customers", "import", "customers.csv")
    store(EVENTS)

    assert (done.out, done.err) == ("2 new, 0 changed, 0 unchanged\n", "there was no ledger at usage.db: making one\n")
    assert cli("customers", "list", "--json").json[0]["name"] == "Acme Inc."


@pytest.mark.parametrize("arguments", [["list"], ["show", "a"], ["pause", "a"], ["resume", "a"], ["export"]])
def test_reading_makes_no_ledger(cli: Cli, arguments: list[str]) -> None:
    result = cli("customers", *arguments)

    assert result.code == 3
    assert "no ledger at usage.db" in result.err
    assert list(Path().iterdir()) == []


def test_a_file_that_is_not_there_is_one_line(cli: Cli, ledger: Events) -> None:
    result = cli("customers", "import", "missing.csv")

    assert (result.code, result.err) == (1, "token-meter: missing.csv: No such file or directory\n")
