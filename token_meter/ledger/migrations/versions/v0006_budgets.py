"""Budgets: who may spend what, what is spent and held of it, and the holds themselves.

On PostgreSQL a hold and a settlement are one function each, so that they cost one round trip. They do what
`token_meter.budgets.holding` says; the conformance suite of the stores holds all of them to it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"

_ID = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Nobody has a budget yet."""
    op.add_column(
        "token_meter_state",
        sa.Column(
            "budgets", sa.BigInteger, nullable=False, server_default="0",
            comment="grows when who may spend what changes",
        ),
    )  # fmt: skip
    op.create_table(
        "token_meter_budgets",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.BigInteger, comment="when it was taken away"),
        sa.Column("document", sa.Text, nullable=False, comment="JSON"),
    )
    op.create_table(
        "token_meter_spend",
        sa.Column("budget", _ID, primary_key=True, comment="a budget, or `credit`"),
        sa.Column("subject", _ID, primary_key=True, comment="JSON: whose"),
        sa.Column(
            "start", sa.BigInteger, primary_key=True, autoincrement=False,
            comment="of its window; -1: of a rolling one",
        ),
        sa.Column("spent", sa.BigInteger, nullable=False, comment="in the smallest parts that the budget counts"),
        sa.Column("held", sa.BigInteger, nullable=False, comment="reserved by calls under way"),
        sa.Column(
            "lost", sa.BigInteger, nullable=False, comment="reserved by calls of which nobody knows what became"
        ),
        sa.Column("noted", sa.Integer, nullable=False, comment="the highest percentage that was told"),
        sa.Column("epoch", sa.Integer, nullable=False, comment="how often it was reset"),
        sqlite_with_rowid=False,
    )  # fmt: skip
    op.create_table(
        "token_meter_holds",
        sa.Column("id", _ID, primary_key=True, comment="the event it waits for"),
        sa.Column("state", sa.Text, nullable=False, comment="held, lost or settled"),
        sa.Column("sent", sa.Integer, nullable=False, comment="1: the provider may have got the request"),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
        sa.Column("parts", sa.Text, nullable=False, comment="JSON: budget, subject, start, amount, bucket of each"),
        sa.Column("who", sa.Text, nullable=False, comment="JSON, for people"),
        sqlite_with_rowid=False,
    )
    op.create_index("token_meter_holds_expires", "token_meter_holds", ["state", "expires"])
    if op.get_bind().dialect.name == "postgresql":
        for statement in (_PATTERN, _BALANCE, _HOLD, _SETTLE, _CHARGE):
            op.get_bind().exec_driver_sql(statement)


_PATTERN = r"""
CREATE OR REPLACE FUNCTION token_meter_pays_for(_scope text, _place jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT _scope IS NULL OR NOT EXISTS (
        SELECT 1 FROM jsonb_each_text(_scope::jsonb) AS pair(name, pattern)
        WHERE (_place ->> pair.name) IS NULL OR NOT (_place ->> pair.name) LIKE replace(replace(replace(replace(
            pair.pattern, '\', '\\'), '%%', '\%%'), '_', '\_'), '*', '%%')
    )
$$
"""

_BALANCE = """
CREATE OR REPLACE FUNCTION token_meter_balance(
    _mode text, _customer text, _currency text, _place jsonb, _now bigint, _decimals int
) RETURNS numeric LANGUAGE sql STABLE AS $$
    SELECT floor(coalesce(sum(remaining::numeric), 0) * power(10::numeric, _decimals))
    FROM token_meter_grants
    WHERE mode = _mode AND customer = _customer AND currency = _currency AND effective <= _now
      AND (expires IS NULL OR expires > _now) AND token_meter_pays_for(scope, _place)
$$
"""

_HOLD = """
CREATE OR REPLACE FUNCTION token_meter_hold(
    _id text, _state jsonb, _parts jsonb, _credit jsonb, _now bigint, _expires bigint, _sent int,
    _kept text, _who text
) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    part jsonb;
    place int := 0;
    row record;
    used numeric;
    allowed numeric;
BEGIN
    IF _state IS NOT NULL THEN
        SELECT budgets, catalogue INTO row FROM token_meter_state WHERE id = 1;
        IF row.budgets <> (_state ->> 0)::bigint OR row.catalogue <> (_state ->> 1)::bigint THEN
            RETURN '{"is": "stale"}';
        END IF;
    END IF;
    FOR part IN SELECT value FROM jsonb_array_elements(_parts) LOOP
        SELECT spent, held, lost INTO row FROM token_meter_spend
        WHERE budget = part ->> 0 AND subject = part ->> 1 AND start = (part ->> 2)::bigint FOR UPDATE;
        IF NOT FOUND THEN
            RETURN jsonb_build_object('is', 'missing', 'place', place);
        END IF;
        used := row.spent;
        allowed := (part ->> 5)::numeric;
        IF (part ->> 6)::bigint > 0 THEN
            SELECT coalesce(sum(spent), 0) INTO used FROM token_meter_spend
            WHERE budget = part ->> 0 AND subject = part ->> 1 AND start > (part ->> 4)::bigint - (part ->> 6)::bigint
              AND start >= 0;
        END IF;
        IF part ->> 0 = 'credit' THEN
            -- A snapshot of its own, taken after the row was locked: what was recorded before is in it.
            allowed := token_meter_balance(
                _credit ->> 'mode', _credit ->> 'customer', _credit ->> 'currency', _credit -> 'place', _now,
                (_credit ->> 'decimals')::int
            );
        END IF;
        IF allowed IS NOT NULL AND used + row.held + row.lost + (part ->> 3)::numeric > allowed THEN
            RETURN jsonb_build_object('is', 'refused', 'place', place, 'spent', used, 'held', row.held,
                                      'lost', row.lost, 'limit', allowed);
        END IF;
        place := place + 1;
    END LOOP;
    INSERT INTO token_meter_holds (id, state, sent, created, expires, parts, who)
    VALUES (_id, 'held', _sent, _now, _expires, _kept, _who) ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN '{"is": "again"}';
    END IF;
    FOR part IN SELECT value FROM jsonb_array_elements(_parts) LOOP
        UPDATE token_meter_spend SET held = held + (part ->> 3)::bigint
        WHERE budget = part ->> 0 AND subject = part ->> 1 AND start = (part ->> 2)::bigint;
    END LOOP;
    RETURN '{"is": "held"}';
END
$$
"""

