"""Files that people write: exact numbers, and errors that say where."""

from __future__ import annotations

from decimal import Decimal

import pytest
from pydantic import BaseModel, ConfigDict

from token_meter.documents import BYTES_MAX, checked, read_document
from token_meter.errors import InvalidDocument


def read(text):
    return read_document(text, name="file.yaml").content


def test_numbers_are_what_was_written():
    assert read("a: 0.1\nb: 1_000\nc: 1e3\nd: 12\ne: -0.00001\nf: '0.1'\ng: yes\nh: ~\ni: 2026-11-01\nj: 12:30") == {
        "a": Decimal("0.1"), "b": 1000, "c": "1e3", "d": 12, "e": Decimal("-0.00001"), "f": "0.1", "g": True, "h": None,
        "i": "2026-11-01", "j": "12:30",
    }  # fmt: skip


def test_json_is_read_too():
    assert read('{"a": [1, 2.50, "x", null, true]}') == {"a": [1, Decimal("2.50"), "x", None, True]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "file.yaml:2: 'a' stands here twice"),
        ("a: &x [1]\nb: *x\n", "anchors are not allowed"),
        ("a: [1\n", "file.yaml:2"),
        ("? [a]\n: 1\n", "a field's name must be text"),
        (b"\xff\xfe", "no text in UTF-8"),
        ("a: " + "[" * 5000, "file.yaml"),
        ("x" * (BYTES_MAX + 1), "larger than"),
    ],
)
def test_what_cannot_be_read_says_where(text, said):
    with pytest.raises(InvalidDocument) as told:
        read(text)

    assert said in str(told.value)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    price: int


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    items: list[Inner]


def test_a_wrong_field_is_told_with_its_line_and_the_nearest_name():
    document = read_document("items:\n  - price: 1\n  - prise: 2\n", name="file.yaml")

    with pytest.raises(InvalidDocument) as told:
        checked(Outer, document)

    assert str(told.value) == (
        "file.yaml:3: items.1.price: Field required; file.yaml:3: items.1.prise: is no field here; did you mean 'price'?"
    )
