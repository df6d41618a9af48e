"""Delivers notices to webhook endpoints: at least once, with the same id each time, for days, until they are taken.

Any number of processes may do it: each delivery is claimed for a while by whoever tries it. A notice waits as a row
for each endpoint that wants it, written whenever somebody looks, so that one which was committed late is not missed.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Connection, select

from token_meter.bookkeeping.notice_rows import notice_of, write_notice
from token_meter.errors import MissingExtra
from token_meter.ledger.store import Store
from token_meter.ledger.tables import deliveries, endpoints, notices
from token_meter.notices.endpoint import Endpoint, body_of, endpoint_of
from token_meter.notices.post import Answered, post

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger

log: Final = logging.getLogger("token_meter")

WAITS_SECONDS: Final = (5, 30, 120, 600, 3_600, 3 * 3_600, 6 * 3_600, 12 * 3_600, 24 * 3_600, 24 * 3_600)
"""How long to wait after each failure; after the last a notice is given up, some three days after it was written."""

DISABLE_SECONDS: Final = 5 * 86_400
"""An endpoint that nothing has reached for so long is disabled."""

LOUD_AFTER: Final = 3
"""So many failures of one notice are worth a warning."""

CLAIM_SECONDS: Final = 60
CLAIMED_MAX: Final = 20
FANNED_OUT_MAX: Final = 500
GONE: Final = 410
DISABLED: Final = "webhook.disabled"

Post = Callable[..., Answered]


class Claimed(NamedTuple):
    """One delivery that is ours to try now."""

    endpoint: Endpoint
    notice: Mapping[str, Any]
    attempts: int


class Postman:
    """Delivers the notices of one ledger."""

    def __init__(self, ledger: Ledger, *, now: Callable[[], float] = time.time, send: Post = post) -> None:
        self._ledger = ledger
        self._now = now
        self._send = send

    def turn(self) -> int:
        """Deliver what is due; how many were tried."""
        with self._ledger.writing() as (store, connection):
            self._fan_out(store, connection)
            claimed = self._claim(connection)
        for each in claimed:
            self._deliver(each)
        return len(claimed)

    def _fan_out(self, store: Store, connection: Connection) -> None:
        """Write a delivery for each notice and endpoint that wants it, where there is none yet."""
        now = self._micros()
        for row in connection.execute(select(endpoints).where(endpoints.c.disabled.is_(None)).order_by(endpoints.c.id)):
            endpoint = endpoint_of(row)
            there = select(deliveries.c.notice).where(
                deliveries.c.endpoint == endpoint.id, deliveries.c.notice == notices.c.number
            )
            query = select(notices.c.number, notices.c.kind).where(notices.c.number > endpoint.began, ~there.exists())
            new = connection.execute(query.order_by(notices.c.number).limit(FANNED_OUT_MAX)).all()
            rows = [
                {"endpoint": endpoint.id, "notice": each.number, "attempts": 0, "next": now, "changed": now,
                 "state": "waiting" if endpoint.wants(each.kind) else "unwanted"}
                for each in new
            ]  # fmt: skip
            store.insert_missing(connection, deliveries, rows)

    def _claim(self, connection: Connection) -> list[Claimed]:
        now = self._micros()
        until = now + CLAIM_SECONDS * 1_000_000
        query = (
            select(deliveries, notices, endpoints.c.id.label("whose"))
            .join(notices, notices.c.number == deliveries.c.notice)
            .join(endpoints, endpoints.c.id == deliveries.c.endpoint)
            .where(deliveries.c.state == "waiting", deliveries.c.next <= now, endpoints.c.disabled.is_(None))
            .order_by(deliveries.c.next, deliveries.c.notice)
            .limit(CLAIMED_MAX)
        )
        found = connection.execute(query).all()
        known = {
            row.id: endpoint_of(row)
            for row in connection.execute(select(endpoints).where(endpoints.c.id.in_([each.whose for each in found])))
        }
        claimed = []
        for each in found:
            mine = (deliveries.c.endpoint == each.whose) & (deliveries.c.notice == each.number)
            # Whoever comes first has it: the others find another `next`.
            mine &= (deliveries.c.next == each.next) & (deliveries.c.state == "waiting")
            if connection.execute(deliveries.update().where(mine).values(next=until)).rowcount == 1:
                claimed.append(Claimed(known[each.whose], notice_of(each), each.attempts))
        return claimed

    def _deliver(self, claimed: Claimed) -> None:
        endpoint = claimed.endpoint
        body = body_of(claimed.notice)
        headers = {"Content-Type": "application/json", **self._signed(endpoint, claimed.notice, body)}
        answer = self._send(endpoint.url, body, headers, private=endpoint.private)
        now = self._micros()
        said = f"HTTP {answer.status}: {answer.text}" if answer.status else answer.text
        with self._ledger.writing() as (store, connection):
            mine = (deliveries.c.endpoint == endpoint.id) & (deliveries.c.notice == claimed.notice["number"])
            where = endpoints.c.id == endpoint.id
            if answer.ok:
                done = {"state": "done", "attempts": claimed.attempts + 1, "answer": said, "changed": now}
                connection.execute(deliveries.update().where(mine).values(done))
                connection.execute(endpoints.update().where(where).values(failing=None, reason=None))
                return
            wait = self._wait(claimed.attempts, answer)
            values = {
                "state": "waiting" if wait is not None else "failed", "attempts": claimed.attempts + 1, "answer": said,
                "next": now + int((wait or 0) * 1_000_000), "changed": now,
            }  # fmt: skip
            connection.execute(deliveries.update().where(mine).values(values))
            self._note_failure(store, connection, claimed, answer, said, now)
        if wait is None:
            log.error("token_meter: notice %s was given up for %s: %s", claimed.notice["key"], endpoint.url, said)

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
        where = endpoints.c.id == endpoint.id
        since = connection.execute(select(endpoints.c.failing).where(where)).scalar()
        values: dict[str, Any] = {"failing": since or now, "reason": said}
        if answer.status == GONE or (since is not None and now - since >= DISABLE_SECONDS * 1_000_000):
            values["disabled"] = now
            why = "it said that it is gone" if answer.status == GONE else "nothing has reached it for days"
            document = {
                "endpoint": endpoint.id, "url": endpoint.url, "why": why, "answer": said,
                "what_now": f"nothing is posted there any more. When it is mended: token-meter notices enable "
                f"{endpoint.id}",
            }  # fmt: skip
            write_notice(store, connection, DISABLED, f"{DISABLED}|{endpoint.id}|{now}", document)
            log.error("token_meter: webhook %s is disabled: %s (%s)", endpoint.url, why, said)
        elif claimed.attempts + 1 == LOUD_AFTER:
            log.warning("token_meter: webhook %s does not take notices: %s. Tried again for days", endpoint.url, said)
        connection.execute(endpoints.update().where(where).values(values))

    def _signed(self, endpoint: Endpoint, notice: Mapping[str, Any], body: bytes) -> dict[str, str]:
        try:
            from standardwebhooks.webhooks import Webhook
        except ImportError:
            raise MissingExtra("webhooks need: pip install 'token-meter[webhook]'") from None
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


def message_id(notice: Mapping[str, Any]) -> str:
    """The id of a notice for receivers: the same however often it is posted, and wherever."""
    return "ntc_" + sha256(str(notice["key"]).encode()).hexdigest()[:32]
