"""`budgets`, `credits policy|balance` and the webhooks of `notices`, as somebody types them."""

from __future__ import annotations

import json
import time

import pytest

from tests.cli.conftest import Cli, store
from tests.notices.test_webhooks import receiver  # noqa: F401 - a fixture
from token_meter.budgets.hold import Part, Request
from token_meter.budgets.stores import holds_of
from token_meter.ledger import Ledger
from token_meter.testing.builders import make_event
from token_meter.usage import Usage


def test_from_a_limit_to_what_is_left(cli: Cli) -> None:
    made = cli("budgets", "set", "10", "--customer", "acme", "--name", "acme's month")
    store([make_event(customer="acme", model="gpt-4o-mini", usage=Usage(input=1_000_000))])

    assert made.code == 0
    assert "10 USD per month for customer=acme, bounded" in made.out
    assert "there was no ledger at usage.db: making one" in made.err
    [listed] = cli("budgets", "list", "--json").json
    assert (listed["scope"], listed["limit"], listed["measure"]) == ({"customer": "acme"}, "10", "charge")
    [standing] = cli("budgets", "show", "--json").json
    assert (standing["spent"], standing["available"], standing["resets_at"][-14:]) == ("0", "10", "00:00:00+00:00")
    assert cli("budgets", "show", "--customer", "acme").code == 0
    watched = cli("budgets", "watch", "--times", "1")
    assert "customer=acme" in watched.out and "······" in watched.out
    changed = cli("budgets", "set", "5", "--customer", "acme", "--enforce", "strict")
    assert "it was there: limit 10 -> 5, enforce bounded -> strict" in changed.err
    assert cli("budgets", "list", "--json").json[0]["name"] == "acme's month"
    assert cli("budgets", "reset", "acme's month").out == "1 counter begins at zero\n"
    assert cli("budgets", "reset", "acme's month", "--for", "key=k").err.endswith("is not by key\n")
    assert cli("budgets", "remove", "bud_").code == 1
    assert "is gone" in cli("budgets", "remove", listed["id"][:8]).out
    assert cli("budgets", "list", "--json").json == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["set", "much"], "limit is no number"),
        (["set", "10", "--per", "fortnight"], "is no window. Use hour, day"),
        (["set", "10", "--of", "euros"], "measure is one of charge, cost, tokens, requests"),
        (["set", "1.5", "--of", "requests"], "a whole number"),
        (["set", "10", "--for", "acme"], "--for wants NAME=VALUE"),
        (["set", "10", "--time-zone", "Mars/Olympus"], "there is no time zone 'Mars/Olympus'"),
        (["set", "10", "--enforce", "firm"], "enforce is one of strict, bounded, soft"),
        (["set", "10", "--per", "plan"], "needs a customer in the scope"),
        (["set", "-1"], "No such option: -1: if it is an amount, none here is negative"),
        (["set", "1", "--for", "customer=a", "--for", "customer=b"], "--for customer is given twice"),
        (["set", "1", "--for", "customer=a", "--customer", "b"], "one of them"),
        (["watch", "--every", "inf"], "--every"),
        (["set", "10", "--of", "cost", "--currency", "EUR"], "counted in USD"),
        (["unreachable", "--prepaid", "ajar"], "closed or open, not 'ajar'"),
    ],
)
def test_what_cannot_be_is_one_line_that_says_what_to_write(cli: Cli, arguments: list[str], said: str) -> None:
    result = cli("budgets", *arguments)

    assert result.code == 2
    assert said in result.err and result.err.count("\n") == 1


def test_an_unknown_budget_is_named(cli: Cli) -> None:
    cli("budgets", "set", "1")

    result = cli("budgets", "reset", "nobody's")

    assert result.code == 1 and 'there is no budget "nobody\'s": `token-meter budgets list`' in result.err


