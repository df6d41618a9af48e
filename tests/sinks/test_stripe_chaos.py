"""Everything at once and in any order: outages, lost answers, restarts, days that pass, refusals, repeats, corrections.

Whatever happens, at the end each record of the ledger is at Stripe once, or waits in quarantine with its reason; and
nothing is there twice.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sinks.stripe_kit import CUSTOMERS, HOUR, KEY, token_fake
from token_meter import lines
from token_meter.accounts.book import CustomerBook
from token_meter.accounts.directory import LedgerAccounts
from token_meter.deliver import deliver_once, quarantined
from token_meter.folder import JournalFolder
from token_meter.journal import Journal
from token_meter.registry import add
from token_meter.sinks import LedgerSink, StripeSink, stripe
from token_meter.sinks.records import whole_of
from token_meter.sinks.stripe import TOKEN_BILLING
from token_meter.testing.backends import Chaos
from token_meter.testing.builders import make_event
from token_meter.usage import Usage

NAMES = ("acme", "globex", "initech")
EXTERNAL = {**CUSTOMERS, "initech": "cus_initech"}
UNCLEAR = "it may have reached Stripe"


@pytest.fixture(scope="module")
def template():
    """An empty ledger that knows two customers: making one for each example would take most of the time."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = LedgerSink(Path(folder) / "usage.db")
        for customer, external in CUSTOMERS.items():
            CustomerBook(ledger.ledger).edit(customer, external_ids={"stripe": external})
        ledger.close()
        yield Path(folder) / "usage.db"


class World:
    """One journal, one ledger, one Stripe, and a sink that is lost now and then."""

    def __init__(self, template, folder, api):
        shutil.copy(template, folder / "usage.db")
        self.journal = folder / "journal"
        self.ledger = LedgerSink(folder / "usage.db")
        self.accounts = LedgerAccounts(self.ledger.ledger)
        self.api = api
        self.fake = token_fake(customers=EXTERNAL.values()).start()
        self.events = []
        self.sink = None
        self.restart()
        with Journal(self.journal):
            pass
        for name in ("stripe", "ledger"):
            add(JournalFolder(self.journal), name, replay=True)

    # ---- what happens ----

    def restart(self):
        """The process is gone, and another one begins."""
        if self.sink is not None:
            self.sink.close()
        self.sink = StripeSink(KEY, api=self.api, base_url=self.fake.url, now=self.fake.clock.now, in_flight=2)
        self.sink.bind(self.accounts)

    def record(self, tokens, name, *, corrects=None):
        """Small numbers that are easily taken for one another, in the same minute as much else."""
        moment = self.fake.clock.moment().replace(second=0, microsecond=0)
        number = len(self.events) + 1
        time = moment + timedelta(microseconds=number)
        self.events.append(make_event(number, time=time, customer=name, usage=tokens, corrects=corrects))
        self.write(self.events[-1])

    def correct(self, place, name):
        """An event that takes an earlier one back, which nobody has corrected yet."""
        corrected = {each.corrects for each in self.events}
        if open_ := [each.id for each in self.events if each.id not in corrected]:
            self.record(Usage(input=2), name, corrects=open_[place % len(open_)])

    def again(self, place):
        """The same is entered once more, at another time. (Only the ledger can tell, so it must have it.)"""
        if self.events:
            self.catch_up()
            self.write(replace(self.events[place % len(self.events)], time=self.fake.clock.moment()))

    def write(self, one):
        with Journal(self.journal) as journal:
            journal.append(lines.recorded(one.to_json()))

    def catch_up(self):
        assert deliver_once(self.journal, self.ledger).complete

    def deliver(self, batch_events=500):
        return deliver_once(self.journal, self.sink, batch_events=batch_events)

    def trouble(self, seed, level):
        faults = ("error_before", "error_after", "reset_before", "reset_after", "unavailable", "throttled")
        self.fake.chaos = Chaos(seed=seed, **dict.fromkeys(faults, level / 60))

    def hours(self, hours):
        self.fake.clock.advance(hours * HOUR)

    def archive(self):
        if TOKEN_BILLING in {
            meter.event_name for meter in self.fake._account.meters.values() if not meter.deactivated_at
        }:
            self.fake.archive_meter(TOKEN_BILLING)
        else:
            self.fake.add_token_billing_meter()

    def know(self):
        CustomerBook(self.ledger.ledger).edit("initech", external_ids={"stripe": "cus_initech"})

    # ---- and how it ends ----

    def heal(self):
        """Everything works again, for as long as it takes."""
        self.fake.chaos = Chaos()
        self.fake.down = False
        if not any(meter.deactivated_at is None for meter in self.fake._account.meters.values()):
            self.fake.add_token_billing_meter()
        self.know()
        self.catch_up()
        for attempt in range(12):
            self.restart()
            done = self.deliver()
            self.hours(0.3 if attempt < 6 else 100)  # corrections are tried again after a while
            if done.complete and self.only_unclear():
                return
        raise AssertionError([(each.state, each.reason) for each in quarantined(self.journal, "stripe")])

    def only_unclear(self):
        """Whether nothing waits but what cannot be told, and what takes back some of that."""
        there = [each for each in quarantined(self.journal, "stripe") if each.state in ("waiting", "released")]
        unclear = {each.id for each in there if UNCLEAR in each.reason}
        rest = [each for each in there if each.id not in unclear]
        return all(each.state == "waiting" and each.event.get("corrects") in unclear for each in rest)

    def set_aside(self):
        """The records that wait for a human."""
        waiting = [each for each in quarantined(self.journal, "stripe") if each.state == "waiting"]
        parts = [type(self.events[0]).from_json(each.event) for each in waiting]
        return {record.identifier for record in self.sink.records(parts)[0]}

    def check(self, *, unclear_allowed=True):
        recorded = {each.id for each in self.ledger.ledger.iter_events()}
        assert recorded == {each.id for each in self.events}
        wanted, refused = self.sink.records(self.ledger.ledger.iter_events())
        assert refused == []
        aside = self.set_aside()
        assert unclear_allowed or not aside
        there = [each.identifier for each in self.fake.counted]
        assert sorted(set(there)) == sorted(there), "counted twice"
        back = {record.reverses for record in wanted if record.reverses is not None}
        for record in wanted:
            if record.reverses is None and record.identifier not in back | aside:
                [counted] = [each for each in self.fake.counted if each.identifier == record.identifier]
                assert (counted.value, counted.customer) == (record.value, record.customer)
        assert set(there) <= {record.identifier for record in wanted}
        if not aside:
            sums = {}
            for record in wanted:
                sums[record.customer] = sums.get(record.customer, 0) + record.value
            counted = dict.fromkeys(sums, 0)
            for each in self.fake.counted:
                counted[each.customer] += each.value
            assert counted == sums
        assert all(whole_of(each)[1] is None for each in self.ledger.ledger.iter_events())

    def close(self):
        self.sink.close()
        self.ledger.close()
        self.fake.stop()
        assert self.fake.errors == []


