"""`token-meter import`: usage that partners recorded, from their files or pulled from their APIs."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.catch_up import catch_up
from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.cli.moments import read_moment, read_zone
from token_meter.cli.output import Shape, note, show, write, write_json
from token_meter.cli.place import Place, find, holds_ledger, reading
from token_meter.cli.progress import measuring
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import counted, did_you_mean, printable
from token_meter.event import MeterEvent
from token_meter.usage import HEADLINES, Usage

if TYPE_CHECKING:
    from token_meter.journal import Journal
    from token_meter.partners import Imported
    from token_meter.partners.fields import Field

BAD_SHOWN_MAX: Final = 20
GROUPS_SHOWN_MAX: Final = 50
IDS_MAX: Final = 1_000_000
EVENTS: Final = "events"
"""Events of the operator's own, instead of a partner's records."""

MEANINGS: Final = {
    "only_totals": "only totals are known: cached tokens and reasoning are counted as plain input and output",
    "unsplit_total": "only one total is known: it is counted as input",
    "aggregated": "stand for many calls each",
    "cache_write_unknown": "something was written to a cache, how much is not told",
    "cached_beside_prompt": "cached tokens exceed the prompt, so they are counted beside it",
    "model_unknown": "the model is not told",
    "no_counts": "charged, and nothing was counted: look at them",
}
"""What the flags of imported events say; others are those of metered calls."""


def import_usage(
    partner: Annotated[
        str,
        typer.Argument(metavar="PARTNER|events", help="litellm, openrouter, vercel, cloudflare; or your own events."),
    ],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="JSON, JSON lines or CSV, also gzipped.")
    ] = None,
    pull: Annotated[
        bool, typer.Option("--pull", help="Read the partner's API from where the last pull ended.")
    ] = False,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Where the API is; LiteLLM has no other place.")
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option("--key-env", metavar="NAME", help="The environment variable with the key, if not the usual one."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", metavar="NAME=VALUE", help="Goes along with each request; may be repeated."),
    ] = None,
    ids_from: Annotated[
        Path | None,
        typer.Option(
            "--ids-from", metavar="FILE", help="Look these generations up, an id per line; - is standard input."
        ),
    ] = None,
    cursor: Annotated[
        Path | None, typer.Option("--cursor", metavar="FILE", help="Where the position of the pull is kept.")
    ] = None,
    customer_field: Annotated[
        str | None,
        typer.Option("--customer-field", metavar="PATH", help="Names the customer: end_user, metadata.tenant, …"),
    ] = None,
    customer_name: Annotated[
        str | None,
        typer.Option("--customer-name", "--customer", metavar="NAME", help="All of it is this customer's."),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="When events without a time happened: now, 2026-11-01.")
    ] = None,
    dimension: Annotated[
        list[str] | None,
        typer.Option("--dimension", metavar="NAME=PATH", help="A dimension and the field it is in; may be repeated."),
    ] = None,
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    time_zone: options.ZoneOption = "UTC",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave rows out that cannot be read.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be recorded, and record nothing.")] = False,
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    json: options.JsonOption = False,
) -> None:
    """Bring in usage that a partner recorded, from files or, with --pull, from its API; or events from your own files.

    Ids are derived from the partner's: what was brought in before counts nothing again. Unless --skip-bad, nothing is
    brought in when a row cannot be read.
    """
    from token_meter.partners import UnreadableRows

    zone, now = read_zone(time_zone), datetime.now(UTC)
    begin, end = (read_moment(text, zone=zone, now=now) for text in (since, until))
    wanted = {
        "customer_field": _customer_field(customer_field, customer_name),
        "dimensions": dict(_pair(each, "--dimension", "NAME=PATH, such as team=team_id") for each in dimension or ()),
        "since": begin,
        "until": end,
        "skip_bad": skip_bad,
        "dry_run": dry_run,
    }
    place = _place(ledger, journal)
    groups = Groups()
    try:
        if partner == EVENTS:
            when = read_moment(at, zone=zone, now=now)
            dated = at is not None and at[:1].isdigit() and "-" in at
            report = _own_events(place, files or [], customer_name, (when, dated), skip_bad, dry_run, groups)
        elif _from_api(pull, files, url=url, ids_from=ids_from, cursor=cursor, parameter=parameter, key_env=key_env):
            api = {
                "url": url,
                "key": _key(key_env),
                "parameters": dict(_pair(each, "--parameter", "NAME=VALUE") for each in parameter or ()),
                "ids": None if ids_from is None else list(_ids(ids_from)),
                "cursor": cursor,
            }
            report = _pulled(place, partner, {**wanted, **api}, groups)
        else:
            report = _imported(place, partner, files or [], wanted, groups)
    except UnreadableRows as refused:
        _tell_bad(refused.report, json=json)
        raise Failure(
            f"{counted(refused.report.bad_rows, 'row')} of {refused.report.read:,} cannot be read, so "
            f"nothing{refused.of} was brought in: mend them, or leave them out with --skip-bad"
        ) from None
    except ValueError as error:
        raise Failure(str(error), code=WRONG_USAGE) from None
    finally:  # what was recorded until something went wrong shows too
        delivered = 0 if dry_run else catch_up(place, quiet=True)
    if json:
        write_json({"ledger": place.shown, "delivered": delivered, **report.to_json(), "rows": groups.document()})
        return
    _tell(report, groups, dry_run=dry_run)


class Groups:
    """What is brought in by customer and model, for people to see whether it is right."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str | None, str | None, str | None], Counter[str]] = {}
        self._events: Counter[tuple[str | None, str | None, str | None]] = Counter()

    def add(self, event: MeterEvent) -> None:
        """One event."""
        key = (event.customer, event.provider, event.model)
        self._sums.setdefault(key, Counter()).update(dict(event.usage))
        self._events[key] += 1

    def table(self) -> Table:
        """The largest groups first."""
        columns = [Column(name) for name in ("customer", "provider", "model")]
        columns += [Column("events", number=True)]
        shown = [name for name in HEADLINES if any(Usage(sums).by_headline().get(name) for sums in self._sums.values())]
        columns += [Column(name, number=True) for name in shown]
        rows = [
            {
                "customer": customer,
                "provider": provider,
                "model": model,
                "events": self._events[key],
                **_all(usage, shown),
            }
            for key, usage in self._largest()[:GROUPS_SHOWN_MAX]
            for customer, provider, model in (key,)
        ]
        return Table(columns, rows, nothing="(none)")

    def document(self) -> list[dict[str, Any]]:
        """The same for programs, all of it."""
        return [
            {
                "customer": key[0],
                "provider": key[1],
                "model": key[2],
                "events": self._events[key],
                "tokens": usage.tokens,
                "usage": dict(usage),
            }
            for key, usage in self._largest()
        ]

    @property
    def hidden(self) -> int:
        """How many groups are not in the table."""
        return max(0, len(self._sums) - GROUPS_SHOWN_MAX)

    def _largest(self) -> list[tuple[tuple[str | None, str | None, str | None], Usage]]:
        usages = [(key, Usage(sums)) for key, sums in self._sums.items()]
        return sorted(usages, key=lambda each: (-each[1].tokens, tuple(str(part) for part in each[0])))