def test_lost_holds_are_shown_and_given_back(cli: Cli) -> None:
    cli("budgets", "set", "10", "--customer", "acme")
    [budget] = cli("budgets", "list", "--json").json
    with Ledger("usage.db") as ledger:
        from token_meter.budgets.rows import make_counters

        part = Part(budget["id"], '["acme"]', 0, 10**12, limit=10**13)
        with ledger.writing() as (found, connection):
            make_counters(found, connection, [(part.key, 0)])
        now = time.time_ns() // 1000
        who = json.dumps({"customer": "acme", "model": "gpt-5", "process": "host:1"})
        holds_of(ledger).hold(Request("call-1", (part,), now - 10, now - 5, who=who))

    shown = cli("budgets", "holds", "--lost")
    [row] = cli("budgets", "holds", "--json").json
    released = cli("budgets", "holds", "--release", "call-1")
    again = cli("budgets", "holds", "--release", "call-1")

    assert "call-1" in shown.out and "1 USD" in shown.out
    assert (row["state"], row["customer"], row["model"]) == ("lost", "acme", "gpt-5")
    assert released.out == "1 hold given back\n"
    assert again.code == 1 and "hold nothing" in again.err


def test_credit_policy_and_balance(cli: Cli) -> None:
    blocked = cli("credits", "policy", "acme", "block", "--enforce", "strict", "--low", "2")
    cli("credits", "grant", "acme", "5")

    found = cli("credits", "balance", "acme", "--json").json
    assert blocked.out == "acme: calls are refused when their credit does not cover them\n"
    assert found["policy"] == {"policy": "block", "enforce": "strict", "currency": "USD", "low": "2"}
    assert found["credit"] == [
        {"currency": "USD", "balance": "5", "pending": "0", "held": "0", "available": "5"}
    ]  # fmt: skip
    assert "block (calls are refused)" in cli("credits", "balance", "acme").err
    assert cli("credits", "policy", "*", "overage").code == 0
    assert cli("credits", "policy", "acme", "maybe").code == 2


def test_a_webhook_from_adding_it_to_replaying(cli: Cli, receiver) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    added = cli("notices", "add", receiver.url, "--allow-private", "--json").json
    receiver.secret = added["secret"]

    tested = cli("notices", "test")
    [endpoint] = cli("notices", "endpoints", "--json").json

    assert tested.code == 0 and "done" in tested.out
    assert (endpoint["done"], endpoint["state"]) == (1, "active") and "secret" not in endpoint
    assert [body["type"] for body in receiver.bodies] == ["notice.test"]
    assert cli("notices", "replay", added["id"]).out == "1 notice will be posted again\n"
    assert cli("notices", "deliver").out == "1 delivery tried\n"
    assert len(set(receiver.ids)) == 1 and len(receiver.ids) == 2
    receiver.secret = cli("notices", "rotate", added["id"], "--json").json["secret"]
    assert cli("notices", "test").code == 0 and receiver.wrong == []
    receiver.status = 410
    failed = cli("notices", "test")
    assert failed.code == 1 and f"notices enable {added['id']}" in failed.err
    assert cli("notices", "endpoints", "--json").json[0]["state"] == "disabled"
    assert "again" in cli("notices", "enable", added["id"]).out
    assert "nothing is posted" in cli("notices", "remove", added["id"][:8]).out
    assert cli("notices", "endpoints").code == 0


def test_a_private_address_is_told_how_to_be_allowed(cli: Cli, receiver) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    cli("notices", "add", receiver.url)

    result = cli("notices", "test")

    assert result.code == 1 and "allow it for this endpoint with --allow-private" in result.out
    assert receiver.ids == []


def test_what_is_no_endpoint_is_refused(cli: Cli) -> None:
    assert "is no address to post to" in cli("notices", "add", "ftp://example.com").err
    assert "$NONE_OF_MINE is not set" in cli("notices", "add", "https://e.com", "--secret-from", "NONE_OF_MINE").err
    assert cli("notices", "add", "http://[::1/").code == 2
    assert "there is no kind of notice 'budgt.*'" in cli("notices", "add", "https://e.com", "--kind", "budgt.*").err
    assert cli("notices", "add", "https://e.com").code == 0
    assert "there is no endpoint" in cli("notices", "remove", "whk_1").err
    assert cli("notices", "list", "--kind", "budget.*").code == 0
    assert cli("notices", "rotate", "whk_", "--overlap", "inf").code == 2


