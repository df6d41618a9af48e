"""Stripe's billing for LLM tokens: the event name, the spelling of token types, and the rules that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from token_meter.sinks.mapping import Rule, types_of
from token_meter.usage import HEADLINES

TOKEN_BILLING: Final = "token-billing-tokens"
"""The event name of Stripe's billing for LLM tokens."""

TOKEN_TYPES: Final[Mapping[str, str]] = {
    "input": "input",
    "cached input": "cached_input",
    "cache write": "input",
    "output": "output",
    "cached output": "output",
}
"""Token billing's `token_type` for each headline. Two headlines of one spelling are summed.

`input` and `output` are what Stripe's clients send. They send no cached type, so its spelling is a guess: look at what
your account's meter has prices for, and change it with `StripeSink(token_types=...)` before you send anything.
"""


def token_billing(token_types: Mapping[str, str] = TOKEN_TYPES, *, event_name: str = TOKEN_BILLING) -> list[Rule]:
    """The rules of Stripe's billing for LLM tokens: one for each spelling of a token type.

    An empty spelling leaves a headline out. Raises ValueError for a headline that there is not.
    """
    by_spelling: dict[str, list[str]] = {}
    for headline, spelling in token_types.items():
        if not types_of(headline):
            raise ValueError(f"token_types names {headline!r}, which is no headline. Known: {', '.join(HEADLINES)}")
        if spelling:
            by_spelling.setdefault(spelling, []).append(headline)
    return [
        Rule(key=spelling, meter=event_name, types=types_of(*headlines), properties={"token_type": spelling})
        for spelling, headlines in by_spelling.items()
    ]
