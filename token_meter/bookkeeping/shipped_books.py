"""The shipped price books that a ledger was rated by: each is kept in it, from its first use on.

So all processes rate by the newest one that any of them brought along, whichever version of the package they run; and
rate cards that keep the prices they began with do so across an upgrade of the package, too.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, select

from token_meter.bookkeeping.notice_rows import write_notice
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.store import Store
from token_meter.ledger.tables import catalogue
from token_meter.prices.book import Shipped
from token_meter.prices.shipped import ShippedBook

BOOK: Final = "book"
NOTICE: Final = "price.book"
NAMED_MAX: Final = 200
"""So many changed models a notice names."""


class Shelf:
    """Shipped books, each read once."""

    def __init__(self, own: ShippedBook) -> None:
        self._own = own
        self._books: dict[str, ShippedBook] = {own.version: own}

    def read(self, connection: Connection) -> list[Shipped]:
        """The books of a ledger since when they are in use, in that order, as far as this version can read them."""
        columns = (catalogue.c.number, catalogue.c.name, catalogue.c.recorded)
        query = select(*columns).where(catalogue.c.kind == BOOK).order_by(catalogue.c.recorded, catalogue.c.number)
        found = []
        for number, version, recorded in connection.execute(query).all():
            book = self._books.get(version) or self._open(connection, version, number)
            if book is not None:
                found.append(Shipped(EPOCH + MICROSECOND * recorded, book))
        return found

    def _open(self, connection: Connection, version: str, number: int) -> ShippedBook | None:
        mine = (catalogue.c.kind == BOOK) & (catalogue.c.name == version) & (catalogue.c.number == number)
        document = json.loads(connection.execute(select(catalogue.c.document).where(mine)).scalar_one())
        try:
            book = ShippedBook.unpacked(base64.b64decode(document["content"]))
        except (ValueError, KeyError, OSError, EOFError):
            return None  # of a version to come; this one rates by what it can read
        self._books[version] = book
        return book

    def newest(self, books: Sequence[Shipped]) -> ShippedBook:
        """The newest of a ledger's books and of one's own."""
        return max([self._own, *(each.book for each in books)], key=lambda book: book.age)

    def add(self, store: Store, connection: Connection, books: Sequence[Shipped], moment: int) -> bool:
        """Put one's own book into a ledger that has none as new; a notice tells what it changes. Whether it did."""
        if any(each.book.age >= self._own.age for each in books):
            return False
        document = {"made": self._own.made.isoformat(), "content": base64.b64encode(self._own.packed()).decode("ascii")}
        row = {
            "kind": BOOK, "name": self._own.version, "number": 1, "effective": moment, "recorded": moment,
            "document": json.dumps(document),
        }  # fmt: skip
        if not store.insert_if_missing(connection, catalogue, row):
            return False
        if books:
            before = max((each.book for each in books), key=lambda book: book.age)
            told = {"from": before.version, "to": self._own.version, **compared(before, self._own)}
            write_notice(store, connection, NOTICE, f"{NOTICE}|{self._own.version}", told)
        return True


def compared(before: ShippedBook, after: ShippedBook) -> dict[str, Any]:
    """Which models have other prices in another book, and which are new: how many, and the first of them by name."""
    old, new = dict(_prices(before)), dict(_prices(after))
    changed = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    added = sorted(new.keys() - old.keys())
    return {
        "made": after.made.date().isoformat(),
        "changed": len(changed),
        "changed_models": changed[:NAMED_MAX],
        "added": len(added),
        "added_models": added[:NAMED_MAX],
    }


def _prices(book: ShippedBook) -> Iterator[tuple[str, list[str]]]:
    for provider in book.providers():
        for identity in book.models(provider):
            yield f"{provider}/{identity}", sorted(price.id for price in book.model(provider, identity).prices)
