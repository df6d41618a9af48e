"""Corrections at Stripe: cancelled within 24 hours, a negative value after that, and never both."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.sinks.stripe_kit import CUSTOMERS, DAY, HOUR, Bench, now, spend, token_fake
from token_meter import Usage
from token_meter.deliver import discard, release
from token_meter.sinks import Measure, Rule, stripe, stripe_corrections
from token_meter.sinks.stripe import TOKEN_BILLING
from token_meter.testing.backends import Chaos

APIS = ("v1", "v2", "stream")
CANCEL = "/billing/meter_event_adjustments"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stripe, "PAUSE_SECONDS", 0.002)
    monkeypatch.setattr("token_meter.accounts.directory.FRESH_SECONDS", 0.0)
    monkeypatch.setattr("token_meter.delivery.AWAITED_SECONDS", 0.05)
    monkeypatch.setattr("token_meter.sinks.stripe_summaries.METERS_SECONDS", 0.05)


@pytest.fixture
def fake():
    with token_fake() as fake:
        yield fake
        assert fake.errors == []


@pytest.fixture(params=APIS)
def bench(request, fake, tmp_path):
    return Bench(tmp_path, fake, api=request.param)


@pytest.fixture(params=APIS[:2])
def validated(request, fake, tmp_path):
    """Where Stripe refuses at once what it does not take."""
    return Bench(tmp_path, fake, api=request.param)


@pytest.fixture
def single(fake, tmp_path):
    return Bench(tmp_path, fake)


def cancelled(bench):
    """How many cancellations were taken."""
    return sum(count for (_, path, status), count in bench.fake.seen.items() if CANCEL in path and status == 200)


# ---- within a day ----


def test_usage_of_the_wrong_customer_is_moved_to_the_right_one(bench):
    with bench.meter() as meter:
        wrong = meter.record(Usage(input=5, cache_read=7, output=3), model="gpt-5", provider="openai", customer="acme")
        bench.deliver(meter)
        before = bench.tokens()
        meter.record(
            Usage(input=5, cache_read=7, output=3),
            model="gpt-5",
            provider="openai",
            customer="globex",
            corrects=wrong.id,
        )
        bench.deliver(meter)
        bench.until(lambda: bench.tokens() == {"cus_globex": 15})

        assert meter.health().ok
    assert before == {"cus_acme": 15}
    assert cancelled(bench) == 3
    assert all(each.value > 0 for each in bench.fake.counted)


def test_usage_is_set_to_other_numbers_or_to_nothing(bench):
    with bench.meter() as meter:
        too_much, mistake = spend(meter, 500), spend(meter, 70)
        bench.deliver(meter)
        spend(meter, 50, corrects=too_much.id)
        meter.record(Usage(), customer="acme", corrects=mistake.id)
        bench.deliver(meter)
        bench.until(lambda: bench.tokens() == {"cus_acme": 50})

    assert bench.waiting() == {}


def test_a_correction_of_a_correction_takes_back_what_that_one_reported(bench):
    with bench.meter() as meter:
        first = spend(meter, 1)
        bench.deliver(meter)
        second = spend(meter, 10, corrects=first.id)
        bench.deliver(meter)
        spend(meter, 100, customer="globex", corrects=second.id)
        bench.deliver(meter)
        bench.until(lambda: bench.tokens() == {"cus_globex": 100})


def test_a_correction_in_the_same_batch_as_what_it_corrects(bench):
    """The stream sends by the hundred: what takes something back has to come after it all the same."""
    bench.fake.down = True
    with bench.meter() as meter:
        wrong = spend(meter, 5)
        spend(meter, 5, customer="globex", corrects=wrong.id)
        spend(meter, 7)
        bench.fake.down = False
        bench.deliver(meter)
        bench.until(lambda: bench.tokens() == {"cus_acme": 7, "cus_globex": 5})

        assert bench.waiting() == {}


def test_a_correction_that_is_delivered_again_corrects_once(bench):
    sink = bench.sink(customers=CUSTOMERS)
    wrong = usage(1, 5)
    right = usage(2, 6, corrects="evt_1")

    for batch in ([wrong], [wrong, right], [wrong, right], [right]):
        sink.bind(Known(wrong))
        sink.send(batch)
    sink.close()

    assert bench.tokens() == {"cus_acme": 6}


def usage(number, tokens, **fields):
    from token_meter.testing.builders import make_event

    return make_event(
        number, **{"time": now() - timedelta(seconds=100 - number), "usage": Usage(input=tokens), **fields}
    )


class Known:
    """A ledger that knows some events."""

    shared = False

    def __init__(self, *events):
        self.events_by_id = {each.id: each for each in events}

    def event(self, id):
        return self.events_by_id.get(id)

    def events_with(self, ids):
        return {id: self.events_by_id[id] for id in ids if id in self.events_by_id}

    def external_ids(self, customers, *, backend, mode):
        return {each: CUSTOMERS[each] for each in customers if each in CUSTOMERS}


@pytest.mark.parametrize(
    "fault", ["error_before", "reset_before", "reset_after", "unavailable", "throttled", "hang_after"]
)
def test_a_cancellation_whose_answer_was_lost_is_done_once(bench, fault, monkeypatch):
    monkeypatch.setattr("token_meter.sinks.http.READ_SECONDS", 0.1)
    with bench.meter() as meter:
        wrong = spend(meter, 5)
        bench.deliver(meter)
        bench.fake.chaos = Chaos(script=[None, fault, fault], hang_seconds=0.2)
        spend(meter, 6, corrects=wrong.id)
        bench.deliver(meter)
        bench.until(lambda: bench.tokens() == {"cus_acme": 6})

        assert bench.waiting() == {}


def test_a_cancellation_that_fails_after_it_was_done(bench):
    """v2 repeats its answer for the same key. v1 keeps the failure, so a human has to look, and nothing is wrong."""
    with bench.meter() as meter:
        wrong = spend(meter, 5)
        bench.deliver(meter)
        bench.fake.chaos = Chaos(script=[None, "error_after"])
        right = spend(meter, 6, corrects=wrong.id)
        bench.deliver(meter)

    assert bench.tokens() == {"cus_acme": 6}
    if bench.options["api"] == "v1":
        assert "It was probably cancelled: compare with `token-meter reconcile sink`" in bench.waiting()[right.id]
        assert bench.quarantine()[0].event["anomalies"] == ["part:-input"]
    else:
        assert bench.waiting() == {}


# ---- later ----


def test_what_is_older_than_a_day_gets_a_negative_value(bench):
    with bench.meter() as meter:
        wrong = spend(meter, 5, time=now() - timedelta(hours=25))
        bench.deliver(meter)
        spend(meter, 6, customer="globex", corrects=wrong.id)
        bench.deliver(meter)
        bench.until(lambda: bench.tokens() == {"cus_acme": 0, "cus_globex": 6})

    [taken_back] = [each for each in bench.fake.counted if each.value < 0]
    assert (taken_back.value, abs(taken_back.at - wrong.time.timestamp()) < 1) == (-5, True)
    assert cancelled(bench) == 0


def test_what_stripe_received_more_than_a_day_ago_gets_a_negative_value_too(bench):
    """By the events' own times it could be cancelled; Stripe says that it is too late."""
    with bench.meter() as meter:
        wrong = spend(meter, 5)
        bench.deliver(meter)
        bench.clock.advance(25 * HOUR)
        spend(meter, 6, corrects=wrong.id)
        bench.deliver(meter)
        bench.until(lambda: bench.tokens() == {"cus_acme": 6})

    assert sorted(each.value for each in bench.fake.counted) == [-5, 5, 6]
    assert bench.twice() == []


