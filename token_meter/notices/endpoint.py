"""A webhook endpoint: where notices are posted, with secrets of its own, for which kinds."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from token_meter.errors import InvalidEndpoint
from token_meter.ledger.rows import EPOCH, MICROSECOND

KINDS: Final = (
    "budget.threshold", "budget.exceeded", "credit.low", "credit.depleted", "credit.recharge_due", "price.changed",
    "price.added", "price.unknown", "price.book", "invoice.finalized", "sink.failing", "events.quarantined",
    "events.unattributed", "webhook.disabled", "notice.test",
)  # fmt: skip
"""Every kind of notice."""

URL_LENGTH_MAX: Final = 2000
SECRET_BYTES: Final = 32
SECRET_BYTES_MIN: Final = 24
"""Standard Webhooks: a secret has 24 to 64 bytes."""


_HOST: Final = re.compile(r"[\w-]+(\.[\w-]+)*\.?|[0-9a-f.]*:[0-9a-f:.]*(%\w+)?", re.IGNORECASE)
"""A name in any script, or an IPv6 address."""


class EndpointSecret(NamedTuple):
    """A secret, and until when it still signs beside its successor (microseconds; None: until further notice)."""

    text: str
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A webhook endpoint as the ledger has it."""

    id: str
    url: str
    secrets: tuple[EndpointSecret, ...]
    kinds: tuple[str, ...]
    private: bool
    began: int
    created: datetime
    failing: datetime | None = None
    disabled: datetime | None = None
    reason: str | None = None

    @property
    def host(self) -> str:
        """The address without what may be secret in it: scheme and host."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")

    @property
    def shown(self) -> str:
        """For logs and other people's eyes."""
        return f"{self.id} ({self.host})"

    def wants(self, kind: str) -> bool:
        """Whether it is told of notices of this kind."""
        return wanted(self.kinds, kind)

    def signing(self, moment: int) -> tuple[str, ...]:
        """The secrets that sign at a moment, the newest first."""
        return tuple(each.text for each in self.secrets if each.until is None or moment < each.until)

    def document(self) -> dict[str, Any]:
        """For JSON: without its secrets."""
        return {
            "id": self.id, "url": self.url, "kinds": list(self.kinds), "allow_private": self.private,
            "state": "disabled" if self.disabled else "failing" if self.failing else "active",
            "since": _text(self.disabled or self.failing), "reason": self.reason, "created": _text(self.created),
        }  # fmt: skip


def wanted(kinds: Sequence[str], kind: str) -> bool:
    """Whether a kind is among these (`budget.*` stands for several; none: every kind)."""
    return not kinds or any(fnmatchcase(kind, pattern) for pattern in kinds)


def endpoint_of(row: Any) -> Endpoint:
    """A row as an endpoint."""
    return Endpoint(
        row.id, row.url, tuple(EndpointSecret(*each) for each in json.loads(row.secrets)),
        tuple(json.loads(row.kinds)), bool(row.private), row.began, _moment(row.created),  # type: ignore[arg-type]
        _moment(row.failing), _moment(row.disabled), row.reason,
    )  # fmt: skip


def check_url(url: str) -> str:
    """The address, if notices may be posted there. Raises InvalidEndpoint saying why not."""
    given = url.strip()
    try:
        parts = urlsplit(given)
        host, has_password = parts.hostname, "@" in parts.netloc
        right = parts.scheme in ("http", "https") and parts.port != 0 and _HOST.fullmatch(host or "")
    except ValueError:
        right, has_password = None, False
    if has_password:
        raise InvalidEndpoint("an endpoint's address must not hold a password: its secret signs each request")
    if not right or not given.isprintable() or " " in given or len(given) > URL_LENGTH_MAX:
        raise InvalidEndpoint(f"{given[:200]!r} is no address to post to: write https://example.com/hooks")
    return given


def check_secret(secret: str) -> str:
    """The secret, if it is one. Raises InvalidEndpoint."""
    text = secret if secret.startswith("whsec_") else f"whsec_{secret}"
    try:
        size = len(base64.b64decode(text.removeprefix("whsec_"), validate=True))
    except ValueError:
        size = 0
    if not SECRET_BYTES_MIN <= size <= 64:
        raise InvalidEndpoint("a secret is 24 to 64 bytes in base64, usually after 'whsec_'")
    return text


def new_secret() -> str:
    """A secret nobody can guess."""
    return "whsec_" + base64.b64encode(os.urandom(SECRET_BYTES)).decode()


def secrets_text(secrets: Sequence[EndpointSecret]) -> str:
    """Secrets as they are stored."""
    return json.dumps([list(each) for each in secrets])


def body_of(notice: Mapping[str, Any]) -> bytes:
    """What is posted of a notice: Standard Webhooks' `type`, `timestamp` and `data`."""
    data = {**notice["document"], "key": notice["key"], "mode": notice["mode"], "customer": notice["customer"]}
    document = {"type": notice["kind"], "timestamp": notice["recorded"], "data": data}
    return json.dumps(document, separators=(",", ":")).encode()


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else EPOCH + MICROSECOND * micros


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
