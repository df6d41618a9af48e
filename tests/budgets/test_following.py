"""Counters follow what is recorded: with a hold and without, taken back, rated again, lost."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import select

from token_meter.billing.plans import PlansFile
from token_meter.bookkeeping.lazy import LazyRater
from token_meter.bookkeeping.plan_book import PlanBook, read_catalogue
from token_meter.budgets.budget import Budget, concerning
from token_meter.budgets.desk import BudgetDesk
from token_meter.budgets.following import Following
from token_meter.budgets.hold import Part, Request
from token_meter.budgets.snapshot import span_of
from token_meter.budgets.stores import holds_of
from token_meter.event import MeterEvent
from token_meter.ledger import Ledger
from token_meter.ledger.tables import spend
from token_meter.usage import Usage

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
MICROS = int(AT.timestamp() * 1_000_000)


def event(id="e1", *, customer="acme", at=AT, status="complete", usage=None, model="gpt-4o-mini", **more):
    """1,000,000 input tokens: 0.15 USD."""
    quantities = Usage(input=1_000_000) if usage is None else usage
    return MeterEvent(id=id, time=at, usage=quantities, customer=customer, provider="openai", model=model,
                      operation="chat", status=status, **more)  # fmt: skip


@pytest.fixture
def desk(ledger):
    return BudgetDesk(ledger, now=AT.timestamp)


def budget(**given):
    return Budget.read({"scope": {"customer": "acme"}, "limit": "10", **given})


def held(ledger, desk, id, amount, made, *, at=MICROS):
    """Hold an amount of these budgets for acme, and make counters that are missing, as the gate does."""
    snapshot = desk.snapshot()
    facts = {"customer": "acme", "provider": "openai", "model": "gpt-4o-mini", "operation": "chat"}
    with ledger.reading() as (_, connection):
        catalogue = read_catalogue(connection)
    parts = []
    for each, subject in concerning(snapshot.in_force, facts):
        if each.id in {one.id for one in made}:
            span = span_of(each, catalogue, "acme", at)
            parts.append(Part(each.id, subject, each.start(span), each.parts(Decimal(amount)), span.start,
                              each.parts_max, each.window.length))  # fmt: skip
    request = Request(id, tuple(sorted(parts)), at, at + 60_000_000)
    store = holds_of(ledger)
    verdict = store.hold(request)
    if verdict.kind == "missing":
        desk.seed(request, snapshot, facts)
        verdict = store.hold(request)
    return verdict.kind


def plain(desk):
    [found] = desk.standings()
    return tuple(format(each.normalize(), "f") for each in (found.spent, found.held, found.lost))


def test_what_the_window_has_used_before_a_budget_was_set_counts(ledger, desk):
    ledger.record([event("before"), event("last month", at=AT - timedelta(days=30))])
    made = desk.set(budget())

    assert held(ledger, desk, "e1", "1", [made]) == "held"

    assert plain(desk) == ("0.15", "1", "0")


def test_a_recorded_event_takes_the_place_of_its_hold(ledger, desk):
    made = desk.set(budget())
    held(ledger, desk, "e1", "1", [made])

    ledger.record([event("e1")])

    assert plain(desk) == ("0.15", "0", "0")
    assert desk.holds(pending=True) == []


def test_a_recorded_event_takes_the_place_of_what_its_call_was_settled_with(ledger, desk):
    made = desk.set(budget())
    held(ledger, desk, "e1", "1", [made])
    holds_of(ledger).settle("e1", "settled", [made.parts(Decimal("0.7"))])
    assert plain(desk) == ("0.7", "0", "0")

    ledger.record([event("e1")])
    ledger.record([event("e1")])

    assert plain(desk) == ("0.15", "0", "0")


def test_settling_after_recording_changes_nothing(ledger, desk):
    made = desk.set(budget())
    held(ledger, desk, "e1", "1", [made])
    ledger.record([event("e1")])

    holds_of(ledger).settle("e1", "settled", [made.parts(Decimal("0.7"))])

    assert plain(desk) == ("0.15", "0", "0")


def test_a_settlement_for_an_event_of_another_id_that_is_recorded_counts_once(ledger, desk):
    made = desk.set(budget())
    held(ledger, desk, "call", "1", [made])
    ledger.record([event("object")])

    holds_of(ledger).settle("call", "settled", [made.parts(Decimal("0.15"))], event="object")

    assert plain(desk) == ("0.15", "0", "0")


def test_an_event_without_a_hold_counts_by_its_own_time(ledger, desk):
    made = desk.set(budget())
    held(ledger, desk, "e1", "1", [made])

    ledger.record([event("e2"), event("earlier", at=AT - timedelta(days=30)), event("other", customer="globex")])

    assert plain(desk) == ("0.15", "1", "0")


def test_a_placeholder_keeps_its_hold_charged_until_the_real_event_comes(ledger, desk):
    made = desk.set(budget())
    held(ledger, desk, "e1", "1", [made])

    ledger.record([event("e1", status="unmetered", usage=Usage())])
    assert plain(desk) == ("0", "0", "1")
    [lost] = desk.holds()
    assert (lost.id, lost.state) == ("e1", "lost")

    ledger.record([event("e1")])
    assert plain(desk) == ("0.15", "0", "0")
    assert desk.holds(pending=True) == []


def test_a_lost_hold_can_be_released_by_hand(ledger, desk):
    made = desk.set(budget())
    held(ledger, desk, "e1", "1", [made])
    ledger.record([event("e1", status="unmetered", usage=Usage())])

    assert desk.release(["e1", "nothing"]) == 1

    assert plain(desk) == ("0", "0", "0")


def test_a_voided_event_gives_back_what_it_took(ledger, desk):
    made = desk.set(budget())
    held(ledger, desk, "x", "1", [made])
    ledger.record([event("e1")])

    ledger.record([event("void", corrects="e1")])

    assert plain(desk) == ("0", "1", "0")


def test_a_call_counts_in_the_month_in_which_it_was_admitted(ledger, desk):
    made = desk.set(budget())
    last_second = int(datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp() * 1_000_000)
    held(ledger, desk, "e1", "1", [made], at=last_second)

    ledger.record([event("e1", at=datetime(2026, 12, 1, 0, 0, 5, tzinfo=UTC))])

    assert plain(desk) == ("0.15", "0", "0")


def test_tokens_and_requests_are_counted_without_prices(ledger, desk):
    tokens = desk.set(budget(limit=5_000_000, measure="tokens", window="24h"))
    calls = desk.set(budget(limit=3, measure="requests", window="day"))
    held(ledger, desk, "e1", 1, [tokens, calls])

    ledger.record([event("e1"), event("e2", model="unheard-of")])

    standing = {each.budget.measure: each for each in desk.standings()}
    assert (standing["tokens"].spent, standing["tokens"].held) == (2_000_000, 0)
    assert (standing["requests"].spent, standing["requests"].held) == (2, 0)


def test_after_a_reset_only_what_comes_later_counts(ledger, desk):
    made = desk.set(budget())
    held(ledger, desk, "e1", "1", [made])
    ledger.record([event("e2")])

    assert desk.reset(made.id) == 1
    assert plain(desk) == ("0", "1", "0")

    holds_of(ledger).settle("e1", "settled", [made.parts(Decimal("0.15"))])
    ledger.record([event("e1")])
    assert plain(desk) == ("0.15", "0", "0")


def test_a_changed_limit_keeps_what_is_spent(ledger, desk):
    made = desk.set(budget())
    held(ledger, desk, "e1", "1", [made])
    ledger.record([event("e1")])

    lowered = desk.set(budget(limit="0.1"))

    assert lowered.id == made.id
    assert held(ledger, desk, "e2", "0.01", [lowered]) == "refused"
    [standing] = desk.standings()
    assert standing.percent == 150


def test_each_threshold_is_told_once_however_events_come(ledger, desk):
    made = desk.set(budget(limit="0.3"))
    held(ledger, desk, "x", "0", [made])
    for number in range(4):
        ledger.record([event(f"e{number}")])
        ledger.record([event(f"e{number}")])

    from token_meter.bookkeeping.notice_rows import read_notices

    with ledger.reading() as (_, connection):
        told = [(each["kind"], each["document"]["percent"], each["customer"]) for each in read_notices(connection)]
    assert told == [
        ("budget.threshold", 50, "acme"), ("budget.threshold", 80, "acme"), ("budget.threshold", 100, "acme"),
    ]  # fmt: skip


def test_a_budget_set_while_calls_are_under_way_counts_their_events(ledger, desk):
    first = desk.set(budget())
    held(ledger, desk, "e1", "1", [first])
    second = desk.set(budget(measure="cost", window="day"))
    held(ledger, desk, "x", "0", [second])

    ledger.record([event("e1")])

    assert {each.budget.measure: format(each.spent.normalize(), "f") for each in desk.standings()} == {
        "charge": "0.15", "cost": "0.15",
    }  # fmt: skip


def test_the_ledger_of_another_process_follows_new_budgets(ledger, desk, url):
    with Ledger(url, rater=LazyRater()) as other:
        other.record([event("e0")])
        made = desk.set(budget())
        held(ledger, desk, "x", "0", [made])

        other.record([event("e1")])

    assert plain(desk) == ("0.3", "0", "0")


def test_a_call_counts_where_it_was_admitted_whatever_model_answered(ledger, desk):
    """Asked for gpt-4o-mini, answered by a dated one: the scope names what was asked for."""
    ledger.record([event("before", model="gpt-4o-mini-2024-07-18"), event("another", model="gpt-4o")])
    named = desk.set(budget(scope={"model": "gpt-4o-mini"}))
    held(ledger, desk, "e1", "1", [named])

    ledger.record([event("e1", model="gpt-4o-mini-2024-07-18")])

    assert plain(desk) == ("0.15", "0", "0")


def test_a_pattern_is_one_budget_for_all_that_fit(ledger, desk):
    ledger.record([event("before", model="gpt-4o-mini-2024-07-18"), event("another", model="gpt-4o")])
    fitting = desk.set(budget(scope={"model": "gpt-4o-mini*"}))
    held(ledger, desk, "e1", "1", [fitting])
    assert plain(desk) == ("0.15", "1", "0")

    ledger.record([event("e1", model="gpt-4o-mini-2024-07-18"), event("e2"), event("e3", model="gpt-4o")])

    assert plain(desk) == ("0.45", "0", "0")


def test_the_window_of_a_plan_is_the_customers_billing_period(ledger, desk):
    """Subscribed on the 10th of November to a plan whose periods begin with the subscription."""
    plans = PlanBook(ledger, now=AT.timestamp)
    file = {"plans": [{"name": "pro", "anchor": "subscription", "rates": [{"cost_plus": {"markup": "0%"}}]}]}
    plans.keep(PlansFile.model_validate(file), effective_from=datetime(2026, 1, 1, tzinfo=UTC))
    plans.subscribe("acme", "pro", start=datetime(2026, 11, 10, tzinfo=UTC))
    ledger.record(
        [event("before", at=datetime(2026, 11, 9, 23, tzinfo=UTC)), event("within", at=AT - timedelta(days=1))]
    )
    made = desk.set(budget(window="plan"))

    held(ledger, desk, "e1", "1", [made])

    [standing] = desk.standings()
    assert plain(desk) == ("0.15", "1", "0")
    assert (standing.since, standing.until) == (
        datetime(2026, 11, 10, tzinfo=UTC), datetime(2026, 12, 10, tzinfo=UTC),
    )  # fmt: skip


def test_a_call_across_midnight_counts_in_the_day_in_which_it_was_admitted_only(ledger, desk):
    """Also when its event is recorded before the new day has a counter, which is made from what is recorded."""
    made = desk.set(budget(window="day"))
    late = int(datetime(2026, 11, 20, 23, 59, 59, tzinfo=UTC).timestamp()) * 1_000_000
    held(ledger, desk, "e1", "1", [made], at=late)
    holds_of(ledger).settle("e1", "settled", [made.parts(Decimal("0.15"))])

    ledger.record([event("e1", at=datetime(2026, 11, 21, 0, 0, 10, tzinfo=UTC)),
                   event("e2", at=datetime(2026, 11, 21, 0, 0, 11, tzinfo=UTC))])  # fmt: skip
    held(ledger, desk, "e3", "1", [made], at=late + 30_000_000)

    def spent(moment):
        [standing] = BudgetDesk(ledger, now=lambda: moment / 1e6).standings()
        return standing.spent

    assert spent(late) == Decimal("0.15"), "e1"
    assert spent(late + 30_000_000) == Decimal("0.15"), "e2, which had no hold and counts by its own time"


def test_what_was_used_while_a_budget_was_not_there_counts_when_it_is_back(ledger, desk):
    made = desk.set(budget())
    held(ledger, desk, "e1", "1", [made])
    ledger.record([event("e1")])
    held(ledger, desk, "under way", "2", [made])
    held(ledger, desk, "not recorded", "1", [made])
    holds_of(ledger).settle("not recorded", "settled", [made.parts(Decimal("0.3"))])
    desk.end(made.id)
    ledger.record([event("e2"), event("e3")])

    desk.set(budget())

    assert plain(desk) == ("0.75", "2", "0")
    ledger.record([event("not recorded")])
    assert plain(desk) == ("0.6", "2", "0")


def test_what_was_counted_in_the_place_of_another_counts_there_when_it_ends(ledger, desk):
    each = desk.set(budget(scope={"customer": "*"}))
    held(ledger, desk, "e1", "1", [each])
    ledger.record([event("e1")])
    named = desk.set(budget())
    held(ledger, desk, "e2", "1", [named])
    ledger.record([event("e2")])

    desk.end(named.id)

    assert plain(desk) == ("0.3", "0", "0")


@pytest.mark.parametrize("window", ["day", "1h"])
def test_a_call_whose_answer_comes_later_stays_charged_as_lost_until_then(ledger, desk, window):
    """Background responses: a placeholder is recorded under another id than the call's, before or after the hold is
    settled."""
    made = desk.set(budget(window=window))
    store = holds_of(ledger)
    for id, first in (("e1", "placeholder"), ("e2", "settlement")):
        held(ledger, desk, id, "1", [made])
        said = event(f"{id}-answer", status="unmetered", usage=Usage())
        if first == "placeholder":
            ledger.record([said])
        store.settle(id, "lost", event=f"{id}-answer")
        ledger.record([said])
    assert plain(desk) == (("0", "0", "2") if window == "day" else ("2", "0", "0"))

    ledger.record([event("e1-answer"), event("e2-answer")])

    assert plain(desk) == ("0.3", "0", "0")
    assert desk.holds(pending=True) == []


def test_corrections_and_placeholders_are_no_requests(ledger, desk):
    made = desk.set(budget(measure="requests"))
    held(ledger, desk, "e1", "1", [made])
    held(ledger, desk, "e2", "1", [made])
    ledger.record([event("e1"), event("e2", status="unmetered", usage=Usage())])
    assert plain(desk) == ("1", "0", "1")

    desk.release(["e2"])
    ledger.record([event("c1", corrects="e1", usage=Usage(input=3))])
    assert plain(desk) == ("1", "0", "0")

    ledger.record([event("e2")])
    assert plain(desk) == ("2", "0", "0")


def test_old_counters_are_dropped_and_those_that_hold_something_are_kept(ledger, desk):
    day, rolling = desk.set(budget(window="day")), desk.set(budget(window="1h", limit=20))
    for number, days in enumerate((50, 45, 1)):
        held(ledger, desk, f"e{number}", "1", [day, rolling], at=MICROS - days * 86_400_000_000)
    for number in (0, 2):
        holds_of(ledger).settle(f"e{number}", "settled", [day.parts(1), day.parts(1)])

    desk.forget_old()

    with ledger.reading() as (_, connection):
        starts = connection.execute(select(spend.c.budget, spend.c.start)).all()
    assert len([1 for budget, _ in starts if budget == day.id]) == 2
    assert [start for budget, start in starts if budget == rolling.id] == [-1]


@pytest.mark.parametrize("late", [True, False])
def test_a_charge_beside_the_transaction_that_records_its_event_counts_once(schema_url, monkeypatch, late):
    """Events of several readings: the first ends the hold, the others are charged while somebody records them."""
    with Ledger(schema_url, rater=LazyRater()) as ledger:
        desk = BudgetDesk(ledger, now=AT.timestamp)
        made = desk.set(budget(measure="tokens", limit=10_000_000, window="lifetime"))
        held(ledger, desk, "e1", "1", [made])
        ledger.record([event("e1")])
        there, go = threading.Event(), threading.Event()
        follow = Following.follow

        def slow(*arguments):
            if not late:
                follow(*arguments)
            there.set()
            assert go.wait(30)
            if late:
                follow(*arguments)

        monkeypatch.setattr(Following, "follow", slow)
        id = "0197f3c2-1111-8000-8000-000000000001"
        recording = threading.Thread(target=ledger.record, args=([event(id)],))
        recording.start()
        assert there.wait(30)
        part = Part(made.id, '["acme"]', 0, 1_000_000, limit=made.parts_max)
        charging = threading.Thread(target=holds_of(ledger).charge, args=(Request(id, (part,), MICROS, MICROS),))
        charging.start()
        charging.join(0.3)
        go.set()
        charging.join()
        recording.join()

        assert plain(desk) == ("2000000", "0", "0")
        assert desk.holds(pending=True) == []
