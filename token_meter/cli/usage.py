"""`token-meter usage`: what was consumed, by whom and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_meter.cli import options
from token_meter.cli.catch_up import catch_up
from token_meter.cli.exits import WRONG_USAGE, Failure
from token_meter.cli.filters import read_filters
from token_meter.cli.output import Shape, chosen_shape, note, show, write_json
from token_meter.cli.place import Place, find, reading
from token_meter.cli.tables import Column, Row, Table
from token_meter.cli.text import counted, did_you_mean
from token_meter.ledger import ANY
from token_meter.usage import HEADLINES, TOKEN_TYPES, Usage

if TYPE_CHECKING:
    from token_meter.ledger import Ledger, UsageRow

KEYS: Final = (
    "customer", "model", "provider", "publisher", "operation", "status", "meter", "host", "mode", "token_type",
    "headline", "correction", "price_context",
)  # fmt: skip
"""What usage can be split by, besides dimensions."""

EVERY_METER: Final = "all"
SPLITS_QUANTITIES: Final = ("token_type", "headline")
BUCKETS: Final[Mapping[str, int | None]] = {"hour": None, "day": 10, "month": 7}
"""What usage can be cut into, and how much of a bucket's ISO text tells it."""
SHOWN_WHEN_USED: Final = ("cached output", "other")
UNITS: Final[Mapping[str, str]] = {name: row.unit for name, row in TOKEN_TYPES.items()}


def usage(
    ledger: options.LedgerOption = None,
    journal: options.JournalOption = None,
    by: Annotated[
        str,
        typer.Option(
            metavar="KEYS",
            help="Split by these, comma-separated: customer, model, provider, publisher, operation, status, host, "
            "token_type, headline, or any dimension of yours.",
        ),
    ] = "customer,model",
    customer: options.CustomerOption = None,
    unattributed: options.UnattributedOption = False,
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    bucket: Annotated[str | None, typer.Option(metavar="hour|day|month", help="One row per period.")] = None,
    time_zone: options.ZoneOption = "UTC",
    model: options.ModelOption = None,
    provider: options.ProviderOption = None,
    operation: options.OperationOption = None,
    status: options.StatusOption = None,
    meter: Annotated[
        str | None,
        typer.Option("--meter", metavar="NAME", help="Only this meter (default: llm_tokens), or all."),
    ] = None,
    dimension: options.DimensionOption = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Show what it cost, what is charged for it and the margin (USD).")
    ] = False,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
    markdown: options.MarkdownOption = False,
) -> None:
    """Show what was consumed, split by customer and model or anything else.

    Token types are disjoint: the columns add up to the tokens. First brings in what waits in the journal.
    """
    shape = chosen_shape(json=json, csv=csv, markdown=markdown)
    keys = read_keys(by)
    if bucket is not None and bucket not in BUCKETS:
        raise Failure(f"--bucket is hour, day or month, not {bucket!r}", code=WRONG_USAGE)
    filters = read_filters(
        customer=customer, unattributed=unattributed, status=status, dimension=dimension, since=since, until=until,
        time_zone=time_zone, model=model, provider=provider, operation=operation, meter=meter,
    )  # fmt: skip
    if meter == EVERY_METER or (meter is None and "meter" in keys):
        filters["meter"] = ANY
    place = find(ledger, journal)
    if cost:
        _show_costs(place, keys, bucket=bucket, time_zone=time_zone, filters=filters, shape=shape)
        return
    delivered = catch_up(place)
    with reading(place) as opened:
        report = Report.read(opened, keys, bucket=bucket, time_zone=time_zone, filters=filters)
    if shape is Shape.JSON:
        write_json({"ledger": place.shown, "delivered_first": delivered, **report.document()})
        return
    show(report.table(), shape)
    _say_more(report, place, narrowed=bool(filters))


def _show_costs(
    place: Place,
    keys: Sequence[str],
    *,
    bucket: str | None,
    time_zone: str,
    filters: Mapping[str, Any],
    shape: Shape,
) -> None:
    from token_meter.cli.costs import CostReport
    from token_meter.cli.rated import rated

    with rated(place) as opened:
        report = CostReport.read(opened, keys, bucket=bucket, time_zone=time_zone, filters=filters)
    if shape is Shape.JSON:
        write_json({"ledger": place.shown, **report.document()})
        return
    show(report.table(), shape)
    for line in report.footnotes():
        note(line)


def _say_more(report: Report, place: Place, *, narrowed: bool) -> None:
    if not report.rows:
        note(
            f"nothing matched; leave filters out, or see `token-meter customers list{place.again}`"
            if narrowed
            else f"no calls in {place.shown} yet; if you expected some: `token-meter doctor{place.again}`"
        )
    for line in report.footnotes():
        note(line)


def read_keys(by: str) -> tuple[str, ...]:
    """The names in `--by`, each once."""
    keys = tuple(dict.fromkeys(name.strip() for name in by.split(",") if name.strip()))
    if not keys:
        raise Failure(f"--by wants one or more of {', '.join(KEYS)}, or a dimension", code=WRONG_USAGE)
    return keys


