"""The customer: who pays, what billing backends know them by, and what an invoice says about them.

A `Customer` is a value that was checked when it was made; what may be changed about one, and how changes are merged,
is said here too. Where customers are kept is for `book` to say.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, TypedDict, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from token_meter.errors import InvalidCustomer
from token_meter.event import format_time, parse_time
from token_meter.ledger.text import to_stored
from token_meter.ledger.values import MODES, Mode
from token_meter.money import decimal_of

CustomerStatus: TypeAlias = Literal["active", "paused"]
STATUSES: Final = ("active", "paused")

ID_BYTES_MAX: Final = 1024
"""The longest id in UTF-8 bytes: as long as the customer of an event may be."""

NAME_LENGTH_MAX: Final = 255
EMAIL_LENGTH_MAX: Final = 254
TIME_ZONE_LENGTH_MAX: Final = 64

KEY_LENGTH_MAX: Final = 64
"""The longest name of a backend or of an invoice detail."""

EXTERNAL_IDS_MAX: Final = 32
"""So many backends may know one customer."""

EXTERNAL_ID_LENGTH_MAX: Final = 255

TAX: Final = "tax_percent"
"""The detail that says what tax goes on a customer's invoices; the others are only shown."""

DETAILS_MAX: Final = 64
"""So many invoice details one customer may have."""

DETAIL_LENGTH_MAX: Final = 2_000

