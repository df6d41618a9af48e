"""From nothing to a verified invoice by commands alone, and what they say to what cannot be."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, store
from token_meter.testing.builders import make_event
from token_meter.usage import Usage

PLANS = """\
meters:
  - {name: documents, aggregation: count, title: Documents}
rate_cards:
  - name: chatbot
    rates:
      - meter: llm tokens
        matrix:
          - {model: model a, token_type: input, price: 0.00001}
          - {model: model a, token_type: output, price: 0.00002}
          - {model: model b, token_type: input, price: 0.000005}
          - {model: model b, token_type: output, price: 0.00001}
      - {meter: api calls, per_unit: 0.01}
      - {meter: documents, per_unit: 1}
plans:
  - {name: Chatbot usage plan, rate_cards: [chatbot]}
packs:
  - {name: ten, title: Ten dollars, price: 9, amount: 10}
"""
TOKENS = "llm tokens"
USAGE = [
    {"meterApiName": TOKENS, "meterValue": 1000, "dimensions": {"model": "model a", "type": "input"}},
    {"meterApiName": TOKENS, "meterValue": 2000, "dimensions": {"model": "model a", "type": "output"}},
    {"meterApiName": TOKENS, "meterValue": 4000, "dimensions": {"model": "model b", "type": "input"}},
    {"meterApiName": "api calls", "meterValue": 10},
]
PLAN = "Chatbot usage plan"
OCTOBER = ("--period", "2026-10")


def write(rows: list[dict[str, Any]], name: str = "usage.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_pages_of_all_invoices_are_written(tutorial: Cli) -> None:
    assert tutorial("invoice", "run", *OCTOBER).code == 0

    done = tutorial("invoice", "export", *OCTOBER, "--html", "pages/october", "--no-math")

    assert (done.code, done.out) == (0, "1 page written to pages/october\n")
    assert "test-customer" in Path("pages/october/INV-000001.html").read_text()
    assert tutorial("invoice", "export", "--html", "plans.yaml").code == 1


def test_a_switch_is_made_seen_and_taken_back(tutorial: Cli) -> None:
    Path("more.yaml").write_text("plans: [{name: other, fees: [{title: Fee, amount: 5}]}]")
    assert tutorial("plans", "apply", "more.yaml", "--since", "2026-10-01").code == 0
    assert tutorial("plans", "subscribe", "test-customer", "other", "--since", "2026-11-01").code == 0
    rows = json.loads(tutorial("plans", "subscriptions", "--all", "--json").out)
    assert [(each["plan"], each["since"], each["until"]) for each in rows] == [
        (f"{PLAN}@1", "2026-10-01 00:00", "2026-11-01 00:00"),
        ("other@1", "2026-11-01 00:00", None),
    ]

    taken_back = tutorial("plans", "cancel", rows[1]["id"])

    assert taken_back.out == (
        "test-customer is not on other@1 from 2026-11-01 00:00 UTC on after all\n"
        f"test-customer is on {PLAN}@1 from 2026-10-01 00:00 UTC on\n"
    )
    left = tutorial("plans", "subscriptions", "--customer", "test-customer", "--plan", "other")
    assert (left.code, "other@1" in left.out) == (0, False)
    assert "1 that ended or were cancelled: --all" in left.err
    assert "cancelled" in tutorial("plans", "subscriptions", "--plan", "other@1", "--all").out
    assert tutorial("plans", "cancel", "sub_none").code == 1


def test_the_list_of_plans_tells_meters_and_packs(tutorial: Cli) -> None:
    rows = json.loads(tutorial("plans", "list", "--json").out)

    assert [(row["kind"], row["name"], row["charges"]) for row in rows[2:]] == [
        ("meter", "documents", "count of events"),
        ("pack", "ten", "9 for 10 of credit"),
    ]


@pytest.fixture
def tutorial(cli: Cli) -> Cli:
    """The plan is kept, the customer on it, and October's usage uploaded."""
    Path("plans.yaml").write_text(PLANS)
    assert cli("plans", "apply", "plans.yaml", "--since", "2026-10-01").code == 0
    assert cli("plans", "subscribe", "test-customer", PLAN, "--since", "2026-10-01").code == 0
    assert cli("import", "events", write(USAGE), "--customer", "test-customer", "--at", "2026-10-12").code == 0
    return cli


