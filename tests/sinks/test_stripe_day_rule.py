"""What Stripe may have counted more than 24 hours ago is looked up before it is sent again, and never counts twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.sinks.stripe_kit import CUSTOMERS, DAY, HOUR, KEY, Watched, now, token_fake
from token_meter import lines
from token_meter.accounts.book import CustomerBook
from token_meter.accounts.directory import LedgerAccounts
from token_meter.deliver import deliver_once, discard, forget, quarantined, release
from token_meter.folder import JournalFolder
from token_meter.journal import Journal
from token_meter.registry import add
from token_meter.sinks import LedgerSink, Measure, Rule, StripeSink, stripe
from token_meter.sinks.stripe import TOKEN_BILLING
from token_meter.testing.backends import Chaos, VirtualClock
from token_meter.testing.builders import make_event
from token_meter.usage import Usage

APIS = ("v1", "v2", "stream")
ROOT = Path(__file__).resolve().parents[2]
OUTAGE = 30 * HOUR
MINUTE = now().replace(second=0, microsecond=0) - timedelta(minutes=10)
"""The minute in which most of what is here happens."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stripe, "PAUSE_SECONDS", 0.002)
    monkeypatch.setattr(stripe, "TRIES", 1)


class Desk:
    """A journal, a ledger, and a sink that is made anew for each attempt, as by a process that begins."""

    def __init__(self, folder, fake, **options):
        self.folder = folder
        self.journal = folder / "journal"
        self.fake = fake
        self.options = options
        self.ledger = LedgerSink(folder / "usage.db")
        self.accounts = LedgerAccounts(self.ledger.ledger)
        self.with_ledger = True
        for customer, external in CUSTOMERS.items():
            CustomerBook(self.ledger.ledger).edit(customer, external_ids={"stripe": external})

    def record(self, *events, ledger=True):
        """Write events to the journal, and to the ledger."""
        with Journal(self.journal) as journal:
            for each in events:
                journal.append(lines.recorded(each.to_json()))
        # The journal keeps what the others have yet to get.
        for name in ("stripe", "ledger"):
            add(JournalFolder(self.journal), name, replay=True)
        if ledger:
            self.catch_up()

    def catch_up(self):
        assert deliver_once(self.journal, self.ledger, replay=True).complete

    def sink(self, **options):
        chosen = {"base_url": self.fake.url, "now": self.fake.clock.now, **self.options, **options}
        sink = StripeSink(KEY, **chosen)
        if self.with_ledger:
            sink.bind(self.accounts)
        return sink

    def deliver(self, *, batch_events=500, **options):
        """One attempt to deliver what waits."""
        sink = self.sink(**options)
        try:
            return deliver_once(self.journal, sink, replay=True, batch_events=batch_events)
        finally:
            sink.close()

    def lose(self, *, taken, requests=None, batch_events=500, **options):
        """An attempt whose last request is answered by nobody, and an outage that outlasts identifiers.

        `requests` go well before (default: one less than `taken`); with nothing taken, the first one fails.
        """
        well = max(0, taken - 1) if requests is None else requests
        last = "error_after" if taken else "error_before"
        session = [None] if self.options.get("api") == "stream" else []
        self.fake.chaos = Chaos(script=[*session, *[None] * well, last, *["unavailable"] * 99])
        before = len(self.fake.counted)
        assert not self.deliver(batch_events=batch_events, **options).complete
        self.fake.chaos = Chaos()
        assert len(self.fake.counted) == before + taken
        self.fake.clock.advance(OUTAGE)

    def waiting(self):
        return {each.id: each.reason for each in quarantined(self.journal, "stripe") if each.state == "waiting"}

    def billed(self):
        """What Stripe bills by customer and meter."""
        sums = {}
        for each in self.fake.counted:
            sums[each.customer, each.meter] = sums.get((each.customer, each.meter), 0) + each.value
        return sums

    def asked(self):
        """How often a summary was asked for."""
        return sum(each.path.endswith("/event_summaries") for each in self.fake.requests)

    def settled(self):
        """Nothing is in flight or refused, and nothing was counted twice."""
        return self.waiting() == {} and self.fake.counted_twice() == [] and self.deliver().complete


