"""A budget: how much may be spent, by whom, in which time, and what happens when it is used up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any, Final, Literal, Self, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from token_meter.budgets.hold import AMOUNT_MAX, LEVEL_MAX, subject_of
from token_meter.budgets.window import ROLLING, Span, Window
from token_meter.errors import InvalidBudget
from token_meter.money import EXACT, ZERO, currency_of, decimal_of, plain

Measure: TypeAlias = Literal["charge", "cost", "tokens", "requests"]
Enforce: TypeAlias = Literal["strict", "bounded", "soft"]
Unpriced: TypeAlias = Literal["block", "dearest", "allow"]

MEASURES: Final = ("charge", "cost", "tokens", "requests")
"""What a budget counts: what we charge, what the provider charges us (USD), tokens, or calls."""

ENFORCEMENTS: Final = ("strict", "bounded", "soft")
HARD: Final[Mapping[Any, str]] = {"hard": "strict"}
"""What people call them besides."""

UNPRICED: Final = ("block", "dearest", "allow")
"""What happens to a call of a model without a price: refused, held at the provider's dearest price, or let pass."""

EACH: Final = "*"
"""In a scope: one budget of its own for each value."""

NOBODY: Final = ""
"""In a scope: calls that do not carry this name, such as those without a customer."""

FIELDS: Final = frozenset({
    "id", "name", "scope", "measure", "limit", "currency", "window", "time_zone", "enforce", "unpriced", "cut_off",
    "tokenize", "thresholds", "mode",
})  # fmt: skip
"""What `Budget.document` writes and `Budget.read` takes."""

SCOPES_MAX: Final = 8
THRESHOLDS: Final = (50, 80, 100)
_DECIMALS: Final = ((10**5, 12), (10**8, 9), (10**11, 6))
"""Money is counted in so many decimals, so that limits below the first number fit 63 bits many times over."""

MONTH: Final = Window("month")
LIMIT_MAX: Final = Decimal(10**11)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """So much (`limit`) in each `window`, for calls that its `scope` describes.

    `scope` is sorted pairs like ("customer", "acme") or ("key", "*"): a customer, what an event says of itself
    (provider, publisher, model, operation), or any dimension; `*` gives each value a budget of its own, a pattern like
    gpt-4o* is one budget for all that fit; an empty value is for calls without the name, which concern no other.
    `measure` says what is counted, `enforce` how: "strict" refuses a call whose worst case does not fit, "bounded" one
    whose likely cost does not, "soft" none. `cut_off` ends a stream when what was held for it is used up. `tokenize`
    counts the input with a tokeniser, where there is one, for "bounded". `mode` is that of the events it counts.
    """

    scope: tuple[tuple[str, str], ...] = ()
    limit: Decimal
    measure: Measure = "charge"
    currency: str = "USD"
    window: Window = MONTH
    time_zone: str = "UTC"
    enforce: Enforce = "bounded"
    unpriced: Unpriced = "block"
    cut_off: bool = False
    tokenize: bool = False
    thresholds: tuple[int, ...] = THRESHOLDS
    mode: str = "live"
    name: str = ""
    id: str = field(init=False)
    decimals: int = field(init=False)
    zone: ZoneInfo = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        scale = next(decimals for most, decimals in _DECIMALS if self.limit <= most) if self.is_money else 0
        said = json.dumps([
            self.mode, self.scope, self.measure, self.currency if self.is_money else "", str(self.window), scale,
            self.enforce == "soft",
        ])  # fmt: skip
        object.__setattr__(self, "decimals", scale)
        object.__setattr__(self, "id", "bud_" + sha256(said.encode()).hexdigest()[:16])
        object.__setattr__(self, "zone", ZoneInfo(self.time_zone))

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """A budget from a mapping of its fields. Raises InvalidBudget naming the field and what to write."""
        if unknown := sorted(set(given) - FIELDS):
            raise InvalidBudget(f"a budget has no {', '.join(unknown)}: it has {', '.join(sorted(FIELDS - {'id'}))}")
        try:
            measure = _one_of(given.get("measure", "charge"), MEASURES, "measure")
            currency = currency_of(given.get("currency") or "USD")
            limit = decimal_of(given.get("limit"), "limit")
            window = Window.read(given.get("window", "month"))
            scope = _scope(given.get("scope") or {})
            thresholds = tuple(sorted({int(each) for each in given.get("thresholds", THRESHOLDS)}))
            zone = str(given.get("time_zone") or "UTC")
            ZoneInfo(zone)
            enforce = _one_of(HARD.get(given.get("enforce"), given.get("enforce", "bounded")), ENFORCEMENTS, "enforce")
            unpriced = _one_of(given.get("unpriced", "block"), UNPRICED, "unpriced")
        except ZoneInfoNotFoundError:
            raise InvalidBudget(f"there is no time zone {zone!r}: write one like Europe/Berlin") from None
        except (ValueError, TypeError) as problem:
            raise InvalidBudget(f"this is no budget: {problem}") from None
        if measure == "cost" and currency != "USD":
            raise InvalidBudget("what providers charge is counted in USD: leave the currency, or use measure charge")
        if limit < ZERO or limit > LIMIT_MAX:
            raise InvalidBudget(f"a limit is an amount from 0 to {LIMIT_MAX:,}, not {plain(limit)}")
        if measure in ("tokens", "requests") and limit != limit.to_integral_value():
            raise InvalidBudget(f"a limit of {measure} is a whole number, not {plain(limit)}")
        if any(not 1 <= each <= 100 for each in thresholds):
            raise InvalidBudget("thresholds are percentages from 1 to 100")
        if window.kind == "plan" and not dict(scope).get("customer"):
            raise InvalidBudget("a window of the plan's period needs a customer in the scope (customer=* for each)")
        return cls(
            scope=scope, limit=limit, measure=measure, currency=currency, window=window, time_zone=zone,
            enforce=enforce, unpriced=unpriced,
            cut_off=bool(given.get("cut_off")), tokenize=bool(given.get("tokenize")), thresholds=thresholds,
            mode=str(given.get("mode") or "live"), name=str(given.get("name") or "")[:200],
        )  # fmt: skip

    def document(self) -> dict[str, Any]:
        """For JSON; `read` takes it back."""
        return {
            "id": self.id, "name": self.name, "scope": dict(self.scope), "measure": self.measure,
            "limit": plain(self.limit), "currency": self.currency if self.is_money else None,
            "window": str(self.window), "time_zone": self.time_zone, "enforce": self.enforce,
            "unpriced": self.unpriced, "cut_off": self.cut_off, "tokenize": self.tokenize,
            "thresholds": list(self.thresholds), "mode": self.mode,
        }  # fmt: skip

    @property
    def kind(self) -> tuple[object, ...]:
        """What two budgets must have in common for one to stand in the place of the other."""
        return (
            self.mode, tuple(name for name, _ in self.scope), self.measure, self.window, self.currency,
            self.enforce == "soft",
        )  # fmt: skip

    @property
    def is_money(self) -> bool:
        """Whether it counts money."""
        return self.measure in ("charge", "cost")

    @property
    def unit(self) -> str:
        """What its amounts are in: a currency, tokens, or requests."""
        return self.currency if self.is_money else self.measure

    @property
    def parts_max(self) -> int:
        """The limit in the smallest parts that it counts."""
        return min(LEVEL_MAX, int(EXACT.scaleb(self.limit, self.decimals).to_integral_value(rounding=ROUND_FLOOR)))

    def parts(self, amount: Decimal | int) -> int:
        """An amount in the smallest parts, rounded up."""
        exact = EXACT.scaleb(Decimal(amount), self.decimals)
        return min(AMOUNT_MAX, int(exact.to_integral_value(rounding=ROUND_CEILING)))

    def amount(self, parts: int) -> Decimal:
        """What so many of the smallest parts are."""
        return Decimal(plain(EXACT.scaleb(Decimal(parts), -self.decimals)))

    def shown(self, parts: int) -> str:
        """An amount for people: `12.5 USD`, `3,000 tokens`."""
        if self.is_money:
            return f"{plain(self.amount(parts))} {self.currency}"
        return f"{parts:,} {self.measure.removesuffix('s') if parts == 1 else self.measure}"

    def subject(self, facts: Mapping[str, str | None]) -> str | None:
        """Whose counter a call of these facts goes to; None: it is not concerned."""
        values = []
        for name, wanted in self.scope:
            value = facts.get(name)
            if not meets(wanted, value):
                return None
            values.append(value if wanted == EACH else wanted)
        return subject_of(values)

    def whose(self, subject: str) -> str:
        """A subject for people: `customer=acme, key=k1`; a budget for everything is everybody's."""
        values = json.loads(subject)
        return ", ".join(_said(name, value) for (name, _), value in zip(self.scope, values, strict=True)) or "everybody"

    def start(self, span: Span) -> int:
        """The `start` under which a window is counted."""
        return ROLLING if self.window.length else span.start

    @property
    def label(self) -> str:
        """Its name, or what it is."""
        return self.name or f"{self.measure} per {self.window.shown} for {_for(self.scope)}"