@pytest.mark.parametrize("fault", ["error_after", "reset_after", "error_before"])
def test_a_negative_value_whose_answer_was_lost_counts_once(bench, fault):
    with bench.meter() as meter:
        wrong = spend(meter, 5)
        bench.deliver(meter)
        bench.clock.advance(25 * HOUR)
        session = [None] if bench.options["api"] == "stream" else []
        bench.fake.chaos = Chaos(
            script=[*session, None, None, fault, *([None, fault] if fault == "error_after" else [])]
        )
        spend(meter, 6, corrects=wrong.id)
        bench.deliver(meter)
        bench.until(lambda: bench.tokens() == {"cus_acme": 6})

    assert bench.twice() == [] and bench.waiting() == {}


# ---- when the original is somewhere else ----


def test_a_correction_waits_until_what_it_corrects_is_known(single):
    with single.meter() as meter:
        right = spend(meter, 6, corrects="job-1")
        single.deliver(meter)
        reason = single.waiting()[right.id]
        spend(meter, 5, id="job-1")
        single.deliver(meter)
        single.until(lambda: single.tokens() == {"cus_acme": 6})
        single.until(lambda: single.waiting() == {})

        assert meter.health().ok
    assert reason == "it corrects the event job-1, which is not in the ledger (yet)"


def test_a_correction_of_usage_that_waits_for_a_customer_waits_for_the_same(single):
    with single.meter() as meter:
        wrong = spend(meter, 5, customer="initech")
        single.deliver(meter)
        spend(meter, 5, corrects=wrong.id)
        single.deliver(meter)
        waits = single.waiting()
        single.fake.add_customer("cus_initech")
        meter.customers.edit("initech", external_ids={"stripe": "cus_initech"})
        single.until(lambda: single.tokens() == {"cus_acme": 5} and single.waiting() == {})

    assert len(waits) == 2 and all("customer 'initech' has no id at Stripe" in reason for reason in waits.values())
    assert single.twice() == []


