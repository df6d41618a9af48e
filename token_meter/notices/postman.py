"""Delivers notices to webhook endpoints: at least once, with the same id each time, for days, until they are taken.

Any number of processes may do it: each delivery is claimed for a while by whoever tries it. A notice waits as a row
for each endpoint that wants it, written whenever somebody looks, so that one which was committed late is not missed.
Endpoints are served beside each other: one that is slow or gone delays nobody else.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, func, select

from token_meter.bookkeeping.notice_rows import notice_of, write_notice
from token_meter.errors import MissingExtra
from token_meter.ledger.store import Store
from token_meter.ledger.tables import deliveries, endpoints, notices
from token_meter.notices.endpoint import Endpoint, body_of, endpoint_of
from token_meter.notices.post import DEADLINE_SECONDS, Answered, post

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger

log: Final = logging.getLogger("token_meter")

WAITS_SECONDS: Final = (5, 30, 120, 600, 3_600, 3 * 3_600, 6 * 3_600, 12 * 3_600, 24 * 3_600, 24 * 3_600)
"""How long to wait after each failure; after the last a notice is given up, some three days after it was written."""

DISABLE_SECONDS: Final = 3 * 86_400
"""An endpoint that nothing has reached for so long is disabled: it is when the first notice is given up."""

PAUSE_SECONDS_MAX: Final = 120.0
"""So long an endpoint is left alone after a failure, whatever else waits for it."""

LOUD_AFTER: Final = 3
"""So many failures of one notice are worth a warning."""

CLAIM_SECONDS: Final = 60.0
CLAIMED_MAX: Final = 20
"""Deliveries of one endpoint that a process tries in one turn; one, while it fails."""

ENDPOINTS_AT_ONCE: Final = 8
FANNED_OUT_MAX: Final = 500
BEHIND_MAX: Final = 1_000
"""So many numbers back a notice is still found that was committed after a later one."""

KEPT_SECONDS: Final = 30 * 86_400
"""So long it is kept what was delivered, and what an endpoint did not want."""

GONE: Final = 410
DISABLED: Final = "webhook.disabled"
USER_AGENT: Final = "token-meter"

Post = Callable[..., Answered]


class Claimed(NamedTuple):
    """One delivery that is ours to try until a moment."""

    endpoint: Endpoint
    notice: Mapping[str, Any]
    attempts: int
    until: int


def can_sign() -> bool:
    """Whether the library that signs is installed."""
    return find_spec("standardwebhooks") is not None


class Postman:
    """Delivers the notices of one ledger."""

    def __init__(self, ledger: Ledger, *, now: Callable[[], float] = time.time, send: Post = post) -> None:
        self._ledger = ledger
        self._now = now
        self._send = send
        self._prune_at = 0.0

    def turn(self) -> int:
        """Deliver what is due; how many were tried. Raises MissingExtra before anything is claimed."""
        if not self._is_due():
            return 0
        if not can_sign():
            raise MissingExtra("webhooks need: pip install 'token-meter[webhook]'")
        with self._ledger.writing() as (store, connection):
            self._fan_out(store, connection)
            claimed = self._claim(connection)
        groups: dict[str, list[Claimed]] = {}
        for each in claimed:
            groups.setdefault(each.endpoint.id, []).append(each)
        if len(groups) == 1:
            return self._serve(claimed)
        return self._serve_beside(list(groups.values()))

    def _is_due(self) -> bool:
        """Whether there is anything to write down or to try: a look that takes no lock."""
        if self._now() >= self._prune_at:
            self._prune_at = self._now() + 86_400
            self._prune()
        with self._ledger.reading() as (_, connection):
            waiting = (
                select(deliveries.c.notice)
                .join(endpoints, endpoints.c.id == deliveries.c.endpoint)
                .where(
                    deliveries.c.state == "waiting", deliveries.c.next <= self._micros(), endpoints.c.disabled.is_(None)
                )
            )
            if connection.execute(waiting.limit(1)).first() is not None:
                return True
            active = connection.execute(select(endpoints).where(endpoints.c.disabled.is_(None))).all()
            return any(connection.execute(_new_for(row).limit(1)).first() is not None for row in active)

    def _fan_out(self, store: Store, connection: Connection) -> None:
        """Write a delivery for each notice and endpoint that wants it, where there is none yet."""
        now = self._micros()
        for row in connection.execute(select(endpoints).where(endpoints.c.disabled.is_(None)).order_by(endpoints.c.id)):
            endpoint = endpoint_of(row)
            new = connection.execute(_new_for(row).order_by(notices.c.number).limit(FANNED_OUT_MAX)).all()
            rows = [
                {"endpoint": endpoint.id, "notice": each.number, "attempts": 0, "next": now, "changed": now,
                 "state": "waiting" if endpoint.wants(each.kind) else "unwanted"}
                for each in new
            ]  # fmt: skip
            store.insert_missing(connection, deliveries, rows)

    def _claim(self, connection: Connection) -> list[Claimed]:
        now = self._micros()
        claimed = []
        for row in connection.execute(select(endpoints).where(endpoints.c.disabled.is_(None)).order_by(endpoints.c.id)):
            endpoint = endpoint_of(row)
            query = (
                select(deliveries, notices)
                .join(notices, notices.c.number == deliveries.c.notice)
                .where(deliveries.c.endpoint == endpoint.id)
                .where(deliveries.c.state == "waiting", deliveries.c.next <= now)
                .order_by(deliveries.c.next, deliveries.c.notice)
                .limit(1 if endpoint.failing else CLAIMED_MAX)
            )
            for each in connection.execute(query).all():
                until = now + int(CLAIM_SECONDS * 1_000_000)
                # Whoever comes first has it: the others find another `next`.
                mine = _of(endpoint.id, each.number) & (deliveries.c.next == each.next)
                if connection.execute(deliveries.update().where(mine).values(next=until)).rowcount == 1:
                    claimed.append(Claimed(endpoint, notice_of(each), each.attempts, until))
        return claimed

    def _serve_beside(self, groups: Sequence[Sequence[Claimed]]) -> int:
        """Serve endpoints beside each other; in threads that do not keep a program from ending, as a pool's would."""
        tried: list[int] = []
        failed: list[BaseException] = []

        def serve(group: Sequence[Claimed]) -> None:
            try:
                tried.append(self._serve(group))
            except Exception as error:  # noqa: BLE001 - raised below, when the others are done
                failed.append(error)

        for at in range(0, len(groups), ENDPOINTS_AT_ONCE):
            threads = [
                threading.Thread(target=serve, args=(group,), name="token_meter-webhook", daemon=True)
                for group in groups[at : at + ENDPOINTS_AT_ONCE]
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if failed:
            raise failed[0]
        return sum(tried)

    def _serve(self, claimed: Sequence[Claimed]) -> int:
        """Try what is claimed of one endpoint, until it fails or the claims run out; how many were tried."""
        for place, each in enumerate(claimed):
            if self._micros() > each.until - int((DEADLINE_SECONDS + 5) * 1_000_000):
                self._give_back(claimed[place:], 0.0)
                return place
            try:
                pause = self._deliver(each)
            except Exception:
                self._give_back(claimed[place + 1 :], 0.0)
                raise
            if pause is not None:
                self._give_back(claimed[place + 1 :], pause)
                return place + 1
        return len(claimed)

    def _give_back(self, claimed: Sequence[Claimed], pause: float) -> None:
        """Let others have what was not tried, after a pause."""
        if not claimed:
            return
        then = self._micros() + int(pause * 1_000_000)
        with self._ledger.writing() as (_, connection):
            for each in claimed:
                mine = _of(each.endpoint.id, each.notice["number"]) & (deliveries.c.next == each.until)
                connection.execute(deliveries.update().where(mine).values(next=then))

    def _deliver(self, claimed: Claimed) -> float | None:
        """Try one; how long to leave the endpoint alone, None: it has taken it."""
        endpoint = claimed.endpoint
        body = body_of(claimed.notice)
        headers = {
            "Content-Type": "application/json", "User-Agent": USER_AGENT,
            **self._signed(endpoint, claimed.notice, body),
        }  # fmt: skip
        answer = self._send(endpoint.url, body, headers, private=endpoint.private)
        now = self._micros()
        said = f"HTTP {answer.status}: {answer.text}" if answer.status else answer.text
        wait = self._wait(claimed.attempts, answer)
        with self._ledger.writing() as (store, connection):
            # Only as long as the claim is ours: who came after it has expired knows better.
            mine = _of(endpoint.id, claimed.notice["number"]) & (deliveries.c.next == claimed.until)
            where = endpoints.c.id == endpoint.id
            values = {"attempts": claimed.attempts + 1, "answer": said, "changed": now}
            if answer.ok:
                connection.execute(deliveries.update().where(mine).values(state="done", **values))
                connection.execute(endpoints.update().where(where).values(failing=None, reason=None))
                return None
            then = now + int((wait or 0) * 1_000_000)
            state = "waiting" if wait is not None else "failed"
            connection.execute(deliveries.update().where(mine).values(state=state, next=then, **values))
            pause = min(wait or PAUSE_SECONDS_MAX, PAUSE_SECONDS_MAX)
            self._leave_alone(connection, endpoint, now + int(pause * 1_000_000))
            self._note_failure(store, connection, claimed, answer, said, now)
        if wait is None:
            log.error("token_meter: notice %s was given up for webhook %s: %s", claimed.notice["number"],
                      endpoint.shown, said)  # fmt: skip
        return pause

    def _leave_alone(self, connection: Connection, endpoint: Endpoint, until: int) -> None:
        """Nothing else of this endpoint is tried before: it would fail as well, and others wait meanwhile."""
        mine = (deliveries.c.endpoint == endpoint.id) & (deliveries.c.state == "waiting") & (deliveries.c.next < until)
        # What is claimed has a `next` of its own, by which whoever has it knows it.
        mine &= deliveries.c.next <= self._micros()
        connection.execute(deliveries.update().where(mine).values(next=until))

    def _wait(self, attempts: int, answer: Answered) -> float | None:
        """How long until it is tried again; None: it is given up."""
        if attempts >= len(WAITS_SECONDS):
            return None
        jitter = 1 + random.random() * 0.2
        return max(WAITS_SECONDS[attempts] * jitter, answer.retry_after or 0.0)

    def _note_failure(
        self, store: Store, connection: Connection, claimed: Claimed, answer: Answered, said: str, now: int
    ) -> None:
        endpoint = claimed.endpoint
        where = (endpoints.c.id == endpoint.id) & endpoints.c.disabled.is_(None)
        row = connection.execute(select(endpoints.c.failing).where(where)).first()
        if row is None:
            return  # removed, or disabled by somebody else
        since = row.failing or now
        long = now - since >= DISABLE_SECONDS * 1_000_000
        values: dict[str, Any] = {"failing": since, "reason": said}
        if answer.status == GONE or long:
            values["disabled"] = now
        if connection.execute(endpoints.update().where(where).values(values)).rowcount != 1:
            return
        if "disabled" in values:
            why = "it said that it is gone" if answer.status == GONE else "nothing has reached it for days"
            # An address may carry a token, and other receivers read this.
            document = {
                "endpoint": endpoint.id, "host": endpoint.host, "why": why,
                "what_now": f"nothing is posted there any more. When it is mended: token-meter notices enable "
                f"{endpoint.id}",
            }  # fmt: skip
            write_notice(store, connection, DISABLED, f"{DISABLED}|{endpoint.id}|{now}", document)
            log.error("token_meter: webhook %s is disabled: %s (%s)", endpoint.shown, why, said)
        elif claimed.attempts + 1 == LOUD_AFTER:
            log.warning("token_meter: webhook %s does not take notices: %s. Tried again for days", endpoint.shown, said)

    def _prune(self) -> None:
        """Forget what was delivered or not wanted long ago."""
        before = self._micros() - KEPT_SECONDS * 1_000_000
        with self._ledger.writing() as (_, connection):
            last = connection.execute(select(func.max(notices.c.number)).where(notices.c.recorded < before)).scalar()
            if last is None:
                return
            active = select(endpoints.c.id).where(endpoints.c.disabled.is_(None))
            done = (deliveries.c.notice <= last) & deliveries.c.state.in_(("done", "unwanted"))
            connection.execute(deliveries.delete().where(done, deliveries.c.endpoint.in_(active)))
            begun = endpoints.c.disabled.is_(None) & (endpoints.c.began < last)
            connection.execute(endpoints.update().where(begun).values(began=last))

    def _signed(self, endpoint: Endpoint, notice: Mapping[str, Any], body: bytes) -> dict[str, str]:
        from standardwebhooks.webhooks import Webhook

        id, moment = message_id(notice), datetime.fromtimestamp(int(self._now()), UTC)
        signatures = [
            Webhook(secret).sign(msg_id=id, timestamp=moment, data=body.decode())
            for secret in endpoint.signing(self._micros())
        ]
        return {
            "webhook-id": id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": " ".join(signatures),
        }

    def _micros(self) -> int:
        return int(self._now() * 1_000_000)


def _of(endpoint: str, notice: int) -> ColumnElement[bool]:
    return (
        (deliveries.c.endpoint == endpoint) & (deliveries.c.notice == notice) & (deliveries.c.state == "waiting")
    )  # fmt: skip


def _new_for(row: Any) -> Select[Any]:
    """The notices for which an endpoint has no delivery yet."""
    there = select(deliveries.c.notice).where(deliveries.c.endpoint == row.id, deliveries.c.notice == notices.c.number)
    newest = select(func.max(deliveries.c.notice)).where(deliveries.c.endpoint == row.id).scalar_subquery()
    behind = func.coalesce(newest, 0) - BEHIND_MAX
    return select(notices.c.number, notices.c.kind).where(
        notices.c.number > row.began, notices.c.number > behind, ~there.exists()
    )


def message_id(notice: Mapping[str, Any]) -> str:
    """The id of a notice for receivers: the same however often it is posted, and wherever."""
    return "ntc_" + sha256(str(notice["key"]).encode(errors="surrogatepass")).hexdigest()[:32]
