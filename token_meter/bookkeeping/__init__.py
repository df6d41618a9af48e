"""Keeps prices, rate cards, plans, subscriptions, credit and invoices in a ledger, and rates what is recorded there."""
