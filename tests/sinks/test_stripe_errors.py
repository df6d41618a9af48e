"""Every error that Stripe documents, end to end: what stands where, what a human sees, and how it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.sinks.stripe_kit import DAY, KEY, Bench, Watched, billed, event, now, spend, token_fake
from token_meter import Usage
from token_meter.deliver import discard, release
from token_meter.sinks import Measure, Rule, stripe
from token_meter.sinks.records import whole_of
from token_meter.sinks.stripe import TOKEN_BILLING
from token_meter.testing.backends import Chaos, VirtualClock

SINGLE = ("v1", "v2")
APIS = (*SINGLE, "stream")


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


@pytest.fixture
def bench(fake, tmp_path):
    return Bench(tmp_path, fake)


def state(meter, name="stripe"):
    return next(each for each in meter.health().deliveries if each.name == name)


# ---- what is known before anything is sent ----


def test_a_customer_without_an_id_waits_for_it_and_goes_out_by_itself(bench):
    with bench.meter() as meter:
        spend(meter, 5, customer="initech")
        spend(meter, 7)
        bench.deliver(meter)
        reason = bench.waiting()
        waits = state(meter)
        bench.fake.add_customer("cus_initech")
        meter.customers.edit("initech", external_ids={"stripe": "cus_initech"})
        bench.until(lambda: bench.tokens().get("cus_initech"))
        bench.deliver(meter)

        assert list(reason.values()) == [
            "customer 'initech' has no id at Stripe. It is sent when that is set: `token-meter customers set initech "
            "--external stripe=ID`"
        ]
        assert (waits.quarantined, waits.awaiting, waits.last_error) == (1, 1, None)
        assert meter.health().ok
    assert bench.tokens() == {"cus_acme": 7, "cus_initech": 5}
    assert [each.state for each in bench.quarantine()] == ["delivered"]


def test_usage_of_nobody_is_given_to_somebody_by_a_correction(bench):
    with bench.meter() as meter:
        lost = spend(meter, 5, customer=None)
        bench.deliver(meter)
        waits = bench.waiting()
        spend(meter, 5, corrects=lost.id)
        bench.deliver(meter)
        bench.until(lambda: bench.tokens() == {"cus_acme": 5})
        discard(meter.journal_folder, "stripe", ids=[lost.id], reason="given to acme")

        assert (
            "it has no customer. Enter a correction that names one (meter.record(..., corrects=...)) and discard this one"
            in waits[lost.id]
        )
    assert bench.waiting() == {}
    assert bench.twice() == []


def test_live_usage_and_a_test_key_wait_for_the_live_key(tmp_path):
    with token_fake(key="sk_test_fake") as test, token_fake() as live:
        with Bench(tmp_path, test, api_key="sk_test_fake").meter() as meter:
            spend(meter, 5)
            Bench(tmp_path, test).deliver(meter)
        waits = Bench(tmp_path, test).waiting()

        bench = Bench(tmp_path, live)
        with bench.meter() as meter:
            release(meter.journal_folder, "stripe", ids="all")
            bench.deliver(meter)

        assert [reason[:73] for reason in waits.values()] == [
            "this is live usage and the sink 'stripe' reports to a test account of Str"
        ]
        assert (test.counted, bench.tokens()) == ([], {"cus_acme": 5})


def test_usage_older_than_35_days_is_charged_in_another_way(bench):
    with bench.meter() as meter:
        spend(meter, 5, time=now() - timedelta(days=34, hours=23))
        old = spend(meter, 7, time=now() - timedelta(days=36))
        bench.deliver(meter)

    assert list(bench.waiting()) == [old.id]
    assert bench.waiting()[old.id] == (
        "it is older than 35 days, which is as far back as Stripe takes usage: charge it in another way (an invoice "
        "item), then discard it here"
    )
    assert bench.tokens() == {"cus_acme": 5}


def test_what_waited_in_the_journal_for_35_days_is_not_lost(bench):
    bench.fake.down = True
    with bench.meter() as meter:
        spend(meter, 5)
        meter.flush(0.1)
        bench.clock.advance(36 * DAY)
        bench.fake.down = False
        # Tried 36 days ago, without an answer: Stripe says that it has nothing, and would not take it any more.
        bench.deliver(meter)

    assert ["35 days" in reason for reason in bench.waiting().values()] == [True]
    assert bench.fake.counted == []


# ---- what Stripe says at once ----

REFUSED = {
    "too many digits": (Usage(input=10**15), {}, "can have at most 15 digits. Received 1000000000000000"),
    "a dimension that is missing": (Usage(input=1), {"model": lambda event: ""}, "Dimension keys not found in payload: model"),
    "no customer key": (Usage(input=1), {"customer_key": "who"}, "Customer mapping key stripe_customer_id not found"),
    "no value key": (Usage(input=1), {"value_key": "n"}, "Value key value not found in payload"),
    "too many dimensions": (
        Usage(input=1),
        {"properties": {f"d{n}": lambda event: "x" for n in range(11)}},
        "more than 10 dimensions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("api", SINGLE)
def test_what_stripe_will_never_take_waits_for_a_human_and_holds_up_nothing(fake, tmp_path, api, case):
    usage, options, message = REFUSED[case]
    bench = Bench(tmp_path, fake, api=api)
    with bench.meter(**options) as meter:
        wrong = meter.record(usage, model="gpt-5", provider="openai", customer="acme")
        bench.deliver(meter)

        assert message in bench.waiting()[wrong.id]
        assert bench.waiting()[wrong.id].startswith("Stripe: ")
        assert state(meter).awaiting == 0
        assert meter.health().warnings == ("sink stripe: refused events in quarantine: 1",)
        assert state(meter).backlog_events == 0
    # Set right, it is released by hand.
    if options:
        with bench.meter() as meter:
            release(meter.journal_folder, "stripe", ids="all")
            bench.deliver(meter)
        assert bench.fake.totals() == billed(("input", 1))
        assert bench.waiting() == {}


@pytest.mark.parametrize("api", SINGLE)
def test_a_customer_that_stripe_does_not_know_waits_for_another_id(fake, tmp_path, api):
    bench = Bench(tmp_path, fake, api=api)
    with bench.meter() as meter:
        meter.customers.edit("initech", external_ids={"stripe": "cus_typo"})
        first = spend(meter, 5, customer="initech")
        bench.deliver(meter)
        reason = bench.waiting()[first.id]
        fake.add_customer("cus_initech")
        meter.customers.edit("initech", external_ids={"stripe": "cus_initech"})
        bench.until(lambda: bench.tokens() == {"cus_initech": 5})

    assert reason == (
        "Stripe: No such customer: 'cus_typo'. It is sent when 'initech' has another id: `token-meter customers set "
        "initech --external stripe=ID`"
    )
    assert bench.waiting() == {}


def test_a_customer_of_a_fixed_mapping_waits_for_a_human(bench):
    with bench.meter(customers={"initech": "cus_typo"}) as meter:
        spend(meter, 5, customer="initech")
        bench.deliver(meter)
        assert state(meter).awaiting == 0
    with bench.meter(customers={"initech": "cus_acme"}) as meter:
        release(meter.journal_folder, "stripe", ids="all")
        bench.deliver(meter)

    assert bench.tokens() == {"cus_acme": 5}


@pytest.mark.parametrize("api", SINGLE)
def test_an_archived_meter_is_waited_for(fake, tmp_path, api):
    bench = Bench(tmp_path, fake, api=api)
    fake.archive_meter(TOKEN_BILLING)
    with bench.meter() as meter:
        ids = [spend(meter, tokens).id for tokens in (5, 7)]
        bench.deliver(meter)
        reasons = bench.waiting()
        fake.clock.advance(2 * DAY)
        fake.add_token_billing_meter()
        bench.until(lambda: bench.tokens() == {"cus_acme": 12})
        bench.until(lambda: bench.waiting() == {})

        assert meter.health().ok
    assert list(reasons) == ids
    assert reasons[ids[0]] == (
        'Stripe: No active meter found for event name "token-billing-tokens". It is sent when there is an active '
        "meter with the event name token-billing-tokens"
    )
    assert bench.twice() == []


def test_a_meter_that_was_never_made_is_waited_for(tmp_path):
    with Watched() as fake:
        bench = Bench(tmp_path, fake)
        with bench.meter() as meter:
            spend(meter, 5)
            bench.deliver(meter)
            assert state(meter).awaiting == 1
            fake.add_token_billing_meter()
            bench.until(lambda: bench.tokens() == {"cus_acme": 5})


# ---- keys ----


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("how", ["wrong", "revoked"])
def test_a_key_that_is_not_taken_costs_nothing(fake, tmp_path, api, how):
    keys = [KEY if how == "revoked" else "sk_live_wrong"]
    bench = Bench(tmp_path, fake, api=api, api_key=lambda: keys[-1])
    fake.keys = {KEY}
    if how == "revoked":
        fake.revoke_key()
    with bench.meter() as meter:
        ids = [spend(meter, tokens).id for tokens in (5, 7)]
        flushed = meter.flush(0.3)
        waits = state(meter)
        fake.keys = {"rk_live_new"}
        keys.append("rk_live_new")
        bench.deliver(meter)

        assert meter.health().deliveries[1].last_error is None
    assert not flushed and waits.backlog_events == 2 and waits.quarantined == 0
    said = "Expired API Key provided" if how == "revoked" else "Invalid API Key provided"
    assert "Stripe refuses the key (HTTP 401)" in waits.last_error and said in waits.last_error
    assert "set the right key and delivery goes on" in waits.last_error
    assert bench.quarantine() == [] and len(ids) == 2
    assert bench.tokens() == {"cus_acme": 12}


# ---- clocks ----


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("minutes", [-10, 10, -600, 600])
def test_a_clock_that_is_minutes_off_loses_nothing(tmp_path, api, minutes):
    """Stripe's clock is 10 minutes (or hours) behind ours, or ahead of it. It takes five minutes of the future."""
    with token_fake(clock=VirtualClock(offset_seconds=minutes * 60)) as fake:
        bench = Bench(tmp_path, fake, api=api, now=VirtualClock().now)
        with bench.meter() as meter:
            for tokens in (1, 10):
                spend(meter, tokens)
                bench.deliver(meter)

            assert meter.health().ok
        assert bench.tokens() == {"cus_acme": 11}
        assert fake.error_reports() == []
        assert {each.at > fake.clock.now() + 300 for each in fake.counted} == {False}


