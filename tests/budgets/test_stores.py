"""One suite for every store of holds: what is promised holds in memory, in SQLite and in PostgreSQL."""

from __future__ import annotations

import threading

import pytest

from tests.budgets.kit import MINUTE, NOW, names, part, rolling
from token_meter.budgets.hold import Part, Request, kept_parts, read_parts


def test_a_hold_takes_what_fits_and_nothing_that_does_not(kit):
    assert kit.hold("a", part(60)).kind == "held"

    refused = kit.hold("b", part(41))

    assert (refused.kind, refused.spent, refused.held, refused.lost, refused.limit) == ("refused", 0, 60, 0, 100)
    assert kit.hold("c", part(40)).kind == "held"
    assert kit.used(part(0)) == (0, 100, 0)
    assert kit.states() == {"a": "held", "c": "held"}


def test_of_two_budgets_where_one_refuses_nothing_is_held_of_the_other(kit):
    wide, narrow = part(10, 1000, budget="a"), part(10, 5, budget="z")

    verdict = kit.hold("one", wide, narrow)

    assert (verdict.kind, verdict.place) == ("refused", 1)
    assert kit.used(wide) == (0, 0, 0) and kit.used(narrow) == (0, 0, 0)
    assert kit.states() == {}


def test_settling_counts_what_it_was_and_gives_the_rest_back(kit):
    kit.hold("a", part(60))

    levels = kit.store.settle("a", "settled", [25])

    assert [(each.budget, each.subject, each.start, each.spent, each.noted) for each in levels] == [
        ("b", '["acme"]', 0, 25, 0)
    ]
    assert kit.used(part(0)) == (25, 0, 0)
    assert kit.states() == {"a": "settled"}  # until its event is recorded


@pytest.mark.parametrize("again", ["settled", "released", "lost"])
def test_a_hold_is_settled_once(kit, again):
    kit.hold("a", part(60))
    kit.store.settle("a", "settled", [25])

    assert kit.store.settle("a", again, [25]) == []

    assert kit.used(part(0)) == (25, 0, 0)


def test_releasing_gives_everything_back_once(kit):
    kit.hold("a", part(60))
    kit.hold("b", part(10))

    kit.store.settle("a", "released")
    kit.store.settle("a", "released")
    kit.store.settle("a", "settled", [60])

    assert kit.used(part(0)) == (0, 10, 0)
    assert kit.states() == {"b": "held"}


def test_the_same_id_holds_once(kit):
    kit.hold("a", part(60))

    assert kit.hold("a", part(30)).kind == "held"

    assert kit.used(part(0)) == (0, 60, 0)


def test_a_settlement_may_pass_the_limit_because_it_has_happened(kit):
    kit.hold("a", part(60))

    kit.store.settle("a", "settled", [130])

    assert kit.used(part(0)) == (130, 0, 0)
    assert kit.hold("b", part(1)).kind == "refused"


def test_a_sent_hold_that_expires_is_lost_and_stays_charged(kit):
    kit.hold("a", part(60))

    assert kit.store.sweep(NOW + MINUTE) == (0, 1)

    assert kit.used(part(0)) == (0, 0, 60)
    assert kit.states() == {"a": "lost"}
    assert kit.hold("b", part(41)).kind == "refused"


def test_a_hold_that_was_never_sent_is_given_back_when_it_expires(kit):
    kit.hold("a", part(60), sent=False)
    kit.hold("b", part(30), sent=False)
    kit.store.mark_sent(["b"])

    assert kit.store.sweep(NOW + MINUTE) == (1, 1)

    assert kit.used(part(0)) == (0, 0, 30)
    assert kit.states() == {"b": "lost"}


def test_a_hold_that_has_not_expired_is_left_alone(kit):
    kit.hold("a", part(60))

    assert kit.store.sweep(NOW + MINUTE - 1) == (0, 0)

    assert kit.used(part(0)) == (0, 60, 0)


@pytest.mark.parametrize(("became", "used"), [("settled", (25, 0, 0)), ("released", (0, 0, 0))])
def test_a_stream_that_outlives_its_hold_is_settled_all_the_same(kit, became, used):
    kit.hold("a", part(60))
    kit.store.sweep(NOW + MINUTE)

    kit.store.settle("a", became, [25])

    assert kit.used(part(0)) == used


def test_a_process_whose_clock_is_ahead_loses_a_hold_and_gives_nothing_back(kit):
    """It takes another's hold for expired. That stays charged, and its own end still settles it."""
    kit.hold("a", part(60), now=NOW)
    ahead = NOW + 10 * MINUTE

    kit.store.sweep(ahead)
    refused = kit.hold("b", part(41), now=ahead)
    kit.store.settle("a", "settled", [25])

    assert refused.kind == "refused"
    assert kit.used(part(0)) == (25, 0, 0)
    assert kit.hold("c", part(75), now=NOW).kind == "held"


