"""What a running Meter tells: callbacks, and notices of its own."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests.notices.test_webhooks import receiver  # noqa: F401 - a fixture
from token_meter import Meter, Retry, Usage
from token_meter.bookkeeping.plan_files import read_period
from token_meter.budgets.policy import CreditPolicy
from token_meter.budgets.rows import make_counters
from token_meter.errors import NoLedger, Rejected
from token_meter.notices.desk import NoticeDesk
from token_meter.sinks import MemorySink


class Heard(list):
    def __init__(self):
        self.changed = threading.Condition()

    def __call__(self, notice):
        with self.changed:
            self.append(notice)
            self.changed.notify_all()

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self) >= count, 20), list(self)


@pytest.fixture
def meter(tmp_path):
    with Meter(tmp_path / "usage.db") as made:
        yield made


def use(meter, customer="acme", **more):
    meter.record(Usage(input=1_000_000), model="gpt-4o-mini", provider="openai", customer=customer, operation="chat",
                 **more)  # fmt: skip


def test_a_callback_hears_what_is_new_and_wanted_once(meter):
    use(meter, customer=None)
    meter.flush()
    heard, everything = Heard(), Heard()
    meter.on_notice(heard, "budget.*")
    meter.on_notice(everything)
    meter.budget("acme", "0.1", enforce="soft")
    with meter.ledger.writing() as (store, connection):
        [budget] = meter.budgets.list()
        span = budget.window.span(time.time_ns() // 1000, budget.zone)
        make_counters(store, connection, [((budget.id, '["acme"]', span.start), 0)])

    use(meter)
    meter.flush()

    heard.wait(3)
    assert [(each["kind"], each["document"]["percent"]) for each in heard] == [
        ("budget.threshold", 50), ("budget.threshold", 80), ("budget.threshold", 100),
    ]  # fmt: skip
    everything.wait(3)
    assert "events.unattributed" not in {each["kind"] for each in everything}  # that was before


def test_a_callback_that_fails_is_counted_and_the_next_notice_comes(meter):
    heard = Heard()

    def fails(notice):
        heard(notice)
        raise RuntimeError("oh")

    meter.on_notice(fails)
    desk = NoticeDesk(meter.ledger)
    desk.test()
    desk.test()

    heard.wait(2)
    deadline = time.monotonic() + 10
    while meter.health().problems.get("a callback for notices", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert meter.health().problems["a callback for notices"] == 2


def test_what_is_new_when_the_meter_closes_is_told(tmp_path):
    heard = Heard()
    with Meter(tmp_path / "usage.db") as meter:
        meter.on_notice(heard)
        NoticeDesk(meter.ledger).test()

    assert [each["kind"] for each in heard] == ["notice.test"]


def test_without_a_ledger_there_are_no_notices(tmp_path):
    with Meter(MemorySink(), journal=tmp_path / "journal") as meter, pytest.raises(NoLedger):
        meter.on_notice(print)


def test_a_meter_posts_to_the_endpoints_of_its_ledger(meter, receiver):  # noqa: F811
    _, receiver.secret = NoticeDesk(meter.ledger).add(receiver.url, private=True)
    meter._telling._look_at = 0.0
    use(meter, customer=None)

    deadline = time.monotonic() + 20
    while not receiver.bodies and time.monotonic() < deadline:
        time.sleep(0.02)

    assert [body["type"] for body in receiver.bodies] == ["events.unattributed"] and receiver.wrong == []


def test_usage_without_a_customer_is_told_once_a_day(meter):
    for _ in range(3):
        use(meter, customer=None)
        meter.flush()

    [told] = NoticeDesk(meter.ledger).list(kind="events.unattributed")
    assert "meter.customer(...)" in told["document"]["what_now"]


def test_credit_is_told_to_be_low_and_used_up_with_what_happens_then(meter):
    meter.credit("acme", "1")
    meter.budgets.policy("acme", CreditPolicy.read({"policy": "block", "low": "0.9"}))
    for _ in range(8):
        use(meter)
        meter.flush()

    desk = NoticeDesk(meter.ledger)
    [low], [depleted] = desk.list(kind="credit.low"), desk.list(kind="credit.depleted")
    assert (low["document"]["balance"], low["document"]["low"]) == ("0.85", "0.9")
    assert depleted["document"]["policy"] == "block"
    assert "token-meter credits policy acme overage" in depleted["document"]["what_now"]

    meter.credit("acme", "0.1")
    use(meter)
    meter.flush()
    assert len(desk.list(kind="credit.depleted")) == 2


def test_a_final_invoice_is_told(meter):
    last_month = (datetime.now(UTC).replace(day=1) - timedelta(days=3)).replace(microsecond=0)
    use(meter, time=last_month)
    meter.flush()

    made = meter.invoices.finalise("acme", read_period(f"{last_month:%Y-%m}"))

    [told] = NoticeDesk(meter.ledger).list(kind="invoice.finalized")
    assert (told["document"]["number"], told["customer"]) == (made.number, "acme")
    assert Decimal(told["document"]["due_amount"]) == Decimal("0.15")


def test_sinks_that_fail_and_refuse_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("token_meter.telling.FAILING_SECONDS", 0.0)

    class Down:
        name = "down"

        def send(self, events):
            raise Retry("no")

    class Picky:
        name = "picky"

        def send(self, events):
            raise Rejected(events, "not these")

    with Meter(tmp_path / "usage.db", Down(), Picky()) as meter:
        use(meter)
        meter.flush(3)
        time.sleep(0.01)
        for _ in range(2):
            meter._telling._look_at = 0.0
            meter._telling.tend()
        desk = NoticeDesk(meter.ledger)

        assert {each["document"]["sink"] for each in desk.list(kind="sink.failing")} == {"down"}
        [refused] = desk.list(kind="events.quarantined")
        assert (refused["document"]["sink"], refused["document"]["quarantined"]) == ("picky", 1)


def test_a_forked_child_tells_its_own_callbacks(meter, tmp_path):
    heard = Heard()
    meter.on_notice(heard)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)

    NoticeDesk(meter.ledger).test()

    heard.wait(1)