def _all(usage: Usage, headlines: Sequence[str]) -> dict[str, int]:
    by = usage.by_headline()
    return {name: by.get(name, 0) for name in headlines}


# ---- where it goes ------------------------------------------------------------------------------------------------


class Written:
    """Writes events into a journal, which the program that runs, or this command at its end, delivers.

    A Meter would have to be given every sink of the journal; whoever imports need not know them.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._mode = "test" if os.environ.get("TOKEN_METER_MODE") == "test" else "live"

    @property
    def journal_folder(self) -> Path:
        """The journal's folder, where the positions of pulls are kept."""
        return self._journal.folder.path

    def record_event(self, event: MeterEvent) -> None:
        """On disk when this returns, unless the disk takes nothing: see `sync`."""
        from token_meter import lines

        self._journal.append(lines.recorded({**event.to_json(), "mode": self._mode}))

    def sync(self) -> bool:
        """Force it to disk; False when the disk did not take all of it."""
        self._journal.maintain()
        return not self._journal.pending and not self._journal.lost


class Nowhere:
    """What a dry run writes to: nothing."""

    def __init__(self, folder: Path) -> None:
        self.journal_folder = folder

    def record_event(self, event: MeterEvent) -> None:
        """Never called: a dry run records nothing."""
        raise AssertionError("a dry run records nothing")

    def sync(self) -> bool:
        """There is nothing to force to disk."""
        return True