def test_what_is_only_counted_has_no_limit(kit):
    assert kit.hold("a", part(10**15, None)).kind == "held"
    assert kit.hold("b", part(10**15, None)).kind == "held"


def test_a_rolling_window_frees_itself_bucket_by_bucket(kit):
    kit.hold("a", rolling(60, 100))
    kit.store.settle("a", "settled", [60])
    later = NOW + 30 * MINUTE
    kit.hold("b", rolling(40, 100, at=later), now=later)
    kit.store.settle("b", "settled", [40])

    full = kit.hold("c", rolling(1, 100, at=NOW + 59 * MINUTE), now=NOW + 59 * MINUTE)
    free = kit.hold("d", rolling(60, 100, at=NOW + 61 * MINUTE), now=NOW + 61 * MINUTE)
    over = kit.hold("e", rolling(1, 100, at=NOW + 61 * MINUTE), now=NOW + 61 * MINUTE)

    assert (full.kind, full.spent, full.held) == ("refused", 100, 0)
    assert free.kind == "held"
    assert (over.kind, over.spent, over.held) == ("refused", 40, 60)


def test_the_month_after_has_a_counter_of_its_own(kit):
    kit.hold("a", part(100, start=1))

    assert kit.hold("b", part(100, start=2)).kind == "held"
    kit.store.settle("a", "settled", [90])

    assert kit.used(part(0, start=1)) == (90, 0, 0)
    assert kit.used(part(0, start=2)) == (0, 100, 0)


def test_a_lowered_limit_counts_at_the_next_hold(kit):
    kit.hold("a", part(60))
    kit.store.settle("a", "settled", [60])

    assert kit.hold("b", part(1, limit=50)).kind == "refused"
    assert kit.hold("b", part(1, limit=61)).kind == "held"


def test_another_state_of_the_budgets_makes_a_request_stale(kit):
    kit.make(part(1))
    request = Request("a", (part(1),), NOW, NOW + MINUTE, generation=(7, 7))

    assert kit.store.hold(request).kind == "stale"
    assert kit.states() == {}


def test_what_was_spent_without_a_hold_is_counted_once(kit):
    kit.make(part(1), rolling(1, 10))
    request = Request("event", (part(70), rolling(5, 10)), NOW, NOW)

    kit.store.charge(request)
    kit.store.charge(request)

    assert kit.used(part(0)) == (70, 0, 0)
    assert kit.used(rolling(0, 10)) == (5, 0, 0)


def test_a_hold_can_wait_for_an_event_of_another_id(kit):
    kit.hold("call", part(60))

    kit.store.settle("call", "settled", [25], event="object")

    assert kit.states() == {"object": "settled"}


def test_parts_survive_being_stored():
    parts = (Part("b", '["acmé\\u0000"]', -1, 5, 60), Part("credit", '["x"]', 0, 7))

    assert read_parts(kept_parts(parts)) == parts


@pytest.mark.parametrize("repetition", range(3))
def test_of_many_racers_exactly_those_pass_that_fit(kit, repetition):
    kit.make(part(1, 7))
    passed: list[str] = []
    start = threading.Barrier(32)

    def race(id: str) -> None:
        start.wait()
        if kit.hold(id, part(1, 7)).kind == "held":
            passed.append(id)
            kit.store.settle(id, "settled", [1])

    racers = [threading.Thread(target=race, args=(id,)) for id in names(32)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()

    assert len(passed) == 7
    assert kit.used(part(0)) == (7, 0, 0)


def test_what_is_lost_in_a_rolling_window_frees_itself_with_its_time(kit):
    """Else a few timeouts would refuse calls until a person gives them back."""
    assert kit.hold("a", rolling(60, 100)).kind == "held"
    kit.store.settle("a", "lost")
    assert kit.hold("b", rolling(60, 100)).kind == "refused"
    assert kit.used(rolling(0, 100)) == (60, 0, 0)

    late = NOW + 61 * MINUTE
    assert kit.hold("b", rolling(60, 100, at=late), now=late).kind == "held"

    kit.store.settle("a", "settled", [5])
    assert kit.used(rolling(0, 100)) == (5, 60, 0)
    kit.store.settle("b", "lost")
    kit.store.settle("b", "released")
    assert kit.used(rolling(0, 100, at=late)) == (0, 0, 0)


def test_a_lost_hold_may_wait_under_the_id_of_the_event_that_will_tell(kit):
    kit.hold("a", part(60))

    kit.store.settle("a", "lost", event="answer")

    assert kit.states() == {"answer": "lost"} and kit.used(part(0)) == (0, 0, 60)
    kit.store.settle("answer", "settled", [10])
    assert kit.used(part(0)) == (10, 0, 0)