def test_the_newcomers_tutorial(tutorial: Cli) -> None:
    draft = tutorial("invoice", "show", "test-customer", *OCTOBER)
    run = tutorial("invoice", "run", *OCTOBER)

    assert draft.lines == [
        "Draft invoice for test-customer, 2026-10-01 to 2026-10-31, Chatbot usage plan@1",
        "  model a input   1,000  x 0.00001 = 0.01   0.01",
        "  model a output  2,000  x 0.00002 = 0.04   0.04",
        "  model b input   4,000  x 0.000005 = 0.02  0.02",
        "  API calls          10  x 0.01 = 0.1       0.10",
        "  total           0.17 USD",
    ]
    assert run.out == "1 invoice written, 0.17 USD; 0 were there already, 0 periods had nothing to invoice\n"
    assert tutorial("invoice", "run", *OCTOBER).out.startswith("0 invoices written, nothing; 1 were there already")
    assert tutorial("invoice", "verify").out == "1 invoice worked out again, byte for byte the same\n"
    shown = tutorial("invoice", "show", "INV-000001", "--json").json
    assert [(line["title"], line["amount"]) for line in shown[0]["lines"]] == [
        ("model a input", "0.01"), ("model a output", "0.04"), ("model b input", "0.02"), ("API calls", "0.10"),
    ]  # fmt: skip


def test_levels_pages_and_accounting_files(tutorial: Cli) -> None:
    tutorial("invoice", "run", *OCTOBER)

    by_meter = tutorial("invoice", "show", "INV-000001", "--level", "meter").lines
    assert by_meter[1:] == ["  LLM tokens  7,000    0.07", "  API calls      10    0.10", "  total       0.17 USD"]
    tutorial("invoice", "show", "INV-000001", "--html", "page.html")
    page = Path("page.html").read_text("utf-8")
    assert "<h1>Invoice INV-000001</h1>" in page and "model a output" in page and "<script" not in page
    rows = list(csv.DictReader(io.StringIO(tutorial("invoice", "export").out)))
    assert [(row["invoice"], row["title"], row["amount"]) for row in rows] == [
        ("INV-000001", "model a input", "0.01"), ("INV-000001", "model a output", "0.04"),
        ("INV-000001", "model b input", "0.02"), ("INV-000001", "API calls", "0.10"),
    ]  # fmt: skip


def test_a_page_for_customers_does_not_tell_what_it_costs_us(cli: Cli) -> None:
    store([make_event(1, time=datetime(2026, 10, 3, tzinfo=UTC), model="gpt-5", usage=Usage(output=1_000_000))])
    cli("setup", "--markup", "30", "--since", "2026-10-01")

    cli("invoice", "show", "acme", *OCTOBER, "--html", "ours.html")
    cli("invoice", "show", "acme", *OCTOBER, "--html", "theirs.html", "--no-math")

    assert "x 10 / 1M x 1.3 = 13" in Path("ours.html").read_text("utf-8")
    theirs = Path("theirs.html").read_text("utf-8")
    assert "13 / 1M" in theirs and "1.3 " not in theirs and "x 10" not in theirs


def test_times_are_shown_in_the_zone_of_the_customer(tutorial: Cli) -> None:
    tutorial("customers", "set", "test-customer", "--time-zone", "America/New_York")

    theirs, asked = (
        tutorial("invoice", "show", "test-customer", *OCTOBER, *more).lines[0] for more in ([], ["--time-zone", "UTC"])
    )
    assert "2026-09-30 20:00 to 2026-10-31 20:00 (America/New_York)" in theirs
    assert "2026-10-01 to 2026-10-31, Chatbot" in asked
    assert tutorial("invoice", "show", "test-customer", "--time-zone", "Mars/Base").code == 2