@pytest.fixture
def fake():
    with token_fake() as fake:
        yield fake
        assert fake.errors == []


@pytest.fixture
def desk(fake, tmp_path):
    desk = Desk(tmp_path, fake)
    yield desk
    desk.ledger.close()


@pytest.fixture(params=APIS)
def each_api(request, desk):
    desk.options["api"] = request.param
    return desk


def at(second, minutes=0):
    return MINUTE + timedelta(seconds=second, minutes=minutes)


def usage(number, tokens, *, second=None, **fields):
    """An event of the minute."""
    quantities = tokens if isinstance(tokens, Usage) else Usage(input=tokens)
    return make_event(number, time=at(number if second is None else second), usage=quantities, **fields)


ACME = ("cus_acme", TOKEN_BILLING)
GLOBEX = ("cus_globex", TOKEN_BILLING)


# ---- what can be told ----


def test_what_was_not_counted_is_sent(each_api):
    desk = each_api
    desk.record(usage(1, 5), usage(2, 7), usage(3, 11))
    desk.lose(taken=0)

    done = desk.deliver()

    assert (done.sent, done.quarantined, done.complete) == (3, 0, True)
    assert desk.billed() == {ACME: 23} and desk.settled()
    assert desk.asked() == 1


def test_what_was_counted_is_not_sent_again(each_api):
    desk = each_api
    desk.record(usage(1, 5), usage(2, 7), usage(3, 11))
    desk.lose(taken=3, requests=0 if desk.options["api"] == "stream" else 2)
    before = len(desk.fake.counted)

    done = desk.deliver()

    assert (done.complete, len(desk.fake.counted)) == (True, before)
    assert desk.billed() == {ACME: 23} and desk.settled()


@pytest.mark.parametrize("api", ["v1", "v2"])
@pytest.mark.parametrize("taken", [1, 2])
def test_of_single_events_the_rest_is_sent(desk, api, taken):
    desk.options["api"] = api
    desk.record(usage(1, 5), usage(2, 7), usage(3, 11))
    desk.lose(taken=taken)

    desk.deliver()

    assert desk.billed() == {ACME: 23} and desk.settled()
    assert [each.identifier for each in desk.fake.counted] == ["evt_1:input", "evt_2:input", "evt_3:input"]


def test_of_a_stream_the_requests_that_failed_are_sent(desk):
    desk.options["api"] = "stream"
    desk.record(*(usage(number, 1000 + number, second=number % 60) for number in range(250)))
    desk.lose(taken=100, requests=0)

    desk.deliver()

    assert len(desk.fake.counted) == 250
    assert desk.billed() == {ACME: sum(1000 + number for number in range(250))} and desk.settled()


def test_an_event_may_be_there_in_part(desk):
    whole = Usage(input=5, cache_read=7, output=11)
    desk.record(usage(1, whole), usage(2, Usage(input=100, output=13)))
    desk.lose(taken=2)

    desk.deliver()

    assert desk.fake.totals() == {(*ACME, "openai/gpt-5", name): value for name, value in
                                  {"input": 105, "cached_input": 7, "output": 24}.items()}  # fmt: skip
    assert desk.settled()


def test_measures_of_the_same_tokens_may_be_there_in_part(desk):
    desk.fake.add_meter("tokens")
    desk.fake.add_meter("calls")

    def mapping(event):
        yield Measure(key="calls", meter="calls", value=1)
        yield Measure(key="tokens", meter="tokens", value=event.usage.tokens)

    desk.options |= {"mapping": mapping, "in_flight": 1}
    desk.record(usage(1, 5))
    desk.lose(taken=1)

    desk.deliver()

    assert desk.billed() == {("cus_acme", "calls"): 1, ("cus_acme", "tokens"): 5} and desk.settled()


def test_customers_meters_and_minutes_are_judged_one_by_one(desk):
    desk.options["in_flight"] = 1
    desk.record(
        usage(1, 5),
        usage(2, 5, customer="globex"),
        make_event(3, time=at(0, 3), usage=Usage(input=5)),
        usage(4, 5, customer="globex"),
    )
    desk.lose(taken=3)  # acme's lane comes first: 1, 3, then globex's

    desk.deliver()

    assert desk.billed() == {ACME: 10, GLOBEX: 10} and desk.settled()
    assert desk.asked() == 3