_SETTLE = """
CREATE OR REPLACE FUNCTION token_meter_settle(_id text, _event text, _became text, _amounts bigint[])
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    kept record;
    part jsonb;
    place int := 0;
    amount bigint;
    was bigint;
    row record;
    became text := _became;
    settled jsonb := '[]';
    levels jsonb := '[]';
BEGIN
    SELECT state, parts::jsonb AS parts INTO kept FROM token_meter_holds WHERE id = _id FOR UPDATE;
    IF NOT FOUND OR kept.state = 'settled' OR (kept.state = 'lost' AND _became = 'lost') THEN
        RETURN levels;
    END IF;
    IF became = 'settled' AND EXISTS (SELECT 1 FROM token_meter_events WHERE id = _event) THEN
        became := 'recorded';  -- it has been counted already
    END IF;
    FOR part IN SELECT value FROM jsonb_array_elements(kept.parts) LOOP
        place := place + 1;
        was := (part ->> 3)::bigint;
        amount := CASE WHEN became = 'settled' THEN _amounts[place] ELSE 0 END;
        UPDATE token_meter_spend SET
            held = held - CASE WHEN kept.state = 'held' THEN was ELSE 0 END,
            lost = lost - CASE WHEN kept.state = 'lost' THEN was ELSE 0 END
                        + CASE WHEN became = 'lost' THEN was ELSE 0 END,
            spent = spent + CASE WHEN (part ->> 2)::bigint >= 0 THEN amount ELSE 0 END
        WHERE budget = part ->> 0 AND subject = part ->> 1 AND start = (part ->> 2)::bigint
        RETURNING spent, noted INTO row;
        settled := settled || jsonb_build_array(jsonb_set(part, '{3}', to_jsonb(amount)));
        IF (part ->> 2)::bigint < 0 AND amount > 0 THEN
            INSERT INTO token_meter_spend AS there (budget, subject, start, spent, held, lost, noted, epoch)
            VALUES (part ->> 0, part ->> 1, (part ->> 4)::bigint, amount, 0, 0, 0, 0)
            ON CONFLICT (budget, subject, start) DO UPDATE SET spent = there.spent + excluded.spent;
        ELSIF amount > 0 AND row.spent IS NOT NULL THEN
            levels := levels || jsonb_build_array(jsonb_build_array(
                part ->> 0, part ->> 1, (part ->> 2)::bigint, row.spent, row.noted
            ));
        END IF;
    END LOOP;
    IF became = 'lost' THEN
        UPDATE token_meter_holds SET state = 'lost' WHERE id = _id;
    ELSIF became = 'settled' THEN
        DELETE FROM token_meter_holds WHERE id = _event AND id <> _id;
        UPDATE token_meter_holds SET state = 'settled', id = _event, parts = settled::text WHERE id = _id;
    ELSE
        DELETE FROM token_meter_holds WHERE id = _id;
    END IF;
    RETURN levels;
END
$$
"""

_CHARGE = """
CREATE OR REPLACE FUNCTION token_meter_charge(_id text, _parts jsonb, _now bigint, _who text)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    part jsonb;
    row record;
    counted jsonb := '[]';
    levels jsonb := '[]';
BEGIN
    IF EXISTS (SELECT 1 FROM token_meter_events WHERE id = _id) THEN
        RETURN levels;
    END IF;
    INSERT INTO token_meter_holds (id, state, sent, created, expires, parts, who)
    VALUES (_id, 'settled', 1, _now, _now, '[]', _who) ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN levels;
    END IF;
    FOR part IN SELECT value FROM jsonb_array_elements(_parts) LOOP
        UPDATE token_meter_spend
        SET spent = spent + CASE WHEN (part ->> 2)::bigint >= 0 THEN (part ->> 3)::bigint ELSE 0 END
        WHERE budget = part ->> 0 AND subject = part ->> 1 AND start = (part ->> 2)::bigint
        RETURNING spent, noted INTO row;
        IF NOT FOUND THEN
            CONTINUE;
        END IF;
        IF (part ->> 2)::bigint < 0 THEN
            INSERT INTO token_meter_spend AS there (budget, subject, start, spent, held, lost, noted, epoch)
            VALUES (part ->> 0, part ->> 1, (part ->> 4)::bigint, (part ->> 3)::bigint, 0, 0, 0, 0)
            ON CONFLICT (budget, subject, start) DO UPDATE SET spent = there.spent + excluded.spent;
        ELSIF (part ->> 3)::bigint > 0 THEN
            levels := levels || jsonb_build_array(jsonb_build_array(
                part ->> 0, part ->> 1, (part ->> 2)::bigint, row.spent, row.noted
            ));
        END IF;
        counted := counted || jsonb_build_array(part);
    END LOOP;
    UPDATE token_meter_holds SET parts = counted::text WHERE id = _id;
    RETURN levels;
END
$$
"""
