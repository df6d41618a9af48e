"""Reading a few fields out of a body: always what the whole body says, or nothing, whatever the body looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.kit import properties
from token_meter.providers import body
from token_meter.providers.body import WHOLE_BYTES_MAX, fields_of

WANTED = ("id", "model", "usage", "x_groq")
BULKY = "choices"
NAMES = st.sampled_from([
    *WANTED, BULKY, "a", '"usage"', 'x"usage":{', "\\", "\\\\", 'usage"', "choices:", "мodel", "", "us\\u0061ge", "{", "]",
])  # fmt: skip
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)
blocks = st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "usage", "choices"]), st.integers())
usual = st.fixed_dictionaries(
    {}, optional={"id": st.text(), "model": NAMES, "choices": st.lists(values, max_size=3), "usage": blocks, "x_groq": values},
)  # fmt: skip
STYLES: list[dict[str, Any]] = [
    {"separators": (",", ":")}, {"separators": (", ", ": ")}, {"indent": 1}, {"separators": (" ,\n", " :\t")},
    {"separators": (",", ":"), "ensure_ascii": False},
]  # fmt: skip


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A JSON object as text: fields in any order, in any style, some of them twice."""
    pairs: list[tuple[str, Any]] = [
        *draw(usual).items(), *draw(st.lists(st.tuples(NAMES, values), max_size=4)), *draw(usual).items(),
    ]  # fmt: skip
    pairs = draw(st.permutations(pairs)) if draw(st.booleans()) else pairs
    style = draw(st.sampled_from(STYLES))
    ascii_ = style.get("ensure_ascii", True)
    comma, colon = style.get("separators", (",\n", ": "))
    items = [f"{json.dumps(name, ensure_ascii=ascii_)}{colon}{json.dumps(value, **style)}" for name, value in pairs]
    space = draw(st.sampled_from(["", " ", "\n\t"]))
    return f"{space}{{{space}{comma.join(items)}{space}}}{space}"


def assert_agrees(found: Any, text: str) -> None:
    whole = json.loads(text)
    for name in WANTED:
        assert found.get(name) == whole.get(name), name
        assert (name in found) == (name in whole), name


@properties(max_examples=400)
@given(documents())
def test_reading_around_the_content_agrees_with_the_whole_or_declines(text: str) -> None:
    found = body._around(text.encode("utf-8", "surrogatepass"), *body._keys(WANTED, BULKY))

    if found is not None:
        assert_agrees(found, text)


@properties(max_examples=400)
@given(documents())
def test_walking_a_large_body_agrees_with_the_whole(text: str) -> None:
    found = body._walk(text.encode("utf-8", "surrogatepass"), frozenset(name.encode() for name in WANTED))

    assert found is not None
    assert_agrees(found, text)


@properties(max_examples=200)
@given(documents(), st.booleans())
def test_fields_of_a_small_body_agree_with_the_whole(text: str, as_text: bool) -> None:
    found = fields_of(text if as_text else text.encode("utf-8", "surrogatepass"), WANTED, bulky=BULKY)

    assert found is not None
    assert_agrees(found, text)


@properties(max_examples=300)
@given(documents(), st.integers(min_value=0, max_value=2000))
def test_a_body_that_was_cut_off_says_nothing_wrong(text: str, place: int) -> None:
    """The SDK raises on such a body; no part of it may pass for the whole."""
    text = text.strip()
    cut = text[: place % max(1, len(text))]

    assert fields_of(cut, WANTED, bulky=BULKY) is None


def test_a_nested_usage_does_not_pass_for_the_whole_when_the_rest_is_missing() -> None:
    for cut in ('{"choices":[{"usage":{"a":5}}', '{"choices":[{"usage":{"a":5},"b":1}', '{"choices":[{"usage":{}}]'):
        assert fields_of(cut, WANTED, bulky=BULKY) is None


def test_brackets_left_open_before_the_content_are_not_closed_by_those_after_the_usage() -> None:
    """The name of the content inside an earlier field, a usage inside a later one: neither is the answer's own."""
    document = {"model": "m", "first": {BULKY: 1}, BULKY: [], "usage": {"total": 7}, "last": {"usage": {"total": 5}}}

    assert fields_of(json.dumps(document).encode(), WANTED, bulky=BULKY) == document


def test_a_large_body_with_its_usage_anywhere_is_read() -> None:
    usage = {"prompt_tokens": 3, "details": {"usage": {"prompt_tokens": 9}}}
    content = [{"usage": {"prompt_tokens": 7}, "text": 'he said "usage": {"prompt_tokens": 8}, \\" and \\\\'}] * 1000
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        pairs = [("id", "x"), ("choices", content), ("usage", usage)]
        document = dict(pairs[place] for place in order)
        for style in STYLES:
            text = json.dumps(document, **style)
            assert len(text) > WHOLE_BYTES_MAX
            assert fields_of(text.encode(), WANTED, bulky=BULKY) == {"id": "x", "usage": usage}
            assert fields_of(text, WANTED, bulky=BULKY) == {"id": "x", "usage": usage}


def test_a_wanted_field_that_is_itself_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "VALUE_BYTES_MAX", 1000)
    text = json.dumps({"id": "x" * 2000, "model": "m", "data": ["y"] * 20_000, "usage": {"prompt_tokens": 3}})

    assert fields_of(text.encode(), WANTED) == {"model": "m", "usage": {"prompt_tokens": 3}}


@pytest.mark.parametrize(
    "text",
    ["", " ", "null", "[]", "7", '"usage"', "{", '{"usage"', "not json", "\ufeff{}x", "{}" * 2, "[" * 100_000, '{"a":' * 100_000],
    ids=lambda text: text[:9],
)  # fmt: skip
def test_what_is_no_json_object_is_nothing(text: str) -> None:
    assert fields_of(text.encode(), WANTED, bulky=BULKY) in (None, {})
    assert fields_of(text.encode(), ()) is None


def test_a_byte_order_mark_is_taken_as_the_sdk_takes_it() -> None:
    text = json.dumps({"choices": [], "usage": {"prompt_tokens": 3}})
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert fields_of(text.encode(encoding), WANTED, bulky=BULKY) == json.loads(text.encode(encoding))


@properties(max_examples=60)
@given(st.binary(max_size=200))
def test_garbage_raises_nothing(data: bytes) -> None:
    fields_of(data, WANTED, bulky=BULKY)
    body._walk(data, frozenset((b"usage",)))