@contextmanager
def writing(place: Place, *, dry_run: bool) -> Iterator[Written | Nowhere]:
    """What events are written to: the journal of this place, or nothing in a dry run."""
    if dry_run:
        yield Nowhere(place.journal)
        return
    from token_meter.journal import Journal

    with Journal(place.journal) as journal:
        yield Written(journal)


def _place(ledger: str | None, journal: Path | None) -> Place:
    if os.environ.get("TOKEN_METER_DISABLED", "") not in ("", "0", "false"):
        raise Failure(
            "TOKEN_METER_DISABLED is set, so what is brought in would be lost: take it away", code=WRONG_USAGE
        )
    place = find(ledger, journal)
    if not place.fed:
        raise Failure(
            f"which journal belongs to {place.shown}? Name it with --journal FOLDER: the one of the program that "
            "delivers to this ledger, or a new folder",
            code=WRONG_USAGE,
        )
    return place


# ---- what is asked for --------------------------------------------------------------------------------------------


def _from_api(pull: bool, files: Sequence[Path] | None, **only_for_pull: Any) -> bool:
    """Whether to ask the API. Wrong usage for what is neither that nor files, or both."""
    if pull and files:
        raise Failure("--pull reads the API, not files: leave one of them out", code=WRONG_USAGE)
    if not pull and not files:
        raise Failure("name files to import, or say --pull to read the partner's API", code=WRONG_USAGE)
    given = [f"--{name.replace('_', '-')}" for name, value in only_for_pull.items() if value]
    if given and not pull:
        raise Failure(f"{given[0]} goes with --pull", code=WRONG_USAGE)
    return pull


def _customer_field(field: str | None, name: str | None) -> Field | None:
    if field is not None and name is not None:
        raise Failure("--customer-field and --customer-name exclude each other", code=WRONG_USAGE)
    return field if name is None else lambda _: name


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name.strip() or not value.strip():
        raise Failure(f"{option} wants {example}, not {text!r}", code=WRONG_USAGE)
    return name.strip(), value.strip()


def _key(variable: str | None) -> Any:
    if variable is None:
        return None
    if not os.environ.get(variable):
        close = did_you_mean(variable, [name for name in os.environ if name.endswith(("KEY", "TOKEN"))])
        raise Failure(f"${variable} is not set, and should hold the key.{close}", code=WRONG_USAGE)
    return lambda: os.environ.get(variable, "")


def _ids(file: Path) -> Iterator[str]:
    """One id per line; blank lines are passed over."""
    text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8", "replace")
    ids = [line.strip() for line in text.splitlines() if line.strip()]
    if not ids or len(ids) > IDS_MAX:
        raise Failure(f"{file} has {counted(len(ids), 'id')}: one per line, at most {IDS_MAX:,}", code=WRONG_USAGE)
    return iter(ids)


# ---- doing and telling --------------------------------------------------------------------------------------------