def meets(wanted: str, value: str | None) -> bool:
    """Whether a value is the one that a scope names, or fits its pattern."""
    if value is None or wanted == NOBODY:
        return value is None and wanted == NOBODY
    return wanted in (EACH, value) or ("*" in wanted and fnmatchcase(value, wanted))


def concerning(budgets: Iterable[Budget], facts: Mapping[str, str | None]) -> list[tuple[Budget, str]]:
    """The budgets that a call of these facts counts in, and whose counter it is there.

    Where one names a value for what another has `*`, and both are of the same kind, the named one stands in its place.
    """
    found = [(budget, subject) for budget in budgets if (subject := budget.subject(facts)) is not None]
    if len(found) < 2:
        return found
    concerned = [budget for budget, _ in found]
    return [(budget, subject) for budget, subject in found if replaced_by(budget, facts, concerned) is None]


def replaced_by(budget: Budget, facts: Mapping[str, str | None], others: Iterable[Budget]) -> Budget | None:
    """The budget that stands in the place of one with `*` for these facts, because it names them."""
    for other in others:
        if other != budget and other.kind == budget.kind and other.subject(facts) is not None:
            pairs = list(zip(budget.scope, other.scope, strict=True))  # the same names, in the same order
            if all(mine[1] in (EACH, theirs[1]) for mine, theirs in pairs):
                return other
    return None


def _scope(given: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    if len(given) > SCOPES_MAX:
        raise ValueError(f"a scope has at most {SCOPES_MAX} keys")
    for name, value in given.items():
        if not str(name) or not isinstance(value, str):
            raise ValueError(f"the scope wants a text for {name}: a value, * for each, or an empty one for none")
    return tuple(sorted((str(name), value) for name, value in given.items()))


def _for(scope: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"each {name}" if value == EACH else _said(name, value) for name, value in scope) or "everybody"


def _said(name: str, value: str) -> str:
    return f"{name}={value}" if value else f"no {name}"


def _one_of(value: object, known: Sequence[str], what: str) -> Any:
    if value not in known:
        raise ValueError(f"{what} is one of {', '.join(known)}, not {value!r}")
    return value
