"""`token-meter notices`: what somebody should know or do, and the webhooks it is posted to."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from token_meter.cli import options
from token_meter.cli.exits import EPILOG, WRONG_USAGE, Commands, Failure
from token_meter.cli.output import Shape, chosen_shape, note, say, show, write_json
from token_meter.cli.place import find, reading
from token_meter.cli.rated import rated
from token_meter.cli.tables import Column, Table
from token_meter.cli.text import counted
from token_meter.errors import InvalidEndpoint

if TYPE_CHECKING:
    from token_meter.notices.postman import Postman

app = typer.Typer(
    cls=Commands,
    help="Notices: budgets and credit that are used up, prices that changed, sinks that fail; and webhooks for them.",
    no_args_is_help=True,
    epilog=EPILOG,
)

EndpointArgument = Annotated[
    str, typer.Argument(metavar="ENDPOINT", help="Its id, or the beginning of it: see `notices endpoints`.")
]


@app.command("list", epilog=EPILOG)
def list_notices(
    after: Annotated[int, typer.Option("--after", metavar="NUMBER", help="Only those behind this number.")] = 0,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="PATTERN", help="Only of this kind, as budget.exceeded or budget.*."),
    ] = None,
    customer: options.CustomerOption = None,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
    csv: options.CsvOption = False,
) -> None:
    """List notices, oldest first. Each has a key: whoever acts on it uses that as idempotency key."""
    from token_meter.notices.desk import NoticeDesk

    shape = chosen_shape(json=json, csv=csv)
    if kind is not None:
        _know([kind])
    with reading(find(ledger)) as opened:
        found = NoticeDesk(opened).list(after=after, kind=kind, customer=customer)
    if shape is Shape.JSON:
        write_json(list(found))
        return
    rows = [
        each | {"document": json_module.dumps(each["document"], ensure_ascii=False), "says": _says(each["document"])}
        for each in found
    ]
    columns = (Column("number", number=True), Column("recorded", whole=True), Column("kind", whole=True),
               Column("customer"), Column("document" if shape is Shape.CSV else "says"))  # fmt: skip
    show(Table(columns, rows, nothing=""), shape)


@app.command("endpoints", epilog=EPILOG)
def endpoints(ledger: options.LedgerOption = None, json: options.JsonOption = False) -> None:
    """Show the webhooks that notices are posted to, and how that goes."""
    from token_meter.notices.desk import NoticeDesk

    shape = chosen_shape(json=json)
    with reading(find(ledger)) as opened:
        desk = NoticeDesk(opened)
        standing = desk.standing()
        rows = [
            {**each.document(), "waiting": standing.get(each.id, {}).get("waiting", 0),
             "done": standing.get(each.id, {}).get("done", 0), "given_up": standing.get(each.id, {}).get("failed", 0)}
            for each in desk.endpoints()
        ]  # fmt: skip
    if shape is Shape.JSON:
        write_json(rows)
        return
    shown = [row | {"kinds": ", ".join(row["kinds"]) or "every kind"} for row in rows]
    columns = (Column("id", whole=True), Column("url"), Column("kinds"), Column("state"),
               Column("waiting", number=True), Column("done", number=True), Column("given_up", number=True),
               Column("reason", expendable=True))  # fmt: skip
    show(Table(columns, shown, nothing=""), shape)
    if not rows:
        note("notices are posted nowhere: token-meter notices add https://example.com/hooks")


@app.command("add", epilog=EPILOG)
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to post them.")],
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="PATTERN", help="Only these kinds, as budget.*; may be repeated."),
    ] = None,
    secret_from: Annotated[
        str | None,
        typer.Option("--secret-from", metavar="VARIABLE", help="An environment variable with a secret of yours."),
    ] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="The address may be one of a private network, or this machine.")
    ] = False,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Post notices to an address from now on, signed as Standard Webhooks says. The secret is shown once."""
    from token_meter.notices.desk import NoticeDesk
    from token_meter.notices.endpoint import check_url
    from token_meter.notices.postman import can_sign

    secret = _secret(secret_from)
    _know(kind or ())
    try:
        check_url(url)
    except InvalidEndpoint as error:
        raise Failure(str(error), code=WRONG_USAGE) from None
    with rated(find(ledger), make=True) as opened:
        endpoint, made = NoticeDesk(opened).add(url, kinds=kind or (), secret=secret, private=allow_private)
    if json:
        write_json({**endpoint.document(), **({} if secret else {"secret": made})})
        return
    say(f"{endpoint.id}: {', '.join(endpoint.kinds) or 'every notice'} is posted to {endpoint.url}\n")
    if not secret:
        say(f"secret: {made}\n")
        note("keep the secret now: it is not shown again. `token-meter notices test` posts something to try it")
    if not can_sign():
        note("nothing is posted before the library that signs is installed: the extra `webhook` (standardwebhooks)")


@app.command("remove", epilog=EPILOG)
def remove(endpoint: EndpointArgument, ledger: options.LedgerOption = None, json: options.JsonOption = False) -> None:
    """Post nothing there any more."""
    from token_meter.notices.desk import NoticeDesk

    with rated(find(ledger)) as opened:
        gone = NoticeDesk(opened).remove(endpoint)
    write_json(gone.document()) if json else say(f"{gone.id}: nothing is posted to {gone.url} any more\n")


