"""The Alembic environment of the ledger; `token_meter.ledger.migrate` runs it."""
