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
    op.create_table(
        "token_meter_endpoints",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("secrets", sa.Text, nullable=False, comment="JSON: each with until when it still signs"),
        sa.Column("kinds", sa.Text, nullable=False, comment="JSON: patterns; empty: every kind"),
        sa.Column("private", sa.Integer, nullable=False, comment="1: private addresses are allowed"),
        sa.Column("began", sa.BigInteger, nullable=False, comment="the number of the last notice before it"),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("failing", sa.BigInteger, comment="since when nothing has reached it"),
        sa.Column("disabled", sa.BigInteger, comment="since when nothing is sent to it any more"),
        sa.Column("reason", sa.Text, comment="why, or what it answered last"),
    )
    op.create_table(
        "token_meter_deliveries",
        sa.Column("endpoint", _ID, primary_key=True),
        sa.Column("notice", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("state", sa.Text, nullable=False, comment="waiting, done or failed"),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column(
            "next", sa.BigInteger, nullable=False, comment="when it is tried, or when whoever tries it has to be done"
        ),
        sa.Column("answer", sa.Text, comment="what the endpoint said last"),
        sa.Column("changed", sa.BigInteger, nullable=False),
    )
    op.create_index("token_meter_deliveries_next", "token_meter_deliveries", ["state", "next"])
    if op.get_bind().dialect.name == "postgresql":
        for statement in (_PATTERN, _BALANCE, _SETTLED_PARTS, _HOLD, _SETTLE, _CHARGE):
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

# Written with few statements: a transaction pays for each expression of a function that it is the first to evaluate.
_HOLD = """
CREATE OR REPLACE FUNCTION token_meter_hold(_request text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    asked jsonb;
    part record;
    allowed numeric;
    elsewhere numeric := 0;
BEGIN
    -- id, (state), parts, credit, now, expires, sent, parts as they are kept, who
    WITH given AS (SELECT _request::jsonb AS it)
    INSERT INTO token_meter_holds (id, state, sent, created, expires, parts, who)
    SELECT it ->> 0, 'held', (it ->> 6)::int, (it ->> 4)::bigint, (it ->> 5)::bigint, it ->> 7, it ->> 8
    FROM given, token_meter_state AS state
    WHERE state.id = 1
      AND (it ->> 1 IS NULL
           OR (state.budgets = (it -> 1 ->> 0)::bigint AND state.catalogue = (it -> 1 ->> 1)::bigint))
    ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        PERFORM 1 FROM token_meter_holds WHERE id = _request::jsonb ->> 0;
        RETURN CASE WHEN FOUND THEN '' ELSE '{"is": "stale"}' END;
    END IF;
    FOR part IN
        SELECT it ->> 0 AS budget, it ->> 1 AS subject, (it ->> 2)::bigint AS start, (it ->> 3)::bigint AS amount,
               (it ->> 4)::bigint AS bucket, (it ->> 5)::numeric AS most, (it ->> 6)::bigint AS rolling, place
        FROM jsonb_array_elements(_request::jsonb -> 2) WITH ORDINALITY AS each(it, place) ORDER BY place
    LOOP
        IF part.budget = 'credit' OR part.rolling > 0 THEN
            -- Locked before anybody reads what it depends on; the next statement sees what was committed until then.
            PERFORM 1 FROM token_meter_spend AS s
            WHERE s.budget = part.budget AND s.subject = part.subject AND s.start = part.start FOR UPDATE;
            asked := _request::jsonb;
            SELECT CASE WHEN part.budget = 'credit' THEN token_meter_balance(
                asked -> 3 ->> 'mode', asked -> 3 ->> 'customer', asked -> 3 ->> 'currency', asked -> 3 -> 'place',
                (asked ->> 4)::bigint, (asked -> 3 ->> 'decimals')::int
            ) ELSE part.most END, coalesce((
                SELECT sum(s.spent) FROM token_meter_spend AS s
                WHERE part.rolling > 0 AND s.budget = part.budget AND s.subject = part.subject AND s.start >= 0
                  AND s.start > part.bucket - part.rolling
            ), 0) INTO allowed, elsewhere;
            UPDATE token_meter_spend AS s SET held = s.held + part.amount
            WHERE s.budget = part.budget AND s.subject = part.subject AND s.start = part.start
              AND (allowed IS NULL OR s.spent + s.held + s.lost + part.amount <= allowed - elsewhere);
        ELSE
            UPDATE token_meter_spend AS s SET held = s.held + part.amount
            WHERE s.budget = part.budget AND s.subject = part.subject AND s.start = part.start
              AND (part.most IS NULL OR s.spent + s.held + s.lost + part.amount <= part.most);
        END IF;
        IF NOT FOUND THEN
            -- Nothing is held of the others, and the hold is not there.
            UPDATE token_meter_spend AS s SET held = s.held - (it ->> 3)::bigint
            FROM jsonb_array_elements(_request::jsonb -> 2) WITH ORDINALITY AS done(it, place)
            WHERE done.place < part.place AND s.budget = it ->> 0 AND s.subject = it ->> 1
              AND s.start = (it ->> 2)::bigint;
            DELETE FROM token_meter_holds WHERE id = _request::jsonb ->> 0;
            RETURN coalesce((
                SELECT jsonb_build_object(
                    'is', 'refused', 'place', part.place - 1, 'held', s.held, 'lost', s.lost,
                    'spent', CASE WHEN part.rolling > 0 THEN elsewhere ELSE s.spent END,
                    'limit', CASE WHEN part.budget = 'credit' THEN allowed ELSE part.most END
                ) FROM token_meter_spend AS s
                WHERE s.budget = part.budget AND s.subject = part.subject AND s.start = part.start
            ), jsonb_build_object('is', 'missing', 'place', part.place - 1))::text;
        END IF;
    END LOOP;
    RETURN '';
END
$$
"""

_SETTLE = """
CREATE OR REPLACE FUNCTION token_meter_settle(_settlement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    kept record;
    part record;
    levels text := '';
BEGIN
    -- id, event, what became of it, amounts
    SELECT held.id, held.state, held.parts, it ->> 1 AS event, it -> 3 AS amounts,
           CASE WHEN it ->> 2 = 'settled' AND it ->> 1 <> held.id
                     AND EXISTS (SELECT 1 FROM token_meter_events WHERE id = it ->> 1)
                THEN 'recorded' ELSE it ->> 2 END AS became  -- it has been counted already
    INTO kept
    FROM (SELECT _settlement::jsonb AS it) AS given JOIN token_meter_holds AS held ON held.id = it ->> 0
    WHERE held.state <> 'settled' AND held.state <> it ->> 2
    FOR UPDATE OF held;
    IF NOT FOUND THEN
        RETURN '';
    END IF;
    FOR part IN
        SELECT it ->> 0 AS budget, it ->> 1 AS subject, (it ->> 2)::bigint AS start, (it ->> 3)::bigint AS was,
               (it ->> 4)::bigint AS bucket, place, 0::bigint AS spent, 0 AS noted,
               CASE WHEN kept.became = 'settled' THEN (kept.amounts ->> (place - 1)::int)::bigint ELSE 0 END AS amount
        FROM jsonb_array_elements(kept.parts::jsonb) WITH ORDINALITY AS each(it, place) ORDER BY place
    LOOP
        UPDATE token_meter_spend AS s SET
            held = s.held - CASE WHEN kept.state = 'held' THEN part.was ELSE 0 END,
            lost = s.lost - CASE WHEN kept.state = 'lost' THEN part.was ELSE 0 END
                          + CASE WHEN kept.became = 'lost' THEN part.was ELSE 0 END,
            spent = s.spent + CASE WHEN part.start >= 0 THEN part.amount ELSE 0 END
        WHERE s.budget = part.budget AND s.subject = part.subject AND s.start = part.start
        RETURNING levels || CASE WHEN part.amount > 0 AND part.start >= 0
            THEN ',' || json_build_array(part.budget, part.subject, part.start, s.spent, s.noted)::text ELSE '' END
        INTO levels;
        IF part.start < 0 THEN
            INSERT INTO token_meter_spend AS there (budget, subject, start, spent, held, lost, noted, epoch)
            SELECT part.budget, part.subject, part.bucket, part.amount, 0, 0, 0, 0 WHERE part.amount > 0
            ON CONFLICT (budget, subject, start) DO UPDATE SET spent = there.spent + excluded.spent;
        END IF;
    END LOOP;
    IF kept.became IN ('released', 'recorded') THEN
        DELETE FROM token_meter_holds WHERE id = kept.id;
    ELSIF kept.became = 'lost' THEN
        UPDATE token_meter_holds SET state = 'lost' WHERE id = kept.id;
    ELSIF kept.event = kept.id THEN
        UPDATE token_meter_holds SET state = 'settled', parts = token_meter_settled_parts(kept.parts, kept.amounts)
        WHERE id = kept.id;
    ELSE
        DELETE FROM token_meter_holds WHERE id = kept.event;
        UPDATE token_meter_holds
        SET state = 'settled', id = kept.event, parts = token_meter_settled_parts(kept.parts, kept.amounts)
        WHERE id = kept.id;
    END IF;
    RETURN coalesce(levels, '');
END
$$
"""

_SETTLED_PARTS = """
CREATE OR REPLACE FUNCTION token_meter_settled_parts(_parts text, _amounts jsonb) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_agg(jsonb_set(it, '{3}', _amounts -> (place - 1)::int) ORDER BY place)::text
    FROM jsonb_array_elements(_parts::jsonb) WITH ORDINALITY AS each(it, place)
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
