"""What stores of holds are asked, what they answer, and the protocol they share.

Amounts are integers: the smallest parts that a budget counts (`Budget.decimals` of a currency unit, or whole tokens or
requests). A hold reserves an amount of several budgets at once, all or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, Protocol

CREDIT: Final = "credit"
"""The budget that a customer's prepaid credit is."""

CREDIT_DECIMALS: Final = 9
"""Prepaid credit is held in so many decimals of its currency."""

AMOUNT_MAX: Final = 10**17
"""The largest amount of one hold: a sum of many still fits 63 bits."""

LEVEL_MAX: Final = 4 * 10**18
"""The largest limit that a database of 63 bits compares with."""

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode

Became = Literal["settled", "released", "lost"]
State = Literal["held", "lost", "settled"]
Generation = tuple[int, int]
"""The state of the budgets, and that of prices and plans, by which a hold was worked out."""


class Part(NamedTuple):
    """What one budget gives to a hold, under `subject` in the window that begins at `start`.

    `limit`: together with what is spent, held and lost there it must not be more; None: it is only counted.
    `bucket` and `rolling` (how far back it counts, in microseconds) are for rolling windows, whose `start` is ROLLING.
    """

    budget: str
    subject: str
    start: int
    amount: int
    bucket: int = 0
    limit: int | None = None
    rolling: int = 0

    @property
    def key(self) -> tuple[str, str, int]:
        """Where it is counted."""
        return self.budget, self.subject, self.start


class CreditAsk(NamedTuple):
    """Whose prepaid credit the part of `CREDIT` is held against, and for what."""

    mode: str
    customer: str
    currency: str
    place: Mapping[str, str | None]


class Request(NamedTuple):
    """A hold that is wanted; parts in the order of their keys, moments in microseconds since 1970."""

    id: str
    parts: tuple[Part, ...]
    now: int
    expires: int
    credit: CreditAsk | None = None
    generation: Generation | None = None
    sent: bool = True
    who: str = "{}"


class Verdict(NamedTuple):
    """What became of a request. `place` is the part that was refused, or whose counter is not there yet."""

    kind: Literal["held", "refused", "missing", "stale"]
    place: int = 0
    spent: int = 0
    held: int = 0
    lost: int = 0
    limit: int = 0


class Level(NamedTuple):
    """How much of a counter is spent, and the percentage of it that was told last."""

    budget: str
    subject: str
    start: int
    spent: int
    noted: int


class Held(NamedTuple):
    """A hold as it stands in a store."""

    id: str
    state: State
    sent: bool
    created: int
    expires: int
    parts: tuple[Part, ...]
    who: str

    @property
    def caller(self) -> Mapping[str, Any]:
        """Whose call it is: customer, model, dimensions, process."""
        found: Mapping[str, Any] = json.loads(self.who)
        return found


class Unreachable(Exception):
    """A store of holds does not answer: whether the call goes on is the operator's setting."""


class HoldStore(Protocol):
    """Keeps what is spent and held. Each method is one atomic step; any thread and process may call it."""

    def hold(self, request: Request) -> Verdict:
        """Reserve all parts or none."""

    def settle(self, id: str, became: Became, amounts: Sequence[int] = (), *, event: str | None = None) -> list[Level]:
        """End a hold, once: later calls change nothing.

        "settled" takes what was held away and adds `amounts` (one for each part) to what is spent; "lost" keeps it
        charged, in a rolling window until its time has passed. Either way the hold waits under the id of its `event`
        until that is recorded. "released" gives it back.
        """

    def charge(self, request: Request) -> list[Level]:
        """Count what was spent without a hold, once for each id, whatever the limits say."""

    def mark_sent(self, ids: Sequence[str]) -> None:
        """From here on the provider may have got these requests."""

    def sweep(self, now: int) -> tuple[int, int]:
        """Look after holds that have expired: those that were never sent are given back, the others are lost. How many
        of each."""


MINE_MAX: Final = 10_000
"""So many holds of its own a store remembers, to end them in few statements."""


def simple_part(request: Request) -> Part | None:
    """The only part of a hold on one budget with a limit and a calendar window: the usual case."""
    if len(request.parts) != 1:
        return None
    [part] = request.parts
    return part if part.limit is not None and not part.rolling and part.budget != CREDIT else None


def subject_of(values: Sequence[str | None]) -> str:
    """Whose counter it is, as text that is the same everywhere."""
    return _encode(list(values))


def kept_parts(parts: Sequence[Part]) -> str:
    """The parts of a hold as they are stored."""
    return "[" + ",".join([f"[{_place(*part[:3])},{part.amount},{part.bucket}]" for part in parts]) + "]"


@lru_cache(maxsize=4096)
def _place(budget: str, subject: str, start: int) -> str:
    """Where a part counts, as JSON: the same again and again."""
    return _encode([budget, subject, start])[1:-1]


def read_parts(text: str) -> tuple[Part, ...]:
    """What `kept_parts` wrote."""
    return tuple(Part(*each) for each in json.loads(text))