def test_within_24_hours_nobody_is_asked(each_api):
    desk = each_api
    desk.record(usage(1, 5), usage(2, 7))
    desk.lose(taken=2, requests=0 if desk.options["api"] == "stream" else 1)
    desk.fake.clock.advance(23 * HOUR - OUTAGE)

    desk.deliver()

    assert desk.billed() == {ACME: 12} and desk.settled()
    assert desk.asked() == 0


# ---- what else happened in that minute ----


def test_what_was_acknowledged_in_that_minute_is_there(desk):
    desk.record(usage(1, 5), usage(2, 7), usage(3, 11, customer="globex"))
    desk.deliver()
    desk.record(usage(4, 13), usage(5, 17))
    desk.lose(taken=1)

    desk.deliver()

    assert desk.billed() == {ACME: 42, GLOBEX: 11} and desk.settled()


def test_what_waits_behind_in_the_journal_is_not_there(desk):
    desk.record(*(usage(number, 1) for number in range(1, 7)))
    desk.lose(taken=2, batch_events=3)

    desk.deliver(batch_events=3)

    assert desk.billed() == {ACME: 6} and desk.settled()


def test_what_comes_into_the_batch_later_is_not_there(desk):
    desk.record(usage(1, 1), usage(2, 1))
    desk.lose(taken=1)
    desk.record(usage(3, 1), usage(4, 1))

    desk.deliver()

    assert desk.billed() == {ACME: 4} and desk.settled()


def test_what_waits_in_quarantine_is_not_there(desk):
    """It goes out by itself when the meter is active again, but only after what is in doubt."""
    desk.fake.archive_meter(TOKEN_BILLING)
    desk.record(usage(1, 1), usage(2, 1))
    desk.deliver()
    desk.fake.add_token_billing_meter()
    desk.record(usage(3, 1), usage(4, 1))
    desk.lose(taken=1)

    desk.deliver()

    assert desk.billed() == {ACME: 4} and desk.settled()
    assert [each.identifier for each in desk.fake.counted] == [f"evt_{number}:input" for number in (3, 4, 1, 2)]


def test_the_part_of_an_event_that_was_taken_is_there_though_another_is_in_quarantine(desk):
    """Two meters, one of them archived: everything's other half is in quarantine."""
    desk.fake.add_meter("calls")
    rules = [
        Rule(key="tokens", meter="tokens", types=("input",)),
        Rule(key="calls", meter="calls"),
    ]
    desk.options["mapping"] = rules
    desk.record(usage(1, 5), usage(2, 5))
    desk.deliver()
    desk.record(usage(3, 5), usage(4, 5))
    desk.options["in_flight"] = 1
    desk.lose(taken=1, requests=2)  # two refusals of tokens, then the first call

    desk.deliver()

    assert desk.billed() == {("cus_acme", "calls"): 4}
    assert desk.fake.counted_twice() == []
    assert len(desk.waiting()) == 4


def test_what_was_released_and_went_out_without_an_answer_may_be_there(desk):
    desk.record(usage(1, Usage(units=64), meter="unmapped"))
    rules = [Rule(key="x", meter="x", source="unmapped"), Rule(key="input", meter=TOKEN_BILLING, types=("input",),
             properties={"model": "m", "token_type": "input"})]  # fmt: skip
    desk.options["mapping"] = [replace(rules[0], meter=TOKEN_BILLING, properties={}), rules[1]]
    desk.deliver()  # refused: dimensions are missing
    assert set(desk.waiting()) == {"evt_1"}
    desk.options["mapping"] = [replace(rules[0], meter=TOKEN_BILLING, properties=rules[1].properties), rules[1]]
    release(desk.journal, "stripe", ids="all")
    desk.fake.chaos = Chaos(script=["error_after"])
    desk.deliver()  # the released event is counted, and nobody says so
    desk.record(usage(2, 1), usage(3, 2))
    desk.lose(taken=1)

    desk.deliver()

    assert desk.billed() == {ACME: 67} and desk.settled()


