"""Declared dimensions: they make queries fast, and never make them wrong."""

from __future__ import annotations

import pytest

from token_meter.ledger import Ledger, LedgerError
from token_meter.ledger.tables import DIMENSION_VALUES_MAX
from token_meter.testing.builders import make_event
from token_meter.usage import Usage


def counts(ledger, name, **filters):
    return {row[name]: row.events for row in ledger.usage(by=name, **filters)}


def events_of(*values, start=1):
    return [make_event(n, dimensions={} if value is None else {"team": value}) for n, value in enumerate(values, start)]


def test_a_dimension_declared_later_tells_about_the_past_too(url):
    with Ledger(url) as before:
        before.record(events_of("a", "b", None))
        assert counts(before, "team") == {"a": 1, "b": 1, None: 1}

    with Ledger(url, dimensions=["team"]) as after:
        assert after.summary().dimensions == ("team",)
        assert counts(after, "team") == {"a": 1, "b": 1, None: 1}
        after.record(events_of("a", start=4))
        assert counts(after, "team") == {"a": 2, "b": 1, None: 1}


def test_a_process_that_does_not_declare_it_fills_it_all_the_same(url):
    with Ledger(url) as old:
        old.record(events_of("a"))
        with Ledger(url, dimensions=["team"]) as new:
            assert counts(new, "team") == {"a": 1}

            old.record(events_of("a", "b", start=2))

            assert counts(new, "team") == counts(old, "team") == {"a": 2, "b": 1}
            assert new.usage(by=(), dimensions={"team": "b"})[0].usage == Usage(input=3, output=1)


def test_dimensions_add_up_over_openings(url):
    for names in (["team"], ["route"], [], ["route", "team"]):
        with Ledger(url, dimensions=names) as ledger:
            ledger.record([make_event(1, dimensions={"team": "a", "route": "/x"})])

    with Ledger(url) as ledger:
        assert ledger.summary().dimensions == ("route", "team")
        assert [row.group for row in ledger.usage(by=("route", "team"))] == [{"route": "/x", "team": "a"}]


def test_rollups_made_anew_by_one_process_are_seen_by_another(url):
    with Ledger(url, dimensions=["team"]) as one, Ledger(url) as other:
        one.record(events_of("a", "b"))
        other.record(events_of("c", start=3))
        other.rebuild_rollups()

        one.record(events_of("b", "c", "d", start=4))
        other.record(events_of("a", start=7))

        assert counts(one, "team") == counts(other, "team") == {"a": 2, "b": 2, "c": 2, "d": 1}


def test_more_values_than_rollups_hold_are_reported_and_still_counted_exactly(url):
    values = [f"v{number}" for number in range(DIMENSION_VALUES_MAX + 5)]
    with Ledger(url, dimensions=["team", "feature"]) as ledger:
        ledger.record(events_of(*values[:DIMENSION_VALUES_MAX]))
        assert ledger.summary().dimensions_overflowed == ()
        ledger.record(events_of(*values[-5:], values[0], start=len(values)))
        ledger.record(events_of(values[-1], start=2 * len(values)))

        found = counts(ledger, "team")

        assert ledger.summary().dimensions_overflowed == ("team",)
        assert found == {**dict.fromkeys(values, 1), values[0]: 2, values[-1]: 2}
        assert counts(ledger, "feature", dimensions={"team": values[-1]}) == {None: 2}
        assert sum(row.events for row in ledger.usage()) == DIMENSION_VALUES_MAX + 7


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [
        (["model"], "'model' cannot be a declared dimension"),
        (["token_type"], "cannot be a declared dimension"),
        ([""], "cannot be a dimension"),
        (["x" * 257], "cannot be a dimension"),
        ("team", "must be a sequence of names"),
        ([str(number) for number in range(17)], "at most 16 dimensions"),
    ],
)
def test_names_that_cannot_be_declared_are_refused_at_once(tmp_path, dimensions, message):
    with pytest.raises(ValueError, match=message):
        Ledger(tmp_path / "usage.db", dimensions=dimensions)


def test_a_ledger_has_so_many_dimensions_and_no_more(url):
    with Ledger(url, dimensions=[f"d{number}" for number in range(16)]) as ledger:
        ledger.record(events_of("a"))

    with Ledger(url, dimensions=["one more"]) as ledger, pytest.raises(LedgerError, match="are more than 16"):
        ledger.events()