def test_a_correction_of_usage_in_quarantine_reports_its_own_part_and_is_tried_again_for_the_rest(
    validated, monkeypatch
):
    """The corrected event goes out in the end; so what takes it back must not be lost."""
    monkeypatch.setattr(stripe_corrections, "AGAIN_SECONDS_MIN", 60.0)
    with validated.meter() as meter:
        validated.fake.archive_meter(TOKEN_BILLING)
        wrong = spend(meter, 5)
        validated.deliver(meter)
        # Whatever happens to the original, the correction is delivered first.
        discard(meter.journal_folder, "stripe", ids=[wrong.id], reason="for the moment")
        validated.fake.add_token_billing_meter()
        right = spend(meter, 6, corrects=wrong.id)
        validated.deliver(meter)
        reason = validated.waiting()[right.id]
        part = next(each.event["anomalies"] for each in validated.quarantine() if each.id == right.id)
        mine = validated.tokens()
        release(meter.journal_folder, "stripe", ids=[wrong.id])
        validated.deliver(meter)
        both = validated.tokens()
        validated.clock.advance(2 * HOUR)
        validated.until(lambda: validated.tokens() == {"cus_acme": 6})
        validated.until(lambda: validated.waiting() == {})

    assert reason == (
        f"Stripe cannot cancel {wrong.id}:input: No such meter event: '{wrong.id}:input'. Is the corrected event "
        "delivered? If it waits in quarantine, release it first, then this one; if it was given up, discard this one "
        "too. It is tried again by itself meanwhile"
    )
    assert (part, mine, both) == (["part:-input"], {"cus_acme": 6}, {"cus_acme": 11})
    assert validated.twice() == []


def test_a_correction_that_cannot_be_done_is_not_tried_for_ever(single):
    with single.meter(where=None) as meter:
        single.fake.archive_meter(TOKEN_BILLING)
        wrong = spend(meter, 5)
        single.deliver(meter)
        discard(meter.journal_folder, "stripe", ids=[wrong.id], reason="given up")
        single.fake.add_token_billing_meter()
        right = spend(meter, 6, corrects=wrong.id)
        single.deliver(meter)

        def is_left_to_a_human():
            single.clock.advance(DAY)
            return "tried again" not in single.waiting().get(right.id, "tried again")

        single.until(is_left_to_a_human)
        waits = meter.health().deliveries[1]
        assert (waits.quarantined, waits.awaiting) == (1, 0)
    assert single.tokens() == {"cus_acme": 6}


# ---- half of it ----


@pytest.mark.parametrize("days", [0, 2])
def test_a_correction_to_a_customer_that_stripe_does_not_know_takes_nothing_back_before(validated, days):
    """Else nobody would be billed meanwhile; and done by halves it would be done twice when it is released."""
    with validated.meter() as meter:
        meter.customers.edit("initech", external_ids={"stripe": "cus_typo"})
        wrong = spend(meter, 5)
        validated.deliver(meter)
        right = spend(meter, 5, customer="initech", corrects=wrong.id)
        validated.deliver(meter)
        waits, before = validated.waiting(), validated.tokens()
        validated.clock.advance(days * DAY)
        validated.fake.add_customer("cus_initech")
        meter.customers.edit("initech", external_ids={"stripe": "cus_initech"})
        validated.until(lambda: validated.tokens() == {"cus_initech": 5, **({"cus_acme": 0} if days else {})})
        validated.until(lambda: validated.waiting() == {})

    assert list(waits) == [right.id] and "No such customer: 'cus_typo'" in waits[right.id]
    assert before == {"cus_acme": 5}
    assert validated.twice() == []


def test_a_correction_of_which_some_is_refused_waits_for_the_rest(single):
    """One of its token types has too many digits: that and what it takes back wait; what was taken is not sent again."""
    with single.meter() as meter:
        wrong = meter.record(Usage(input=5, output=2), model="gpt-5", provider="openai", customer="acme")
        single.deliver(meter)
        meter.record(
            Usage(input=10**15, output=3), model="gpt-5", provider="openai", customer="acme", corrects=wrong.id
        )
        single.deliver(meter)
        [entry] = [each for each in single.quarantine() if each.state == "waiting"]
        single.clock.advance(2 * DAY)
        release(meter.journal_folder, "stripe", ids="all")
        single.deliver(meter)

    assert entry.event["anomalies"] == ["part:-input", "part:-output", "part:input"]
    assert single.tokens() == {"cus_acme": 10}
    assert single.twice() == []


