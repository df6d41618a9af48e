"""The book of customers on each engine: what is edited is kept, and nobody undoes another's edit."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from token_meter import Customer, InvalidCustomer, Meter, NewerSchema, NoLedger
from token_meter.accounts import CustomerBook, Edited
from token_meter.accounts.book import EDITS_MAX, PAGE_SIZE
from token_meter.ledger import Ledger, LedgerError
from token_meter.ledger.opening import make_store, parse
from token_meter.ledger.tables import VERSION_TABLE, customers
from token_meter.sinks import MemorySink
from token_meter.testing.builders import make_event

NAUGHTY = [" ", "\0", "a\0b", "\ud800", "\ue000", "'; DROP TABLE x; --", "Ωmega 株式会社 🜚", "%s :name ?", "x" * 1024]


@contextmanager
def raw_writing(url: str) -> Iterator[Any]:
    """A writing transaction beside the ledger."""
    store = make_store(parse(url))
    try:
        with store.writing() as connection:
            yield connection
    finally:
        store.engine.dispose()


def everything(customer: Customer) -> tuple[Any, ...]:
    """All of it, the times too, which do not count for equality."""
    return customer, customer.created, customer.updated


def test_nobody_is_there_before_they_are_entered(book: CustomerBook) -> None:
    assert book.get("acme") is None
    assert book.list() == []
    assert book.external_ids(["acme"], backend="stripe") == {}


def test_editing_enters_a_customer_and_returns_what_is_kept(book: CustomerBook) -> None:
    before = datetime.now(UTC)

    entered = book.edit(
        "acme",
        name="Acme Inc.",
        email="billing@acme.example",
        currency="EUR",
        time_zone="Europe/Berlin",
        external_ids={"stripe": "cus_1"},
        details={"address": "Street 1\nBerlin", "legal_name": "Ωmega 株式会社 🜚"},
        status="paused",
    )

    found = book.get("acme")
    assert found is not None and everything(found) == everything(entered)
    assert entered == Customer(
        id="acme",
        name="Acme Inc.",
        email="billing@acme.example",
        currency="EUR",
        time_zone="Europe/Berlin",
        external_ids={"stripe": "cus_1"},
        details={"address": "Street 1\nBerlin", "legal_name": "Ωmega 株式会社 🜚"},
        status="paused",
    )
    assert entered.created == entered.updated
    assert entered.created is not None and before <= entered.created <= datetime.now(UTC)


def test_an_edit_leaves_what_it_does_not_name(book: CustomerBook) -> None:
    entered = book.edit("acme", name="Acme", currency="EUR", external_ids={"stripe": "cus_1"}, details={"a": "1"})

    edited = book.edit("acme", currency="USD", external_ids={"lago": "sub_1"}, details={"a": None, "b": "2"})

    assert edited == Customer(
        id="acme",
        name="Acme",
        currency="USD",
        external_ids={"stripe": "cus_1", "lago": "sub_1"},
        details={"b": "2"},
    )
    assert edited.created == entered.created
    assert edited.updated is not None and entered.updated is not None and edited.updated > entered.updated
    assert book.edit("acme", name=None, external_ids={"lago": None, "stripe": None}).to_json().keys() == {
        "id", "mode", "status", "currency", "details", "created", "updated",
    }  # fmt: skip


def test_an_edit_that_changes_nothing_is_no_edit(book: CustomerBook) -> None:
    entered = book.edit("acme", name="Acme", external_ids={"stripe": "cus_1"})

    again = book.edit("acme", name="Acme", external_ids={"stripe": "cus_1", "lago": None})

    assert everything(again) == everything(entered)


def test_a_wrong_edit_changes_nothing_and_enters_nobody(book: CustomerBook) -> None:
    book.edit("acme", name="Acme")

    for id in ("acme", "globex"):
        with pytest.raises(InvalidCustomer, match=f"customer '{id}': its currency is three capital letters"):
            book.edit(id, name="Other", currency="dollars")
    with pytest.raises(InvalidCustomer, match="its id is empty"):
        book.edit("")
    with pytest.raises(InvalidCustomer, match="a mode is live or test, not 'prod'"):
        book.edit("acme", mode="prod")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="nothing called 'nam' can be changed"):
        book.edit("globex", nam="Globex")  # type: ignore[call-arg]

    assert book.list() == [Customer(id="acme", name="Acme")]


def test_what_is_wrong_only_together_with_what_is_there_is_refused_too(book: CustomerBook) -> None:
    book.edit("acme", external_ids={f"b{number}": "x" for number in range(30)})

    with pytest.raises(InvalidCustomer, match="its external_ids has 33 entries"):
        book.edit("acme", external_ids={"x": "1", "y": "2", "z": "3"})
    edited = book.edit_many({"globex": {"name": "Globex"}, "acme": {"external_ids": {"x": "1", "y": "2", "z": "3"}}})

    assert list(edited.refused) == ["acme"]
    assert [customer.id for customer in book.list()] == ["acme"]
    assert len(book.list()[0].external_ids) == 30


def test_live_and_test_are_two_books(book: CustomerBook) -> None:
    book.edit("acme", name="Acme", external_ids={"stripe": "cus_live"})
    book.edit("acme", mode="test", name="Trial", external_ids={"stripe": "cus_test"})
    book.edit("globex", mode="test")

    assert [(each.id, each.name) for each in book.list()] == [("acme", "Acme")]
    assert [(each.id, each.name) for each in book.list(mode="test")] == [("acme", "Trial"), ("globex", None)]
    assert book.get("globex") is None
    assert book.external_ids(["acme"], backend="stripe") == {"acme": "cus_live"}
    assert book.external_ids(["acme"], backend="stripe", mode="test") == {"acme": "cus_test"}
    assert book.customers_of("cus_test", backend="stripe") == []
    assert book.customers_of("cus_test", backend="stripe", mode="test") == ["acme"]
    with pytest.raises(InvalidCustomer, match="a mode is live or test"):
        book.iterate(mode="prod")  # type: ignore[arg-type]


def test_several_customers_may_share_an_external_id(book: CustomerBook) -> None:
    book.edit_many({id: {"external_ids": {"stripe": "cus_1"}} for id in ("b", "a", "c\0")})
    book.edit("d", external_ids={"lago": "cus_1"})

    assert book.customers_of("cus_1", backend="stripe") == ["a", "b", "c\0"]
    assert book.external_ids(["a", "c\0", "d", "nobody"], backend="stripe") == {"a": "cus_1", "c\0": "cus_1"}


def test_ids_may_hold_anything(book: CustomerBook) -> None:
    for id in NAUGHTY:
        book.edit(id, name=f"{len(id)} signs", external_ids={"stripe": f"cus_{len(id)}"})

    assert {customer.id for customer in book.list()} == set(NAUGHTY)
    for id in NAUGHTY:
        found = book.get(id)
        assert found == Customer(id=id, name=f"{len(id)} signs", external_ids={"stripe": f"cus_{len(id)}"})
    assert set(book.external_ids(NAUGHTY, backend="stripe")) == set(NAUGHTY)


def test_a_book_of_several_pages_is_read_in_the_order_of_ids_on_every_engine(book: CustomerBook) -> None:
    ids = [f"{sign}{number}" for sign in ("Z", "a", "é", "_", "Ω") for number in range(PAGE_SIZE // 2)]
    book.edit_many({id: {"status": "paused" if id.endswith("7") else "active"} for id in ids})

    assert [each.id for each in book.iterate()] == sorted(ids, key=str.encode)
    assert [each.id for each in book.list(status="paused", limit=3)] == ["Z107", "Z117", "Z127"]
    assert len(book.list(status="paused")) == len([id for id in ids if id.endswith("7")])
    with pytest.raises(InvalidCustomer, match="a status is active or paused, not 'gone'"):
        book.list(status="gone")  # type: ignore[arg-type]


def test_saving_puts_every_field_in_place_and_keeps_when_it_began(book: CustomerBook) -> None:
    entered = book.edit("acme", name="Acme", external_ids={"stripe": "cus_1"})

    saved = book.save(Customer(id="acme", email="a@b", created=datetime(2020, 1, 1, tzinfo=UTC)))
    new = book.save(Customer(id="globex", mode="test", name="Globex"))

    assert (saved, saved.created) == (Customer(id="acme", email="a@b"), entered.created)
    assert [book.get("acme"), book.get("globex", mode="test")] == [saved, new]


def test_many_edits_are_told_apart_and_a_preview_changes_nothing(book: CustomerBook) -> None:
    book.edit_many({"a": {"name": "A"}, "b": {"name": "B"}})
    before = [everything(customer) for customer in book.list()]
    edits: Any = {"a": {"name": "A"}, "b": {"name": "Bee"}, "c": {}}
    told = Edited(added=("c",), changed=("b",), unchanged=("a",))

    assert book.preview(edits) == told
    assert [everything(customer) for customer in book.list()] == before
    assert book.edit_many(edits) == told
    assert everything(book.list()[0]) == before[0]
    assert [customer.name for customer in book.list()] == ["A", "Bee", None]
    assert book.edit_many({}) == book.preview({}) == Edited()


def test_with_one_of_many_edits_refused_none_is_made(book: CustomerBook) -> None:
    edits: Any = {"a": {"name": "A"}, "b": {"currency": "x"}, "": {}, "c": {"email": "nowhere"}}

    for tried in (book.edit_many(edits), book.preview(edits)):
        assert tried == Edited(refused=tried.refused)
        assert list(tried.refused) == ["b", "", "c"]
        assert "customer 'c': its email is no address: 'nowhere'" in tried.refused["c"]

    assert book.list() == []
    with pytest.raises(InvalidCustomer, match="at most 100,000 customers can be edited at once"):
        book.edit_many({str(number): {} for number in range(EDITS_MAX + 1)})


def in_threads(*functions: Callable[[], object]) -> None:
    """Run these at once; an exception in one fails the test through `pytest`'s thread hook."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_people_who_edit_one_customer_at_once_do_not_undo_each_other(url: str) -> None:
    def edit(backend: str) -> None:
        with Ledger(url) as ledger:
            book = CustomerBook(ledger)
            for number in range(5):
                book.edit("acme", external_ids={f"{backend}{number}": "x"}, details={f"{backend}{number}": "y"})

    in_threads(*(lambda backend=backend: edit(backend) for backend in "abcdef"))  # type: ignore[misc]

    with Ledger(url) as ledger:
        acme = CustomerBook(ledger).get("acme")
    expected = {f"{backend}{number}" for backend in "abcdef" for number in range(5)}
    assert acme is not None and set(acme.external_ids) == set(acme.details) == expected