def test_void_notes_and_payments_show(tutorial: Cli) -> None:
    tutorial("invoice", "run", *OCTOBER)
    tutorial("invoice", "void", "INV-000001", "--reason", "wrong name")
    tutorial("invoice", "run", *OCTOBER)
    tutorial("invoice", "pay", "INV-000002", "--reference", "bank 17")
    tutorial("invoice", "credit-note", "INV-000002", "--amount", "0.05", "--reason", "outage")

    void, paid, note = (
        tutorial("invoice", "show", number).lines for number in ("INV-000001", "INV-000002", "CN-000001")
    )
    assert void[0].startswith("Invoice INV-000001 (VOID) for test-customer") and "  VOID: wrong name" in void
    assert "  taken back by credit notes: 0.05 USD" in paid and any(line.startswith("  paid on ") for line in paid)
    assert note[0].startswith("Credit note CN-000001 for test-customer") and "  concerns INV-000002" in note
    csv_rows = list(csv.DictReader(io.StringIO(tutorial("invoice", "show", "CN-000001", "--csv").out)))
    assert [row["amount"] for row in csv_rows] == ["-0.05"]
    refused = tutorial("invoice", "credit-note", "INV-000002", "--amount", "0.001", "--reason", "x")
    assert (refused.code, "too many decimals" in refused.err) == (1, True)


def test_the_same_file_counts_once_and_for_another_customer_anew(tutorial: Cli) -> None:
    again = tutorial("import", "events", "usage.jsonl", "--customer", "test-customer", "--at", "2026-10-12")
    other = tutorial("import", "events", "usage.jsonl", "--customer", "globex", "--at", "2026-10-12")
    later = tutorial("import", "events", "usage.jsonl", "--customer", "globex", "--at", "2026-10-13")

    assert again.lines[-1] == "4 rows read: 0 events recorded; 4 skipped: there already"
    assert other.lines[-1] == later.lines[-1] == "4 rows read: 4 events recorded"
    usage = {row["customer"]: row["tokens"] for row in tutorial("usage", "--by", "customer", "--json").json["rows"]}
    assert usage == {"globex": 14_000, "test-customer": 7_000}
    assert "no two different events" in tutorial("doctor").out


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{**USAGE[0], "meterValue": -5}], [], "meterValue is -5"),
        ([{**USAGE[0], "meterValue": "NaN"}], [], "meterValue is 'NaN'"),
        ([{**USAGE[0], "meterApiName": "llm tokns"}], [], "there is no meter 'llm_tokns'"),
        ([{**USAGE[0], "dimensions": {"model": "model a"}}], [], "tokens need a type"),
        (USAGE, ["--at", "2999-01-01"], "lies in the future"),
    ],
)
def test_usage_that_cannot_be_is_refused_whole(tutorial: Cli, rows: Any, options: list[str], said: str) -> None:
    at = options or ["--at", "2026-10-12"]

    result = tutorial("import", "events", write([USAGE[3], *rows], "more.jsonl"), "--customer", "globex", *at)

    assert result.code != 0 and said in result.err
    assert tutorial("usage", "--by", "customer", "--customer", "globex", "--json").json["rows"] == []


def test_a_meter_that_counts_counts_events_whatever_their_value(tutorial: Cli) -> None:
    write([{"meter": "documents", "value": 7, "id": f"doc-{number}"} for number in range(3)], "docs.jsonl")
    tutorial("import", "events", "docs.jsonl", "--customer", "test-customer", "--at", "2026-10-20")

    assert (
        "  Documents           3  x 1 = 3            3.00"
        in tutorial("invoice", "show", "test-customer", *OCTOBER).lines
    )


def test_one_step_and_what_is_not_named_stays(cli: Cli) -> None:
    store([make_event(1, time=datetime(2026, 10, 3, tzinfo=UTC), model="gpt-5", usage=Usage(output=1_000_000))])

    first = cli("setup", "--markup", "30", "--monthly-fee", "9", "--api-call", "0.01", "--since", "2026-10-01")
    second = cli("setup", "--markup", "40")
    third = cli("setup", "--monthly-fee", "0")

    assert (first.code, second.code, third.code) == (0, 0, 0)
    assert "cost + 40 %, 0.01 USD a call, 9 USD a month" in second.out
    assert "say --since with a date" in second.err
    assert "cost + 40 %, 0.01 USD a call, from" in third.out
    assert cli("usage", "--cost", "--json").json["rows"][0]["charges"] == {"USD": "13.01"}
    assert cli("setup").code == 2