def test_doctor_tells_of_lost_holds_and_of_webhooks_that_nothing_reaches(cli: Cli) -> None:
    store([make_event(customer="acme")])
    cli("notices", "add", "http://127.0.0.1:9/none", "--allow-private")
    cli("notices", "test")
    with Ledger("usage.db") as ledger:
        holds_of(ledger).hold(Request("call-1", (), 1, 2))
        holds_of(ledger).sweep(3)

    said = cli("doctor")

    assert said.code == 1
    assert "1 call holds money and nobody knows what became of them" in said.out
    assert "(http://127.0.0.1:9) (failing:" in " ".join(said.out.split()) and "9/none" not in said.out


def test_what_a_customer_may_spend_is_part_of_where_they_are(cli: Cli) -> None:
    store([make_event(customer="acme")])
    cli("budgets", "set", "0", "--customer", "acme", "--name", "nothing")
    cli("credits", "policy", "acme", "block")
    cli("customers", "pause", "acme")

    said = cli("doctor", "--customer", "acme")

    assert said.code == 1
    for part in ("no call is made for them", "nothing: 0 of 0 USD is spent: calls are refused", "0 USD is left"):
        assert part in said.out


def test_a_budget_enters_its_customer_and_names_what_may_be_a_slip(cli: Cli) -> None:
    store([make_event(customer="acme")])

    said = cli("budgets", "set", "5", "--customer", "acne", "--enforce", "soft")
    hard = cli("budgets", "set", "5", "--customer", "acne", "--enforce", "bounded")
    other = cli("budgets", "set", "5", "--for", "costumer=acme")

    assert "acne is a new customer. Did you mean 'acme'?" in said.err
    assert "holds as well: 5 USD, soft" in hard.err
    assert "only calls that carry a dimension 'costumer' are concerned. Did you mean 'customer'?" in other.err
    assert cli("customers", "pause", "acne").code == 0


def test_a_call_that_may_be_under_way_is_not_given_back_by_mistake(cli: Cli) -> None:
    cli("budgets", "set", "10", "--customer", "acme")
    with Ledger("usage.db") as ledger:
        now = time.time_ns() // 1000
        holds_of(ledger).hold(Request("call-1", (), now, now + 60_000_000))

    refused = cli("budgets", "holds", "--release", "call-1")

    assert refused.code == 1 and "may be under way still" in refused.err
    assert cli("budgets", "holds", "--release", "call-1", "--force").out == "1 hold given back\n"


def test_names_do_not_steer_the_terminal(cli: Cli) -> None:
    wild = "ev\x1b[31mil"
    shown = [
        cli("budgets", "set", "10", "--customer", wild), cli("credits", "grant", wild, "5"),
        cli("credits", "policy", wild, "block"), cli("budgets", "show"), cli("budgets", "watch", "--times", "1"),
        cli("notices", "add", "https://example.com/hooks"), cli("budgets", "list"),
    ]  # fmt: skip

    assert all("\x1b" not in each.out + each.err for each in shown)
    assert shown[4].out.count("\n") == 2, "one line of the time, one bar"


def test_watching_as_json_is_a_line_for_each_look(cli: Cli) -> None:
    cli("budgets", "set", "10", "--customer", "acme")

    lines = cli("budgets", "watch", "--times", "2", "--every", "0.2", "--json").out.splitlines()

    assert [set(json.loads(line)) for line in lines] == [{"time", "budgets"}] * 2


def test_a_test_reaches_endpoints_of_every_kind(cli: Cli, receiver) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    assert "there is no endpoint" in cli("notices", "test").err
    added = cli("notices", "add", receiver.url, "--allow-private", "--kind", "budget.*", "--json").json
    receiver.secret = added["secret"]

    assert cli("notices", "test").code == 0
    assert [body["type"] for body in receiver.bodies] == ["notice.test"]
    assert {row["kind"] for row in cli("notices", "list", "--json").json} == {"notice.test"}
    assert "This is a test" in cli("notices", "list").out and '"message"' not in cli("notices", "list").out
    assert cli("notices", "list", "--csv").code == 0
