"""What backends are told of an event: tables of rules, functions, and what no rule may lose."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_meter.errors import Rejected, Retry
from token_meter.sinks import Measure, Rule
from token_meter.sinks.amberflo import amberflo_rules
from token_meter.sinks.lago import lago_rules
from token_meter.sinks.mapping import ANY_METER, MODEL, measured, own_dimensions, types_of, unmapped
from token_meter.sinks.openmeter import openmeter_rules
from token_meter.testing import make_event
from token_meter.testing.builders import usages
from token_meter.usage import TOKEN_TYPES, Usage

IN = Rule(key="in", meter="prompt", types=("input", "cache_read"), properties={"side": "in"})
OUT = Rule(key="out", meter="completion", types=("output",))
DEFAULTS = {
    "lago": lago_rules(),
    "amberflo": amberflo_rules(),
    "amberflo, template llm": amberflo_rules("llm"),
    "openmeter": openmeter_rules(),
}


def test_a_rule_sums_its_types_and_says_what_it_summed() -> None:
    mapping = measured([IN, OUT], MODEL)

    made = mapping(make_event(usage=Usage(input=3, cache_read=4, reasoning=5)))

    properties = {"model": "gpt-5-2025-08-07", "provider": "openai", "side": "in"}
    assert list(made) == [
        Measure(key="in", meter="prompt", value=7, properties=properties, types=("input", "cache_read"))
    ]


def test_an_event_makes_one_measure_for_each_rule_that_finds_something() -> None:
    made = measured([IN, OUT], {})(make_event(usage=Usage(input=3, output=1)))

    assert [(each.key, each.meter, each.value) for each in made] == [("in", "prompt", 3), ("out", "completion", 1)]


def test_a_rule_without_types_counts_calls() -> None:
    mapping = measured([Rule(key="calls", meter="requests")], {})

    assert [each.value for each in mapping(make_event(usage=Usage(input=3, output=1)))] == [1]
    assert list(mapping(make_event(usage=Usage()))) == []


def test_what_has_no_value_is_no_property() -> None:
    (made,) = measured([OUT], MODEL)(make_event(usage=Usage(output=1), model=None))

    assert made.properties == {"provider": "openai"}


def test_dimensions_of_ones_own_are_properties_under_their_names() -> None:
    (made,) = measured([OUT], own_dimensions(["feature", "key"]))(
        make_event(usage=Usage(output=1), dimensions={"feature": "chat", "else": "x"})
    )

    assert made.properties == {"feature": "chat"}


def test_a_meter_of_ones_own_is_reported_by_rules_for_it_alone() -> None:
    mapping = measured([IN, Rule(key="pages", meter="pages_printed", source="pages")], {})

    assert [(each.meter, each.value) for each in mapping(make_event(usage=Usage(units=9), meter="pages"))] == [
        ("pages_printed", 9)
    ]
    assert list(mapping(make_event(usage=Usage(units=9), meter="other"))) == []
    assert [each.meter for each in mapping(make_event(usage=Usage(input=1)))] == ["prompt"]


def test_any_meter_of_ones_own_can_be_reported_under_its_name() -> None:
    mapping = measured([Rule(key="value", meter="", source=ANY_METER)], {})

    (made,) = mapping(make_event(usage=Usage(units=9, input=1), meter="pages"))

    assert (made.meter, made.value, set(made.types)) == ("pages", 10, {"units", "input"})
    assert list(mapping(make_event())) == []


def test_two_rules_of_one_key_are_refused() -> None:
    with pytest.raises(ValueError, match="two rules have the key 'in'"):
        measured([IN, Rule(key="in", meter="other")], {})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"key": ""}, "1 to 50 characters"),
        ({"key": "k" * 51}, "1 to 50 characters"),
        ({"key": "-in"}, "no minus at its beginning"),
        ({"key": "a:b"}, "no colon"),
        ({"types": ("input", "tokens")}, "tokens: no token type. Known: input, "),
        ({"types": "input"}, r"types=\('input',\)"),
    ],
)
def test_a_wrong_rule_says_what_is_wrong(fields: Mapping[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Rule(**{"key": "in", "meter": "prompt", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"key": ""}, ValueError, "1 to 50 characters"),
        ({"key": "-in"}, ValueError, "no minus"),
        ({"meter": ""}, ValueError, "meter is the name of a meter"),
        ({"value": 1.5}, TypeError, "must be an int, not float"),
        ({"value": "3"}, TypeError, "must be an int, not str"),
        ({"value": True}, TypeError, "must be an int, not bool"),
        ({"properties": {"tier": 3}}, TypeError, "the property 'tier' must be a text, not int"),
    ],
)
def test_a_measure_of_a_function_is_checked_where_it_is_made(
    fields: Mapping[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Measure(**{"key": "in", "meter": "prompt", "value": 1, **fields})  # type: ignore[arg-type]


def test_unmapped_names_what_never_reaches_the_destination() -> None:
    left = unmapped([Rule(key="all", meter="all", types=tuple(TOKEN_TYPES)[:-2])])

    assert left == tuple(TOKEN_TYPES)[-2:]
    assert unmapped([Rule(key="x", meter="x", types=("input",), source="pages")]) == tuple(TOKEN_TYPES)


def test_types_of_headlines_are_in_table_order() -> None:
    assert types_of("cached output", "cached input") == (
        "cache_read", "cache_read_audio", "cache_read_image", "cache_read_video", "cached_output",
    )  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_token_type_is_reported_by_one_rule_of_each_default_table(name: str) -> None:
    rules = DEFAULTS[name]

    reported = [each for rule in rules if rule.source == "llm_tokens" for each in rule.types]

    assert unmapped(rules) == ()
    assert sorted(reported) == sorted(TOKEN_TYPES)


@pytest.mark.parametrize("name", DEFAULTS)
@given(usage=usages(), own=st.booleans())
def test_a_default_table_reports_every_unit_once(name: str, usage: Usage, own: bool) -> None:
    event = make_event(usage=usage, meter="pages" if own else "llm_tokens")

    made = list(measured(DEFAULTS[name], MODEL)(event))

    assert sum(each.value for each in made if each.key != "api_calls") == sum(usage.values())
    assert len({each.key for each in made}) == len(made)
    assert {each.meter for each in made} <= ({"pages"} if own else {rule.meter for rule in DEFAULTS[name]})


def test_an_error_of_the_users_function_is_theirs_to_see() -> None:
    """What a function of the user's raises reaches whoever calls the mapping; the sink decides what it means."""

    def read(event: object) -> str:
        raise Rejected((), "no")

    with pytest.raises(Rejected):
        measured([OUT], {"tier": read})(make_event())
    assert not issubclass(Rejected, Retry)