@pytest.mark.parametrize("api", APIS)
def test_only_what_lies_in_stripes_future_gets_its_time(tmp_path, api):
    with token_fake(clock=VirtualClock(offset_seconds=-600)) as fake:
        bench = Bench(tmp_path, fake, api=api, now=VirtualClock().now)
        with bench.meter() as meter:
            early = now() - timedelta(hours=1)
            spend(meter, 1, time=early)
            spend(meter, 10)
            bench.deliver(meter)
        at = {each.value: each.at for each in fake.counted}

        assert abs(at[1] - early.timestamp()) < 1
        assert abs(at[10] - fake.clock.now()) < 30


def test_stripe_is_not_asked_for_ever_about_a_time_that_it_does_not_take(fake, tmp_path):
    """It says that the time lies in its future although its clock says otherwise: a human has to see it."""

    class Confused(Watched):
        def answer(self, request):
            response = super().answer(request)
            if request.path.endswith("/meter_events"):
                error = {"code": "timestamp_in_future", "message": "The event timestamp is in the future."}
                return response._replace(status=400, body=json.dumps({"error": error}).encode())
            return response

    with Confused(clock=VirtualClock(offset_seconds=-600)) as fake:
        bench = Bench(tmp_path, fake, now=VirtualClock().now)
        with bench.meter() as meter:
            spend(meter, 5)
            bench.deliver(meter)

        assert list(bench.waiting().values()) == ["Stripe: The event timestamp is in the future"]
        assert 1 <= len(fake.posted()) <= 3