def test_what_was_sent_a_moment_ago_need_not_show_yet(desk):
    """Two workers' segments: after a restart a batch is cut differently, so what is in doubt comes in two batches."""
    with Journal(desk.journal) as one, Journal(desk.journal) as other:
        one.append(lines.recorded(usage(1, 1).to_json()))
        other.append(lines.recorded(usage(2, 1).to_json()))
        desk.record()
        desk.lose(taken=0)
        for number in range(3, 6):
            one.append(lines.recorded(usage(number, 1).to_json()))
    desk.catch_up()
    desk.fake.summary_lag_seconds = 600

    done = desk.deliver(batch_events=2)

    assert (done.quarantined, done.complete) == (0, True)
    assert desk.billed() == {ACME: 5} and desk.settled()


def test_test_usage_and_what_a_filter_leaves_out_do_not_count(desk):
    desk.options["where"] = lambda event: event.operation != "embeddings"
    desk.record(usage(1, 5), usage(2, 7, mode="test"), usage(3, 11, operation="embeddings"), usage(4, 13))
    desk.lose(taken=1)

    desk.deliver()

    assert desk.billed() == {ACME: 18} and desk.settled()


def test_an_event_that_was_entered_twice_under_one_id_counts_once(each_api):
    desk = each_api
    one = usage(1, 5)
    desk.record(one, one, usage(2, 7))
    desk.lose(taken=1 if desk.options["api"] != "stream" else 2, requests=0)

    desk.deliver()

    assert desk.billed() == {ACME: 12} and desk.settled()


@pytest.mark.parametrize("customers", [dict(CUSTOMERS), "same", lambda event: CUSTOMERS[event.customer]])
def test_customers_may_be_found_in_any_way(desk, customers):
    desk.options["customers"] = customers
    desk.record(usage(1, 5), usage(2, 7, customer="globex"), usage(3, 11))
    desk.options["in_flight"] = 1
    desk.lose(taken=1)

    desk.deliver()

    assert desk.billed() == {ACME: 16, GLOBEX: 7} and desk.settled()


def test_a_failure_after_the_answer_is_asked_about_once_more(desk):
    desk.record(usage(1, Usage(input=5, output=7)), usage(2, Usage(input=11, output=13)))
    for _ in range(3):
        desk.lose(taken=1)

    desk.deliver()

    assert desk.billed() == {ACME: 36} and desk.settled()
    assert desk.asked() == 3


def test_the_same_in_one_process_that_never_ends(desk):
    """The batch is kept in memory, and with it what is left of its events."""
    desk.record(usage(1, Usage(input=5, output=7)), usage(2, Usage(input=11, output=13)))
    sink = desk.sink()
    faults = iter([["error_after"], ["error_after"], [None, "error_after"], []])

    class Failing:
        """The sink, on a line that goes dead after each attempt, with a day of silence in between."""

        name = "stripe"
        remembers_seconds = sink.remembers_seconds
        now = staticmethod(sink.now)
        uncounted = staticmethod(sink.uncounted)
        ready = staticmethod(sink.ready)

        def send(self, events):
            desk.fake.chaos = Chaos(script=[*next(faults), *([] if desk.fake.counted[2:] else ["unavailable"])])
            try:
                sink.send(events)
            finally:
                desk.fake.chaos = Chaos()
                desk.fake.clock.advance(OUTAGE)

    done = deliver_once(desk.journal, Failing(), replay=True, timeout=20)
    sink.close()

    assert done.complete
    assert desk.billed() == {ACME: 36} and desk.fake.counted_twice() == []


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_what_was_counted_before_it_was_refused_is_not_sent_when_it_could_be(desk, api):
    """The answer was lost, then the meter was archived, so the second attempt was refused; days later it is active."""
    desk.options["api"] = api
    desk.record(usage(1, 5), usage(2, 7))
    desk.fake.chaos = Chaos(script=["error_after", "unavailable"])
    desk.deliver()
    desk.fake.chaos = Chaos()
    desk.fake.archive_meter(TOKEN_BILLING)
    desk.deliver()
    waits = desk.waiting()
    desk.fake.clock.advance(2 * DAY)
    desk.fake.add_token_billing_meter()

    desk.deliver()

    assert set(waits) == {"evt_1", "evt_2"}
    assert desk.billed() == {ACME: 12} and desk.settled()


