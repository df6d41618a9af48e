"""How many tokens a request may take, before it is sent: the worst case, and what it most likely does not pass.

The worst case holds whatever the model does: a token is at least one byte of text, besides what the provider adds, and
an answer is never longer than the context window. What nobody can know before (files, earlier responses, tools of the
provider that fetch text) counts as the whole context window, once more for each call of such a tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from token_meter.budgets.learned import ENOUGH, Learned
from token_meter.providers.asking import Ask

OUTPUT_UNLEARNED: Final = 4_096
"""Tokens of output that are reserved as long as nothing is learned and the request names no maximum."""

OPAQUE_UNLEARNED: Final = 8_192
"""Tokens of input that are added for what cannot be known before, as long as nothing is learned."""

TOKENS_PER_KILOBYTE: Final = 500
"""One token for two bytes: more than English text has; counts until a model's own ratio is learned."""

CALLS_UNLEARNED: Final = 5
"""Calls of a hosted tool that are reserved where a request does not limit them."""

UNITS_UNLEARNED: Final = {"audio_ms": 600_000}
"""Ten minutes of sound."""

TOKENS_MAX: Final = 10**15
"""No bound is larger: whatever a request names, what is reckoned from it fits a database."""


class Bound(NamedTuple):
    """So many tokens of input and of output (all choices together), and calls of hosted tools, at the most."""

    input: int
    output: int
    calls: Mapping[str, int]

    @property
    def tokens(self) -> int:
        """All of them."""
        return min(self.input + self.output, TOKENS_MAX)


class Unbounded(NamedTuple):
    """Why there is no worst case, and what would give one."""

    why: str


def worst(ask: Ask, window: int | None) -> Bound | Unbounded:
    """What the request cannot pass."""
    limitless = [name for name, most in ask.calls if most is None]
    if unknown := [name for name in limitless if name in UNITS_UNLEARNED]:
        return Unbounded(f"nobody knows before how much {', '.join(unknown)} it has")
    if limitless or ask.passes is None:
        what = ", ".join(limitless or ask.opaque)
        return Unbounded(
            f"{what} may have the model read its context any number of times: set max_tool_calls, or max_uses of a tool"
        )
    calls = {name: min(most, TOKENS_MAX) for name, most in ask.calls if most is not None}
    if (ask.opaque or ask.size is None) and window is None:
        what = ", ".join(ask.opaque) or "the request"
        return Unbounded(f"nobody knows before how many tokens {what} has, and the model's context window is not known")
    if ask.produces and ask.output_max is None and window is None:
        return Unbounded("the model's context window is not known: name a maximum of output tokens")
    if ask.opaque or ask.size is None:
        counted = (window or 0) * ask.passes * ask.inputs
    else:
        counted = ask.size + ask.added * ask.inputs
        counted = counted if window is None else min(counted, window * ask.inputs)
    output = 0
    if ask.produces:
        given = [most for most in (ask.output_max, window) if most is not None]
        output = min(given) * ask.choices
    return Bound(min(counted, TOKENS_MAX), min(output, TOKENS_MAX), calls)


def likely(
    ask: Ask, window: int | None, learned: Learned, *, customer: str | None, model: str, tokenize: bool = False
) -> Bound:
    """What the request most likely does not pass: by what this customer's calls of the model took before.

    Reasoning that nobody sees is reserved in full, up to the model's context window, until it is learned. `tokenize`
    counts the input with a tokeniser, where there is one, instead of by the bytes.
    """
    counted = _counted(ask) if tokenize else None
    if counted is None:
        ratio = learned.tokens_per_kilobyte(model)
        per_kilobyte = ratio.percentile if len(ratio) >= ENOUGH else TOKENS_PER_KILOBYTE
        counted = -(-(ask.size or 0) * per_kilobyte // 1000)
    if ask.opaque or ask.size is None:
        before = learned.input(customer, model)
        counted = max(counted, before.percentile if len(before) else counted + OPAQUE_UNLEARNED)
    if window is not None:
        counted = min(counted, window * ask.inputs)
    counted = min(counted, TOKENS_MAX)
    calls = {
        name: UNITS_UNLEARNED.get(name, CALLS_UNLEARNED) if most is None else min(most, TOKENS_MAX)
        for name, most in ask.calls
    }
    if not ask.produces:
        return Bound(counted, 0, calls)
    outputs = learned.output(customer, model)
    guess = outputs.percentile if len(outputs) else OUTPUT_UNLEARNED
    if ask.thinks and len(outputs) < ENOUGH:
        guess = window or OUTPUT_UNLEARNED
    given = [most for most in (ask.output_max, guess, window) if most is not None]
    return Bound(counted, min(min(given) * ask.choices, TOKENS_MAX), calls)


def _counted(ask: Ask) -> int | None:
    """The input by a tokeniser; None where it cannot be counted, for whatever reason: the bytes are as good."""
    if ask.tokens is None:
        return None
    try:
        return ask.tokens()
    except BaseException as error:  # tiktoken's native part raises panics, which are no Exceptions
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        return None
