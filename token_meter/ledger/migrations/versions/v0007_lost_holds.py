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
        op.get_bind().exec_driver_sql(_SETTLE)


_SETTLE = """
CREATE OR REPLACE FUNCTION token_meter_settle(_settlement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    kept record;
    part record;
    levels text := '';
BEGIN
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