# ---- a part of an event ----


def test_of_an_event_only_the_refused_part_waits_and_counts_once_when_it_is_released(bench):
    with bench.meter(api="v1") as meter:
        usage = Usage(input=10**15, cache_read=7, output=3)
        one = meter.record(usage, model="gpt-5", provider="openai", customer="acme")
        bench.deliver(meter)
        [entry] = bench.quarantine()
        bench.clock.advance(2 * DAY)
        release(meter.journal_folder, "stripe", ids="all")
        bench.deliver(meter)

    assert entry.id == one.id and entry.event["usage"] == {"input": 10**15}
    assert bench.fake.totals() == billed(("cached_input", 7), ("output", 3))
    assert bench.twice() == []


@pytest.mark.parametrize("mapping", ["rules", "function"])
def test_two_measures_of_the_same_tokens_are_kept_apart_when_one_is_refused(fake, tmp_path, mapping):
    """Tokens and calls of one event: the meter of tokens is archived for two days, the one of calls is not."""
    fake.add_meter("tokens")
    fake.add_meter("calls")
    fake.archive_meter("tokens")

    def function(event):
        yield Measure(key="tokens", meter="tokens", value=event.usage.tokens)
        yield Measure(key="calls", meter="calls", value=1)

    rules = [
        Rule(key="tokens", meter="tokens", types=("input", "output")),
        Rule(key="calls", meter="calls"),
    ]
    bench = Bench(tmp_path, fake, mapping=rules if mapping == "rules" else function)
    with bench.meter() as meter:
        meter.record(Usage(input=5, output=2), customer="acme")
        bench.deliver(meter)
        [entry] = bench.quarantine()
        fake.clock.advance(2 * DAY)
        fake.add_meter("tokens")
        bench.until(lambda: fake.totals().get(("cus_acme", "tokens")))
        bench.until(lambda: bench.waiting() == {})

    assert entry.event["usage"] == {"input": 5, "output": 2} and entry.event["anomalies"] == ["part:tokens"]
    assert fake.totals() == {("cus_acme", "tokens"): 7, ("cus_acme", "calls"): 1}
    assert bench.twice() == []


