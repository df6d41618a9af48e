"""The price desk: what a sync does to a ledger, what waits and is decided, and what it means to whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.prices.kit import HOUR, NOW, always, batch, book_of, feed_of, from_day, model, provider, tiers
from token_meter.bookkeeping.notice_rows import read_notices
from token_meter.bookkeeping.price_desk import PriceDesk, Synced
from token_meter.bookkeeping.price_impact import Effect
from token_meter.bookkeeping.price_rows import read_rows
from token_meter.bookkeeping.rater import LedgerRater
from token_meter.errors import InvalidPrices
from token_meter.event import MeterEvent
from token_meter.ledger import Ledger
from token_meter.ledger.tables import prices as prices_table
from token_meter.ledger.tables import reratings
from token_meter.prices import PriceBook
from token_meter.prices.feeds import Fetched
from token_meter.prices.stated import SecondKey, SecondSource
from token_meter.testing.builders import make_event
from token_meter.usage import Usage

PRICES = {"input_mtok": "2", "cache_read_mtok": "1", "output_mtok": "8"}
BOOK = book_of(provider("openai", model("gpt-5", PRICES)))


class Office:
    """A ledger with a price desk, at a time that does not pass."""

    def __init__(self, path: Path, book: PriceBook = BOOK) -> None:
        rater = LedgerRater(book)
        self.ledger = Ledger(path, rater=rater)
        self.desk = PriceDesk(self.ledger, rater, now=NOW.timestamp)

    def cost(self, **filters: Any) -> Decimal:
        """What everything costs."""
        return sum((row.cost for row in self.ledger.costs(by=("customer",), **filters)), Decimal(0))

    def rows(self) -> int:
        """How many rows were ever recorded."""
        with self.ledger.reading() as (_, connection):
            return connection.execute(select(func.count()).select_from(prices_table)).scalar_one()

    def statuses(self) -> dict[str, str]:
        """What became of each price."""
        with self.ledger.reading() as (_, connection):
            return {f"{row.model} {row.token_type} {row.amount}": row.status for row in read_rows(connection)}

    def reasons(self) -> list[str]:
        """Why events were rated again."""
        with self.ledger.reading() as (_, connection):
            return list(connection.execute(select(reratings.c.reason)).scalars())


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with opened(tmp_path / "usage.db") as office:
        yield office


@contextmanager
def opened(path: Path, book: PriceBook = BOOK) -> Iterator[Office]:
    office = Office(path, book)
    try:
        yield office
    finally:
        office.ledger.close()


def call(number: int, *, ago: timedelta = timedelta(minutes=5), **fields: Any) -> MeterEvent:
    """A call of gpt-5 a moment before NOW."""
    usage = {"input": 1_000_000, "output": 1_000_000}
    return make_event(
        number, **{"time": NOW - ago, "model": "gpt-5", "model_requested": None, "usage": Usage(usage)} | fields
    )


def fetched(*variants: Mapping[str, Any], etag: str | None = None, also: Sequence[Any] = (), **prices: Any) -> Fetched:
    """A feed that states other prices of the one model."""
    feed = feed_of(provider("openai", model("gpt-5", PRICES | prices, *variants), *also))
    return Fetched(feed, "feed.json", "2", etag)


def told(effects: Sequence[Effect]) -> list[tuple[Any, ...]]:
    return [
        (
            each.change.kind, each.change.price.status, f"{each.change.price.model} {each.change.price.token_type}",
            each.change.old_amount, each.change.new_amount, each.customers, each.quantity, each.impact,
        )
        for each in effects
    ]  # fmt: skip


def test_a_likely_change_holds_and_what_happened_since_is_rated_again(office: Office) -> None:
    office.ledger.record([call(1), call(2, ago=timedelta(hours=2), customer="globex")])
    before = office.cost()

    done = office.desk.sync(fetched(output_mtok="5"))

    assert (done.source, done.version, done.agreed, done.rated, done.waiting) == ("feed.json", "2", 2, 1, [])
    assert told(done.effects) == [
        ("changed", "active", "gpt-5 output", 8, 5, ("acme", "globex"), 2_000_000, Decimal(-6)),
    ]
    assert (before, office.cost(), office.cost(customer="globex")) == (20, 17, 10)
    assert office.reasons() == ["prices from feed.json 2"]


def test_a_change_with_a_date_holds_from_its_date(office: Office) -> None:
    office.ledger.record([call(1), call(2, ago=timedelta(days=2)), call(3, ago=timedelta(days=4))])
    dated = [always(**PRICES), from_day("2026-11-18", **PRICES | {"output_mtok": "5"})]

    done = office.desk.sync(Fetched(feed_of(provider("openai", model("gpt-5", dated))), "feed.json", "2"))

    assert (done.rated, office.cost()) == (2, 24)


def test_what_waited_for_a_price_gets_it_whenever_it_happened(office: Office) -> None:
    new = model("gpt-9", {"input_mtok": "1", "output_mtok": "2"})
    office.ledger.record([call(1, model="gpt-9", ago=timedelta(days=400)), call(2)])
    assert (office.ledger.pending(), office.cost()) == (1, 10)

    done = office.desk.sync(fetched(also=[new]))

    assert (done.rated, office.ledger.pending(), office.cost()) == (1, 0, 13)
    assert [each.impact for each in done.effects] == [None, None]


def test_an_unlikely_change_waits_until_it_is_accepted(office: Office) -> None:
    office.ledger.record([call(1)])

    done = office.desk.sync(fetched(output_mtok="12"))
    waiting, before = office.desk.held(), office.cost()
    accepted = office.desk.accept(waiting[0].change.price.id)

    expected = ("changed", "held", "gpt-5 output", 8, 12, ("acme",), 1_000_000, Decimal(4))
    assert told(done.effects) == told(waiting) == [expected]
    assert [each.change.why for each in waiting] == ["it rises by a factor of 1.5, and only one source says so"]
    assert done.waiting == list(done.effects)
    assert told([accepted]) == [("changed", "active", *expected[2:])]
    assert (before, office.cost(), office.desk.held()) == (10, 14, [])
    assert office.reasons() == ["prices from feed.json 2", f"price {accepted.change.price.id} accepted by hand"]


@pytest.mark.parametrize("decide", ["accept", "reject"])
def test_while_a_rise_waits_costs_are_provisional(office: Office, decide: str) -> None:
    office.ledger.record([call(1), call(2, ago=timedelta(days=2))])

    office.desk.sync(fetched(output_mtok="12", input_mtok="1"))
    office.ledger.record([call(3)])
    waiting = office.desk.held()

    (row,) = office.ledger.costs(by=())
    assert (dict(row.provisional), row.cost) == ({"output": 2_000_000}, 28)
    getattr(office.desk, decide)(waiting[0].change.price.id)
    (row,) = office.ledger.costs(by=())
    assert (dict(row.provisional), row.cost) == ({}, 36 if decide == "accept" else 28)


def test_what_the_feed_no_longer_states_waits_no_more(office: Office) -> None:
    office.ledger.record([call(1)])
    office.desk.sync(fetched(output_mtok="40"))

    done = office.desk.sync(fetched(output_mtok="8"))

    assert ([row.amount for row in done.superseded], office.desk.held()) == ([40], [])
    (row,) = office.ledger.costs(by=())
    assert (dict(row.provisional), row.cost) == ({}, 10)
    assert office.desk.sync(fetched(output_mtok="8")).superseded == ()


def test_accepting_is_noticed_like_a_change(office: Office) -> None:
    office.ledger.record([call(1)])
    office.desk.sync(fetched(output_mtok="12"))
    office.desk.accept(office.desk.held()[0].change.price.id)

    with office.ledger.reading() as (_, connection):
        found = read_notices(connection)
    assert [(each["kind"], each["document"]["verdict"]) for each in found] == [
        ("price.changed", "held"),
        ("price.changed", "active"),
    ]


def test_a_price_that_was_seen_late_is_accepted_from_its_true_date(office: Office) -> None:
    office.ledger.record([call(1, ago=timedelta(days=2)), call(2, ago=timedelta(days=4))])
    office.desk.sync(fetched(output_mtok="12"))
    id = office.desk.held()[0].change.price.id

    accepted = office.desk.accept(id, effective_from=NOW - timedelta(days=3))

    assert accepted.change.effective_from == NOW - timedelta(days=3)
    assert (office.cost(), office.desk.held()) == (24, [])
    assert office.statuses() == {"gpt-5 output 12": "active"}
    assert office.desk.sync(fetched(output_mtok="12")).effects == ()
    with pytest.raises(InvalidPrices, match="has this date already"):
        office.desk.accept(accepted.change.price.id, effective_from=NOW - timedelta(days=3))


def test_a_price_of_the_shipped_book_can_be_rejected_and_taken_back(office: Office) -> None:
    office.ledger.record([call(1)])
    shipped = next(each for each in office.desk.book.model("openai", "gpt-5").prices if each.token_type == "output")

    rejected = office.desk.reject(shipped.id)

    assert (rejected.change.price.status, rejected.change.old_amount) == ("rejected", None)
    assert (office.ledger.pending(), office.cost()) == (1, 2)
    office.desk.accept(shipped.id)
    assert (office.ledger.pending(), office.cost()) == (0, 10)


def test_a_rejected_change_is_not_proposed_again(office: Office) -> None:
    office.desk.sync(fetched(output_mtok="12"))
    rejected = office.desk.reject(office.desk.held()[0].change.price.id)

    again = office.desk.sync(fetched(output_mtok="12"))

    assert rejected.change.price.status == "rejected"
    assert [(each.change.standing, each.change.verdict, each.change.why) for each in again.effects] == [
        (True, "refused", "rejected by hand")
    ]
    assert (office.desk.held(), again.waiting, office.rows()) == ([], [], 2)


def test_rejecting_what_held_already_brings_the_old_price_back(office: Office) -> None:
    office.ledger.record([call(1)])
    done = office.desk.sync(fetched(output_mtok="5"))
    between = office.cost()

    rejected = office.desk.reject(done.effects[0].change.price.id)

    assert (between, office.cost()) == (7, 10)
    assert (rejected.change.old_amount, rejected.change.new_amount) == (8, 5)
    assert office.statuses() == {"gpt-5 output 5": "rejected"}


def test_rejecting_the_only_price_leaves_the_usage_unpriced(office: Office) -> None:
    office.ledger.record([call(1, model="gpt-9")])
    done = office.desk.sync(fetched(also=[model("gpt-9", {"input_mtok": "1", "output_mtok": "2"})]))
    assert (office.ledger.pending(), office.cost()) == (0, 3)

    office.desk.reject(done.effects[0].change.price.id)

    assert (office.ledger.pending(), office.cost()) == (1, 2)


def test_what_is_beyond_a_factor_of_ten_is_taken_only_when_confirmed(office: Office) -> None:
    office.ledger.record([call(1)])

    refused = office.desk.sync(fetched(output_mtok="100"))
    before = office.cost()
    confirmed = office.desk.sync(fetched(output_mtok="100"), confirm=True)

    assert [(each.change.verdict, each.change.price.status) for each in refused.effects] == [("refused", "rejected")]
    assert refused.waiting == list(refused.effects)
    assert [(each.change.verdict, each.change.price.status) for each in confirmed.effects] == [("active", "active")]
    assert confirmed.effects[0].change.price.evidence == "first seen; confirmed by hand: it rises by a factor of 12.5"
    assert (before, office.cost(), office.rows()) == (10, 102, 2)


def test_confirming_does_not_undo_what_a_human_rejected(office: Office) -> None:
    office.desk.sync(fetched(output_mtok="12"))
    office.desk.reject(office.desk.held()[0].change.price.id)

    office.desk.sync(fetched(output_mtok="12"), confirm=True)

    assert office.statuses() == {"gpt-5 output 12": "rejected"}


def test_confirming_does_not_accept_what_waits(office: Office) -> None:
    office.desk.sync(fetched(output_mtok="12"), confirm=True)

    assert office.statuses() == {"gpt-5 output 12": "held"}


def test_a_second_source_that_agrees_lets_a_rise_happen(office: Office) -> None:
    second = SecondSource("the other", {SecondKey("openai", "gpt-5", "output", (), None): Decimal(12)})

    office.desk.sync(fetched(output_mtok="12"), second=second)

    assert office.statuses() == {"gpt-5 output 12": "active"}


def test_a_sync_that_finds_nothing_records_that_it_looked(office: Office) -> None:
    assert office.desk.checked() is None

    done = office.desk.sync(fetched())
    unchanged = office.desk.sync(Fetched(None, "feed.json", "tag", "tag", unchanged=True))

    assert done == Synced("feed.json", "2", False, (), agreed=3)
    assert unchanged == Synced("feed.json", "tag", True, ())
    assert (office.rows(), office.desk.checked()) == (0, NOW)


def test_a_preview_records_nothing(office: Office) -> None:
    office.ledger.record([call(1)])

    shown = office.desk.preview(fetched(output_mtok="5", etag="tag"))

    assert told(shown.effects) == [("changed", "active", "gpt-5 output", 8, 5, ("acme",), 1_000_000, Decimal(-3))]
    assert (office.rows(), office.desk.checked(), office.desk.etag("feed.json"), office.cost()) == (0, None, None, 10)


def test_a_feed_that_is_refused_changes_nothing(office: Office) -> None:
    with pytest.raises(InvalidPrices):
        office.desk.sync(fetched(output_mtok="-5", etag="tag"))

    assert (office.rows(), office.desk.checked(), office.desk.etag("feed.json")) == (0, None, None)


def test_an_etag_is_remembered_for_its_source_and_for_this_book(office: Office, tmp_path: Path) -> None:
    office.desk.sync(fetched(etag='"one"'))
    office.desk.sync(fetched(etag='"two"'))

    with opened(tmp_path / "usage.db", book_of(provider("openai", model("gpt-6", PRICES)))) as newer:
        assert newer.desk.etag("feed.json") is None
    assert (office.desk.etag("feed.json"), office.desk.etag("other.json")) == ('"two"', None)


def test_another_process_rates_by_the_new_price_at_once(office: Office, tmp_path: Path) -> None:
    with opened(tmp_path / "usage.db") as other:
        other.ledger.record([call(1)])
        office.desk.sync(fetched(output_mtok="5"))

        other.ledger.record([call(2)])

        assert other.cost() == 14


def test_two_syncs_at_once_record_each_row_once(tmp_path: Path) -> None:
    path, barrier, failed = tmp_path / "usage.db", Barrier(4), list[BaseException]()
    with opened(path) as first:
        first.ledger.record([call(1)])

    def sync() -> None:
        try:
            with opened(path) as office:
                barrier.wait(timeout=30)
                office.desk.sync(fetched(batch(output_mtok="4"), output_mtok="5"))
        except BaseException as problem:
            failed.append(problem)

    threads = [Thread(target=sync) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    with opened(path) as office:
        assert (office.rows(), office.cost()) == (2, 7)


def test_changes_are_what_was_recorded_since_and_what_is_still_to_come(tmp_path: Path) -> None:
    then = PRICES | {"input_mtok": "3", "output_mtok": "9"}
    book = book_of(provider("openai", model("gpt-5", [always(**PRICES), from_day("2026-12-01", **then)])))
    now = PRICES | {"cache_read_mtok": "0.9"}
    other = {"input_mtok": "3.2", "cache_read_mtok": "0.9", "output_mtok": "9"}
    feed = feed_of(provider("openai", model("gpt-5", [always(**now), from_day("2026-12-01", **other)])))
    with opened(tmp_path / "usage.db", book) as office:
        office.ledger.record([call(1)])
        office.desk.sync(Fetched(feed, "feed.json", "2"))

        recorded, announced = office.desk.changes(NOW), office.desk.changes(NOW + timedelta(seconds=1))

    day = datetime(2026, 12, 1, tzinfo=UTC)
    assert told(recorded) == [
        ("changed", "active", "gpt-5 cache_read", 1, Decimal("0.9"), (), 0, 0),
        ("scheduled", "active", "gpt-5 input", 3, Decimal("3.2"), ("acme",), 1_000_000, Decimal("0.2")),
        ("scheduled", "active", "gpt-5 output", 8, 9, ("acme",), 1_000_000, 1),
    ]
    assert [each.change.effective_from for each in recorded] == [HOUR, day, day]
    assert sorted(told(announced)) == sorted(told(recorded)[1:])


def test_an_id_that_there_is_not_says_what_waits(office: Office) -> None:
    office.desk.sync(fetched(output_mtok="12"))
    id = office.desk.held()[0].change.price.id

    with pytest.raises(InvalidPrices) as refused:
        office.desk.accept("prc_nothing")

    assert str(refused.value) == f"there is no price 'prc_nothing'; waiting are {id}"
    assert office.desk.accept(id[:12]).change.price.id == id


def test_an_id_that_may_mean_several_is_refused(office: Office) -> None:
    office.desk.sync(fetched(output_mtok="12", input_mtok="3"))

    with pytest.raises(InvalidPrices) as refused:
        office.desk.accept("prc_")

    assert str(refused.value).startswith("there is no price 'prc_'; waiting are prc_")
    assert set(office.statuses().values()) == {"held"}


# What a change means


def test_the_impact_is_of_what_is_billed_by_the_row(tmp_path: Path) -> None:
    """Batches have a price of their own, reasoning is billed as output, other models and old usage do not count."""
    other = model("gpt-4", PRICES)
    with opened(
        tmp_path / "usage.db", book_of(provider("openai", model("gpt-5", PRICES, batch(output_mtok="4")), other))
    ) as office:
        office.ledger.record(
            [
                call(1, usage=Usage(output=1_000_000, reasoning=1_000_000)),
                call(2, usage=Usage(output=5_000_000), price_context={"batch": True}),
                call(3, usage=Usage(output=500_000), customer=None),
                call(4, model="gpt-4"),
                call(5, ago=timedelta(days=31)),
                call(6, mode="test"),
            ]
        )

        done = office.desk.preview(fetched(batch(output_mtok="4"), output_mtok="6", also=[other]))

    assert told(done.effects) == [
        ("changed", "active", "gpt-5 output", 8, 6, (None, "acme"), 2_500_000, Decimal(-5)),
    ]


def test_a_negotiated_discount_is_in_the_impact(tmp_path: Path) -> None:
    discount = {"discounts": [{"provider": "openai", "model": "gpt-5", "list_multiplier": "0.5"}]}

    with opened(tmp_path / "usage.db", BOOK.with_overrides(PriceBook.load(discount).overrides)) as office:
        office.ledger.record([call(1)])

        done = office.desk.preview(fetched(output_mtok="6"))

    assert [each.impact for each in done.effects] == [-1]


def test_the_end_of_a_step_concerns_those_who_were_above_it(tmp_path: Path) -> None:
    book = book_of(provider("openai", model("gpt-5", PRICES | {"input_mtok": tiers("2", 200_000, "3")})))
    with opened(tmp_path / "usage.db", book) as office:
        office.ledger.record(
            [
                call(1, usage=Usage(input=300_000), price_context={"context_tokens": 300_000}),
                call(2, usage=Usage(input=100_000), price_context={"context_tokens": 100_000}, customer="globex"),
            ]
        )

        done = office.desk.sync(fetched())

        assert [(each.change.price.amount, each.change.price.above) for each in done.effects] == [(None, 200_000)]
        assert told(done.effects) == [
            ("changed", "active", "gpt-5 input", 3, 2, ("acme",), 300_000, Decimal("-0.3")),
        ]
        assert office.cost() == Decimal("0.8")


def test_what_is_withdrawn_says_whom_it_concerns(tmp_path: Path) -> None:
    book = book_of(provider("openai", model("gpt-5", PRICES), model("gpt-4", {"input_mtok": "30"})))
    with opened(tmp_path / "usage.db", book) as office:
        office.ledger.record([call(1, model="gpt-4", usage=Usage(input=7))])

        done = office.desk.sync(fetched())

        assert told(done.effects) == [("withdrawn", "active", "gpt-4 input", 30, None, ("acme",), 7, None)]
        assert (office.rows(), office.ledger.pending()) == (0, 0)


# Drift


def test_what_a_human_has_looked_at_is_remembered(office: Office, tmp_path: Path) -> None:
    second = SecondSource(
        "the other",
        {
            SecondKey("openai", "gpt-5", "output", (), None): Decimal(9),
            SecondKey("openai", "gpt-5", "input", (), None): Decimal(3),
        },
    )
    found = office.desk.check(second)

    office.desk.adjudicate(found.disagreements[:1])
    office.desk.adjudicate(found.disagreements[:1])

    with opened(tmp_path / "usage.db") as other:
        again = other.desk.check(second)
    assert [each.token_type for each in found.disagreements] == ["input", "output"]
    assert (again.disagreements, again.adjudicated) == (found.disagreements[1:], found.disagreements[:1])
