"""Errors that Stripe finds after it took a stream: from its webhook into quarantine, and out again."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from datetime import timedelta

import pytest

from tests.sinks.stripe_kit import CUSTOMERS, DAY, Bench, Watched, now, spend, token_fake
from token_meter import Usage, lines
from token_meter.backlog import status
from token_meter.deliver import deliver_once, quarantine, quarantined, release
from token_meter.errors import InvalidReport, Refusal, Rejected, Retry
from token_meter.journal import Journal
from token_meter.sinks import MemorySink, Rule, stripe
from token_meter.sinks.stripe import TOKEN_BILLING
from token_meter.testing.backends import Chaos, VirtualClock
from token_meter.testing.builders import make_event

SECRET = "whsec_for_tests"


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
    return Bench(tmp_path, fake, api="stream", webhook_secret=SECRET)


def told(bench, meter, *, secret=SECRET):
    """What Stripe has to report is sent to the webhook; what came of each request."""
    return [
        meter.take_report("stripe", *bench.fake.signed(bench.fake.notification(event), secret))
        for event in bench.fake.error_reports()
    ]


def known(meter):
    """Wait until the ledger has everything, as `told` does: an event cannot be refused that nobody knows."""
    meter.ledger  # noqa: B018
    return meter


# ---- into quarantine, and out ----


def test_what_stripe_refuses_afterwards_waits_with_its_reason_and_goes_out_when_it_is_right(bench):
    with bench.meter() as meter:
        meter.customers.edit("initech", external_ids={"stripe": "cus_typo"})
        wrong = spend(meter, 5, customer="initech")
        spend(meter, 7)
        bench.deliver(meter)
        before = (meter.health().ok, bench.tokens())
        [report] = told(bench, meter)
        waits = bench.waiting()
        health = meter.health()
        bench.fake.add_customer("cus_initech")
        meter.customers.edit("initech", external_ids={"stripe": "cus_initech"})
        bench.until(lambda: bench.tokens() == {"cus_acme": 7, "cus_initech": 5})
        bench.until(lambda: bench.waiting() == {})
        bench.deliver(meter)

        assert meter.health().ok
    assert before == (True, {"cus_acme": 7})
    assert [each.event.id for each in report.refusals] == [wrong.id] and report.unnamed == 0
    assert waits == {
        wrong.id: f"Stripe refused it afterwards (report {report.id}): meter_event_customer_not_found No such customer: "
        "'cus_typo'"
    }
    assert health.warnings == ("sink stripe: refused events in quarantine: 1",)
    assert health.deliveries[1].awaiting == 1
    assert bench.twice() == []


def test_only_the_part_that_was_refused_is_sent_again(bench):
    """Two days later Stripe knows no identifier any more: what was taken must not go out again."""
    with bench.meter() as meter:
        meter.record(Usage(input=10**15, cache_read=7, output=3), model="gpt-5", provider="openai", customer="acme")
        bench.deliver(meter)
        told(bench, meter)
        [entry] = bench.quarantine()
        bench.clock.advance(2 * DAY)
        release(meter.journal_folder, "stripe", ids="all")
        bench.deliver(meter)
        told(bench, meter)
        reasons = bench.waiting()

    assert entry.event["usage"] == {"input": 10**15}
    assert bench.tokens() == {"cus_acme": 10} and bench.twice() == []
    assert len(bench.quarantine()) == 1 and len(reasons) == 1


def test_the_reason_is_the_one_of_the_last_report(bench):
    with bench.meter() as meter:
        wrong = spend(meter, 10**15)
        bench.deliver(meter)
        [first] = told(bench, meter)
        before = bench.waiting()[wrong.id]
        release(meter.journal_folder, "stripe", ids="all")
        bench.deliver(meter)
        delivered = bench.quarantine()[0].state
        [second] = told(bench, meter)
        after = bench.waiting()[wrong.id]

    assert (first.id in before, delivered) == (True, "delivered")
    assert second.id in after and first.id not in after


def test_two_reports_about_two_parts_of_one_event_release_both(bench):
    rules = [Rule(key=name, meter=name, types=(name,)) for name in ("input", "output")]
    for rule in rules:
        bench.fake.add_meter(rule.meter)
        bench.fake.archive_meter(rule.meter)
    with bench.meter(mapping=rules) as meter:
        meter.record(Usage(input=5, output=3), customer="acme")
        bench.deliver(meter)
        reports = told(bench, meter)
        parts = [each.event["usage"] for each in bench.quarantine()]
        for rule in rules:
            bench.fake.add_meter(rule.meter)
        bench.until(lambda: sum(bench.tokens().values()) == 8)
        bench.until(lambda: bench.waiting() == {})

    assert len(reports) == 2 and sorted(map(str, parts)) == ["{'input': 5}", "{'output': 3}"]
    assert bench.twice() == []


def test_an_archived_meter_and_one_that_never_was_are_waited_for(bench):
    bench.fake.archive_meter(TOKEN_BILLING)
    with bench.meter() as meter:
        spend(meter, 5)
        bench.deliver(meter)
        [report] = told(bench, meter)
        waits = bench.waiting()
        bench.fake.add_token_billing_meter()
        bench.until(lambda: bench.tokens() == {"cus_acme": 5})

    assert "archived_meter No active meter found" in next(iter(waits.values())) and report.unnamed == 0


def test_a_meter_that_never_was_is_another_kind_of_report(tmp_path):
    with Watched() as fake:
        bench = Bench(tmp_path, fake, api="stream", webhook_secret=SECRET)
        with bench.meter() as meter:
            spend(meter, 5)
            bench.deliver(meter)
            events = fake.error_reports()
            meter.take_report("stripe", *fake.signed(fake.notification(events[0]), SECRET))
            waits = bench.waiting()
            fake.add_token_billing_meter()
            bench.until(lambda: bench.tokens() == {"cus_acme": 5})

    assert [each["type"] for each in events] == ["v1.billing.meter.no_meter_found"]
    assert "no_meter" in next(iter(waits.values()))


def test_events_of_single_requests_can_be_reported_too(fake, tmp_path):
    """Validated at once, and still refused later: then the same happens."""
    bench = Bench(tmp_path, fake, api="v2", webhook_secret=SECRET)
    with bench.meter() as meter:
        one = spend(meter, 5)
        bench.deliver(meter)
        document = event_about(f"{one.id}:input")
        report = meter.take_report("stripe", *fake.signed(document, SECRET))

    assert [each.event.id for each in report.refusals] == [one.id]
    assert list(bench.waiting()) == [one.id]


def event_about(*identifiers, errors=None, id="evt_test_1", code="meter_event_invalid_value"):
    """A report with its contents, as an older kind of webhook gets it."""
    samples = [{"error_message": "what is wrong", "request": {"identifier": each}} for each in identifiers]
    count = len(samples) if errors is None else errors
    kinds = [{"code": code, "error_count": count, "sample_errors": samples}]
    return {
        "id": id,
        "type": "v1.billing.meter.error_report_triggered",
        "data": {"reason": {"error_count": count, "error_types": kinds}},
    }


# ---- once ----


def test_the_same_report_counts_once_however_often_it_comes(bench):
    with bench.meter() as meter:
        wrong = spend(meter, 10**15)
        bench.deliver(meter)
        [event] = bench.fake.error_reports()
        request = bench.fake.signed(bench.fake.notification(event), SECRET)
        for _ in range(3):
            meter.take_report("stripe", *request)
        once = len(bench.quarantine())
        release(meter.journal_folder, "stripe", ids="all")
        bench.deliver(meter)
        meter.take_report("stripe", *request)  # after it was released, Stripe sends it once more

        assert meter.health().deliveries[1].quarantined == 0
    assert once == 1 and [each.id for each in bench.quarantine()] == [wrong.id]


def test_what_was_sent_twice_is_refused_twice_and_waits_once(bench):
    """The answer was lost, so the same events are in two requests, and twice in the report."""
    with bench.meter() as meter:
        bench.fake.chaos = Chaos(script=[None, "error_after"])
        wrong = meter.record(Usage(input=10**15, output=3), model="gpt-5", provider="openai", customer="acme")
        bench.deliver(meter)
        [event] = bench.fake.error_reports()
        report = meter.take_report("stripe", *bench.fake.signed(bench.fake.notification(event), SECRET))

    assert event["data"]["reason"]["error_count"] == 2
    assert [dict(each.event.usage) for each in report.refusals] == [{"input": 10**15}]
    assert report.unnamed == 0
    assert [(each.id, each.event["usage"]) for each in bench.quarantine()] == [(wrong.id, {"input": 10**15})]


# ---- what is no report, or not from Stripe ----


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body, headers: (body, {}),
        lambda body, headers: (body + b" ", headers),
        lambda body, headers: (body.replace(b"evt_", b"evl_"), headers),
        lambda body, headers: (body, {"Stripe-Signature": headers["Stripe-Signature"].replace("v1=", "v0=")}),
        lambda body, headers: (body, {"Stripe-Signature": "t=1,v1=é"}),
        lambda body, headers: (body, {"Stripe-Signature": "nonsense"}),
        lambda body, headers: (b"\xff\xfe", headers),
        lambda body, headers: (b"x" * ((1 << 20) + 1), headers),
    ],
)
def test_a_request_that_stripe_did_not_sign_is_refused(bench, spoil):
    with bench.meter() as meter:
        spend(meter, 10**15)
        bench.deliver(meter)
        [event] = bench.fake.error_reports()
        request = spoil(*bench.fake.signed(bench.fake.notification(event), SECRET))

        with pytest.raises(InvalidReport) as caught:
            meter.take_report("stripe", *request)

        assert SECRET not in str(caught.value)
    assert bench.quarantine() == []


def test_a_report_with_another_secret_is_refused_and_the_message_says_which(bench):
    with bench.meter() as meter:
        spend(meter, 10**15)
        bench.deliver(meter)

        with pytest.raises(InvalidReport, match=r"Is it the signing secret of this very endpoint \(whsec_…\)"):
            told(bench, meter, secret="whsec_other")


@pytest.mark.parametrize("document", [["a"], "text", None, 5])
def test_what_is_signed_and_no_event_is_refused(bench, document):
    with bench.meter() as meter, pytest.raises(InvalidReport, match="holds no event"):
        meter.take_report("stripe", *bench.fake.signed(document, SECRET))


@pytest.mark.parametrize(
    "document",
    [
        {"id": "evt_1", "type": "invoice.paid", "data": {}},
        {"id": "evt_1", "type": "v1.billing.meter.error_report_triggered.v2"},
        {"id": "evt_1"},
    ],
)
def test_other_events_are_none_of_our_business(bench, document):
    with bench.meter() as meter:
        assert meter.take_report("stripe", *bench.fake.signed(document, SECRET)) is None


@pytest.mark.parametrize("id", ["../../v1/account", "evt_1?x=y", "", None])
def test_an_id_that_is_none_is_not_fetched(bench, id):
    with bench.meter() as meter:
        before = len(bench.fake.requests)
        with pytest.raises(
            InvalidReport, match="no id that could be one" if id is not None else "Stripe has no report"
        ):
            meter.take_report(
                "stripe", *bench.fake.signed({"id": id, "type": "v1.billing.meter.no_meter_found"}, SECRET)
            )
        fetched = [each.path for each in bench.fake.requests[before:]]

    assert fetched == ([] if id is not None else ["/v2/core/events/None"])


def test_a_report_of_another_account_is_refused(bench):
    with bench.meter() as meter, pytest.raises(InvalidReport, match="is the webhook of the same account and mode"):
        meter.take_report("stripe", *bench.fake.signed({**event_about(), "data": None}, SECRET))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"reason": None},
        {"reason": {"error_count": "many", "error_types": "x"}},
        {"reason": {"error_types": [None, {"sample_errors": 5}, {"sample_errors": [None, {"request": None}]}]}},
    ],
)
def test_a_report_of_another_shape_says_nothing_and_breaks_nothing(bench, data):
    with bench.meter() as meter:
        report = meter.take_report("stripe", *bench.fake.signed({**event_about(), "data": data}, SECRET))

    assert (report.refusals, report.unnamed, report.unknown) == ((), 0, ())


def test_who_takes_no_reports_says_so(bench, tmp_path):
    with bench.meter() as meter:
        for name in ("ledger", "stripo"):
            with pytest.raises(ValueError, match=f"no sink '{name}' takes reports. Those that do: stripe"):
                meter.take_report(name, b"{}", {})
    assert MemorySink().events == []


# ---- when it cannot be looked into now ----


def test_a_report_that_cannot_be_fetched_now_is_to_come_again(bench):
    with bench.meter() as meter:
        wrong = spend(meter, 10**15)
        bench.deliver(meter)
        [event] = bench.fake.error_reports()
        request = bench.fake.signed(bench.fake.notification(event), SECRET)
        bench.fake.down = True
        with pytest.raises(Retry, match="503"):
            meter.take_report("stripe", *request)
        bench.fake.down = False
        meter.take_report("stripe", *request)

    assert list(bench.waiting()) == [wrong.id]


def test_without_a_secret_stripe_is_to_come_again(fake, tmp_path, monkeypatch):
    monkeypatch.delenv("STRIPE_WEBHOOK_SECRET", raising=False)
    bench = Bench(tmp_path, fake, api="stream")
    with bench.meter() as meter:
        with pytest.raises(Retry, match=r"set \$STRIPE_WEBHOOK_SECRET"):
            meter.take_report("stripe", *fake.signed(event_about("a:b"), SECRET))
        monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", SECRET)

        assert meter.take_report("stripe", *fake.signed(event_about("a:b"), SECRET)).unknown == ("a:b",)


def test_what_the_ledger_has_not_recorded_yet_is_waited_for(bench, monkeypatch):
    monkeypatch.setattr("token_meter.meter.REPORT_TIMEOUT_SECONDS", 0.1)
    refusing = [True]
    with bench.meter() as meter:
        ledger = meter.ledger
        record = ledger.record
        monkeypatch.setattr(ledger, "record", lambda events: late(refusing, record, events))
        wrong = spend(meter, 10**15)
        bench.until(lambda: meter.health().deliveries[1].delivered == 1)
        [event] = bench.fake.error_reports()
        request = bench.fake.signed(bench.fake.notification(event), SECRET)
        with pytest.raises(Retry, match="the ledger does not have every event yet"):
            meter.take_report("stripe", *request)
        refusing.clear()
        bench.until(lambda: ledger.event(wrong.id))
        meter.take_report("stripe", *request)

    assert list(bench.waiting()) == [wrong.id]


def late(refusing, record, events):
    if refusing:
        raise Retry("the database is elsewhere")
    return record(events)


@pytest.mark.parametrize("minutes", [-20, 20])
def test_a_clock_that_is_minutes_off_loses_no_report(bench, tmp_path, minutes):
    with bench.meter() as meter:
        wrong = spend(meter, 10**15)
        bench.deliver(meter)
        [event] = bench.fake.error_reports()
        body, _ = bench.fake.signed(bench.fake.notification(event), SECRET)
        at = int(time.time()) + minutes * 60
        mac = hmac.new(SECRET.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
        meter.take_report("stripe", body, {"stripe-signature": f"t={at},v1={mac}"})

    assert list(bench.waiting()) == [wrong.id]


# ---- what it does not name ----


def test_errors_that_a_report_does_not_name_are_counted_and_seen(bench):
    with bench.meter() as meter:
        events = [spend(meter, 10**15 + number) for number in range(9)]
        bench.deliver(meter)
        [report] = told(bench, meter)

        health = meter.health()
        assert health.problems["sink stripe: a report of refused events that it does not name"] == 1
        assert any("a report of refused events that it does not name" in warning for warning in health.warnings)
        [problem] = [each for each in status(meter.journal_folder).problems if "does not name" in each["what"]]
        assert problem["error"] == (f"4 events of report {report.id}: `token-meter reconcile sink stripe` finds them")
    assert (len(report.refusals), report.unnamed) == (5, 4)
    assert len(bench.waiting()) == 5 and len(events) == 9


def test_events_that_nobody_knows_are_counted_and_seen(bench):
    with bench.meter() as meter:
        one = spend(meter, 5)
        bench.deliver(meter)
        strange = (f"{one.id}:nothing", "theirs:input", "theirs:input", "no colon", hashed("long"))
        document = event_about(f"{one.id}:input", *strange)
        report = meter.take_report("stripe", *bench.fake.signed(document, SECRET))

        assert "4 events of report evt_test_1" in str(status(meter.journal_folder).problems)
    assert [each.event.id for each in report.refusals] == [one.id]
    assert report.unknown == (f"{one.id}:nothing", "theirs:input", "no colon", hashed("long"))


def hashed(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_without_a_ledger_every_event_of_a_report_is_unknown(bench):
    with bench.meter(ledger=False, customers=CUSTOMERS) as meter:
        spend(meter, 10**15)
        bench.deliver(meter)
        [report] = told(bench, meter)

        assert len(report.unknown) == 1 and report.refusals == ()
        assert "1 events of report" in str(status(meter.journal_folder).problems)


def test_an_event_whose_customer_has_lost_their_id_is_quarantined_all_the_same(bench):
    with bench.meter() as meter:
        meter.customers.edit("initech", external_ids={"stripe": "cus_typo"})
        wrong = spend(meter, 5, customer="initech")
        bench.deliver(meter)
        meter.customers.edit("initech", external_ids={"stripe": None})
        told(bench, meter)
        waits = bench.waiting()
        bench.fake.add_customer("cus_initech")
        meter.customers.edit("initech", external_ids={"stripe": "cus_initech"})
        bench.until(lambda: bench.tokens() == {"cus_initech": 5})

    assert "No such customer: 'cus_typo'; customer 'initech' has no id at Stripe" in waits[wrong.id]


def test_a_report_about_test_usage_says_nothing_about_a_live_sink(bench):
    with bench.meter() as meter:
        one = spend(meter, 5, dimensions={"x": "y"})
        bench.deliver(meter)
        meter.ledger.record([])
        document = event_about(f"{one.id}:-input")
        report = meter.take_report("stripe", *bench.fake.signed(document, SECRET))

    assert report.refusals == () and report.unknown == (f"{one.id}:-input",)


# ---- everything together ----


def test_a_stream_in_which_much_is_wrong_ends_right(bench):
    """Reports, releases by themselves, an archived meter and lost answers; in the end Stripe has what the ledger has."""
    with bench.meter() as meter:
        meter.customers.edit("initech", external_ids={"stripe": "cus_typo"})
        bench.fake.chaos = Chaos(error_after=0.2, reset_after=0.2, unavailable=0.2, seed=11)
        for number in range(30):
            spend(meter, number + 1, customer=("acme", "globex", "initech")[number % 3])
            if number == 15:
                bench.deliver(meter)
                bench.fake.archive_meter(TOKEN_BILLING)
        bench.deliver(meter)
        reports = told(bench, meter)
        bench.fake.chaos = Chaos()
        bench.fake.add_token_billing_meter()
        bench.fake.add_customer("cus_initech")
        meter.customers.edit("initech", external_ids={"stripe": "cus_initech"})
        bench.until(lambda: bench.waiting() == {})
        bench.deliver(meter)
        missing = 465 - sum(bench.tokens().values())
        unnamed = sum(report.unnamed for report in reports)

        sink = bench.sink()
        pairs = [(f"cus_{name}", TOKEN_BILLING) for name in ("acme", "globex", "initech")]
        since = now().replace(second=0, microsecond=0) - timedelta(hours=1)
        counted = sink.counted(since=since, until=since + timedelta(hours=2), pairs=pairs)
        sink.close()
    assert bench.twice() == []
    assert missing == 0 or unnamed > 0  # those that the reports did not name
    assert sum(counted.values()) == 465 - missing


def test_a_test_account_reports_to_a_test_sink(tmp_path):
    with token_fake(key="sk_test_fake", clock=VirtualClock()) as fake:
        bench = Bench(tmp_path, fake, api="stream", api_key="sk_test_fake", webhook_secret=SECRET)
        with bench.meter() as meter:
            for customer in CUSTOMERS:
                meter.customers.edit(customer, mode="test", external_ids={"stripe": CUSTOMERS[customer]})
            sink = bench.sink()
            with pytest.raises(Rejected):
                sink.send([spend(meter, 5)])
            sink.close()
            bench.deliver(meter)

        assert json.dumps(list(bench.waiting().values())).count("this is live usage") == 1
        assert fake.counted == []


# ---- reports about what is on its way again ----


def test_what_is_refused_while_it_is_on_its_way_again_is_not_taken_for_delivered(bench):
    """Released events go out again, a part of them is taken, and Stripe reports them before the rest is."""
    with bench.meter() as meter:
        bench.fake.archive_meter(TOKEN_BILLING)
        events = [spend(meter, number + 1) for number in range(3)]
        bench.deliver(meter)
        told(bench, meter)
        before = sorted(bench.waiting())
        bench.fake.down = True
        for one in events:
            release(meter.journal_folder, "stripe", ids=[one.id])
        meter.take_report("stripe", *bench.fake.signed(event_about(f"{events[0].id}:input", id="evt_late"), SECRET))
        bench.fake.add_token_billing_meter()
        bench.fake.down = False
        bench.deliver(meter)
        bench.until(lambda: sum(bench.tokens().values()) == 5)
        waits = bench.waiting()

    assert before == sorted(each.id for each in events)
    assert list(waits) == [events[0].id] and "evt_late" in waits[events[0].id]


def test_what_is_refused_in_the_very_moment_in_which_it_is_taken_waits(tmp_path):
    """The destination takes it, and its report is here before anybody could write down that it was delivered."""

    class Quick:
        name = "quick"
        reports = 0

        def send(self, events):
            self.reports += 1
            if self.reports == 1:
                raise Rejected(events, "at first")
            quarantine(tmp_path, "quick", [Refusal(events[0], "afterwards")], report="r1")

    write_events(tmp_path, 2)
    sink = Quick()
    deliver_once(tmp_path, sink, replay=True)
    release(tmp_path, "quick", ids="all")
    deliver_once(tmp_path, sink)

    assert {each.id: (each.state, each.reason) for each in quarantined(tmp_path, "quick")} == {
        "evt_1": ("waiting", "afterwards"),
        "evt_2": ("delivered", "at first"),
    }


def write_events(folder, count):
    with Journal(folder) as journal:
        for number in range(1, count + 1):
            journal.append(lines.recorded(make_event(number).to_json()))
