"""Customers from a CSV file: what a spreadsheet may make of one, all or nothing, and out again unchanged."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.accounts.test_customer import some_customers
from token_meter import Customer, InvalidCustomer
from token_meter.accounts import CsvRefused, CustomerBook, Edited, check_csv, export_csv, import_csv
from token_meter.accounts.csv_columns import cell_of, text_of
from token_meter.accounts.csv_import import COLUMNS_MAX, FILE_BYTES_MAX, ROWS_MAX, read_sheet
from token_meter.ledger import Ledger

SHEET = """\
id,name,email,currency,time_zone,status,stripe_id,external.amberflo,detail.tax_id
acme,Acme Inc.,billing@acme.example,EUR,Europe/Berlin,active,cus_1,acme-1,DE123
globex,Globex,,,,paused,cus_2,,
"""
QUOTED = "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in SHEET.splitlines())
ACME = Customer(
    id="acme",
    name="Acme Inc.",
    email="billing@acme.example",
    currency="EUR",
    time_zone="Europe/Berlin",
    external_ids={"stripe": "cus_1", "amberflo": "acme-1"},
    details={"tax_id": "DE123"},
)
GLOBEX = Customer(id="globex", name="Globex", status="paused", external_ids={"stripe": "cus_2"})


@pytest.fixture
def file_book(tmp_path: Path) -> Iterator[CustomerBook]:
    """An empty book in a file, where the engine does not matter."""
    with Ledger(tmp_path / "usage.db") as ledger:
        yield CustomerBook(ledger)


def problems(data: bytes | str) -> list[str]:
    """What is wrong with this file, line by line."""
    return [str(each) for each in read_sheet(data.encode() if isinstance(data, str) else data).problems]


def test_a_file_enters_and_edits_customers(book: CustomerBook, tmp_path: Path) -> None:
    (tmp_path / "customers.csv").write_text(SHEET)
    book.edit("globex", email="old@globex.example", details={"po": "7"}, external_ids={"stripe": "cus_0"})

    expected = Edited(added=("acme",), changed=("globex",))
    assert check_csv(book, tmp_path / "customers.csv") == expected
    assert book.get("acme") is None
    assert import_csv(book, tmp_path / "customers.csv") == expected
    assert import_csv(book, SHEET.encode()) == Edited(unchanged=("acme", "globex"))

    globex = book.get("globex")
    assert globex is not None
    assert globex.to_json() | {"created": "", "updated": ""} == {
        **GLOBEX.to_json(), "email": "old@globex.example", "details": {"po": "7"}, "created": "", "updated": "",
    }  # fmt: skip
    assert book.get("acme") == ACME
    assert book.list(mode="test") == []


def test_a_file_of_test_customers_leaves_the_live_ones(book: CustomerBook) -> None:
    import_csv(book, SHEET.encode(), mode="test")

    assert book.list() == []
    assert [customer.id for customer in book.list(mode="test")] == ["acme", "globex"]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + SHEET.encode(),
        SHEET.replace("\n", "\r\n").encode(),
        SHEET.replace("\n", "\r").encode(),
        SHEET.rstrip("\n").encode(),
        SHEET.replace("\n", "\n\n,,,,,,,,\n").encode(),
        SHEET.replace("\n", ",,\n").encode().replace(b"detail.tax_id,,", b"detail.tax_id"),
        SHEET.replace(",", " , ").replace("stripe_id", "Stripe_ID").encode(),
        QUOTED.encode(),
    ],
    ids=["byte order mark", "CRLF", "CR", "no end", "empty lines", "empty cells behind", "blanks, capitals", "quotes"],
)  # fmt: skip
def test_what_spreadsheets_make_of_a_file_is_read_alike(file_book: CustomerBook, data: bytes) -> None:
    import_csv(file_book, data)

    assert file_book.list() == [ACME, GLOBEX]


def test_lines_inside_a_cell_are_kept_and_counted(file_book: CustomerBook) -> None:
    data = 'id,detail.address,currency\r\nacme,"Street 1\r\nBerlin",EUR\r\nglobex,"a\r\nb",dollars\r\n'

    assert problems(data) == [
        "line 4: customer 'globex': its currency is three capital letters such as USD or EUR, not 'dollars'"
    ]
    import_csv(file_book, data.replace("dollars", "USD").encode())
    assert [dict(each.details) for each in file_book.list()] == [{"address": "Street 1\nBerlin"}, {"address": "a\nb"}]


def test_every_wrong_line_is_told_and_nothing_is_changed(book: CustomerBook) -> None:
    data = (
        "id,name,currency,time_zone,status,stripe_id\n"
        "good,Good,EUR,,,\n"
        "bad,,eur,,,\n"
        ",Nobody,,,,\n"
        "short,x\n"
        "long,,,,,,more\n"
        "good,Again,,,,\n"
        "zone,,,Mars,,\n"
        "status,,,,gone,\n"
        'name,"a\nb",,,,\n'
        f"external,,,,,{'x' * 256}\n"
        f"{'i' * 1025},,,,,\n"
    )

    for tried in (check_csv, import_csv):
        with pytest.raises(CsvRefused) as refused:
            tried(book, data.encode())
        assert [(each.line, each.reason) for each in refused.value.problems] == [
            (3, "customer 'bad': its currency is three capital letters such as USD or EUR, not 'eur'"),
            (4, "customer '': its id is empty"),
            (5, "the first line names 6 columns, here are 2"),
            (6, "the first line names 6 columns, here are 7"),
            (7, "customer 'good' stands on line 2 already"),
            (
                8,
                "customer 'zone': no time zone is called 'Mars' on this machine: use a name such as Europe/Berlin or UTC",
            ),
            (9, "customer 'status': its status is active or paused, not 'gone'"),
            (10, "customer 'name': its name holds a control character: 'a\\nb'"),
            (12, "customer 'external': its stripe in external_ids is longer than 255 characters"),
            (13, f"customer '{'i' * 58}…: its id is longer than 1024 bytes"),
        ]
        assert str(refused.value).startswith("nothing was imported: line 3: customer 'bad': its currency")
        assert str(refused.value).endswith("line 5: the first line names 6 columns, here are 2; and 7 more lines")
        assert isinstance(refused.value, InvalidCustomer)

    assert book.list() == []


def test_what_does_not_go_with_what_is_there_is_told_with_its_line(book: CustomerBook) -> None:
    book.edit("acme", external_ids={f"b{number}": "x" for number in range(32)})

    for tried in (check_csv, import_csv):
        with pytest.raises(CsvRefused) as refused:
            tried(book, b"id,stripe_id\nglobex,cus_1\nacme,cus_2\n")
        assert [str(each) for each in refused.value.problems] == [
            "line 3: customer 'acme': its external_ids has 33 entries; at most 32 are kept"
        ]

    assert [customer.id for customer in book.list()] == ["acme"]


KNOWN = (
    "Known: id, name, email, currency, time_zone, status, external.<backend> (also stripe_id, lago_id), detail.<name>."
)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("", "line 1: there is no column 'id': the first line names the columns"),
        ("\n\n\n", "line 1: there is no column 'id': the first line names the columns"),
        ("name\nAcme\n", "line 1: there is no column 'id': the first line names the columns"),
        ("id,nmae\na,b\n", f"line 1: unknown column 'nmae'. {KNOWN}"),
        ("id,\na,b\n", f"line 1: unknown column ''. {KNOWN}"),
        ("id,external.\na,b\n", f"line 1: unknown column 'external.'. {KNOWN}"),
        ("id;name\na;b\n", "line 1: the columns are not separated by commas: save the file as comma-separated values"),
        ("id\tname\na\tb\n", "line 1: the columns are not separated by commas: save the file as comma-separated values"),
        ("id,stripe_id,external.stripe\n", "line 1: the column 'external.stripe' is there twice"),
        ("id,Name,name\n", "line 1: the column 'name' is there twice"),
        ('id,name\na,"b\nc,d\n', "line 2: this is not CSV: unexpected end of data"),
        ('id,name\na,b\nc,"d"e\n', "line 3: this is not CSV: ',' expected after '\"'"),
        ("id,name\na," + "x" * 200_000, "line 2: this is not CSV: field larger than field limit (131072)"),
        (b"id,name\na,b\nc,M\xfcller\n", "line 3: this is not UTF-8 text: save the file as CSV in UTF-8"),
        ("id,name\n".encode("utf-16"), "line 1: this is not UTF-8 text: save the file as CSV in UTF-8"),
        ("id," + ",".join(f"detail.d{n}" for n in range(COLUMNS_MAX)), "line 1: the file has 1,001 columns; at most 1,000 are read"),
        (b"x" * (FILE_BYTES_MAX + 1), "line 1: the file is larger than 64 MiB: split it"),
        ("id\n" + "\n".join(map(str, range(ROWS_MAX + 5))), "line 100002: the file has more than 100,000 rows: split it"),
        ("id\n" + "\n".join('""' for _ in range(3)), None),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_file_that_is_no_list_of_customers_is_explained(data: bytes | str, problem: str | None) -> None:
    assert problems(data) == ([problem] if problem else [])


def test_a_file_that_is_not_there_is_an_os_error(file_book: CustomerBook, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        import_csv(file_book, tmp_path / "missing.csv")


def test_a_check_needs_no_ledger() -> None:
    assert check_csv(None, SHEET.encode()) == Edited(added=("acme", "globex"))
    with pytest.raises(CsvRefused):
        check_csv(None, b"id,currency\na,b\n")


# Out again


@given(
    st.text(st.characters()) | st.sampled_from(["'", "''", "'=1", "''=1", " ", " '", "' ", "'t Hooft", "-", "\ue000"])
)
def test_a_text_comes_back_from_its_cell_and_is_no_formula(text: str) -> None:
    cell = cell_of(text)

    assert text_of(cell) == text
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    cell.encode()


def test_what_a_human_types_is_read_as_it_stands() -> None:
    assert [text_of(cell) for cell in ("'t Hooft", " Acme ", "'", "+49", "'+49", "")] == [
        "'t Hooft", "Acme", "'", "+49", "+49", "",
    ]  # fmt: skip


def test_an_export_is_a_table_with_a_column_for_all_that_anybody_has(file_book: CustomerBook) -> None:
    import_csv(file_book, SHEET.encode())
    file_book.edit("=cmd|' /C calc'!A0", details={"address": "Street 1\nBerlin"})

    assert "".join(export_csv(file_book)) == (
        "id,name,email,currency,time_zone,status,external.amberflo,external.stripe,detail.address,detail.tax_id\r\n"
        "'=cmd|' /C calc'!A0,,,,,active,,,\"Street 1\nBerlin\",\r\n"
        "acme,Acme Inc.,billing@acme.example,EUR,Europe/Berlin,active,acme-1,cus_1,,DE123\r\n"
        "globex,Globex,,,,paused,,cus_2,,\r\n"
    )
    assert "".join(export_csv(file_book, mode="test")) == "id,name,email,currency,time_zone,status\r\n"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(customers=st.lists(some_customers, max_size=6))
def test_an_exported_book_is_imported_unchanged(file_book: CustomerBook, customers: list[Customer]) -> None:
    for customer in customers:
        file_book.save(Customer.from_json(customer.to_json() | {"id": f"{customer.id}{uuid4()}", "mode": "live"}))
    data = "".join(export_csv(file_book)).encode()

    done = import_csv(file_book, data, mode="test")

    live, test = file_book.list(), file_book.list(mode="test")
    assert [bare(customer) for customer in live] == [bare(customer) for customer in test]
    assert (len(done.added), done.changed) == (len(customers), ())
    assert import_csv(file_book, data).changed == ()


def bare(customer: Customer) -> dict[str, Any]:
    """The customer without what differs between two books."""
    return {name: value for name, value in customer.to_json().items() if name not in ("mode", "created", "updated")}


def test_a_long_export_comes_in_pieces(file_book: CustomerBook) -> None:
    file_book.edit_many({f"c{number}": {"name": "x" * 200} for number in range(1_000)})

    pieces = list(export_csv(file_book))

    assert len(pieces) > 2
    assert len(list(csv.reader(io.StringIO("".join(pieces), newline="")))) == 1_001
