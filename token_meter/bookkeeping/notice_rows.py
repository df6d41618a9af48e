"""Notices: what somebody should know or do, written once per occasion in the transaction that found it."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, func, select

from token_meter.billing.credit import CreditGrant
from token_meter.bookkeeping.credit_rows import read_grants
from token_meter.bookkeeping.settings import read_setting
from token_meter.ledger.rows import EPOCH, MICROSECOND
from token_meter.ledger.store import Store
from token_meter.ledger.tables import grants, notices
from token_meter.ledger.text import from_stored, to_stored
from token_meter.money import ZERO, decimal_of, plain, total

DEPLETED: Final = "credit.depleted"
LOW: Final = "credit.low"
RECHARGE_DUE: Final = "credit.recharge_due"
POLICIES: Final = "budget_policies"
"""The setting with credit policies, and what happens when the store of holds does not answer."""

RECHARGE: Final = "credit_recharge"
"""The setting with the rules, by mode and customer."""


def write_notice(
    store: Store,
    connection: Connection,
    kind: str,
    key: str,
    document: Mapping[str, Any],
    *,
    mode: str = "live",
    customer: str | None = None,
) -> bool:
    """Write a notice unless it is there; whether it is new. `key` is its idempotency key for whoever acts on it."""
    row = {
        "kind": kind, "key": to_stored(key), "mode": mode,
        "customer": None if customer is None else to_stored(customer),
        "recorded": time.time_ns() // 1000, "document": json.dumps(dict(document), sort_keys=True),
    }  # fmt: skip
    return store.insert_if_missing(connection, notices, row)


def read_notices(connection: Connection, after: int = 0) -> list[dict[str, Any]]:
    """Notices behind a number, oldest first."""
    query = select(notices).where(notices.c.number > after).order_by(notices.c.number)
    return [notice_of(row) for row in connection.execute(query)]


def notice_of(row: Any) -> dict[str, Any]:
    """A row as a notice."""
    return {
        "number": row.number,
        "kind": row.kind,
        "key": from_stored(row.key),
        "mode": row.mode,
        "customer": None if row.customer is None else from_stored(row.customer),
        "recorded": (EPOCH + MICROSECOND * row.recorded).isoformat(timespec="seconds"),
        "document": json.loads(row.document),
    }


def last_notice(connection: Connection) -> int:
    """The number of the newest notice; 0 if there is none."""
    return connection.execute(select(func.max(notices.c.number))).scalar() or 0


class CreditRules(NamedTuple):
    """When somebody should be told of a customer's credit: recharge rules by mode and customer, and credit policies."""

    recharge: Mapping[str, Any]
    policies: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, connection: Connection) -> CreditRules:
        """What the ledger says now."""
        return cls(
            read_setting(connection, RECHARGE) or {}, (read_setting(connection, POLICIES) or {}).get("credit", ())
        )

    def policy(self, mode: str, customer: str, currency: str) -> Mapping[str, Any]:
        """The policy that holds for a customer, if it is about this currency; empty: none."""
        known = {each["customer"]: each for each in self.policies if each["mode"] == mode}
        found = known.get(customer) or known.get("*") or {}
        return found if found.get("currency") == currency else {}


def note_credit(
    store: Store, connection: Connection, rules: CreditRules, mine: Sequence[CreditGrant], *, mode: str, customer: str,
    currency: str,
) -> None:  # fmt: skip
    """What should be known of a customer's credit after usage was drawn from it: that it is low, due to be recharged,
    or used up. Each is told once for each level that the grants were at: a new grant makes another one possible.

    `mine` are the grants with what they have left.
    """
    rule, policy = rules.recharge.get(f"{mode}/{customer}"), rules.policy(mode, customer, currency)
    left = balance_of(mine, currency)
    document = {"customer": customer, "balance": plain(left), "currency": currency}
    told: dict[str, Mapping[str, Any]] = {}
    if rule is not None and rule["currency"] == currency and left < decimal_of(rule["threshold"], "threshold"):
        told[RECHARGE_DUE] = rule
    if policy.get("low") is not None and ZERO < left < decimal_of(policy["low"], "low"):
        told[LOW] = {
            "low": policy["low"],
            "message": f"the credit of {customer} is low: {plain(left)} {currency} is left",
            "what_now": f"grant more before it is used up: token-meter credits grant {shlex.quote(customer)} AMOUNT",
        }
    if left <= ZERO:
        told[DEPLETED] = _what_now(customer, blocks=policy.get("policy") == "block")
    for kind, more in told.items():
        _note_credit(store, connection, kind, mode, customer, currency, {**document, **more})


def _what_now(customer: str, *, blocks: bool) -> dict[str, Any]:
    who = shlex.quote(customer)
    if blocks:
        said = (
            f"calls are refused. To grant more: token-meter credits grant {who} AMOUNT; to let them go on: "
            f"token-meter credits policy {who} overage"
        )
        return {"policy": "block", "what_now": said}
    said = (
        "calls go on, and what is beyond the credit is invoiced. To refuse them: token-meter credits policy "
        f"{who} block"
    )
    return {"policy": "overage", "what_now": said}


def note_depleted(store: Store, connection: Connection, mode: str, customer: str, currency: str, message: str) -> bool:
    """A customer's credit did not cover a call."""
    left = plain(balance_of(read_grants(connection, mode, customer), currency))
    document = {
        "customer": customer, "currency": currency, "balance": left, "message": message,
        **_what_now(customer, blocks=True),
    }  # fmt: skip
    return _note_credit(store, connection, DEPLETED, mode, customer, currency, document)


def _note_credit(
    store: Store,
    connection: Connection,
    kind: str,
    mode: str,
    customer: str,
    currency: str,
    document: Mapping[str, Any],
) -> bool:
    mine = (grants.c.mode == mode) & (grants.c.customer == to_stored(customer)) & (grants.c.currency == currency)
    last = connection.execute(select(func.max(grants.c.recorded)).where(mine)).scalar()
    key = f"{kind}|{mode}|{customer}|{currency}|{last}"
    return write_notice(store, connection, kind, key, document, mode=mode, customer=customer)


def balance_of(mine: Sequence[CreditGrant], currency: str) -> Any:
    """What can be used now."""
    now = EPOCH + MICROSECOND * (time.time_ns() // 1000)
    return total([grant.remaining for grant in mine if grant.currency == currency and grant.usable_at(now)] or [ZERO])


def note_invoice(store: Store, connection: Connection, row: Mapping[str, Any]) -> None:
    """An invoice is final: whoever collects the money can do so."""
    document = {
        "customer": from_stored(row["customer"]), "number": row["number"], "due_amount": row["due_amount"],
        "currency": row["currency"], "since": (EPOCH + MICROSECOND * row["start"]).isoformat(),
        "until": (EPOCH + MICROSECOND * row["stop"]).isoformat(),
    }  # fmt: skip
    write_notice(
        store, connection, "invoice.finalized", f"invoice.finalized|{row['mode']}|{row['number']}", document,
        mode=row["mode"], customer=document["customer"],
    )  # fmt: skip