def test_two_who_enter_one_customer_at_once_both_get_what_they_said(url: str, request: Any) -> None:
    def waits_for_a_lock() -> bool:
        connection = request.getfixturevalue("postgresql")
        sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%token_meter_customers%'"
        return bool(connection.execute(sql).fetchone()[0])

    with Ledger(url) as first, Ledger(url) as second:
        edits = [threading.Thread(target=lambda: CustomerBook(second).edit("acme", currency="EUR"))]
        second.events()
        with first.writing() as (_, connection):
            row = {"mode": "live", "id": "acme", "name": "Acme", "status": "active", "created": 1, "updated": 1}
            connection.execute(customers.insert(), row)
            edits[0].start()
            deadline = time.monotonic() + 20
            while first.file is None and not waits_for_a_lock() and time.monotonic() < deadline:
                time.sleep(0.01)
        edits[0].join()

        assert CustomerBook(first).get("acme") == Customer(id="acme", name="Acme", currency="EUR")


def test_people_who_import_at_once_while_events_are_recorded_do_not_block_each_other(url: str) -> None:
    """Every transaction takes the customers in one order, so none waits for another in a circle."""
    ids = [f"c{number}" for number in range(60)]

    def edit(backend: str, order: int) -> None:
        with Ledger(url) as ledger:
            for _ in range(3):
                CustomerBook(ledger).edit_many({id: {"external_ids": {backend: id}} for id in ids[::order]})

    def record() -> None:
        with Ledger(url) as ledger:
            for start in range(0, 60, 10):
                ledger.record([make_event(n, customer=ids[59 - n]) for n in range(start, start + 10)])

    in_threads(lambda: edit("stripe", 1), lambda: edit("lago", -1), record)

    with Ledger(url) as ledger:
        found = CustomerBook(ledger).list()
        assert len(ledger.events()) == 60
    assert [each.external_ids for each in found] == [{"stripe": id, "lago": id} for id in sorted(ids)]