NUMBERS = st.integers(min_value=0, max_value=40)
USAGES = st.sampled_from(
    [Usage(input=1), Usage(input=1), Usage(input=2), Usage(input=1, output=1), Usage(input=3, cache_read=1, output=2)]
)
RECORD = st.tuples(st.just("record"), USAGES, st.sampled_from(NAMES))
STEPS = [
    RECORD,
    RECORD,
    st.tuples(st.just("again"), NUMBERS),
    st.tuples(st.just("deliver"), st.integers(min_value=1, max_value=6)),
    st.tuples(st.just("deliver"), st.just(500)),
    st.tuples(st.just("trouble"), NUMBERS, st.sampled_from([0, 2, 5, 9])),
    st.tuples(st.just("restart")),
    st.tuples(st.just("catch_up")),
    st.tuples(st.just("archive")),
    st.tuples(st.just("know")),
]
DAYS = st.tuples(st.just("hours"), st.sampled_from([1, 12, 23, 25, 49]))
CORRECT = st.tuples(st.just("correct"), NUMBERS, st.sampled_from(NAMES))
QUICK = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stripe, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(stripe, "TRIES", 2)
    monkeypatch.setattr("token_meter.accounts.directory.FRESH_SECONDS", 0.0)


def without_refusals(steps, api):
    """A stream refuses nothing at once; what its reports do not say is tested in test_stripe_reports."""
    return [("know",), *(step for step in steps if step[0] != "archive")] if api == "stream" else steps


def played(template, api, steps, **check):
    with tempfile.TemporaryDirectory() as folder:
        world = World(template, Path(folder), api)
        try:
            for name, *arguments in steps:
                getattr(world, name)(*arguments)
            world.heal()
            world.check(**check)
        finally:
            world.close()


@pytest.mark.parametrize("api", ["v1", "v2", "stream"])
@given(steps=st.lists(st.one_of(*STEPS, DAYS, DAYS), min_size=4, max_size=25))
@QUICK
def test_days_pass_and_nothing_counts_twice_or_is_lost(template, api, steps):
    played(template, api, without_refusals(steps, api))


@pytest.mark.parametrize("api", ["v2", "stream"])
@given(steps=st.lists(st.one_of(*STEPS, CORRECT, CORRECT), min_size=4, max_size=25))
@QUICK
def test_corrections_in_any_order_come_to_what_the_ledger_says(template, api, steps):
    played(template, api, without_refusals(steps, api), unclear_allowed=False)


@pytest.mark.parametrize("api", ["v2", "stream"])
@given(steps=st.lists(st.one_of(*STEPS, DAYS, CORRECT), min_size=4, max_size=30))
@QUICK
def test_corrections_while_days_pass(template, api, steps):
    played(template, api, without_refusals(steps, api))
