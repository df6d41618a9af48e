"""The endpoints of a ledger and what is delivered to them: add, rotate secrets, replay, see what failed."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from token_meter.bookkeeping.notice_rows import read_notices, write_notice
from token_meter.errors import InvalidEndpoint
from token_meter.ledger.tables import deliveries, endpoints, notices
from token_meter.notices.endpoint import (
    Endpoint,
    EndpointSecret,
    check_secret,
    check_url,
    endpoint_of,
    new_secret,
    secrets_text,
    wanted,
)
from token_meter.notices.postman import BEHIND_MAX

if TYPE_CHECKING:
    from token_meter.ledger.ledger import Ledger

ENDPOINTS_MAX: Final = 100
OVERLAP_SECONDS: Final = 86_400.0
"""After a rotation the old secret signs so long beside the new one."""

OVERLAP_SECONDS_MAX: Final = 30 * 86_400
SECRETS_MAX: Final = 5
TEST: Final = "notice.test"


class NoticeDesk:
    """Notices of a ledger and the endpoints they are posted to."""

    def __init__(self, ledger: Ledger, *, now: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._now = now

    def list(self, *, after: int = 0, kind: str | None = None, customer: str | None = None) -> Sequence[dict[str, Any]]:
        """The notices behind a number, oldest first. `kind` may be a pattern like `budget.*`."""
        with self._ledger.reading() as (_, connection):
            found = read_notices(connection, after)
        return [
            each for each in found
            if wanted([kind] if kind else [], each["kind"]) and (customer is None or each["customer"] == customer)
        ]  # fmt: skip

    def add(
        self, url: str, *, kinds: Sequence[str] = (), secret: str | None = None, private: bool = False
    ) -> tuple[Endpoint, str]:
        """Post notices to an address from now on; the endpoint, and the secret that signs, which is shown only here.

        `kinds`: patterns like `budget.*`. `private`: addresses of a private network are allowed. Raises
        InvalidEndpoint.
        """
        chosen = check_secret(secret) if secret else new_secret()
        with self._ledger.writing() as (store, connection):
            if (connection.execute(select(func.count()).select_from(endpoints)).scalar() or 0) >= ENDPOINTS_MAX:
                raise InvalidEndpoint(f"there are {ENDPOINTS_MAX} endpoints already: remove one first")
            last = connection.execute(select(func.max(notices.c.number))).scalar() or 0
            began, now = max(0, last - BEHIND_MAX), self._micros()
            row = {
                "id": f"whk_{uuid.uuid4().hex[:16]}", "url": check_url(url), "kinds": json.dumps(list(kinds)),
                "secrets": secrets_text([EndpointSecret(chosen)]), "private": int(private), "began": began,
                "created": now,
            }  # fmt: skip
            connection.execute(endpoints.insert(), row)
            # What is there is not for it; what is being written now, under a number before the last, is.
            there = connection.execute(select(notices.c.number).where(notices.c.number > began)).scalars().all()
            store.insert_missing(connection, deliveries, [
                {"endpoint": row["id"], "notice": number, "state": "unwanted", "attempts": 0, "next": now,
                 "changed": now}
                for number in there
            ])  # fmt: skip
        return self.get(str(row["id"])), chosen

    def get(self, id: str) -> Endpoint:
        """The endpoint of this id, or the beginning of one. Raises InvalidEndpoint if there is none."""
        found = [each for each in self.endpoints() if each.id == id] or [
            each for each in self.endpoints() if each.id.startswith(id)
        ]
        if len(found) != 1:
            raise InvalidEndpoint(f"there is no endpoint {id!r}: `token-meter notices endpoints` shows them")
        return found[0]

    def endpoints(self) -> Sequence[Endpoint]:
        """Every endpoint, oldest first."""
        with self._ledger.reading() as (_, connection):
            rows = connection.execute(select(endpoints).order_by(endpoints.c.created, endpoints.c.id))
            return [endpoint_of(row) for row in rows]

    def remove(self, id: str) -> Endpoint:
        """Post nothing there any more."""
        found = self.get(id)
        with self._ledger.writing() as (_, connection):
            connection.execute(deliveries.delete().where(deliveries.c.endpoint == found.id))
            connection.execute(endpoints.delete().where(endpoints.c.id == found.id))
        return found

    def rotate(self, id: str, *, secret: str | None = None, overlap_seconds: float = OVERLAP_SECONDS) -> str:
        """Sign with a new secret; the old one signs beside it for a while. Returns the new one."""
        found, chosen = self.get(id), check_secret(secret) if secret else new_secret()
        if not 0 <= overlap_seconds <= OVERLAP_SECONDS_MAX:
            raise InvalidEndpoint(
                f"two secrets sign beside each other for at most {OVERLAP_SECONDS_MAX // 86_400} days"
            )
        now = self._micros()
        until = now + int(overlap_seconds * 1_000_000)
        mine = endpoints.c.id == found.id
        with self._ledger.writing() as (_, connection):
            # Locked and read again: somebody else may rotate at the same time, and both secrets were given away.
            row = connection.execute(select(endpoints).where(mine).with_for_update()).one()
            old = [each._replace(until=min(each.until or until, until)) for each in endpoint_of(row).secrets]
            kept = [EndpointSecret(chosen), *(each for each in old if each.until and each.until > now)]
            if len(kept) > SECRETS_MAX:
                raise InvalidEndpoint(f"{SECRETS_MAX} secrets sign already: rotate with --overlap 0, or wait")
            connection.execute(endpoints.update().where(mine).values(secrets=secrets_text(kept)))
        return chosen

    def enable(self, id: str) -> Endpoint:
        """Post to an endpoint again that was disabled; what it missed is tried at once."""
        found = self.get(id)
        now = self._micros()
        with self._ledger.writing() as (_, connection):
            row = connection.execute(select(endpoints).where(endpoints.c.id == found.id)).one()
            again = deliveries.c.state == "waiting"
            if row.failing is not None:  # what was given up since then is what it has missed
                again |= (deliveries.c.state == "failed") & (deliveries.c.changed >= row.failing)
            values = {"state": "waiting", "next": now, "attempts": 0}
            connection.execute(deliveries.update().where((deliveries.c.endpoint == found.id) & again).values(values))
            fresh = {"disabled": None, "failing": None, "reason": None}
            connection.execute(endpoints.update().where(endpoints.c.id == found.id).values(fresh))
        return replace(found, disabled=None, failing=None, reason=None)

    def replay(self, id: str, *, after: int = 0, failed_only: bool = False) -> int:
        """Post notices behind a number once more, with the same ids; how many. `failed_only`: what was given up."""
        found, now = self.get(id), self._micros()
        with self._ledger.writing() as (store, connection):
            if failed_only:
                mine = (deliveries.c.endpoint == found.id) & (deliveries.c.state == "failed")
                mine &= deliveries.c.notice > after
                values = {"state": "waiting", "attempts": 0, "next": now, "changed": now}
                return connection.execute(deliveries.update().where(mine).values(values)).rowcount
            again = [each["number"] for each in read_notices(connection, after) if found.wants(each["kind"])]
            for number in again:
                row = {"endpoint": found.id, "notice": number, "state": "waiting", "attempts": 0, "next": now,
                       "changed": now}  # fmt: skip
                if not store.insert_if_missing(connection, deliveries, row):
                    mine = (deliveries.c.endpoint == found.id) & (deliveries.c.notice == number)
                    connection.execute(deliveries.update().where(mine).values(state="waiting", attempts=0, next=now))
        return len(again)

    def test(self) -> int:
        """Write a notice that says nothing, for every endpoint that is not disabled, whatever it wants; its number."""
        key, now = f"{TEST}|{uuid.uuid4().hex}", self._micros()
        with self._ledger.writing() as (store, connection):
            write_notice(store, connection, TEST, key, {"message": "This is a test of token_meter's notices."})
            number: int = connection.execute(select(notices.c.number).where(notices.c.key == key)).scalar_one()
            store.insert_missing(connection, deliveries, [
                {"endpoint": id, "notice": number, "state": "waiting", "attempts": 0, "next": now, "changed": now}
                for id in connection.execute(select(endpoints.c.id).where(endpoints.c.disabled.is_(None))).scalars()
            ])  # fmt: skip
        return number

    def answers(self, number: int) -> Sequence[Any]:
        """What became of one notice at each endpoint: rows with endpoint, state and answer."""
        with self._ledger.reading() as (_, connection):
            mine = select(deliveries).where(deliveries.c.notice == number)
            return connection.execute(mine.order_by(deliveries.c.endpoint)).all()

    def standing(self) -> Mapping[str, Mapping[str, int]]:
        """How many notices of each endpoint wait, are done, or were given up."""
        with self._ledger.reading() as (_, connection):
            query = select(deliveries.c.endpoint, deliveries.c.state, func.count()).group_by(
                deliveries.c.endpoint, deliveries.c.state
            )
            found: dict[str, dict[str, int]] = {}
            for endpoint, state, count in connection.execute(query.where(deliveries.c.state != "unwanted")):
                found.setdefault(endpoint, {})[state] = count
        return found

    def _micros(self) -> int:
        return int(self._now() * 1_000_000)
