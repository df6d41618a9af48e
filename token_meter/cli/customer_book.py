"""The book of customers behind the `customers` commands: opened to be edited, and one customer found in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Final

import typer

from token_meter.cli.exits import Failure
from token_meter.cli.output import note
from token_meter.cli.place import Place, holds_ledger
from token_meter.cli.text import did_you_mean

if TYPE_CHECKING:
    from token_meter.accounts import Customer, CustomerBook
    from token_meter.ledger import Ledger
    from token_meter.ledger.values import Mode

COMPARED_MAX: Final = 10_000
"""With so many customers a name that is not there is compared."""

IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The customer, as `meter.customer(...)` and `customers list` name them.")
]


def there_is_none(place: Place) -> bool:
    """Whether no ledger has been made here yet."""
    return place.missing or not holds_ledger(place)


@contextmanager
def editing(place: Place) -> Iterator[CustomerBook]:
    """The book of this ledger, which is made if need be: customers may be entered before their first call."""
    from token_meter.accounts import CustomerBook
    from token_meter.ledger import Ledger

    if there_is_none(place):
        note(f"there was no ledger at {place.shown}: making one")
    ledger = Ledger(place.ledger)
    try:
        yield CustomerBook(ledger)
    finally:
        ledger.close()


def customer_named(ledger: Ledger, id: str, mode: Mode) -> Customer:
    """The customer with this id. Failure with a hint when there is none."""
    from token_meter.accounts import CustomerBook

    book = CustomerBook(ledger)
    found = book.get(id, mode=mode)
    if found is not None:
        return found
    other: Mode = "test" if mode == "live" else "live"
    hint = near(book, id, mode)
    if book.get(id, mode=other) is not None:
        hint = f" There is one in {other} mode: say --mode {other}."
    raise Failure(f"there is no {mode} customer {id!r}.{hint or ' `token-meter customers list` shows them all.'}")


def note_if_new(ledger: Ledger, id: str, mode: Mode) -> None:
    """Say of a customer who is not known yet that they are not, and who may have been meant."""
    from token_meter.accounts import CustomerBook

    book = CustomerBook(ledger)
    if book.get(id, mode=mode) is None:
        note(f"{id} is a new customer.{near(book, id, mode)}")


def near(book: CustomerBook, id: str, mode: Mode) -> str:
    """ " Did you mean ...?" with a customer of a similar name, or nothing."""
    others = (customer.id for customer in islice(book.iterate(mode=mode), COMPARED_MAX) if customer.id != id)
    return did_you_mean(id, others)