def test_recording_leaves_what_was_edited(book: CustomerBook, ledger: Ledger) -> None:
    edited = book.edit("acme", name="Acme", status="paused")

    ledger.record([make_event(1)])

    found = book.get("acme")
    assert found is not None and everything(found) == everything(edited)


def test_a_time_zone_that_this_machine_does_not_know_hides_nobody(book: CustomerBook, ledger: Ledger) -> None:
    book.edit("acme", name="Acme")
    with raw_writing(ledger.url) as connection:
        connection.execute(customers.update().values(time_zone="Mars/Olympus"))

    assert [(each.id, each.time_zone) for each in book.list()] == [("acme", "Mars/Olympus")]


def test_a_ledger_of_a_newer_version_is_not_written_to(book: CustomerBook, ledger: Ledger) -> None:
    book.edit("acme")
    with raw_writing(ledger.url) as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))

    with pytest.raises(NewerSchema, match="revision 9999"):
        book.edit("acme", name="Acme")
    assert book.list() == [Customer(id="acme")]


def test_a_database_that_cannot_be_used_now_is_a_ledger_error(tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path}/usage.db?timeout=0.01") as ledger:
        book = CustomerBook(ledger)
        book.edit("acme")
        with raw_writing(ledger.url), pytest.raises(LedgerError, match=r"cannot write to the ledger .*locked"):
            book.edit("acme", name="Acme")
        with closing(sqlite3.connect(tmp_path / "usage.db")) as raw:
            raw.execute("DROP TABLE token_meter_customers")
        with pytest.raises(LedgerError, match=r"cannot read the ledger .*no such table"):
            book.get("acme")


def test_an_exception_inside_a_transaction_undoes_it(ledger: Ledger) -> None:
    row = {"mode": "live", "id": "acme", "status": "active", "created": 1, "updated": 1}

    with pytest.raises(KeyError), ledger.writing() as (_, connection):
        connection.execute(customers.insert(), row)
        raise KeyError("x")

    assert CustomerBook(ledger).list() == []


def test_a_meter_gives_the_customers_of_its_ledger(tmp_path: Path) -> None:
    with Meter(tmp_path / "usage.db", MemorySink()) as meter:
        meter.customers.edit("acme", external_ids={"stripe": "cus_1"})
        meter.record(5, customer="globex")
        meter.flush()

        assert [(each.id, dict(each.external_ids)) for each in meter.customers.iterate()] == [
            ("acme", {"stripe": "cus_1"}),
            ("globex", {}),
        ]
        assert repr(meter.customers) == f"CustomerBook({meter.ledger!r})"
    with Meter(MemorySink(), journal=tmp_path / "journal") as meter, pytest.raises(NoLedger, match="has no ledger"):
        meter.customers.edit("acme")
