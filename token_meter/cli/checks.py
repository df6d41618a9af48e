"""What the facts mean: each check says how it is, and what to do where something is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Final

from token_meter.cli.catch_up import LEDGER_SINK
from token_meter.cli.facts import NETWORK, OVERLAY, VOLATILE, Facts, LedgerFacts
from token_meter.cli.text import age, counted
from token_meter.health import STALE_SECONDS

if TYPE_CHECKING:
    from token_meter.backlog import DeliveryState, JournalStatus

FREE_BYTES_MIN: Final = 100 << 20
JOURNAL_BYTES_MAX: Final = 4 << 30
KINDS_SHOWN_MAX: Final = 3
BOOK_DAYS_MAX: Final = 7
"""Prices older than this are worth a look."""


class Level(Enum):
    """How a check ends."""

    FINE = "✓"
    NOTICE = "!"
    WRONG = "✗"


@dataclass(frozen=True, slots=True)
class Check:
    """One line: `WRONG` needs a human, `NOTICE` is worth knowing. `advice` says what to do."""

    level: Level
    subject: str
    text: str
    advice: str = ""


def check_all(facts: Facts) -> list[Check]:
    """Every check, in the order of the way that an event takes backwards."""
    return [
        *_ledger(facts),
        *_quality(facts),
        *_limits(facts),
        *_disk(facts),
        *_journal(facts),
        *_sinks(facts),
        *_problems(facts.journal),
        *_packages(facts),
        *_environment(facts),
    ]


def _fine(subject: str, text: str) -> Check:
    return Check(Level.FINE, subject, text)


# ---- ledger ----


def _ledger(facts: Facts) -> Iterator[Check]:
    if facts.ledger is None:
        yield no_ledger(facts)
        return
    summary = facts.ledger.summary
    told = f"{facts.place.shown}, schema {facts.ledger.revision}: "
    if not summary.events:
        yield Check(
            Level.NOTICE, "ledger", told + "no events", "Wrap a client: docs/quickstart.md; or see `token-meter demo`."
        )
        return
    last = f"{summary.last:%Y-%m-%d %H:%M:%S} UTC" if summary.last else "never"
    yield _fine(
        "ledger",
        f"{told}{counted(summary.events, 'event')} of {counted(summary.customers, 'customer')}, the last at {last}",
    )
    if summary.dimensions_overflowed:
        yield Check(
            Level.NOTICE,
            "dimensions",
            f"more values than rollups hold: {', '.join(summary.dimensions_overflowed)}",
            "Usage by them stays exact but is slower; do not declare dimensions that are nearly unique.",
        )


def no_ledger(facts: Facts) -> Check:
    """Why the ledger is not read. A file that is missing is judged by what the journal has delivered to it."""
    states = facts.journal.deliveries if facts.journal and facts.place.missing else ()
    ours = next((state for state in states if state.name == LEDGER_SINK), None)
    if ours is None:
        return Check(Level.WRONG, "ledger", facts.ledger_trouble or "cannot be read")
    if ours.delivered:
        return Check(
            Level.WRONG, "ledger",
            f"no ledger at {facts.place.shown}, but {counted(ours.delivered, 'event')} went into it: moved or deleted?",
            "Put it back, or name where it is now with --ledger. A new one will begin empty.",
        )  # fmt: skip
    return Check(
        Level.NOTICE, "ledger", f"no ledger at {facts.place.shown} yet: nothing of its journal has been delivered",
        f"`token-meter deliver run{facts.place.again}` makes it, and so does the next start of the program.",
    )  # fmt: skip


def _quality(facts: Facts) -> Iterator[Check]:
    ledger, again = facts.ledger, facts.place.again
    if ledger is None:
        return
    yield _conflicts(ledger)
    if not ledger.events:
        return
    yield _share(
        ledger, ledger.unattributed, "unattributed", Level.WRONG, "have no customer",
        f"Put the calls in `with meter.customer(...)`; see them: token-meter events tail{again} --unattributed",
    )  # fmt: skip
    yield _share(
        ledger, ledger.by_status.get("unmetered", 0), "unmetered", Level.WRONG,
        "may have been charged and no answer was seen",
        f"Compare with the provider's bill; see them: token-meter events tail{again} --status unmetered",
    )  # fmt: skip
    yield _share(
        ledger, ledger.by_status.get("estimated", 0), "estimated", Level.NOTICE, "are estimated",
        "Streams given up early; where a host accepts it, meter.allow_include_usage(host) gives counts.",
    )  # fmt: skip
    yield _share(
        ledger, ledger.by_status.get("partial", 0), "partial", Level.NOTICE,
        "ended early and hold the provider's counts up to there",
    )  # fmt: skip
    yield _anomalies(ledger)
    yield _pending(ledger, again)
    yield from _uncovered(ledger, again)
    yield _book(ledger)
    if ledger.prices_held:
        yield Check(
            Level.NOTICE, "new prices", f"{counted(ledger.prices_held, 'price waits', 'prices wait')} for a decision",
            f"See what they mean: token-meter prices held{again}; then accept or reject them",
        )  # fmt: skip


def _limits(facts: Facts) -> Iterator[Check]:
    """What budgets and notices need a human for."""
    ledger, again = facts.ledger, facts.place.again
    if ledger is None:
        return
    if ledger.lost_holds:
        yield Check(
            Level.WRONG, "budgets",
            f"{counted(ledger.lost_holds, 'call holds', 'calls hold')} money and nobody knows what became of them",
            f"Look whether the provider billed them: token-meter budgets holds{again} --lost; then --release ID.",
        )  # fmt: skip
    if ledger.unsigned:
        yield Check(
            Level.WRONG, "notices", f"nothing is posted to {counted(ledger.unsigned, 'webhook')}",
            "The library that signs is not installed: the extra `webhook` (standardwebhooks).",
        )  # fmt: skip
    for each in ledger.unreached:
        yield Check(
            Level.WRONG, "notices", f"a webhook does not take notices: {each}",
            f"See token-meter notices endpoints{again}; when it is mended: token-meter notices enable ENDPOINT.",
        )  # fmt: skip


def _book(ledger: LedgerFacts) -> Check:
    """How old the prices are that events are rated by."""
    made = ledger.prices_of
    if made is None:
        return _fine("price book", "the one of this package")
    days = (datetime.now(UTC) - made).days
    told = f"prices of {made:%Y-%m-%d}"
    if days <= BOOK_DAYS_MAX:
        return _fine("price book", told)
    return Check(
        Level.NOTICE, "price book", f"{told}, {days} days old",
        "Upgrade this package, or: pip install -U genai-prices; token-meter prices sync",
    )  # fmt: skip


def _pending(ledger: LedgerFacts, again: str) -> Check:
    if not ledger.pending:
        return _fine("prices", "every event has its price")
    return Check(
        Level.NOTICE,
        "prices",
        f"{counted(ledger.pending, 'event')} without a price, or not rated yet: they are on no invoice",
        f"Which and why: token-meter usage --cost{again}; a price is given in a file of overrides: docs/prices.md",
    )


def _uncovered(ledger: LedgerFacts, again: str) -> Iterator[Check]:
    """A meter that is misspelt, or was forgotten in a plan, charges nothing: nobody would see it on an invoice."""
    if ledger.uncovered:
        told = ", ".join(f"{quantity:,} of {meter}" for meter, quantity in ledger.uncovered.items())
        yield Check(
            Level.NOTICE, "meters",
            f"charged nothing since {ledger.since:%Y-%m-%d %H:%M}: {told}: no rate of the customer's plan is about it",
            f"Give it a rate, or mend its name: token-meter plans list{again}; whose it is: token-meter usage --cost "
            f"--meter all --by meter,customer{again}",
        )  # fmt: skip


def _conflicts(ledger: LedgerFacts) -> Check:
    number = ledger.summary.conflicts
    if not number:
        return _fine("conflicts", "no two different events under one id")
    ids = ", ".join(each.id for each in ledger.conflicts)
    return Check(
        Level.WRONG,
        "conflicts",
        f"{counted(number, 'event')} with a known id and other billing fields came later and do not count: {ids}",
        "Whoever sends them must give each its own id; the first one stands.",
    )


def _share(ledger: LedgerFacts, number: int, subject: str, level: Level, meaning: str, advice: str = "") -> Check:
    window = f"since {ledger.since:%Y-%m-%d %H:%M}"
    if not number:
        return _fine(subject, f"none of {counted(ledger.events, 'event')} {window}")
    share = 100 * number / ledger.events
    return Check(level, subject, f"{number:,} of {ledger.events:,} events {window} ({share:.1f} %) {meaning}", advice)


def _anomalies(ledger: LedgerFacts) -> Check:
    if not ledger.anomalies:
        return _fine("anomalies", "none")
    most = sorted(ledger.anomalies.items(), key=lambda each: (-each[1], each[0]))[:KINDS_SHOWN_MAX]
    kinds = ", ".join(f"{kind} {number:,}x" for kind, number in most)
    read = f" among the newest {ledger.anomalies_read:,} events" if ledger.events > ledger.anomalies_read else ""
    return Check(
        Level.NOTICE,
        "anomalies",
        f"{kinds}{read}",
        "What did not add up stands on each event: token-meter events show ID",
    )


# ---- journal ----


def _disk(facts: Facts) -> Iterator[Check]:
    disk = facts.disk
    if disk is None:
        return
    if not disk.writable:
        yield Check(
            Level.WRONG, "journal disk", f"this user may not write in {disk.path}",
            "Give it access, or name a folder that it may write: Meter(journal=...) or $TOKEN_METER_JOURNAL.",
        )  # fmt: skip
    if disk.free_bytes < FREE_BYTES_MIN:
        yield Check(
            Level.WRONG, "journal disk", f"only {disk.free_bytes >> 20} MiB are free on the disk of {disk.path}",
            "Make room: when the disk is full, events wait in memory only.",
        )  # fmt: skip
    if disk.kind in OVERLAY or disk.kind in VOLATILE:
        yield Check(
            Level.NOTICE, "journal disk", f"{disk.path} is on {disk.kind}, which ends with the container or a restart",
            "Mount a volume there, so that undelivered events survive.",
        )  # fmt: skip
    elif disk.kind in NETWORK:
        yield Check(
            Level.NOTICE, "journal disk", f"{disk.path} is on {disk.kind}, where file locks cannot always be relied on",
            "Keep journal and SQLite ledger on a local disk.",
        )  # fmt: skip
    elif disk.writable and disk.free_bytes >= FREE_BYTES_MIN:
        yield _fine("journal disk", f"{disk.kind or 'local'}, writable, {disk.free_bytes >> 30:,} GiB free")


def _journal(facts: Facts) -> Iterator[Check]:
    journal = facts.journal
    if facts.journal_trouble:
        yield Check(
            Level.WRONG, "journal", facts.journal_trouble,
            "Run this as the user that the program runs as, or name another journal with --journal.",
        )  # fmt: skip
    elif journal is None:
        yield Check(
            Level.NOTICE, "journal", f"there is none at {facts.place.journal}: no program has metered into it here",
            "Run this where the program runs, or name its journal with --journal.",
        )  # fmt: skip
    elif journal.bytes > JOURNAL_BYTES_MAX:
        yield Check(
            Level.WRONG, "journal", f"{journal.path} has {journal.bytes >> 20:,} MiB: a sink does not take its events",
            f"See `token-meter deliver status{facts.place.again}`; `deliver forget NAME` gives a dead sink up.",
        )  # fmt: skip
    else:
        yield _fine("journal", f"{journal.path}, {journal.bytes:,} bytes in {counted(journal.segments, 'segment')}")


def _sinks(facts: Facts) -> Iterator[Check]:
    for state in facts.journal.deliveries if facts.journal else ():
        yield _backlog(state, facts.place.again)
        if state.quarantined or state.invalid:
            by_itself = f" {state.awaiting} of them go out by themselves when that is mended." if state.awaiting else ""
            yield Check(
                Level.WRONG, f"sink {state.name}",
                f"in quarantine: {counted(state.quarantined, 'refused event')}, "
                f"{counted(state.invalid, 'unreadable line')}",
                f"See `token-meter deliver quarantine list{facts.place.again}` for the reasons; then `release` or "
                f"`discard` them.{by_itself}",
            )  # fmt: skip
        for reason in state.blocked.values():
            yield Check(Level.WRONG, f"sink {state.name}", reason, "Upgrade token_meter in the delivering process.")


def _backlog(state: DeliveryState, again: str) -> Check:
    subject = f"sink {state.name}"
    delivered = f"{counted(state.delivered, 'event')} delivered"
    who = "nobody delivers now" if state.holder is None else f"process {state.holder} delivers"
    if not state.backlog_events and not state.last_error:
        return _fine(subject, f"{delivered}, nothing waits, {who}")
    oldest = state.oldest_age_seconds or 0.0
    waits = f"{counted(state.backlog_events, 'event waits', 'events wait')}, the oldest for {age(oldest)}"
    error = f" (last error: {state.last_error})" if state.last_error else ""
    stuck = oldest > STALE_SECONDS
    advice = _how_to_deliver(state.name, again) if state.holder is None else ""
    return Check(Level.WRONG if stuck else Level.NOTICE, subject, f"{delivered}, {waits}, {who}{error}", advice)


def _how_to_deliver(sink: str, again: str) -> str:
    if sink == LEDGER_SINK:
        return f"`token-meter deliver run{again}` delivers them now."
    return f"Start the program, or `token-meter deliver run{again} --sink ...` with this sink: see its --help."


def _problems(journal: JournalStatus | None) -> Iterator[Check]:
    if journal is None:
        return
    attempts = {what for each in journal.problems if (what := each["what"]).startswith("sink ") and ":" not in what}
    for problem in journal.problems:
        # An attempt that failed is made again. Whether one needs a human is told by what waits for the sink, above.
        attempt = problem["what"] in attempts
        yield Check(
            Level.NOTICE if attempt else Level.WRONG, "attempts" if attempt else "failures",
            f"{problem['what']} ({problem.get('count', 1):,}x, last {problem.get('last')}): {problem.get('error')}",
            f"When it is dealt with, remove {journal.path / 'problems.jsonl'}.",
        )  # fmt: skip
    if all(problem["what"] in attempts for problem in journal.problems):
        yield _fine("failures", "none inside metering")


# ---- surroundings ----


def _packages(facts: Facts) -> Iterator[Check]:
    installed = {name: number for name, number in facts.sdks.items() if number is not None}
    if not installed:
        yield Check(
            Level.NOTICE, "SDKs", f"none of {', '.join(facts.sdks)} is installed in this Python",
            "pip install 'token-meter[all]', or run doctor in the program's environment.",
        )  # fmt: skip
    else:
        yield _fine("SDKs", ", ".join(f"{name} {number}" for name, number in installed.items()))
    for name, trouble in facts.hooks.items():
        if trouble is None:
            yield _fine(f"hooks {name}", "found")
        else:
            yield Check(
                Level.WRONG, f"hooks {name}", trouble, "Install a version of the SDK that docs/providers.md lists."
            )


def _environment(facts: Facts) -> Iterator[Check]:
    if facts.disabled:
        yield Check(
            Level.WRONG,
            "environment",
            "TOKEN_METER_DISABLED is set: nothing is metered",
            "Unset it where the program runs.",
        )
    names: Sequence[str] = facts.environment
    yield _fine("environment", f"in force: {', '.join(names)}" if names else "no TOKEN_METER_ variable is set")
