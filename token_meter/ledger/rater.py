"""What the ledger asks of whoever rates: for one event, which price and which of our rates count for each token type.

The ledger knows neither prices nor plans. It is given a rater, asks it inside the transaction that records an event,
and keeps the answer: a number for each distinct rating, in the rollups beside the quantities. So money is never summed
in a database: cost = quantity x rate, on reading (decision D7).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Protocol

from sqlalchemy import Connection

from token_meter.event import MeterEvent
from token_meter.ledger.rows import Measure
from token_meter.ledger.store import Store

UNRATED: Final = 0
"""The number of what no rater has seen yet."""


@dataclass(frozen=True, slots=True)
class Rating:
    """How one token type is priced: the same facts make the same rating.

    `cost` is what one unit costs us (USD), `charge` what we charge for it (in the currency of the document); decimals
    as text. None: there is no price yet, or it depends on the whole period. `document` holds every factor behind them.
    `pending`: something is missing, so that rating it again later may give more. `book` is the version of the price
    book that it was first made by; the same price in a later version is the same rating.
    """

    cost: str | None
    charge: str | None
    document: Mapping[str, Any]
    pending: bool = False
    book: str | None = None
    text: str = field(init=False)
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        facts = json.dumps(self.document, sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "text", json.dumps({**self.document, "book": self.book}, sort_keys=True))
        what = f"{self.cost}|{self.charge}|{facts}"
        object.__setattr__(self, "digest", blake2b(what.encode(), digest_size=16).digest())

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rating) and other.digest == self.digest


class Rater(Protocol):
    """Rates events. It may be asked by several threads, one at a time."""

    def renew(self, store: Store, connection: Connection) -> None:
        """Prices, plans or subscriptions of this ledger changed, or it was not asked before: read them."""

    def rate(self, event: MeterEvent) -> Mapping[str, Rating]:
        """The rating of each token type of the event, and of the call itself under `EVENTS`.

        The same object for events that are rated alike, as far as possible: its numbers are remembered by it.
        """

    def charged(
        self, store: Store, connection: Connection, measures: Sequence[tuple[Measure, int]]
    ) -> Callable[[], None]:
        """These measures were added (+1) or taken away (-1) in this transaction: prepaid credit follows at once.

        Comes last in every transaction that asked for ratings. What it returns is called once that is committed.
        """