_KEY: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+")
_SHOWN_MAX: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """Who pays. Raises InvalidCustomer for a field that cannot be what it says.

    `id` is what `meter.customer(...)` is called with. `external_ids` maps a billing backend to the id it knows this
    customer by (`{"stripe": "cus_…"}`), `details` is what an invoice says besides (`address`, `tax_id`,
    `legal_name`, `purchase_order`, …). `currency` is an ISO 4217 code, `time_zone` an IANA name; both may be left
    open. `created` and `updated` are the book's to set, and two customers that differ in them only are equal.
    """

    id: str
    name: str | None = None
    email: str | None = None
    currency: str | None = None
    time_zone: str | None = None
    external_ids: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    status: CustomerStatus = "active"
    mode: Mode = "live"
    created: datetime | None = field(default=None, compare=False)
    updated: datetime | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        try:
            _check(self)
        except ValueError as problem:
            raise InvalidCustomer(f"customer {_shown(self.id)}: {problem}") from None
        for name in _MAPPINGS:
            object.__setattr__(self, name, dict(getattr(self, name)))

    def __hash__(self) -> int:
        return hash((self.mode, self.id))

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form: sparse (what is not set is left out), times in RFC 3339."""
        document: dict[str, Any] = {"id": self.id, "mode": self.mode, "status": self.status}
        for name in (*_TEXTS, *_MAPPINGS):
            value = getattr(self, name)
            if value:
                document[name] = dict(value) if name in _MAPPINGS else value
        for name in _TIMES:
            if (moment := getattr(self, name)) is not None:
                document[name] = format_time(moment)
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Customer:
        """Read the JSON form. Raises InvalidCustomer for one that is no customer, or has a field nobody knows."""
        if not isinstance(document, Mapping) or "id" not in document:
            raise InvalidCustomer("a customer is an object with an id")
        unknown = sorted(str(name) for name in document if name not in _FIELDS)
        if unknown:
            raise InvalidCustomer(
                f"customer {_shown(document['id'])} has no field {unknown[0]!r}. Known: {', '.join(sorted(_FIELDS))}."
            )
        given = dict(document)
        try:
            given |= {name: parse_time(given[name]) for name in _TIMES if given.get(name) is not None}
        except (TypeError, ValueError):
            raise InvalidCustomer(f"customer {_shown(document['id'])}: created and updated are RFC 3339") from None
        return cls(**given)


class CustomerChanges(TypedDict, total=False):
    """What can be changed about a customer; what is not given stays.

    None takes a value away. `external_ids` and `details` are merged: a name that is not in them stays, and None
    takes one away.
    """

    name: str | None
    email: str | None
    currency: str | None
    time_zone: str | None
    external_ids: Mapping[str, str | None]
    details: Mapping[str, str | None]
    status: CustomerStatus


CHANGEABLE: Final = tuple(CustomerChanges.__annotations__)

_TEXTS: Final = ("name", "email", "currency", "time_zone")
_MAPPINGS: Final = ("external_ids", "details")
_TIMES: Final = ("created", "updated")
_FIELDS: Final = frozenset(each.name for each in fields(Customer))


def changed(customer: Customer, changes: CustomerChanges) -> Customer:
    """The customer with these changes. Raises InvalidCustomer when the result is none."""
    given: dict[str, Any] = {**changes}
    unknown = [name for name in given if name not in CHANGEABLE]
    if unknown:
        raise TypeError(f"nothing called {unknown[0]!r} can be changed. Known: {', '.join(CHANGEABLE)}.")
    for name in _MAPPINGS:
        if name in given:
            if not isinstance(given[name], Mapping):
                raise InvalidCustomer(f"customer {_shown(customer.id)}: its {name} is no mapping of names to values")
            merged = {**getattr(customer, name), **given[name]}
            given[name] = {key: value for key, value in merged.items() if value is not None}
    return replace(customer, **given)


def as_stored(values: Mapping[str, Any]) -> Customer:
    """A customer that was checked when it was stored, from all of its fields.

    Not checked again: a time zone that the storing machine knew and this one does not must not hide the customer.
    """
    customer = object.__new__(Customer)
    for name in _FIELDS:
        object.__setattr__(customer, name, values[name])
    return customer


def check_id(id: object) -> str:
    """This id, if a customer can have it. InvalidCustomer if not."""
    try:
        _check_id(id)
    except ValueError as problem:
        raise InvalidCustomer(f"customer {_shown(id)}: {problem}") from None
    return cast(str, id)


def check_mode(mode: object) -> Mode:
    """This mode, if it is one. InvalidCustomer if not."""
    if mode not in MODES:
        raise InvalidCustomer(f"a mode is {' or '.join(MODES)}, not {_shown(mode)}")
    return mode


def check_status(status: object) -> CustomerStatus:
    """This status, if it is one. InvalidCustomer if not."""
    if status not in STATUSES:
        raise InvalidCustomer(f"a status is {' or '.join(STATUSES)}, not {_shown(status)}")
    return status


# What makes a field right. Each raises ValueError with the reason.


def _check(customer: Customer) -> None:
    _check_id(customer.id)
    if customer.mode not in MODES:
        raise ValueError(f"its mode is {' or '.join(MODES)}, not {_shown(customer.mode)}")
    if customer.status not in STATUSES:
        raise ValueError(f"its status is {' or '.join(STATUSES)}, not {_shown(customer.status)}")
    if customer.name is not None:
        _check_text("its name", customer.name, NAME_LENGTH_MAX)
    if customer.email is not None:
        _check_email(customer.email)
    if customer.currency is not None:
        _check_currency(customer.currency)
    if customer.time_zone is not None:
        _check_zone(customer.time_zone)
    _check_mapping("external_ids", customer.external_ids, EXTERNAL_IDS_MAX, EXTERNAL_ID_LENGTH_MAX)
    _check_mapping("details", customer.details, DETAILS_MAX, DETAIL_LENGTH_MAX)
    _check_tax(customer.details.get(TAX))


def _check_id(id: object) -> None:
    # An id comes from the application with the events, so it may hold anything.
    if not isinstance(id, str):
        raise ValueError(f"its id is no text but {type(id).__name__}")
    if not id:
        raise ValueError("its id is empty")
    if len(to_stored(id).encode()) > ID_BYTES_MAX:
        raise ValueError(f"its id is longer than {ID_BYTES_MAX} bytes")


def _check_text(what: str, value: object, length_max: int, *, allowed: str = "") -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is no text but {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{what} is empty; leave it out, or give None to take it away")
    if value != value.strip():
        raise ValueError(f"{what} begins or ends with a blank: {_shown(value)}")
    if len(value) > length_max:
        raise ValueError(f"{what} is longer than {length_max} characters")
    if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in value if sign not in allowed):
        raise ValueError(f"{what} holds a control character: {_shown(value)}")
    return value


def _check_email(value: object) -> None:
    # Only what is surely wrong is refused: whether mail arrives is for a mail to find out.
    if not _EMAIL.fullmatch(_check_text("its email", value, EMAIL_LENGTH_MAX)):
        raise ValueError(f"its email is no address: {_shown(value)}")


def _check_currency(value: object) -> None:
    if not isinstance(value, str) or not _CURRENCY.fullmatch(value):
        raise ValueError(f"its currency is three capital letters such as USD or EUR, not {_shown(value)}")


def _check_zone(value: object) -> None:
    name = _check_text("its time zone", value, TIME_ZONE_LENGTH_MAX)
    if name == "UTC":
        return
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"no time zone is called {_shown(value)} on this machine: use a name such as Europe/Berlin or UTC"
        ) from None


def _check_tax(percent: str | None) -> None:
    if percent is not None and not 0 <= decimal_of(percent, TAX) <= 100:
        raise ValueError(f"its {TAX} must be between 0 and 100, not {percent}")


def _check_mapping(field_name: str, value: object, number_max: int, length_max: int) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"its {field_name} is no mapping of names to values")
    if len(value) > number_max:
        raise ValueError(f"its {field_name} has {len(value)} entries; at most {number_max} are kept")
    for key, text in value.items():
        if not isinstance(key, str) or len(key) > KEY_LENGTH_MAX or not _KEY.fullmatch(key):
            raise ValueError(
                f"{_shown(key)} cannot be a name in {field_name}: it has 1 to {KEY_LENGTH_MAX} of a-z, 0-9 and _ . -"
            )
        # An address has lines.
        _check_text(f"its {key} in {field_name}", text, length_max, allowed="\n" if field_name == "details" else "")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 1]}…"
