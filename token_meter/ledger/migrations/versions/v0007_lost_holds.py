"""A lost hold may wait under the id of the event that will tell; what is lost in a rolling window frees itself.

On PostgreSQL settling is a function (see 0006): this is a new one. Nothing is stored in another way.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Holds that are there end by the new rules."""
    if op.get_bind().dialect.name == "postgresql":
        for statement in (_SETTLE, _CHARGE):
            op.get_bind().exec_driver_sql(statement)


_SETTLE = """
CREATE OR REPLACE FUNCTION token_meter_settle(_settlement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    kept record;
    part record;
    levels text := '';
BEGIN
    IF _settlement::jsonb ->> 1 <> _settlement::jsonb ->> 0 THEN
        -- Whoever records the event claims its id as well: one of the two sees what the other has done.
        PERFORM pg_advisory_xact_lock(hashtextextended(_settlement::jsonb ->> 1, 0));
    END IF;
    -- id, event, what became of it, amounts
    SELECT held.id, held.state, held.parts, it ->> 1 AS event, it -> 3 AS amounts,
           CASE WHEN it ->> 2 <> 'released' AND it ->> 1 <> held.id AND EXISTS (
                    SELECT 1 FROM token_meter_events WHERE id = it ->> 1 AND NOT (status = 'unmetered' AND usage = '{}')
                ) THEN 'released' ELSE it ->> 2 END AS became  -- it has been counted already
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
               CASE WHEN kept.became = 'settled' THEN (kept.amounts ->> (place - 1)::int)::bigint ELSE 0 END AS amount,
               CASE WHEN kept.became = 'lost' THEN (it ->> 3)::bigint ELSE 0 END
               - CASE WHEN kept.state = 'lost' THEN (it ->> 3)::bigint ELSE 0 END AS lost
        FROM jsonb_array_elements(kept.parts::jsonb) WITH ORDINALITY AS each(it, place) ORDER BY place
    LOOP
        UPDATE token_meter_spend AS s SET
            held = s.held - CASE WHEN kept.state = 'held' THEN part.was ELSE 0 END,
            lost = s.lost + CASE WHEN part.start >= 0 THEN part.lost ELSE 0 END,
            spent = s.spent + CASE WHEN part.start >= 0 THEN part.amount ELSE 0 END
        WHERE s.budget = part.budget AND s.subject = part.subject AND s.start = part.start
        RETURNING levels || CASE WHEN part.amount > 0 AND part.start >= 0
            THEN ',' || json_build_array(part.budget, part.subject, part.start, s.spent, s.noted)::text ELSE '' END
        INTO levels;
        IF part.start < 0 THEN
            -- What is lost frees itself with its bucket, or a few timeouts would refuse calls for ever.
            INSERT INTO token_meter_spend AS there (budget, subject, start, spent, held, lost, noted, epoch)
            SELECT part.budget, part.subject, part.bucket, part.amount + part.lost, 0, 0, 0, 0
            WHERE part.amount + part.lost <> 0
            ON CONFLICT (budget, subject, start) DO UPDATE SET spent = there.spent + excluded.spent;
        END IF;
    END LOOP;
    IF kept.became = 'released' THEN
        DELETE FROM token_meter_holds WHERE id = kept.id;
    ELSIF kept.became = 'lost' AND kept.event = kept.id THEN
        UPDATE token_meter_holds SET state = 'lost' WHERE id = kept.id;
    ELSIF kept.became = 'lost' THEN
        DELETE FROM token_meter_holds WHERE id = kept.event;
        UPDATE token_meter_holds SET state = 'lost', id = kept.event WHERE id = kept.id;
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

_CHARGE = """
CREATE OR REPLACE FUNCTION token_meter_charge(_id text, _parts jsonb, _now bigint, _who text)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    part jsonb;
    row record;
    counted jsonb := '[]';
    levels jsonb := '[]';
BEGIN
    -- Whoever records the event claims its id as well: one of the two sees what the other has done.
    PERFORM pg_advisory_xact_lock(hashtextextended(_id, 0));
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