def test_what_is_there_in_part_is_not_sent_as_a_whole_by_the_next_process(desk):
    """The part of it that is missing goes out, without an answer again, and the process is restarted."""
    desk.record(usage(1, Usage(input=5, output=7)), usage(2, 11))
    desk.lose(taken=1)
    desk.fake.chaos = Chaos(script=["error_before"])
    desk.deliver()
    desk.fake.chaos = Chaos()

    desk.deliver()

    assert desk.billed() == {ACME: 23} and desk.settled()


def test_the_part_that_cannot_be_told_is_set_aside_for_the_next_process_too(desk):
    """Of one event a part waits for a human; the batch it came in fails, and is read again by another process."""
    desk.fake.add_meter("calls")
    desk.fake.add_meter("tokens", aggregation="last")
    rules = [Rule(key="calls", meter="calls"), Rule(key="in", meter="tokens", types=("input",))]
    desk.options |= {"mapping": rules, "in_flight": 1}
    desk.record(usage(1, 5))
    desk.lose(taken=2)
    desk.record(usage(2, 7))
    desk.fake.chaos = Chaos(script=["unavailable"])
    failed = desk.deliver()
    desk.fake.chaos = Chaos()

    desk.deliver()

    assert not failed.complete
    assert [each.identifier for each in desk.fake.counted] == ["evt_1:calls", "evt_1:in", "evt_2:calls", "evt_2:in"]
    assert set(desk.waiting()) == {"evt_1"}


# ---- what cannot be told ----


def test_what_fits_nothing_waits_for_a_human(each_api):
    desk = each_api
    desk.record(usage(1, 5), usage(2, 7))
    desk.lose(taken=0)
    somebody_else(desk, 100)

    done = desk.deliver()

    assert (done.quarantined, done.complete) == (2, True)
    assert set(desk.waiting().values()) == {
        "it may have reached Stripe more than 24 hours ago, and would be counted again. In the minute of "
        f"{MINUTE:%Y-%m-%d %H:%M} UTC Stripe has 100 of token-billing-tokens for cus_acme; by the ledger it has 0 "
        "without what is in doubt (5, 7): compare, then release or discard it"
    }
    assert desk.billed() == {ACME: 100}


def somebody_else(desk, tokens):
    """Another program reports to the same meter in that minute."""
    sink = desk.sink(customers=CUSTOMERS)
    sink.send([usage(900, tokens, second=30)])
    sink.close()


def test_a_human_decides_and_that_stands(desk):
    desk.record(usage(1, 5), usage(2, 7), usage(3, 11, customer="globex"))
    desk.options["in_flight"] = 1
    desk.lose(taken=0)
    somebody_else(desk, 100)
    desk.deliver()
    waiting = desk.waiting()

    release(desk.journal, "stripe", ids=["evt_1"])
    discard(desk.journal, "stripe", ids=["evt_2"], reason="it is there")
    desk.fake.clock.advance(2 * DAY)
    desk.deliver()

    assert set(waiting) == {"evt_1", "evt_2"}
    assert desk.billed() == {ACME: 105, GLOBEX: 11} and desk.settled()


def test_usage_of_which_some_cannot_be_told_waits_without_what_is_there(desk):
    """One meter of an event agrees, the other does not: only what is in doubt waits."""
    desk.fake.add_meter("calls")
    rules = [Rule(key="calls", meter="calls"), Rule(key="in", meter="tokens", types=("input",))]
    desk.fake.add_meter("tokens", aggregation="last")
    desk.options |= {"mapping": rules, "in_flight": 1}
    desk.record(usage(1, 5))
    desk.lose(taken=2)

    desk.deliver()
    [entry] = quarantined(desk.journal, "stripe")
    release(desk.journal, "stripe", ids="all")
    desk.deliver()

    assert entry.event["anomalies"] == ["part:in"]
    assert [each.meter for each in desk.fake.counted] == ["calls", "tokens", "tokens"]  # the human said so


def test_without_a_ledger_nobody_can_tell(desk):
    desk.with_ledger = False
    desk.options["customers"] = CUSTOMERS
    desk.record(usage(1, 5), usage(2, 7))
    desk.lose(taken=1)
    before = len(desk.fake.counted)

    done = desk.deliver()

    assert done.quarantined == 2 and len(desk.fake.counted) == before
    assert all("with a ledger beside the sink, that is done by itself" in reason for reason in desk.waiting().values())


