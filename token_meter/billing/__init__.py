"""What we charge: rate cards, plans, subscriptions, rating and invoices. Pure: no input, no output, no clock.

`token_meter.bookkeeping` keeps these in a ledger.
"""