class Report:
    """Usage as it is shown: one row per group, their total, and what is not quite sure about it."""

    def __init__(
        self, keys: Sequence[str], bucket: str | None, rows: Sequence[UsageRow], by_status: Mapping[str, int]
    ) -> None:
        self.keys = keys
        self.bucket = bucket
        self.rows = rows
        self.by_status = by_status
        self.events = sum(by_status.values())
        self.split = next((name for name in SPLITS_QUANTITIES if name in keys), None)
        self.total = sum((row.usage for row in rows), Usage())

    @classmethod
    def read(
        cls, ledger: Ledger, keys: Sequence[str], *, bucket: str | None, time_zone: str, filters: Mapping[str, Any]
    ) -> Report:
        """Ask the ledger. Wrong usage for a key that is neither known nor a dimension of any event."""
        query: Any = ledger.usage  # the keywords are checked: they are the ledger's own filters
        try:
            rows = query(by=keys, bucket=bucket, time_zone=time_zone, **filters)
        except ValueError as error:
            raise Failure(str(error), code=WRONG_USAGE) from None
        _check_dimensions(ledger, keys, rows)
        statuses = query(by=("status",), **filters)
        return cls(keys, bucket, rows, {str(row.group["status"]): row.events for row in statuses})

    def table(self) -> Table:
        """Group keys, calls, and a column per headline; or one quantity per row where `by` splits them."""
        columns = [Column("bucket", title=self.bucket)] if self.bucket else []
        columns += [Column(name) for name in self.keys]
        columns += self._split_columns() if self.split else self._headline_columns()
        total: dict[str, Any] = {columns[0].name: "total"}
        if not self.split:
            total |= {"calls": self.events, **_headlines(self.total), "tokens": self.total.tokens}
        rows = [self._row(row) for row in self.rows]
        return Table(columns, rows, total if rows and not self.split else None, nothing="(none)")

    def document(self) -> dict[str, Any]:
        """The same for programs: exact quantities by token type, not only by headline."""
        return {
            "by": list(self.keys),
            "bucket": self.bucket,
            "rows": [self._document(row) for row in self.rows],
            "total": {
                "events": self.events,
                "tokens": self.total.tokens,
                "usage": dict(self.total),
                "headlines": self.total.by_headline(),
            },
            "by_status": dict(self.by_status),
        }

    def footnotes(self) -> list[str]:
        """What is estimated, partial or unknown in these numbers."""
        meanings = {
            "estimated": "the provider told no counts, so they are estimated",
            "partial": "ended early, with the provider's counts up to there",
            "unmetered": "no answer was seen; the provider may have charged, and nothing is counted",
        }
        counts = {status: self.by_status.get(status, 0) for status in meanings}
        return [
            f"{status}: {counted(number, 'call')} of {self.events:,} ({100 * number / self.events:.1f} %): "
            f"{meanings[status]}"
            for status, number in counts.items()
            if number
        ]

    def _headline_columns(self) -> list[Column]:
        used = self.total.by_headline()
        shown = [name for name in HEADLINES if name in used or name not in SHOWN_WHEN_USED]
        return [Column(name, number=True) for name in ("calls", *shown, "tokens")]

    def _split_columns(self) -> list[Column]:
        unit = [Column("unit", quiet=True)] if self.split == "token_type" else []
        return [Column("quantity", number=True), *unit]

    def _row(self, row: UsageRow) -> Row:
        shown: dict[str, Any] = {**row.group}
        if self.bucket:
            shown["bucket"] = str(row.group["bucket"])[: BUCKETS[self.bucket]].replace("T", " ")
        if self.split:
            kind = str(row.group[self.split])
            return shown | {"quantity": sum(row.usage.values()), "unit": UNITS.get(kind, "")}
        return shown | {"calls": row.events, **_headlines(row.usage), "tokens": row.usage.tokens}

    def _document(self, row: UsageRow) -> dict[str, Any]:
        # Rows that split a group's quantities do not split its events: a number would be that of the whole group.
        events = {} if self.split else {"events": row.events}
        return {
            **row.group,
            **events,
            "tokens": row.usage.tokens,
            "usage": dict(row.usage),
            "headlines": row.usage.by_headline(),
        }


def _headlines(usage: Usage) -> dict[str, int]:
    return dict.fromkeys(HEADLINES, 0) | usage.by_headline()


def _check_dimensions(ledger: Ledger, keys: Sequence[str], rows: Sequence[UsageRow]) -> None:
    """A key that no event has is a typing mistake, and a table full of "(none)" would hide it."""
    unknown = [name for name in keys if name not in KEYS and all(row.group[name] is None for row in rows)]
    if not rows or not unknown:
        return
    declared = ledger.summary().dimensions
    unknown = [name for name in unknown if name not in declared]
    if unknown:
        known = (*KEYS, *declared)
        raise Failure(
            f"none of these events has a dimension {unknown[0]!r}. --by takes {', '.join(known)}, and any dimension "
            f"that events carry.{did_you_mean(unknown[0], known)}",
            code=WRONG_USAGE,
        )