def test_without_a_ledger_what_could_never_be_sent_is_refused_for_what_is_wrong_with_it(desk):
    desk.with_ledger = False
    desk.record(usage(1, 5))
    desk.fake.down = True
    desk.options["customers"] = CUSTOMERS
    desk.deliver()
    desk.fake.down = False
    desk.fake.clock.advance(OUTAGE)

    done = desk.deliver(customers={})

    assert done.complete
    assert ["was given no id of Stripe for 'acme'" in reason for reason in desk.waiting().values()] == [True]


def test_a_meter_that_takes_the_last_value_tells_nothing(desk):
    desk.fake.add_meter("seats", aggregation="last")
    desk.options["mapping"] = [Rule(key="seats", meter="seats", types=("input",))]
    desk.record(usage(1, 5))
    desk.lose(taken=1)

    done = desk.deliver()

    assert done.quarantined == 1 and len(desk.fake.counted) == 1


def test_a_meter_that_counts_events_tells_how_many(desk):
    desk.fake.add_meter("calls", aggregation="count")
    desk.options["mapping"] = [Rule(key="calls", meter="calls")]
    desk.record(*(usage(number, number * 10) for number in range(1, 6)))
    desk.lose(taken=3)

    desk.deliver()

    assert len(desk.fake.counted) == 5 and desk.settled()


def test_a_meter_that_counts_events_counts_none_that_was_cancelled(desk):
    desk.fake.add_meter("calls", aggregation="count")
    desk.options["mapping"] = lambda event: [Measure(key="calls", meter="calls", value=7)]
    desk.record(usage(1, 1))
    desk.deliver()
    desk.record(usage(2, 1, corrects="evt_1"))
    desk.deliver()
    desk.record(usage(3, 1), usage(4, 1))
    desk.lose(taken=1)

    desk.deliver()

    assert [each.identifier for each in desk.fake.counted] == [f"evt_{number}:calls" for number in (2, 3, 4)]
    assert desk.settled()


def test_a_clock_that_was_fast_put_events_where_nobody_looks(desk):
    """Stripe has them at its own time then, which is another minute than that of the ledger."""
    early = {"now": VirtualClock(offset_seconds=0).now}
    desk.fake.clock.advance(-1 * HOUR)
    desk.record(usage(1, 5), usage(2, 7))
    desk.fake.chaos = Chaos(script=[None, None, "error_after", "unavailable"])
    desk.deliver(**early)
    before = len(desk.fake.counted)
    desk.fake.chaos = Chaos()
    desk.fake.clock.advance(OUTAGE)
    later = VirtualClock(offset_seconds=OUTAGE)

    done = desk.deliver(now=later.now)

    assert before >= 1 and len(desk.fake.counted) == before
    assert done.quarantined == 2


def test_a_first_attempt_that_is_yet_to_come_is_one_by_a_wrong_clock(desk):
    desk.record(usage(1, 5), usage(2, 7))
    desk.fake.chaos = Chaos(script=["error_after", "unavailable"])
    desk.deliver(now=VirtualClock(offset_seconds=3 * DAY).now)
    desk.fake.chaos = Chaos()

    desk.deliver(now=desk.fake.clock.now)

    assert desk.billed() == {ACME: 12} and desk.settled()
    assert desk.asked() == 1


# ---- when Stripe or the ledger cannot say ----


def test_while_stripe_cannot_be_asked_nothing_is_sent_and_nothing_refused(desk):
    desk.record(usage(1, 5), usage(2, 7))
    desk.lose(taken=1)
    desk.fake.down = True

    done = [desk.deliver(), desk.deliver()]
    desk.fake.down = False
    last = desk.deliver()

    assert [each.complete for each in done] == [False, False] and "503" in done[0].error
    assert last.complete and desk.billed() == {ACME: 12} and desk.settled()


def test_a_key_that_may_not_read_meters_is_told_about(desk, tmp_path):
    class Secretive(Watched):
        def answer(self, request):
            response = super().answer(request)
            return response if request.method == "POST" else response._replace(status=403, body=b"permission")

    desk.record(usage(1, 5))
    with Secretive() as fake:
        fake.add_token_billing_meter()
        desk.fake = fake
        desk.lose(taken=0)

        done = desk.deliver()

    assert not done.complete and "refuses the key (HTTP 403): permission" in done.error
    assert desk.waiting() == {} and fake.counted == []


