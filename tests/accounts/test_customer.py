"""A customer is checked when it is made, and changes are merged into it."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_meter import Customer, InvalidCustomer
from token_meter.accounts import customer as limits
from token_meter.accounts.customer import STATUSES, as_stored, changed
from token_meter.errors import TokenMeterError
from token_meter.ledger.tables import TEXT_BYTES_MAX
from token_meter.ledger.values import MODES

FULL = Customer(
    id="acme",
    name="Acme Inc.",
    email="billing@acme.example",
    currency="EUR",
    time_zone="Europe/Berlin",
    external_ids={"stripe": "cus_1", "lago": "sub_1"},
    details={"tax_id": "DE123", "address": "Street 1\nBerlin"},
    status="paused",
    mode="test",
    created=datetime(2026, 1, 1, tzinfo=UTC),
    updated=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
)

lines = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
keys = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,8}", fullmatch=True)
some_customers = st.builds(
    Customer,
    id=st.text(st.characters(), min_size=1, max_size=20),
    name=st.none() | lines,
    email=st.none() | st.just("a@b"),
    currency=st.none() | st.from_regex(r"[A-Z]{3}", fullmatch=True),
    time_zone=st.none() | st.sampled_from(["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires"]),
    external_ids=st.dictionaries(keys, lines, max_size=4),
    details=st.dictionaries(keys, lines, max_size=4),
    status=st.sampled_from(STATUSES),
    mode=st.sampled_from(MODES),
)


def test_the_least_a_customer_has_is_an_id() -> None:
    customer = Customer(id="acme")

    assert customer.to_json() == {"id": "acme", "mode": "live", "status": "active"}
    assert Customer.from_json({"id": "acme"}) == customer
    assert (customer.name, customer.external_ids, customer.created) == (None, {}, None)


@given(some_customers)
def test_the_json_form_comes_back(customer: Customer) -> None:
    assert Customer.from_json(customer.to_json()) == customer


def test_the_json_form_holds_the_times_too() -> None:
    read = Customer.from_json(FULL.to_json())

    assert (read, read.created, read.updated) == (FULL, FULL.created, FULL.updated)


def test_customers_are_values() -> None:
    given_ids = {"stripe": "cus_1"}
    customer = Customer(id="acme", external_ids=given_ids)
    given_ids["stripe"] = "cus_2"

    assert customer.external_ids == {"stripe": "cus_1"}
    assert len({FULL, Customer.from_json(FULL.to_json()), Customer(id="acme")}) == 2
    assert pickle.loads(pickle.dumps(FULL)) == copy.deepcopy(FULL) == FULL
    with pytest.raises(AttributeError):
        FULL.name = "Other"  # type: ignore[misc]


def test_an_id_may_hold_anything_that_an_event_may() -> None:
    assert limits.ID_BYTES_MAX == TEXT_BYTES_MAX
    for id in (" ", "\0", "\ud800", "=1+1", "x" * 1024, "é" * 512):
        assert Customer(id=id).id == id


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"id": ""}, "its id is empty"),
    ({"id": 7}, "its id is no text but int"),
    ({"id": "x" * 1025}, "its id is longer than 1024 bytes"),
    ({"id": "\0" * 300}, "its id is longer than 1024 bytes"),
    ({"mode": "prod"}, "its mode is live or test, not 'prod'"),
    ({"status": "gone"}, "its status is active or paused, not 'gone'"),
    ({"status": None}, "its status is active or paused, not None"),
    ({"name": ""}, "its name is empty; leave it out, or give None"),
    ({"name": "  "}, "its name is empty"),
    ({"name": " Acme"}, "its name begins or ends with a blank: ' Acme'"),
    ({"name": "Acme\nInc."}, "its name holds a control character"),
    ({"name": "Acme\ud800"}, "its name holds a control character"),
    ({"name": "x" * 256}, "its name is longer than 255 characters"),
    ({"name": 7}, "its name is no text but int"),
    ({"email": "acme.example"}, "its email is no address: 'acme.example'"),
    ({"email": "a@b@c"}, "its email is no address"),
    ({"email": "a b@c"}, "its email is no address"),
    ({"email": "a@" + "x" * 254}, "its email is longer than 254 characters"),
    ({"currency": "usd"}, "three capital letters such as USD or EUR, not 'usd'"),
    ({"currency": "USDT"}, "three capital letters"),
    ({"currency": "ÄÖÜ"}, "three capital letters"),
    ({"currency": "USD\n"}, "three capital letters"),
    ({"currency": 840}, "three capital letters"),
    ({"time_zone": "Europe/Atlantis"}, "no time zone is called 'Europe/Atlantis'"),
    ({"time_zone": "Europe"}, "no time zone is called 'Europe'"),
    ({"time_zone": "../../etc/passwd"}, "no time zone is called"),
    ({"time_zone": "x" * 65}, "longer than 64 characters"),
    ({"time_zone": ""}, "its time zone is empty"),
    ({"external_ids": ["cus_1"]}, "its external_ids is no mapping"),
    ({"external_ids": {"Stripe": "cus_1"}}, "'Stripe' cannot be a name in external_ids: it has 1 to 64 of a-z"),
    ({"external_ids": {"": "cus_1"}}, "'' cannot be a name in external_ids"),
    ({"external_ids": {7: "cus_1"}}, "7 cannot be a name in external_ids"),
    ({"external_ids": {"x" * 65: "cus_1"}}, "cannot be a name in external_ids"),
    ({"external_ids": {"stripe": ""}}, "its stripe in external_ids is empty"),
    ({"external_ids": {"stripe": None}}, "its stripe in external_ids is no text but NoneType"),
    ({"external_ids": {"stripe": "cus_1\n"}}, "its stripe in external_ids begins or ends with a blank"),
    ({"external_ids": {"stripe": "cus\n1"}}, "its stripe in external_ids holds a control character"),
    ({"external_ids": {"stripe": "x" * 256}}, "longer than 255 characters"),
    ({"external_ids": {f"b{number}": "x" for number in range(33)}}, "has 33 entries; at most 32 are kept"),
    ({"details": "DE123"}, "its details is no mapping"),
    ({"details": {"tax id": "DE123"}}, "'tax id' cannot be a name in details"),
    ({"details": {"tax_id": "x" * 2001}}, "longer than 2000 characters"),
    ({"details": {"tax_id": "DE\x1b[31m"}}, "its tax_id in details holds a control character"),
    ({"details": {f"d{number}": "x" for number in range(65)}}, "has 65 entries; at most 64 are kept"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_a_field_that_cannot_be_what_it_says_is_refused_with_the_reason(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidCustomer) as made:
        Customer(**{"id": "acme", **fields})
    with pytest.raises(InvalidCustomer) as read:
        Customer.from_json({"id": "acme", **fields})

    assert reason in str(made.value)
    assert str(made.value).startswith("customer ")
    assert len(str(made.value)) < 300
    assert str(read.value) == str(made.value)
    assert isinstance(made.value, TokenMeterError) and isinstance(made.value, ValueError)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "a customer is an object with an id"),
        ({}, "a customer is an object with an id"),
        ({"id": "acme", "externalids": {}}, "customer 'acme' has no field 'externalids'. Known: created, currency"),
        ({"id": "acme", "created": "yesterday"}, "customer 'acme': created and updated are RFC 3339"),
        ({"id": "acme", "updated": 5}, "customer 'acme': created and updated are RFC 3339"),
    ],
)
def test_a_document_that_is_no_customer_is_refused(document: Any, reason: str) -> None:
    with pytest.raises(InvalidCustomer) as refused:
        Customer.from_json(document)

    assert reason in str(refused.value)


def test_changes_replace_what_is_given_and_merge_mappings() -> None:
    after = changed(
        FULL,
        {"name": "Acme Ltd.", "email": None, "external_ids": {"stripe": "cus_2", "amberflo": "a"}, "status": "active"},
    )

    assert after == Customer(
        id="acme",
        name="Acme Ltd.",
        currency="EUR",
        time_zone="Europe/Berlin",
        external_ids={"stripe": "cus_2", "lago": "sub_1", "amberflo": "a"},
        details=FULL.details,
        mode="test",
    )
    assert after.created == FULL.created
    assert changed(FULL, {}) == FULL


def test_none_takes_a_name_out_of_a_mapping_whether_it_is_there_or_not() -> None:
    after = changed(FULL, {"external_ids": {"stripe": None, "orb": None}, "details": {"tax_id": None}})

    assert after.external_ids == {"lago": "sub_1"}
    assert after.details == {"address": "Street 1\nBerlin"}


def test_what_cannot_be_changed_is_refused() -> None:
    with pytest.raises(TypeError, match=r"nothing called 'nam' can be changed\. Known: name, email, currency"):
        changed(FULL, {"nam": "x"})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(TypeError, match="nothing called 'id'"):
        changed(FULL, {"id": "x"})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(InvalidCustomer, match="customer 'acme': its external_ids is no mapping"):
        changed(FULL, {"external_ids": None})  # type: ignore[typeddict-item]


def test_what_was_stored_is_not_judged_again() -> None:
    """The machine that stored it may know more time zones."""
    values = {name: getattr(FULL, name) for name in FULL.__slots__} | {"time_zone": "Mars/Olympus"}

    assert as_stored(values).time_zone == "Mars/Olympus"
