"""Whether a price change is likely enough to happen by itself, must wait for a human, or is refused.

The bounds are from what happened: of 908 changes that a public price map published, 536 were within a factor of two,
and those beyond ten that were looked at were errors of unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from token_meter.money import EXACT, plain
from token_meter.prices.price import PER, STANDARD, Price
from token_meter.prices.stated import PriceKey, SecondSource, billed

Verdict = Literal["active", "held", "refused"]

TAKEN_MAX: Final = Decimal(2)
"""Up to this factor, up or down, a change may be taken without a human."""

HELD_MAX: Final = Decimal(10)
"""Up to this factor it waits for one; beyond, it is refused."""

PER_MILLION_MAX: Final = Decimal(1_000)
"""A price per million tokens (or characters) above this waits for a human."""

CACHED: Final[Mapping[str, str]] = {
    "cache_read": "input",
    "cache_read_audio": "input_audio",
    "cache_read_image": "input_image",
    "cache_read_video": "input_video",
}
"""What is read from a cache costs no more than what is not."""

BATCH: Final = ("batch", "yes")


@dataclass(frozen=True, slots=True)
class Likely:
    """Judges a price of one key by what the feed states around it, and by a second source if there is one."""

    stated: Mapping[PriceKey, Price]
    key: PriceKey
    second: SecondSource | None

    def of_new(self, price: Price) -> tuple[Verdict, str]:
        """The verdict on a price of what had none."""
        if price.amount == 0:
            return "held", "it would be free"
        odd = self._odd(price)
        if odd:
            return "held", odd
        says = self._second_says(price)
        return ("held", says) if says else ("active", "")

    def of_change(self, new: Price, old: Price | None, *, scheduled: bool) -> tuple[Verdict, str]:
        """The verdict on another price of what had one."""
        if old is None:
            return self.of_new(new)
        before, after = old.per_million, new.per_million
        assert before is not None and after is not None
        if not after:
            return "held", "it would be free"
        if not before:
            return "held", "it was free"
        if before == after:
            return "active", ""
        factor = max(EXACT.divide(after, before), EXACT.divide(before, after))
        direction = "rises" if after > before else "falls"
        moved = f"it {direction} by a factor of {plain(round(factor, 2))}"
        if factor > HELD_MAX:
            return "refused", moved
        if factor > TAKEN_MAX:
            return "held", moved
        odd = self._odd(new)
        if odd:
            return "held", odd
        if scheduled:
            return "active", ""
        says = self._second_says(new)
        if says:
            return "held", says
        confirmed = self.second is not None and self.second.amount(new) is not None
        return ("held", f"{moved}, and only one source says so") if after > before and not confirmed else ("active", "")

    def _second_says(self, price: Price) -> str | None:
        """How a second source contradicts."""
        says = self.second.amount(price) if self.second is not None else None
        if says is None or says == price.per_million:
            return None
        assert self.second is not None
        return f"{self.second.name} says {plain(EXACT.divide(EXACT.multiply(says, price.per), 1_000_000))}"

    def _odd(self, price: Price) -> str | None:
        """What is strange about a price beside the others of its model."""
        assert price.amount is not None
        if price.per == PER["token"] and price.amount > PER_MILLION_MAX:
            return f"it is above {PER_MILLION_MAX} per million"
        for cached, plain_type in CACHED.items():
            if self.key.token_type in (cached, plain_type):
                high, low = self._amount(cached, price), self._amount(plain_type, price)
                if high is not None and low is not None and high > low:
                    return f"{cached} costs more than {plain_type}"
        return self._odd_batch(price)

    def _odd_batch(self, price: Price) -> str | None:
        if BATCH not in self.key.context and self.key.context != STANDARD:
            return None
        batch = price.rate if BATCH in self.key.context else self._rate(self.key._replace(context=(BATCH,)))
        standard = price.rate if BATCH not in self.key.context else self._rate(self.key._replace(context=STANDARD))
        return "a batch costs more than the standard" if batch and standard and batch > standard else None

    def _amount(self, token_type: str, price: Price) -> Decimal | None:
        """What a token type costs beside this price, by the feed."""
        if token_type == self.key.token_type:
            return price.rate
        return self._rate(self.key._replace(token_type=token_type))

    def _rate(self, key: PriceKey) -> Decimal | None:
        """Only what is stated for just this counts: what stands in for it (a step below) is no oddity of the feed."""
        found = billed(self.stated, key)
        same = found is not None and (found.token_type, found.context) == (key.token_type, key.context)
        return found.rate if same and found is not None else None