@app.command("rotate", epilog=EPILOG)
def rotate(
    endpoint: EndpointArgument,
    secret_from: Annotated[
        str | None,
        typer.Option("--secret-from", metavar="VARIABLE", help="An environment variable with a secret of yours."),
    ] = None,
    overlap: Annotated[
        float, typer.Option("--overlap", metavar="HOURS", min=0, max=720, help="So long the old secret signs as well.")
    ] = 24.0,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Sign with a new secret; for a while the old one signs beside it."""
    from token_meter.notices.desk import NoticeDesk

    secret = _secret(secret_from)
    with rated(find(ledger)) as opened:
        made = NoticeDesk(opened).rotate(endpoint, secret=secret, overlap_seconds=overlap * 3600)
    if json:
        write_json({"endpoint": endpoint, "secret": None if secret else made})
        return
    say("the new secret signs from now on\n" if secret else f"secret: {made}\n")
    note(f"the old one signs beside it for {overlap:g} hours" if overlap else "the old one signs no more")


@app.command("enable", epilog=EPILOG)
def enable(endpoint: EndpointArgument, ledger: options.LedgerOption = None, json: options.JsonOption = False) -> None:
    """Post to an endpoint again that was disabled, what it has missed as well."""
    from token_meter.notices.desk import NoticeDesk

    with rated(find(ledger)) as opened:
        now = NoticeDesk(opened).enable(endpoint)
    write_json(now.document()) if json else say(f"{now.id}: notices are posted to {now.url} again\n")


@app.command("replay", epilog=EPILOG)
def replay(
    endpoint: EndpointArgument,
    after: Annotated[int, typer.Option("--after", metavar="NUMBER", help="Only those behind this number.")] = 0,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that were given up.")] = False,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Post notices once more, with the same ids: a receiver that keeps them knows what it has."""
    from token_meter.notices.desk import NoticeDesk

    with rated(find(ledger)) as opened:
        count = NoticeDesk(opened).replay(endpoint, after=after, failed_only=failed)
    write_json({"replayed": count}) if json else say(f"{counted(count, 'notice')} will be posted again\n")
    if count and not json:
        note("by a program with a Meter, or now with `token-meter notices deliver`")


@app.command("test", epilog=EPILOG)
def test(
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Write a notice that says nothing, post it at once, and show what each endpoint answers."""
    from token_meter.notices.desk import NoticeDesk
    from token_meter.notices.postman import Postman

    with rated(find(ledger), make=True) as opened:
        desk = NoticeDesk(opened)
        number = desk.test()
        postman = Postman(opened)
        while postman.turn():
            pass
        answers = desk.answers(number)
        known = {each.id: each for each in desk.endpoints()}
    rows: list[dict[str, Any]] = [
        {"endpoint": each.endpoint, "url": known[each.endpoint].url if each.endpoint in known else None,
         "state": each.state, "answer": each.answer}
        for each in answers
    ]  # fmt: skip
    rows += [
        {"endpoint": each.id, "url": each.url, "state": "disabled", "answer": each.reason}
        for each in known.values()
        if each.disabled and each.id not in {row["endpoint"] for row in rows}
    ]
    if json:
        write_json(rows)
    else:
        columns = (Column("endpoint", whole=True), Column("url"), Column("state"), Column("answer"))
        show(Table(columns, rows, nothing=""), Shape.TABLE)
    if not rows:
        raise Failure("there is no endpoint: token-meter notices add https://example.com/hooks")
    disabled = [row["endpoint"] for row in rows if row["endpoint"] in known and known[row["endpoint"]].disabled]
    if disabled:
        raise Failure(f"nothing is posted to {disabled[0]}, it is disabled: token-meter notices enable {disabled[0]}")
    if any(row["state"] != "done" for row in rows):
        raise Failure("not every endpoint has taken it; it is tried again, for days, by a program with a Meter")


@app.command("deliver", epilog=EPILOG)
def deliver(
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")] = False,
    ledger: options.LedgerOption = None,
    json: options.JsonOption = False,
) -> None:
    """Post what is due now. Programs with a Meter do this by themselves; this is for where none runs."""
    from token_meter.notices.postman import Postman

    tried = 0
    with rated(find(ledger)) as opened:
        postman = Postman(opened)
        with suppress(KeyboardInterrupt):
            while True:
                done = _turn(postman, follow=follow)
                tried += done
                if not done and not follow:
                    break
                if not done:
                    time.sleep(1.0)
    write_json({"tried": tried}) if json else say(f"{counted(tried, 'delivery', 'deliveries')} tried\n")


def _turn(postman: Postman, *, follow: bool) -> int:
    """One turn; who follows does not end because the ledger was busy for a while."""
    from token_meter.ledger import LedgerError

    try:
        return postman.turn()
    except LedgerError as error:
        if not follow:
            raise
        note(f"{error}; it is tried again")
        time.sleep(5.0)
        return 0


def _know(kinds: Sequence[str]) -> None:
    """Refuse a pattern that no kind of notice fits."""
    from token_meter.notices.endpoint import KINDS, wanted

    for each in kinds:
        if not any(wanted([each], kind) for kind in KINDS):
            raise Failure(f"there is no kind of notice {each!r}: {', '.join(KINDS)}", code=WRONG_USAGE)


def _says(document: Mapping[str, Any]) -> str:
    """What a notice says, for people: its message, or its fields."""
    told = [str(document[name]) for name in ("message", "what_now") if document.get(name)]
    return ". ".join(told) or ", ".join(
        f"{name} {value}" for name, value in document.items() if isinstance(value, str | int)
    )


def _secret(variable: str | None) -> str | None:
    import os

    if variable is None:
        return None
    value = os.environ.get(variable)
    if not value:
        raise Failure(f"${variable} is not set", code=WRONG_USAGE)
    from token_meter.notices.endpoint import check_secret

    try:
        return check_secret(value)
    except InvalidEndpoint as error:
        raise Failure(str(error), code=WRONG_USAGE) from None
