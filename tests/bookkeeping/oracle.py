"""What invoices have to come to, worked out again from nothing: event by event, as docs/billing.md says it.

Slow and plain on purpose, and without any code of the package but its data classes: no rollups, no ratings that are
kept, no corrections. It is given everything that ever happened, and answers what a month comes to in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any

MODELS = ("model-a", "model-b")
TYPES = ("input", "output")


@dataclass(frozen=True)
class Used:
    """One event: tokens of a model, or a value of a meter."""

    at: datetime
    meter: str
    model: str | None
    quantities: Mapping[str, int]
    call: bool = False


@dataclass(frozen=True)
class World:
    """Prices per token, plans as documents, who is on which: (start, plan), each until the next; and the rates of the
    card that all of them have besides their own: (start, rates), each until the next."""

    prices: Sequence[tuple[datetime, Mapping[tuple[str, str], Decimal]]]
    plans: Mapping[str, Mapping[str, Any]]
    on: Sequence[tuple[datetime, str]]
    used: Sequence[Used]
    card: Sequence[tuple[datetime, Sequence[Mapping[str, Any]]]] = ()

    def month(self, start: datetime, stop: datetime) -> Fraction:
        """What a calendar month comes to, exact, before credit and tax."""
        once: set[object] = set()
        spans = [(max(begin, start), min(end, stop), plan) for begin, end, plan in self._spells()]
        return sum(
            (
                self._part(span[0], span[1], self.plans[span[2]], start, stop, once)
                for span in spans
                if span[0] < span[1]
            ),
            Fraction(0),
        )

    def _spells(self):
        ends = [start for start, _ in self.on[1:]] + [datetime.max.replace(tzinfo=self.on[0][0].tzinfo)]
        return [(start, end, plan) for (start, plan), end in zip(self.on, ends, strict=True)]

    def _part(self, start, stop, plan, month_start, month_stop, once) -> Fraction:
        share = Fraction((stop - start) // _TICK, (month_stop - month_start) // _TICK)
        left = [ceil(share * each["quantity"]) for each in plan.get("included", ()) if "quantity" in each]
        usage = Fraction(0)
        for rate, units in self._rated(plan, self._units(start, stop)):
            usage += self._rate(plan, rate, units, left, share)
        usage -= sum(min(usage, share * each["amount"]) for each in plan.get("included", ()) if "amount" in each)
        fees = Fraction(0)
        for fee in plan.get("fees", ()):
            if fee.get("prorate", True):
                fees += share * Fraction(fee["amount"])
            elif ("fee", plan["name"], fee["title"]) not in once:
                once.add(("fee", plan["name"], fee["title"]))
                fees += Fraction(fee["amount"])
        taken = Fraction(0)
        for each in plan.get("discounts", ()):
            base = {"usage": usage, "fees": fees, "all": usage + fees}[each.get("on", "usage")]
            taken += max(Fraction(0), min(base * each["percent"] / 100, usage + fees - taken))
        so_far = usage + fees - taken
        return max(so_far, share * plan["minimum"]) if "minimum" in plan else so_far

    def _units(self, start, stop):
        """(meter, model, token type, how many, the cost of one, when) of everything that happened in the span, in the
        order of lines: by model, then by token type."""
        found = []
        for used in self.used:
            if start <= used.at < stop:
                for kind, quantity in used.quantities.items():
                    found.append((used.meter, used.model, kind, quantity, self._price(used, kind), used.at))
                if used.call:
                    found.append(("api_calls", used.model, None, 1, None, used.at))
        return sorted(found, key=lambda unit: (unit[1] or "", TYPES.index(unit[2]) if unit[2] in TYPES else 9))

    def _price(self, used, kind):
        known = [prices for since, prices in self.prices if since <= used.at]
        return (
            Fraction(known[-1][used.model, kind])
            if used.model is not None and (used.model, kind) in known[-1]
            else None
        )

    def _rated(self, plan, units):
        """Each rate with the units that it is the first to be about."""
        own = plan.get("rates", ())
        versions = [(since, rate) for since, rates in self.card for rate in rates]
        found = [(rate, []) for rate in own] + [(rate, []) for _, rate in versions]
        for unit in units:
            holding = max((since for since, _ in self.card if since <= unit[5]), default=None)
            places = [*range(len(own)), *(len(own) + n for n, (since, _) in enumerate(versions) if since == holding)]
            place = next((place for place in places if _is_about(found[place][0], unit)), None)
            if place is not None:
                found[place][1].append(unit)
        return found

    def _rate(self, plan, rate, units, left, share) -> Fraction:
        meter = rate.get("meter", "llm_tokens")
        included = [each for each in plan.get("included", ()) if "quantity" in each]
        if any(kind in rate for kind in ("cost_plus", "per_unit", "matrix")):
            charged = sum((unit[3] * self._one(rate, unit) for unit in units), Fraction(0))
            unpaid = [unit[3] for unit in units]
            for number, each in enumerate(included):
                for place, unit in enumerate(units):
                    if each.get("meter", "llm_tokens") == meter and _meets(each, unit):
                        taken = min(left[number], unpaid[place])
                        left[number] -= taken
                        unpaid[place] -= taken
                        charged -= taken * self._one(rate, unit)
        else:
            quantity = sum(unit[3] for unit in units)
            unpaid = [unit[3] for unit in units]
            for number, each in enumerate(included):
                for place, unit in enumerate(units):
                    if each.get("meter", "llm_tokens") == meter and _meets(each, unit):
                        taken = min(left[number], unpaid[place])
                        left[number] -= taken
                        unpaid[place] -= taken
            free = quantity - sum(unpaid)
            if "flat" in rate:
                charged = Fraction(rate["flat"]) if quantity > free else Fraction(0)
            else:
                charged = _scale(rate, quantity - free)
        return max(charged, share * rate["minimum"]) if "minimum" in rate else charged

    def _one(self, rate, unit) -> Fraction:
        _, model, kind, _, cost, _ = unit
        if "cost_plus" in rate:
            for each in rate.get("overrides", ()):
                if each.get("model", model) == model and each.get("token_type", kind) == kind:
                    return cost * Fraction(each["multiplier"])
            return cost * Fraction(rate["cost_plus"]["multiplier"])
        if "matrix" in rate:
            row = next(row for row in rate["matrix"] if row.get("model", model) == model and row["token_type"] == kind)
            return Fraction(row["price"]) / rate.get("per", 1)
        return Fraction(rate["per_unit"]) / rate.get("per", 1)


def _is_about(rate, unit) -> bool:
    return rate.get("meter", "llm_tokens") == unit[0] and _meets(rate, unit)


def _meets(included, unit) -> bool:
    told = {"model": unit[1], "token_type": unit[2]}
    return all(told[name] == value for name, value in included.get("where", {}).items())


def _scale(rate, quantity) -> Fraction:
    if quantity <= 0:
        return Fraction(0)
    if "package" in rate:
        return ceil(Fraction(quantity, rate["package"]["size"])) * Fraction(rate["package"]["price"])
    tiers, begun, charged = rate.get("volume") or rate["graduated"], 0, Fraction(0)
    for tier in tiers:
        end = tier.get("up_to", quantity)
        if "volume" in rate:
            if quantity <= end:
                return Fraction(tier.get("flat", 0)) + quantity * Fraction(tier["price"])
            continue
        counted = min(quantity, end) - begun
        if counted > 0:
            charged += Fraction(tier.get("flat", 0)) + counted * Fraction(tier["price"])
            begun += counted
    return charged


def fractions(value: Any) -> Any:
    """A document with every amount as a fraction."""
    if isinstance(value, Decimal):
        return Fraction(value)
    if isinstance(value, tuple):
        return tuple(fractions(each) for each in value)
    if isinstance(value, Mapping):
        return {name: fractions(each) for name, each in value.items()}
    return [fractions(each) for each in value] if isinstance(value, list) else value


_TICK = datetime.resolution