def _imported(place: Place, partner: str, files: Sequence[Path], wanted: dict[str, Any], groups: Groups) -> Imported:
    from token_meter.partners import import_file
    from token_meter.partners.files import size_of

    once = wanted["dry_run"] or wanted["skip_bad"]
    total = sum(map(size_of, files)) * (1 if once else 2)
    call: Any = import_file  # the keywords are its own
    with writing(place, dry_run=wanted["dry_run"]) as recording, measuring("importing", total) as moved:
        report: Imported = call(recording, partner, *files, watch=groups.add, moved=moved, **wanted)
    return report


def _own_events(
    place: Place,
    files: Sequence[Path],
    customer: str | None,
    at: tuple[datetime | None, bool],
    skip_bad: bool,
    dry_run: bool,
    groups: Groups,
) -> Imported:
    from token_meter.partners.events import import_events
    from token_meter.partners.files import size_of

    if not files:
        raise Failure("name the files with the events", code=WRONG_USAGE)
    total = sum(map(size_of, files)) * (1 if dry_run or skip_bad else 2)
    catch_up(place, quiet=True)  # what waits in the journal may be of the same files
    with (
        _known(place) as (meters, known),
        writing(place, dry_run=dry_run) as recording,
        measuring("importing", total) as moved,
    ):
        return import_events(
            recording, *files, customer=customer, at=at[0], at_counts=at[1], meters=meters, skip_bad=skip_bad,
            dry_run=dry_run, known=known, watch=groups.add, moved=moved,
        )  # fmt: skip


@contextmanager
def _known(place: Place) -> Iterator[tuple[list[str], Callable[[str], bool] | None]]:
    """The meters that the ledger knows, and whether it knows an event; if it is not there yet, what is built in."""
    from token_meter.billing.meters import BUILT_IN
    from token_meter.bookkeeping.plan_book import PlanBook

    if place.missing or not holds_ledger(place):
        yield list(BUILT_IN), None
        return
    with reading(place) as opened:
        yield list(PlanBook(opened).catalogue().meters), lambda id: opened.event(id) is not None


def _pulled(place: Place, partner: str, wanted: dict[str, Any], groups: Groups) -> Imported:
    from token_meter.partners import pull

    call: Any = pull  # the keywords are its own
    with writing(place, dry_run=wanted["dry_run"]) as recording:
        report: Imported = call(recording, partner, watch=groups.add, **wanted)
    return report


def _tell(report: Imported, groups: Groups, *, dry_run: bool) -> None:
    if report.events:
        show(groups.table(), Shape.TABLE)
    if groups.hidden:
        note(f"and {counted(groups.hidden, 'more row')}: --json has all")
    outcome = "would be recorded" if dry_run else "recorded"
    parts = [f"{counted(report.events, 'event')} {outcome}"]
    if report.duplicates:
        parts.append(f"{counted(report.duplicates, 'repetition')}")
    parts += [f"{number:,} skipped: {reason}" for reason, number in sorted(report.skipped.items())]
    if report.bad_rows:
        parts.append(f"{counted(report.bad_rows, 'row')} left out as unreadable")
    write(printable(f"{counted(report.read, 'row')} read: {'; '.join(parts)}") + "\n")
    if report.bad_rows:
        _list_bad(report)
    if report.without_customer:
        note(
            f"{counted(report.without_customer, 'event')} without a customer: --customer-field names the field that "
            "tells whose they are"
        )
    for flag, number in sorted(report.flagged.items()):
        note(f"{flag}: {counted(number, 'event')}{f': {MEANINGS[flag]}' if flag in MEANINGS else ''}")


def _tell_bad(report: Imported, *, json: bool) -> None:
    if json:
        write_json(report.to_json())
    else:
        _list_bad(report)


def _list_bad(report: Imported) -> None:
    """The bad rows on standard error, as compilers name places."""
    for each in report.bad[:BAD_SHOWN_MAX]:
        sys.stderr.write(f"{printable(str(each))}\n")
    if report.bad_rows > BAD_SHOWN_MAX:
        sys.stderr.write(f"and {counted(report.bad_rows - BAD_SHOWN_MAX, 'more row')}\n")