def test_setup_leaves_a_plan_alone_that_says_more(cli: Cli) -> None:
    cli("setup", "--markup", "30")
    shown = cli("plans", "show", "standard").out
    Path("own.yaml").write_text(
        shown.replace("markup: '30'", "markup: '30'\n    overrides: [{model: gpt-5, markup: 50}]")
    )
    assert cli("plans", "apply", "own.yaml").out.startswith("kept rate card standard@2")

    refused = cli("setup", "--markup", "40")

    assert (refused.code, "says more than `setup` can say" in refused.err) == (1, True)


def test_a_plan_as_it_is_shown_can_be_kept(tutorial: Cli) -> None:
    shown = tutorial("plans", "show", PLAN).out + tutorial("plans", "show", "chatbot").out
    Path("shown.yaml").write_text(shown)

    assert tutorial("plans", "apply", "shown.yaml").out == "nothing differs from what is kept\n"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("per_unit: 0.01", "per_unt: 0.01", "plans.yaml:12"),
        ("rate_cards: [chatbot]", "rate_cards: [chatbt]", "there is no rate card 'chatbt'"),
        ("meter: api calls", "meter: api cals", "there is no meter 'api_cals'"),
        ("price: 0.00001}", "price: -1}", "plans.yaml:8"),
        ("aggregation: count", "aggregation: cuont", "plans.yaml:2"),
    ],
)
def test_a_typo_in_a_plan_file_is_told_with_its_place(cli: Cli, old: str, new: str, said: str) -> None:
    Path("plans.yaml").write_text(PLANS.replace(old, new, 1))

    for options in (["--dry-run"], []):
        result = cli("plans", "apply", "plans.yaml", *options)
        assert result.code != 0 and said in result.err, (result.out, result.err)
    assert cli("plans", "list", "--json").code == 3 or cli("plans", "list", "--json").json == []


def test_subscriptions_do_not_overlap_and_repeat_harmlessly(tutorial: Cli) -> None:
    again = tutorial("plans", "subscribe", "test-customer", PLAN)
    tutorial("setup", "--markup", "10")
    before = tutorial("plans", "subscribe", "test-customer", "standard", "--since", "2026-09-01")
    nobody = tutorial("plans", "subscribe", "", PLAN)
    unknown = tutorial("plans", "subscribe", "test-customr", "Chatbot")

    assert again.code == 0 and "from 2026-10-01 00:00 UTC on" in again.out
    assert (before.code, "end that first" in before.err) == (1, True)
    assert (nobody.code, "needs a customer" in nobody.err) == (1, True)
    assert (unknown.code, "there is no plan 'Chatbot'" in unknown.err) == (1, True)


def test_credit_is_granted_sold_used_refunded_and_listed(tutorial: Cli) -> None:
    granted = tutorial("credits", "grant", "test-customer", "0.10", "--since", "2026-10-01", "--id", "gift-1")
    bought = tutorial("credits", "buy", "test-customer", "ten", "--id", "sale-1")
    again = tutorial("credits", "grant", "test-customer", "0.10", "--since", "2026-10-01", "--id", "gift-1")
    other = tutorial("credits", "grant", "test-customer", "8", "--id", "gift-1")

    assert granted.code == bought.code == again.code == 0
    assert (other.code, "gift-1 is 0.1 USD (promotional) of test-customer already" in other.err) == (1, True)
    assert tutorial("credits", "list", "test-customer", "--json").json["balance"] == {"USD": "10.1"}
    assert "nothing was paid for gift-1" in tutorial("credits", "refund", "gift-1", "--reason", "x").err
    assert tutorial("credits", "refund", "sale-1", "--reason", "left").out == "sale-1: 0 USD is left\n"
    journal = tutorial("credits", "journal", "test-customer", "--json").json
    refunded = [(row["account"], row["amount"]) for row in journal if row["kind"] == "refund"]
    assert refunded == [("deferred_revenue", "10"), ("refunded", "-9"), ("promotion", "-1")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["test-customer", "-3"], "must be above 0"),
        (["test-customer", "NaN"], "must be a finite number"),
        (["test-customer", "5", "--currency", "dollars"], "is no currency"),
        (["test-customer", "5", "--expires", "2020-01-01"], "before it starts"),
        (["test-customer", "5", "--price", "4"], "a promotional grant has no price"),
        (["test-customer", "5", "--since", "soon"], "soon"),
    ],
)
def test_grants_that_cannot_be_are_refused(tutorial: Cli, arguments: list[str], said: str) -> None:
    result = tutorial("credits", "grant", *(["--", *arguments] if arguments[1].startswith("-") else arguments))

    assert result.code in (1, 2) and said in result.err
    assert tutorial("credits", "list", "test-customer", "--json").json["grants"] == []


