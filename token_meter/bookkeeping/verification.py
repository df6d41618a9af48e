"""Verifying a final invoice: every cent is worked out again from the events, the ratings and the plan.

Four things must hold. Its seal: the text and its inputs are those that were kept. Its arithmetic: the same inputs give
the same bytes. Its ratings: each follows from the price row, factors and multiplier it names. Its usage: the events of
the period, without what came later, have exactly these quantities under these ratings.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Row, select

from token_meter.billing.correction import Correction, corrections_to
from token_meter.billing.credit import scope_of
from token_meter.billing.credit_line import Credit
from token_meter.billing.invoice import Bought, draw_up
from token_meter.billing.line import decimal_of_exact
from token_meter.billing.lines import lines_of
from token_meter.billing.meters import MeterDefinition
from token_meter.billing.plans import Period
from token_meter.bookkeeping.aggregates import aggregate
from token_meter.bookkeeping.invoice_rows import (
    Documents,
    Kept,
    digest_of,
    invoiced_lines,
    kept_of,
    knows,
    micros,
    read_invoice,
    segment_of,
)
from token_meter.errors import NotVerified
from token_meter.ledger.rater import Rating
from token_meter.ledger.ratings import Read, read_ratings
from token_meter.ledger.tables import EVENTS, events, invoices, late, ratings, reratings
from token_meter.ledger.text import from_stored, to_stored
from token_meter.money import EXACT, decimal_of

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger

DIFFERENCES_SHOWN_MAX: Final = 5

Quantities = dict[tuple[str, str | None, str | None, str, int], int]
"""By meter, provider, model, token type and rating."""


def verify(ledger: Ledger, number: str, *, mode: str = "live") -> Kept:
    """Work a final invoice out again. Returns it; raises NotVerified saying what differs.

    It reads every event of the period: a second for some ten thousand.
    """
    with ledger.reading() as (_, connection):
        if not knows(connection, number, mode):
            read_invoice(connection, number, mode)
        try:
            return _verified(connection, number, mode)
        except NotVerified:
            raise
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as problem:
            raise NotVerified(f"{number}: what it was drawn up from cannot be read: {problem!r}") from None


def _verified(connection: Connection, number: str, mode: str) -> Kept:
    kept = read_invoice(connection, number, mode)
    text = _check_seal(connection, kept, number, mode)
    if kept.kind == "invoice":
        known = _ratings(connection, kept)
        _check_ratings(connection, known, number)
        if (
            Documents().seal_of_ratings(segment_of(each, known) for each in _segments(kept.inputs))
            != kept.inputs["ratings"]
        ):
            raise NotVerified(f"{number}: its ratings are not those that it was drawn up with")
        _check_arithmetic(connection, kept, known, text)
        for document in _segments(kept.inputs):
            _check_usage(connection, kept, document, mode)
    return kept


# The seal


def _check_seal(connection: Connection, kept: Kept, number: str, mode: str) -> str:
    mine = (invoices.c.mode == mode) & (invoices.c.number == number)
    row = connection.execute(select(invoices).where(mine)).one()
    if digest_of(row.document, row.inputs, row.kind, row.concerns) != bytes(row.digest):
        raise NotVerified(f"{number}: its text or its inputs are not those that were kept")
    told = (row.number, row.customer, row.start, row.stop, row.currency, row.due_amount, row.issued)
    invoice = kept.invoice
    assert invoice.issued is not None
    said = (
        invoice.number, to_stored(invoice.customer), micros(invoice.period.start), micros(invoice.period.stop),
        invoice.currency, f"{invoice.due_amount:f}", micros(invoice.issued),
    )  # fmt: skip
    if told != said:
        raise NotVerified(f"{number}: what is listed of it is not what it says: {told} instead of {said}")
    return str(row.document)


# The ratings


def _ratings(connection: Connection, kept: Kept) -> dict[int, Read]:
    numbers = {each[5] for segment in _segments(kept.inputs) for each in segment["usage"]}
    return {each.number: each for each in read_ratings(connection, sorted(numbers))}


def _segments(inputs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    corrected = [segment for each in inputs["corrections"] for segment in each["segments"]]
    return [*inputs["segments"], *corrected]


def _check_ratings(connection: Connection, known: Mapping[int, Read], number: str | None) -> None:
    for read in known.values():
        row = connection.execute(select(ratings).where(ratings.c.id == read.number)).one()
        document = {name: value for name, value in read.document.items() if name != "book"}
        if Rating(row.cost, row.charge, document).digest != bytes(row.digest):
            raise NotVerified(f"{number}: rating {read.number} is not the one that was made")
        _check_rate(read, f"{number}: rating {read.number}")


def _check_rate(read: Read, where: str) -> None:
    cost, charge = read.document.get("cost"), read.document.get("charge")
    if cost and "missing" not in cost and read.cost is not None:
        rate = _list_rate(cost)
        if rate != read.cost:
            raise NotVerified(f"{where}: {cost['list']} per {cost['per']} with its factors is {rate}, not {read.cost}")
    if not charge or "missing" in charge or read.charge is None or charge.get("kind") == "waived":
        return
    if charge["kind"] == "cost_plus":
        basis = _list_rate(charge["pinned"]) if "pinned" in charge else read.cost
        assert basis is not None
        expected = EXACT.multiply(basis, decimal_of(charge["multiplier"], "multiplier"))
        expected = EXACT.divide(expected, decimal_of(charge["exchange"], "rate")) if "exchange" in charge else expected
    else:
        expected = EXACT.divide(decimal_of(charge["price"], "price"), Decimal(charge["per"]))
    if expected != read.charge:
        raise NotVerified(f"{where}: its charge is {read.charge}, and its factors make {expected}")


def _list_rate(cost: Mapping[str, Any]) -> Decimal:
    rate = EXACT.divide(decimal_of(cost["list"], "list price"), Decimal(cost["per"]))
    for _, multiplier, _ in cost.get("factors", ()):
        rate = EXACT.multiply(rate, decimal_of(multiplier, "factor"))
    return rate


# The arithmetic


def _check_arithmetic(connection: Connection, kept: Kept, known: Mapping[int, Read], text: str) -> None:
    invoice, inputs = kept.invoice, kept.inputs
    meters = {name: MeterDefinition.model_validate(each) for name, each in inputs["meters"].items()}
    drawn = draw_up(
        [segment_of(each, known) for each in inputs["segments"]],
        customer=invoice.customer,
        mode=invoice.mode,
        period=invoice.period,
        currency=invoice.currency,
        meters=meters,
        corrections=[_corrected(connection, kept, each, known, meters) for each in inputs["corrections"]],
        bought=[Bought(grant, title, decimal_of_exact(price)) for grant, title, price in inputs["bought"]],
        credit=[
            Credit(
                grant, decimal_of_exact(amount), scope_of(scope), decimal_of_exact(returned), decimal_of_exact(first)
            )
            for grant, amount, scope, returned, first in inputs["credit"]
        ],
        tax_percent=None if inputs["tax_percent"] is None else decimal_of(inputs["tax_percent"], "tax"),
        rounding=invoice.rounding,
        show=invoice.show,
        seller=invoice.seller,
        buyer=invoice.buyer,
        notes=inputs.get("notes", ()),
    )
    again = replace(drawn, number=invoice.number, state="final", issued=invoice.issued, due=invoice.due)
    if again.text() != text:
        raise NotVerified(f"{invoice.number}: {_difference(json.loads(text), again.to_json())}")


def _corrected(
    connection: Connection,
    kept: Kept,
    document: Mapping[str, Any],
    known: Mapping[int, Read],
    meters: Mapping[str, MeterDefinition],
) -> Correction:
    """A correction worked out again: what the earlier period came to, less what had been invoiced for it by then."""
    others = [each for each in kept_of(connection, kept.invoice.customer, kept.invoice.mode) if each.kind == "invoice"]
    before = [each for each in others if each.invoice.number in kept.inputs["final"]]
    corrected = next(each for each in others if each.invoice.number == document["invoice"])
    now = lines_of([segment_of(each, known) for each in document["segments"]], meters)[0]
    found = corrections_to(invoiced_lines(before, corrected), now, number=document["invoice"])
    return found if found is not None else Correction(document["invoice"], ())


def _difference(kept: Any, again: Any, place: str = "") -> str:
    """The first thing that differs, in words."""
    if isinstance(kept, dict) and isinstance(again, dict):
        for name in {**kept, **again}:
            if kept.get(name) != again.get(name):
                return _difference(kept.get(name), again.get(name), f"{place}.{name}" if place else name)
    if isinstance(kept, list) and isinstance(again, list):
        for number in range(max(len(kept), len(again))):
            one, other = (each[number] if number < len(each) else None for each in (kept, again))
            if one != other:
                return _difference(one, other, f"{place}[{number}]")
    return f"{place} is {kept!r}, and worked out again it is {again!r}"


# The usage


def _check_usage(connection: Connection, kept: Kept, segment: Mapping[str, Any], mode: str) -> None:
    span = Period(*map(datetime.fromisoformat, segment["span"]))
    counted, rows = _counted(connection, kept, span, mode)
    _check_aggregates(kept, segment, rows)
    invoiced: Quantities = {}
    for meter, provider, model, name, quantity, rating in segment["usage"]:
        key = (meter, provider, model, name, rating)
        invoiced[key] = invoiced.get(key, 0) + quantity
    # What nobody charges for is on no line: a placeholder of a call, say, that its real event took the place of later.
    both = {**invoiced, **counted}
    free = _free(connection, both)
    wrong = [key for key in both if key[4] not in free and invoiced.get(key, 0) != counted.get(key, 0)]
    if wrong:
        shown = "; ".join(
            f"{key[2] or key[0]} {key[3]}: {invoiced.get(key, 0):,} invoiced, {counted.get(key, 0):,} in the events"
            for key in wrong[:DIFFERENCES_SHOWN_MAX]
        )
        raise NotVerified(f"{kept.invoice.number}: its usage is not that of the events in {span}: {shown}")


def _free(connection: Connection, quantities: Quantities) -> set[int]:
    """The ratings among these that charge nothing."""
    numbers = sorted({key[4] for key in quantities if key[4]})
    return {each.number for each in read_ratings(connection, numbers) if each.document.get("charge") is None}


def _check_aggregates(kept: Kept, segment: Mapping[str, Any], rows: Sequence[Row[Any]]) -> None:
    for name, quantity in segment["aggregates"].items():
        meter = MeterDefinition.model_validate(kept.inputs["meters"][name])
        counted = aggregate(meter, [row for row in rows if from_stored(row.meter) == name])
        if counted != quantity:
            what = f"{name} is {quantity:,} on it, and {counted:,} ({meter.aggregation}) in the events"
            raise NotVerified(f"{kept.invoice.number}: {what}")


def _counted(connection: Connection, kept: Kept, span: Period, mode: str) -> tuple[Quantities, list[Row[Any]]]:
    """The quantities of the span as they were when the invoice was made final, from the events one by one; and those
    of the events that nobody had taken back."""
    seen, rerated = int(kept.inputs["late_seen"]), int(kept.inputs["reratings_seen"])
    customer = to_stored(kept.invoice.customer)
    mine = (events.c.customer == customer) & (events.c.mode == mode)
    inside = (events.c.time >= micros(span.start)) & (events.c.time < micros(span.stop))
    originals = list(connection.execute(select(events).where(mine, inside, events.c.corrects.is_(None))))
    by_id = {row.id: row for row in originals}
    taken = [(row, by_id[row.corrects]) for row in _corrections(connection, by_id)]
    was = _ratings_then(connection, rerated, [*by_id])
    later = _came_later(connection, seen, rerated, mode)
    counted: Quantities = {}
    for row, original, sign in [*((row, row, 1) for row in originals), *((row, there, -1) for row, there in taken)]:
        if row.id in later:
            continue
        rating = json.loads(was.get(original.id) or original.rating or "{}")
        for name, quantity in [*json.loads(row.usage).items(), (EVENTS, 1)]:
            key = (
                from_stored(original.meter),
                _text(original.provider),
                _text(original.model),
                name,
                rating.get(name, 0),
            )
            counted[key] = counted.get(key, 0) + sign * quantity
    voided = {there.id for row, there in taken if row.id not in later}
    counting = [row for row in originals if row.id not in voided and row.id not in later]
    return {key: quantity for key, quantity in counted.items() if quantity}, counting


def _came_later(connection: Connection, seen: int, rerated: int, mode: str) -> set[str]:
    """The events that came after the invoice. Rating an event again is noted like its coming late, and besides in a
    table of its own: who is noted more often than rated again has come."""
    noted = select(late.c.event_id).where(late.c.number > seen, late.c.mode == mode)
    again = select(reratings.c.event_id).where(reratings.c.number > rerated)
    counts = Counter(connection.execute(noted).scalars())
    counts.subtract(connection.execute(again).scalars())
    return {id for id, count in counts.items() if count > 0}


def _corrections(connection: Connection, ids: Iterable[str]) -> Iterator[Row[Any]]:
    wanted = sorted(ids)
    for start in range(0, len(wanted), 500):
        yield from connection.execute(select(events).where(events.c.corrects.in_(wanted[start : start + 500])))


def _ratings_then(connection: Connection, seen: int, ids: Sequence[str]) -> dict[str, str | None]:
    """The ratings of events that were rated again later, as they were before that."""
    found: dict[str, str | None] = {}
    for start in range(0, len(ids), 500):
        chunk = reratings.c.event_id.in_(ids[start : start + 500])
        query = select(reratings).where(chunk, reratings.c.number > seen).order_by(reratings.c.number)
        for row in connection.execute(query):
            found.setdefault(row.event_id, row.before)
    return found


def _text(value: str | None) -> str | None:
    return None if value is None else from_stored(value)
