"""Where is this customer's data? The questions a person would ask, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from shlex import quote
from typing import TYPE_CHECKING, Final

from token_meter.cli.checks import Check, Level, no_ledger
from token_meter.cli.facts import Facts
from token_meter.cli.place import reading
from token_meter.cli.text import counted
from token_meter.cli.waiting import waiting_for
from token_meter.ledger import ANY
from token_meter.money import plain

if TYPE_CHECKING:
    from token_meter.ledger import Ledger

SIMILAR_MAX: Final = 5
LIKENESS: Final = 0.6


def look_for(customer: str, facts: Facts) -> list[Check]:
    """Step by step: the ledger, names like it, the journal, events of nobody, and whether anything arrives at all."""
    if facts.ledger is None:
        return [no_ledger(facts), *_waiting(customer, facts)]
    with reading(facts.place) as ledger:
        found = _seen(ledger, customer)
        steps = [found] if found.level is Level.FINE else [found, *_similar(ledger, customer)]
        steps += _limited(ledger, customer)
    steps += _waiting(customer, facts)
    steps += _unattributed(facts)
    steps += _anything(facts)
    return steps


def _seen(ledger: Ledger, customer: str) -> Check:
    rows = ledger.usage(by=("customer",), meter=ANY, customer=customer)
    if not rows:
        return Check(
            Level.WRONG,
            "in the ledger",
            f"no event has the customer {customer!r}",
            "The steps below say where it may be.",
        )
    last = ledger.events(customer=customer, order="desc", limit=1)[0]
    return Check(
        Level.FINE,
        "in the ledger",
        f"{counted(rows[0].events, 'event')}, {counted(rows[0].usage.tokens, 'token')}, "
        f"the last at {last.time:%Y-%m-%d %H:%M:%S} UTC ({last.model}, {last.status})",
    )


def _limited(ledger: Ledger, customer: str) -> Iterator[Check]:
    """What refuses calls of a customer, or soon will."""
    from token_meter.budgets.command import command_of
    from token_meter.budgets.desk import BudgetDesk

    desk = BudgetDesk(ledger)
    snapshot = desk.snapshot()
    if ("live", customer) in snapshot.paused:
        yield Check(
            Level.WRONG, "paused", "no call is made for them", f"token-meter customers resume {quote(customer)}"
        )  # fmt: skip
    for each in desk.standings(customer=customer):
        said = f"{each.budget.label}: {plain(each.spent)} of {plain(each.budget.limit)} {each.budget.unit} is spent"
        if each.budget.enforce != "soft" and each.available <= 0:
            yield Check(Level.WRONG, "budget", f"{said}: calls are refused", f"To raise it: {command_of(each.budget)}")
        else:
            yield Check(Level.FINE, "budget", said)
    policy = snapshot.policies.of("live", customer)
    if policy.policy == "block":
        left = desk.credit(customer, currency=policy.currency).available
        said = f"{plain(left)} {policy.currency} is left, and calls beyond it are refused"
        advice = f"token-meter credits grant {quote(customer)} AMOUNT"
        yield Check(Level.FINE, "credit", said) if left > 0 else Check(Level.WRONG, "credit", said, advice)


def _similar(ledger: Ledger, customer: str) -> Iterator[Check]:
    groups = [row.group["customer"] for row in ledger.usage(by=("customer",), meter=ANY)]
    known = [name for name in groups if name is not None]
    plain = {name.casefold().strip(): name for name in known}
    close = get_close_matches(customer.casefold().strip(), list(plain), n=SIMILAR_MAX, cutoff=LIKENESS)
    if close:
        names = ", ".join(repr(plain[name]) for name in close)
        yield Check(
            Level.NOTICE, "similar names", names, "Names are compared exactly, capital letters and blanks included."
        )
    else:
        yield Check(Level.NOTICE, "similar names", f"none among {counted(len(known), 'customer')}")


def _waiting(customer: str, facts: Facts) -> Iterator[Check]:
    """What of the customer is in the journal and not in the ledger yet."""
    journal = facts.journal
    if facts.journal_trouble:
        yield Check(
            Level.WRONG, "in the journal", facts.journal_trouble,
            "Run this as the user that the program runs as, or name another journal with --journal.",
        )  # fmt: skip
        return
    if journal is None:
        yield Check(
            Level.NOTICE, "in the journal", f"there is no journal at {facts.place.journal}",
            "Run this where the program runs, or name its journal with --journal.",
        )  # fmt: skip
        return
    waiting, running = waiting_for(customer, journal.path)
    if waiting:
        yield Check(
            Level.NOTICE, "in the journal", f"{counted(waiting, 'event')} of {customer!r} not in the ledger yet",
            f"`token-meter deliver run{facts.place.again}` delivers them now.",
        )  # fmt: skip
    else:
        yield Check(Level.FINE, "in the journal", f"nothing of {customer!r} waits for the ledger")
    if running:
        yield Check(
            Level.NOTICE, "in the journal", f"{counted(running, 'call')} of {customer!r} began and did not end yet",
            "They count when they end, or when their process is gone.",
        )  # fmt: skip


def _unattributed(facts: Facts) -> Iterator[Check]:
    assert facts.ledger is not None
    number = facts.ledger.summary.unattributed
    if number:
        have = "has" if number == 1 else "have"
        yield Check(
            Level.NOTICE, "without a customer", f"{counted(number, 'event')} {have} no customer: maybe this one's",
            f"See them: token-meter events tail{facts.place.again} --unattributed. Put calls in meter.customer(...).",
        )  # fmt: skip
    else:
        yield Check(Level.FINE, "without a customer", "every event has one")


def _anything(facts: Facts) -> Iterator[Check]:
    assert facts.ledger is not None
    where = facts.place.file.absolute() if facts.place.file else facts.place.shown
    if facts.disabled:
        yield Check(Level.WRONG, "metering", "TOKEN_METER_DISABLED is set: nothing is metered", "Unset it.")
    if facts.ledger.events:
        yield Check(
            Level.FINE,
            "anything at all",
            f"{counted(facts.ledger.events, 'event')} of all customers since {facts.ledger.since:%Y-%m-%d}",
        )
    else:
        yield Check(
            Level.NOTICE, "anything at all", f"no events of anybody since {facts.ledger.since:%Y-%m-%d}",
            f"Does the program write to {where}? Is its client wrapped?",
        )  # fmt: skip