def test_the_ledger_has_to_record_first_what_is_in_doubt(desk):
    """Both were unreachable: what else the ledger lacks would be missing in every sum."""
    desk.record(usage(1, 1), ledger=False)
    desk.deliver()
    desk.record(usage(2, 1), ledger=False)
    desk.lose(taken=0)

    behind = desk.deliver()
    desk.catch_up()
    after = desk.deliver()

    assert not behind.complete and "the ledger has to record first" in behind.error
    assert after.complete and desk.billed() == {ACME: 2} and desk.settled()


def test_a_ledger_that_never_gets_it_is_not_waited_for_for_ever(desk, monkeypatch):
    monkeypatch.setattr("token_meter.sinks.stripe_counted.LEDGER_SECONDS_MAX", 0.0)
    desk.record(usage(1, 5), ledger=False)
    desk.lose(taken=1)

    done = desk.deliver()

    assert done.quarantined == 1 and "The ledger does not have it" in desk.waiting()["evt_1"]


def test_of_an_archived_meter_one_can_still_tell_what_is_there(desk):
    desk.record(usage(1, 5), usage(2, 7))
    desk.lose(taken=1)
    desk.fake.archive_meter(TOKEN_BILLING)

    desk.deliver()
    waits = desk.waiting()
    desk.fake.add_token_billing_meter()
    release(desk.journal, "stripe", ids="all")
    desk.deliver()

    assert list(waits) == ["evt_2"] and "No active meter" in waits["evt_2"]
    assert desk.billed() == {ACME: 12} and desk.settled()


def test_what_stripe_never_knew_holds_up_nothing(desk):
    """A meter that was never made, a customer that was never there."""
    rules = [
        Rule(key="x", meter="never", source="other"),
        Rule(key="in", meter=TOKEN_BILLING, types=("input",), properties={"model": "m", "token_type": "input"}),
    ]
    desk.options |= {"mapping": rules, "customers": {**CUSTOMERS, "ghost": "cus_ghost"}, "in_flight": 1}
    desk.record(usage(1, Usage(units=3), meter="other"), usage(2, 5, customer="ghost"), usage(3, 7), usage(4, 11))
    desk.fake.down = True
    desk.deliver()
    desk.fake.down = False
    desk.fake.clock.advance(OUTAGE)

    done = desk.deliver()

    assert done.complete and set(desk.waiting()) == {"evt_1", "evt_2"}
    assert desk.billed() == {ACME: 18} and desk.fake.counted_twice() == []


# ---- a ledger that several hosts share ----


class Shared(LedgerAccounts):
    """What others recorded may wait in a journal that is not here."""

    shared = True


def test_what_another_host_reports_may_or_may_not_be_there(desk):
    desk.accounts = Shared(desk.ledger.ledger)
    theirs = [usage(50, 64), usage(51, 128)]
    desk.ledger.send(theirs)
    elsewhere = desk.sink()
    elsewhere.send(theirs[:1])
    elsewhere.close()
    desk.record(usage(1, 1), usage(2, 2), usage(3, 4))
    desk.lose(taken=2)

    desk.deliver()

    assert desk.billed() == {ACME: 64 + 7} and desk.settled()


def test_what_another_host_may_have_sent_makes_equal_sums_ambiguous(desk):
    desk.accounts = Shared(desk.ledger.ledger)
    desk.ledger.send([usage(50, 1), usage(51, 1)])  # not sent by anybody
    desk.record(usage(1, 1), usage(2, 1))
    desk.lose(taken=2)
    before = len(desk.fake.counted)

    done = desk.deliver()

    assert done.quarantined == 2 and len(desk.fake.counted) == before
    assert "by the ledger it has 0 to 2 without what is in doubt (1, 1)" in desk.waiting()["evt_1"]


def test_nothing_and_everything_can_be_told_whatever_others_sent(desk):
    desk.accounts = Shared(desk.ledger.ledger)
    desk.ledger.send([usage(50, 1)])
    desk.record(usage(1, 1), usage(2, 1))
    desk.lose(taken=0)

    desk.deliver()

    assert desk.billed() == {ACME: 2} and desk.settled()


