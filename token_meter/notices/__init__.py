"""Notices: what somebody should know or do, from the ledger's outbox to callbacks and webhooks."""