def test_a_misspelt_customer_is_told(tutorial: Cli) -> None:
    granted = tutorial("credits", "grant", "test-custmer", "5")
    refused = tutorial("invoice", "finalise", "test-custmr", *OCTOBER)

    assert "test-custmer is a new customer. Did you mean 'test-customer'?" in granted.err
    assert (refused.code, "nothing to invoice to test-custmr" in refused.err) == (1, True)
    assert tutorial("invoice", "list", "--json").json == []
    assert "there is no invoice 'INV-000009'" in tutorial("invoice", "show", "INV-000009").err
    assert "Did you mean 'name'" in tutorial("invoice", "seller", "nme=x").err


def test_one_customer_who_cannot_be_invoiced_does_not_hold_up_the_others(tutorial: Cli) -> None:
    tutorial("import", "events", "usage.jsonl", "--customer", "euro", "--at", "2026-10-12")
    tutorial("plans", "subscribe", "euro", PLAN, "--since", "2026-10-01")
    tutorial("customers", "set", "euro", "--currency", "EUR")

    run = tutorial("invoice", "run", *OCTOBER)
    accrual = tutorial("invoice", "accrual", "--json")

    assert run.code == 1 and run.out.startswith("1 invoice written, 0.17 USD")
    assert "euro pays in EUR, and plan Chatbot usage plan is in USD" in run.err
    assert "1 customer could not be invoiced: euro" in run.err
    assert accrual.code == 1 and "euro pays in EUR" in tutorial("invoice", "accrual").err


def test_a_period_that_has_not_ended_is_none(tutorial: Cli) -> None:
    now = datetime.now(UTC)
    this_month = f"{now:%Y-%m}"

    for arguments in (["run"], ["finalise", "test-customer"]):
        result = tutorial("invoice", *arguments, "--period", this_month)
        assert (result.code, "has not ended" in result.err) == (1, True)
    assert tutorial("invoice", "run", "--period", "soon").code == 2


def test_events_are_taken_back_and_given_to_others_by_the_end_of_their_id(tutorial: Cli) -> None:
    (tokens,) = [each for each in tutorial("events", "tail", "--json").json if each["usage"] == {"output": 2000}]
    (calls,) = [each for each in tutorial("events", "tail", "--json").json if each["usage"] == {"units": 10}]

    void = tutorial("events", "void", tokens["id"][-12:], "--reason", "test")
    moved = tutorial("events", "reassign", calls["id"][-12:], "--to", "globex", "--reason", "theirs")

    assert (void.code, moved.code) == (0, 0)
    lines = tutorial("invoice", "show", "test-customer", *OCTOBER, "--json").json[0]["lines"]
    assert [(line["title"], line["amount"]) for line in lines] == [("model a input", "0.01"), ("model b input", "0.02")]


def test_prepaid_credit_is_taxed_when_it_is_sold_and_accrued_when_it_is_used(cli: Cli) -> None:
    store([make_event(1, time=datetime(2026, 10, 3, tzinfo=UTC), model="gpt-5", usage=Usage(output=10_000_000))])
    cli("setup", "--markup", "0", "--since", "2026-10-01")
    cli("customers", "set", "acme", "--detail", "tax_percent=20")
    cli("credits", "grant", "acme", "100", "--paid", "--since", "2026-10-01")

    october = cli("invoice", "show", "acme", *OCTOBER, "--json").json[0]
    accrual = {row["period"]: row["amount"] for row in cli("invoice", "accrual", "--json").json}

    assert october["subtotal"] == "100.00"
    assert (october["total"], october["due_amount"]) == ("100.00", "0.00")
    assert accrual["2026-10-01 to 2026-10-31"] == "0.00"
    wrong = cli("customers", "set", "acme", "--detail", "tax_percent=abc")
    assert (wrong.code, "tax_percent" in wrong.err) == (2, True)


