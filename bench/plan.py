"""What a run records: event number N of a seed is always the same event, whoever asks, in whatever process.

A worker that was killed can so go on where it was, and the comparison knows what should have been counted without
asking anything that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final

CUSTOMERS: Final = tuple(f"customer-{number:02d}" for number in range(12))

MODELS: Final = (
    ("openai", "gpt-5-2025-08-07"),
    ("openai", "gpt-4o-mini"),
    ("anthropic", "claude-sonnet-4-5-20250929"),
    ("google", "gemini-2.5-pro"),
)

TYPES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "openai": ("input", "cache_read", "output", "reasoning", "input_audio"),
    "anthropic": ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "web_search"),
    "google": ("input", "input_image", "cache_read", "output", "reasoning"),
}

OWN_METER: Final = "pages"
OWN_METER_SHARE: Final = 0.05
"""So many events are of a meter of the user's own."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One event to be recorded."""

    id: str
    time: datetime
    customer: str
    usage: Mapping[str, int]
    provider: str | None = None
    model: str | None = None
    meter: str = "llm_tokens"


@dataclass(frozen=True, slots=True)
class Plan:
    """`events` events, evenly spread over `span` from `begin` on.

    Their ids are of the user's own making, as with `meter.record(..., id=...)`; or with `minted` such as metered calls
    have, which tell when they were made. Sinks can know of those alone that they come but once.
    """

    seed: int
    events: int
    begin: datetime
    span: timedelta = field(default=timedelta(hours=1))
    minted: bool = False

    def event(self, number: int) -> Planned:
        """The event with this number, 0 to events - 1."""
        chance = Random(f"{self.seed} {number}")
        moment = self.begin + self.span * number / self.events
        # Whole milliseconds: every backend keeps those.
        moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
        id = _minted(moment, chance) if self.minted else f"{self.seed:08x}-{number:07d}"
        customer = chance.choice(CUSTOMERS)
        if chance.random() < OWN_METER_SHARE:
            return Planned(id, moment, customer, {"units": chance.randint(1, 99)}, meter=OWN_METER)
        provider, model = chance.choice(MODELS)
        known = TYPES_OF[provider]
        chosen = sorted(chance.sample(known, chance.randint(1, 4)), key=known.index)
        usage = {name: chance.randint(1, 3 if name == "web_search" else 50_000) for name in chosen}
        return Planned(id, moment, customer, usage, provider, model)

    def to_json(self) -> list[object]:
        """What `of` takes."""
        return [self.seed, self.events, self.begin.timestamp(), self.span.total_seconds()]

    @classmethod
    def of(cls, seed: int, events: int, begin: float, span: float) -> Plan:
        """The plan that `to_json` described."""
        return cls(seed, events, datetime.fromtimestamp(begin, UTC), timedelta(seconds=span))


def _minted(moment: datetime, chance: Random) -> str:
    """A UUIDv7 of this time."""
    text = f"{int(moment.timestamp() * 1000):012x}{chance.getrandbits(80):020x}"
    return f"{text[:8]}-{text[8:12]}-7{text[13:16]}-{'89ab'[int(text[16], 16) % 4]}{text[17:20]}-{text[20:32]}"