def test_a_correction_needs_a_ledger_unless_the_original_is_at_hand(single):
    sink = single.sink(customers=CUSTOMERS)
    wrong = usage(1, 5)

    sink.send([wrong])
    sink.send([replace(wrong), usage(2, 6, corrects="evt_1")])
    sink.close()

    assert single.tokens() == {"cus_acme": 6}


# ---- and the 24-hour rule ----


def test_a_correction_in_doubt_is_not_done_twice(single, monkeypatch):
    """It is taken, nobody says so, and two days later the summary shows it."""
    monkeypatch.setattr(stripe, "TRIES", 1)
    with single.meter() as meter:
        wrong = spend(meter, 5)
        single.deliver(meter)
        single.fake.chaos = Chaos(script=[None, "error_after", *["unavailable"] * 999])
        spend(meter, 6, customer="globex", corrects=wrong.id)
        single.until(lambda: single.tokens() == {"cus_globex": 6})
        single.fake.down = True
    single.fake.chaos = Chaos()
    single.fake.down = False
    single.clock.advance(2 * DAY)
    with single.meter() as meter:
        single.deliver(meter)

        assert single.waiting() == {}
    assert single.tokens() == {"cus_globex": 6}
    assert [each.value for each in single.fake.counted] == [6]


def test_an_event_and_its_correction_in_doubt_come_to_the_same_there_or_not(single, monkeypatch):
    monkeypatch.setattr(stripe, "TRIES", 1)
    single.fake.down = True
    with single.meter() as meter:
        wrong = spend(meter, 5)
        meter.record(Usage(), customer="acme", corrects=wrong.id)
        meter.flush(0.3)
    single.fake.down = False
    single.clock.advance(2 * DAY)
    with single.meter() as meter:
        single.deliver(meter)

        assert single.waiting() == {}
    assert sum(single.tokens().values()) == 0


def test_what_a_correction_took_back_is_not_expected_to_be_there(single, monkeypatch):
    monkeypatch.setattr(stripe, "TRIES", 1)
    minute = now().replace(second=0, microsecond=0) - timedelta(minutes=5)
    with single.meter() as meter:
        wrong = spend(meter, 5, time=minute)
        single.deliver(meter)
        spend(meter, 6, customer="globex", corrects=wrong.id)
        single.deliver(meter)
        single.until(lambda: single.tokens() == {"cus_globex": 6})
        single.fake.chaos = Chaos(script=["error_after", *["unavailable"] * 999])
        spend(meter, 5, time=minute + timedelta(seconds=1))
        single.until(lambda: single.tokens() == {"cus_globex": 6, "cus_acme": 5})
        single.fake.down = True
    single.fake.chaos = Chaos()
    single.fake.down = False
    single.clock.advance(2 * DAY)
    with single.meter() as meter:
        single.deliver(meter)

        assert single.waiting() == {}
    assert single.tokens() == {"cus_globex": 6, "cus_acme": 5}


def test_a_mapping_of_ones_own_is_taken_back_measure_by_measure(fake, tmp_path):
    fake.add_meter("a")
    fake.add_meter("b")

    def mapping(event):
        yield Measure(key="a", meter="a", value=event.usage.tokens)
        yield Measure(key="b", meter="b", value=1)

    bench = Bench(tmp_path, fake, mapping=mapping)
    with bench.meter() as meter:
        wrong = spend(meter, 5)
        bench.deliver(meter)
        spend(meter, 7, corrects=wrong.id)
        bench.deliver(meter)
        bench.until(lambda: fake.totals() == {("cus_acme", "a"): 7, ("cus_acme", "b"): 1})


def test_all_of_an_event_is_taken_back_though_only_a_part_of_it_is_released_with_the_correction(fake, tmp_path):
    """Both wait for the same meter, and come back in one batch: the event as the part that was refused."""
    fake.add_meter("out")
    rules = [Rule(key=name, meter=name, types=(f"{name}put",)) for name in ("in", "out")]
    bench = Bench(tmp_path, fake, mapping=rules)
    with bench.meter() as meter:
        wrong = meter.record(Usage(input=5, output=3), customer="acme")
        bench.deliver(meter)
        meter.record(Usage(input=50, output=30), customer="globex", corrects=wrong.id)
        bench.deliver(meter)
        before = (fake.totals(), [each.event["usage"] for each in bench.quarantine()])
        fake.add_meter("in")
        bench.until(lambda: bench.waiting() == {} and fake.totals().get(("cus_globex", "in")))
        bench.deliver(meter)
        bench.until(lambda: ("cus_acme", "out") not in fake.totals())

    assert before == (
        {("cus_acme", "out"): 3, ("cus_globex", "out"): 30},
        [{"input": 5}, {"input": 50, "output": 30}],
    )
    assert fake.totals() == {("cus_globex", "in"): 50, ("cus_globex", "out"): 30}
    assert bench.twice() == []