def test_a_part_that_is_refused_again_waits_again(fake, tmp_path):
    fake.add_meter("calls")
    rules = [
        Rule(key="in", meter="in", types=("input",)),
        Rule(key="out", meter="out", types=("output",)),
        Rule(key="calls", meter="calls"),
    ]
    bench = Bench(tmp_path, fake, mapping=rules)
    with bench.meter() as meter:
        meter.record(Usage(input=5, output=2), customer="acme")
        bench.deliver(meter)
        fake.clock.advance(2 * DAY)
        fake.add_meter("out")
        release(meter.journal_folder, "stripe", ids="all")
        bench.deliver(meter)
        bench.until(lambda: fake.totals().get(("cus_acme", "out")))
        left = [each.event["anomalies"] for each in bench.quarantine() if each.state == "waiting"]
        fake.clock.advance(2 * DAY)
        fake.add_meter("in")
        bench.until(lambda: bench.waiting() == {})
        bench.deliver(meter)

    assert left == [["part:in"]]
    assert fake.totals() == {("cus_acme", "in"): 5, ("cus_acme", "out"): 2, ("cus_acme", "calls"): 1}
    assert bench.twice() == []


def test_users_functions_never_see_that_an_event_is_a_part(fake, tmp_path):
    fake.add_meter("calls")
    seen = []

    def where(event):
        seen.append(event.anomalies)
        return not event.anomalies

    rules = [Rule(key="in", meter="in", types=("input",)), Rule(key="calls", meter="calls")]
    bench = Bench(tmp_path, fake, mapping=rules, where=where)
    with bench.meter() as meter:
        meter.record(Usage(input=5), customer="acme")
        bench.deliver(meter)
        fake.add_meter("in")
        bench.until(lambda: fake.totals().get(("cus_acme", "in")))

    assert set(seen) == {()}
    assert fake.totals() == {("cus_acme", "in"): 5, ("cus_acme", "calls"): 1}


def test_the_part_of_an_event_is_the_event_in_json_and_back():
    part = replace(event(), anomalies=("identity", "part:-in", "part:calls"))

    whole, keys = whole_of(type(part).from_json(part.to_json()))

    assert (whole.anomalies, keys) == (("identity",), {"-in", "calls"})


# ---- through everything ----


@pytest.mark.parametrize("api", APIS)
def test_refusals_and_outages_together_lose_nothing(fake, tmp_path, api):
    bench = Bench(tmp_path, fake, api=api)
    with bench.meter() as meter:
        fake.chaos = Chaos(error_after=0.2, reset_after=0.1, unavailable=0.2, throttled=0.1, seed=3)
        for number in range(20):
            spend(meter, number + 1, customer=("acme", "globex", "initech")[number % 3])
        bench.deliver(meter)
        fake.chaos = Chaos()
        fake.add_customer("cus_initech")
        meter.customers.edit("initech", external_ids={"stripe": "cus_initech"})
        bench.until(lambda: bench.waiting() == {} and not state(meter).released)
        bench.deliver(meter)

    wanted = {f"cus_{name}": sum(range(place + 1, 21, 3)) for place, name in enumerate(("acme", "globex", "initech"))}
    assert bench.tokens() == wanted
    assert bench.twice() == []


def test_a_customers_function_that_fails_stops_only_that_event(bench):
    def customers(event):
        if event.customer == "broken":
            raise KeyError("broken")
        return "cus_acme"

    with bench.meter(customers=customers) as meter:
        wrong = spend(meter, 5, customer="broken")
        spend(meter, 7)
        bench.deliver(meter)

    assert list(bench.waiting()) == [wrong.id]
    assert "of sink 'stripe' failed: KeyError: 'broken'" in bench.waiting()[wrong.id]
    assert bench.tokens() == {"cus_acme": 7}


def test_a_sink_without_a_ledger_says_what_is_missing(fake, tmp_path):
    bench = Bench(tmp_path, fake)
    with bench.meter(ledger=False) as meter:
        spend(meter, 5)
        bench.deliver(meter)

    assert [
        "and this meter needs a ledger, which holds customers" in reason for reason in bench.waiting().values()
    ] == [True]
