"""The comparison with the vendors' own clients judges as it says, runs, and docs/comparison.md shows its rows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.comparison import Outcome, markdown, outcome_of, sums, verdict
from bench.comparison_calls import CASES, Case
from bench.comparison_tools import TOOLS, Split, Tool, bare, split_of
from token_meter.usage import Usage

PAGE = Path(__file__).parent.parent / "docs" / "comparison.md"
BILLED = Split(input=20, cached=80, output=10)


@pytest.mark.parametrize(
    ("outcome", "cell"),
    [
        (Outcome(events=3, split=BILLED, billed=BILLED), "right"),
        (Outcome(), "right: nothing"),
        (Outcome(billed=BILLED), "none"),
        (Outcome(events=2, split=Split(input=100, output=10), billed=BILLED), "cached as input"),
        (Outcome(events=2, split=Split(input=20, output=10), billed=BILLED), "wrong: 30 of 110 tokens"),
        (Outcome(events=2, split=Split(input=30, output=10), billed=Split(written=30, output=10)), "cached as input"),
        (Outcome(events=1, split=Split(input=110), billed=BILLED), "wrong: 110 of 110 tokens"),
        (Outcome(broke="TypeError", events=1, split=BILLED, billed=BILLED), "caller breaks: TypeError"),
        (Outcome(seen="x", billed=BILLED), "none, but the application sees something else"),
    ],
)
def test_a_verdict(outcome: Outcome, cell: str) -> None:
    assert verdict(outcome, seen="") == cell


@pytest.mark.parametrize(
    ("statuses", "cell"),
    [
        (("estimated",), "30 of 110 tokens, flagged as estimated"),
        (("partial",), "30 of 110 tokens, flagged as partial"),
        ((), "30 of 110 tokens"),
    ],
)
def test_of_what_was_closed_early_nobody_is_called_wrong(statuses: tuple[str, ...], cell: str) -> None:
    outcome = Outcome(events=1, split=Split(input=20, output=10), billed=BILLED, statuses=statuses)

    assert verdict(outcome, seen="", cut=True) == cell


def test_tokens_are_split_by_what_they_are_priced_as() -> None:
    usage = Usage(input=1, input_audio=2, cache_read=4, cache_write_1h=8, output=16, reasoning=32, web_search=5)

    assert split_of(usage) == Split(input=3, cached=4, written=8, output=48)


def test_a_call_is_made_in_a_process_of_its_own() -> None:
    case = CASES[1]  # with cached tokens

    without, outcome = outcome_of(case, bare), outcome_of(case, TOOLS["token_meter, LagoSink"])

    assert verdict(outcome, seen=without.seen) == "right"
    assert (without.events, outcome.billed.cached > 1_000) == (0, True)


def test_a_call_that_breaks_the_process_stops_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def broken() -> Tool:
        raise SystemError("the tool cannot be imported")

    outcome = outcome_of(CASES[0], broken)

    assert outcome == Outcome(broke="the process ended with 1")
    assert "the tool cannot be imported" in capfd.readouterr().err


def test_rows_are_summed() -> None:
    rows = [["openai", "a", "right", "none", "right: nothing", "wrong: 1 of 2 tokens"]]

    assert sums(rows) == ["", "**right, of 1 calls**", "1", "0", "1", "0"]
    assert markdown(rows).splitlines()[-1] == "| openai | a | right | none | right: nothing | wrong: 1 of 2 tokens |"


@pytest.mark.parametrize("case", CASES, ids=[case.run.__name__ for case in CASES])
def test_the_page_has_a_row_for_each_call(case: Case) -> None:
    assert f"| {case.sdk} | {case.shown} |" in PAGE.read_text("utf-8")


def test_the_page_says_what_was_compared() -> None:
    page = PAGE.read_text("utf-8")

    assert re.search(
        r"^\d{4}-\d\d-\d\d, Python 3\.\d+\.\d+, lago-agent-sdk \S+, amberflo-metering-python \S+,", page, re.M
    )
    assert "python -m bench.comparison" in page
    assert all(f" {tool} |" in page for tool in TOOLS)