def test_estimated_usage_is_charged_unless_you_say_no(cli: Cli) -> None:
    cli("setup", "--markup", "0", "--since", "2026-10-01")
    cli("plans", "estimated", "no", "--since", "2026-10-02")
    when = datetime(2026, 10, 3, tzinfo=UTC)
    store([make_event(1, time=when, model="gpt-5", status="estimated", usage=Usage(output=1_000_000))])

    row = cli("usage", "--cost", "--json").json["rows"][0]

    assert (row["cost"], row["charges"]) == ("10", {"USD": "0"})
    assert cli("plans", "estimated", "maybe").code == 2


def test_values_of_a_meter_that_no_rate_is_about_are_charged_nothing_and_told(cli: Cli) -> None:
    store([make_event(id="evt_1", meter="documnts", usage=Usage(units=7), customer="acme", model=None, provider=None)])
    assert "documnts" not in cli("doctor", "--since", "2026-01-01").out  # nobody charges for anything here yet
    assert cli("setup", "--markup", "30", "--since", "2026-01-01").code == 0

    assert "charged nothing since" in (said := " ".join(cli("doctor", "--since", "2026-01-01").out.split()))
    assert "7 of documnts: no rate of the customer's plan is about it" in said
    assert "charged nothing: 7 units" in cli("usage", "--cost", "--meter", "all").err
    assert json.loads(cli("usage", "--cost", "--meter", "all", "--json").out)["rows"][0]["uncovered"] == {"units": 7}
    assert "charged nothing" not in cli("usage", "--cost").err


def test_a_run_tells_who_has_no_invoice_and_why(cli: Cli) -> None:
    october, september = datetime(2026, 10, 5, tzinfo=UTC), datetime(2026, 9, 5, tzinfo=UTC)
    unknown = {"model": "gpt-9", "model_requested": "gpt-9", "provider": "openai"}
    some = [make_event(id=f"evt_{name}", time=october, customer=name, **unknown) for name in "ab"]
    late = [
        make_event(id=f"evt_{number}", time=september, model="gpt-5", provider="openai", customer=f"late{number}")
        for number in range(7)
    ]
    store([*some, *late])

    ran = cli("invoice", "run", *OCTOBER)

    assert "0 invoices written, nothing; 0 were there already, 9 periods had nothing to invoice" in ran.out
    assert "no invoice for a, b: what they used has no price yet (unknown model 'gpt-9' of openai" in ran.err
    named = "late0, late1, late2, late3, late4 and 2 more"
    assert f"2026-09 is on no invoice of {named}: token-meter invoice run --period 2026-09" in ran.err
    told = json.loads(cli("invoice", "run", *OCTOBER, "--json").out)
    assert (set(told["unpriced"]), set(told["behind"].values())) == ({"a", "b"}, {"2026-09"})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--markup", "30,5"), "--markup: a percentage is no number ('30,5')"),
        (("--api-call", "x"), "--api-call: an amount is no number ('x')"),
        (("--monthly-fee", "-3"), "--monthly-fee: an amount must be between 0 and"),
        (("--markup", "30", "--currency", "dollars"), "--currency: write its three letters, like USD"),
    ],
)
def test_setup_names_the_option_that_is_wrong(cli: Cli, wrong: tuple[str, ...], said: str) -> None:
    result = cli("setup", *wrong)

    assert (result.code, Path("usage.db").exists()) == (2, False)
    assert said in result.err


def test_setup_changes_what_holds_and_tells_what_is_still_to_come(cli: Cli) -> None:
    assert cli("setup", "--markup", "30", "--since", "2026-01-01").code == 0
    assert cli("setup", "--markup", "70", "--since", "2099-01-01").code == 0

    changed = cli("setup", "--api-call", "0.01")

    assert "cost + 30 %, 0.01 USD a call, from now on" in changed.out
    assert "what was set up for 2099-01-01 on holds from then on" in changed.err
    assert "markup: '30'" in cli("plans", "show", "standard").out