# ---- when somebody loses track ----


@pytest.mark.parametrize("how", ["the cursor is lost", "the cursor is damaged", "it is forgotten and replayed"])
def test_a_sink_that_begins_again_counts_nothing_twice(each_api, how):
    desk = each_api
    desk.record(usage(1, 5), usage(2, 7))
    # Another sink is behind, so that the journal keeps everything.
    deliver_once(desk.journal, Lazy(), replay=True)
    desk.deliver()
    desk.record(usage(3, 11))
    desk.deliver()
    desk.record(usage(4, 13))
    desk.fake.clock.advance(OUTAGE)
    cursor = desk.journal / "cursors" / "stripe.json"
    if how == "the cursor is lost":
        cursor.unlink()
    elif how == "the cursor is damaged":
        cursor.write_text("{")
    else:
        forget(desk.journal, "stripe")

    done = desk.deliver(batch_events=2)

    assert done.complete and done.quarantined == 0
    assert desk.billed() == {ACME: 36} and desk.settled()


class Lazy:
    """Takes nothing."""

    name = "lazy"

    def send(self, events):
        raise OSError("not today")


def test_a_sink_that_is_replayed_for_the_first_time_asks_nobody(desk):
    desk.record(usage(1, 5), usage(2, 7))
    desk.fake.clock.advance(OUTAGE)

    desk.deliver()

    assert desk.billed() == {ACME: 12} and desk.asked() == 0


def test_a_folder_that_is_copied_while_it_is_away_counts_nothing_twice(desk, tmp_path):
    """A backup from before the answer came, played back days later."""
    desk.record(usage(1, 5), usage(2, 7))
    desk.lose(taken=0)
    shutil.copytree(desk.journal, tmp_path / "backup")
    desk.deliver()
    desk.fake.clock.advance(2 * DAY)
    shutil.rmtree(desk.journal)
    shutil.copytree(tmp_path / "backup", desk.journal)

    desk.deliver()

    assert desk.billed() == {ACME: 12} and desk.settled()


# ---- killed in between ----

CHILD = """
import sys, time
from pathlib import Path
from token_meter import Meter
from token_meter.sinks import LedgerSink, StripeSink
from token_meter.testing.backends import VirtualClock
from tests.sinks.stripe_kit import CUSTOMERS, KEY, spend

folder, url, api, offset, record = sys.argv[1:]
clock = VirtualClock(offset_seconds=float(offset))
meter = Meter(
    LedgerSink(Path(folder) / "usage.db"),
    StripeSink(KEY, api=api, base_url=url, now=clock.now),
    journal=Path(folder) / "journal",
)
for customer, external in CUSTOMERS.items():
    meter.customers.edit(customer, external_ids={"stripe": external})
for tokens in map(int, record.split(",") if record else []):
    spend(meter, tokens)
meter.ledger
print("ready", flush=True)
meter.flush(10)
print("done", meter.health().to_json()["deliveries"][1]["quarantined"], flush=True)
meter.close()
"""


def child(folder, fake, api, *, record=""):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(CHILD), folder, fake.url, api,
         str(fake.clock.offset_seconds), record],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("api", ["v2", "stream"])
def test_a_process_that_is_killed_while_it_waits_for_an_answer(fake, tmp_path, api):
    """Stripe has counted the first events, the process is killed, and the next one begins a day later."""
    fake.chaos = Chaos(script=[None, "hang_after"] if api == "stream" else [None, None, "hang_after"], hang_seconds=30)
    with child(tmp_path, fake, api, record="5,7,11,13,17") as first:
        deadline = time.monotonic() + 20
        while len(fake.counted) < (1 if api == "stream" else 3) and time.monotonic() < deadline:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    before = len(fake.counted)
    fake.chaos = Chaos()
    fake.clock.advance(OUTAGE)

    with child(tmp_path, fake, api) as second:
        said = second.stdout.read().split()

    assert first.returncode == -signal.SIGKILL and 1 <= before <= 5
    assert (second.returncode, said) == (0, ["ready", "done", "0"])
    assert sum(each.value for each in fake.counted) == 53
    assert fake.counted_twice() == []
