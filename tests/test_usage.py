"""Usage: a sparse, frozen mapping of token type to quantity that adds up."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given

from tests.providers.kit import properties
from token_meter import HEADLINES, TOKEN_TYPES, Usage
from token_meter.testing.builders import usages
from token_meter.usage import QUANTITY_MAX

small = usages(quantity_max=2**40)


def test_it_is_a_mapping_without_zeros() -> None:
    usage = Usage(input=3, output=1, reasoning=0)

    assert dict(usage) == {"input": 3, "output": 1}
    assert (len(usage), list(usage), "input" in usage, "reasoning" in usage) == (2, ["input", "output"], True, False)
    assert (usage["input"], usage.input, usage.reasoning, usage.get("reasoning", 7)) == (3, 3, 0, 7)
    assert list(usage.items()) == [("input", 3), ("output", 1)]
    with pytest.raises(KeyError):
        usage["reasoning"]
    with pytest.raises(AttributeError, match="no token type 'tokenz'"):
        usage.tokenz  # noqa: B018
    assert repr(usage) == "Usage(input=3, output=1)"
    assert not Usage() and bool(usage)


def test_it_cannot_be_changed() -> None:
    usage = Usage(input=3)
    for change in (
        lambda: usage.__setitem__("input", 4),
        lambda: setattr(usage, "input", 4),
        lambda: setattr(usage, "anything", 4),
        lambda: usage.__delitem__("input"),
    ):
        with pytest.raises((TypeError, AttributeError)):
            change()
    given_ = {"input": 3}
    mine = Usage(given_)
    given_["input"] = 9
    assert mine == usage


@pytest.mark.parametrize(
    ("quantities", "error"),
    [({"tokens": 1}, ValueError), ({"input": -1}, ValueError), ({"input": QUANTITY_MAX + 1}, ValueError),
     ({"input": 1.0}, TypeError), ({"input": True}, TypeError), ({"input": "1"}, TypeError), ({"input": None}, TypeError)],
    ids=str,
)  # fmt: skip
def test_what_is_no_quantity_is_refused(quantities: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Usage(quantities)


def test_mapping_and_keywords_together() -> None:
    assert Usage({"input": 3, "output": 1}, input=5) == Usage(input=5, output=1)
    assert Usage(Usage(input=3)) == Usage(input=3)
    assert Usage(input=QUANTITY_MAX).input == QUANTITY_MAX


@properties(max_examples=100)
@given(small, small, small)
def test_adding_has_the_laws_of_addition(a: Usage, b: Usage, c: Usage) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c) == sum([a, b, c])
    assert a + Usage() == Usage() + a == a
    assert (a + b).tokens == a.tokens + b.tokens
    assert all((a + b).get(name, 0) == a.get(name, 0) + b.get(name, 0) for name in TOKEN_TYPES)


def test_adding_something_else_is_refused() -> None:
    for other in (1, {"input": 1}, None):
        with pytest.raises(TypeError):
            Usage(input=1) + other  # type: ignore[operator]
    assert sum([], Usage()) == Usage()


@properties(max_examples=100)
@given(usages())
def test_equality_hash_and_copies(usage: Usage) -> None:
    same = Usage(dict(reversed(list(usage.items()))))

    assert usage == same and hash(usage) == hash(same)
    assert usage == dict(usage) and dict(usage) == usage
    assert usage != Usage(dict(usage), input=(usage.input + 1) % QUANTITY_MAX)
    assert usage != 5
    assert pickle.loads(pickle.dumps(usage)) == copy.deepcopy(usage) == copy.copy(usage) == usage
    assert Usage(json.loads(json.dumps(dict(usage)))) == usage


@properties(max_examples=100)
@given(usages())
def test_headlines_and_tokens_are_plain_sums(usage: Usage) -> None:
    headlines = usage.by_headline()

    assert list(headlines) == [name for name in HEADLINES if name in headlines]
    assert all(headlines.values())
    assert sum(headlines.values()) == sum(usage.values())
    assert usage.tokens == sum(count for name, count in usage.items() if TOKEN_TYPES[name].unit == "token")


def test_the_table_of_types_is_sound() -> None:
    assert {each.headline for each in TOKEN_TYPES.values()} == set(HEADLINES)
    assert all(name == each.name and name.isidentifier() for name, each in TOKEN_TYPES.items())
    named = (
        "input input_audio cache_read cache_write_5m cache_write_12h output reasoning cached_output web_search audio_ms"
    )
    assert set(named.split()) <= set(TOKEN_TYPES)
    assert all(
        TOKEN_TYPES[name].unit != "token" for name in ("web_search", "audio_ms", "characters", "images", "units")
    )
