"""Budgets: what somebody may spend, held before a call and settled after it, in one atomic step (decision D10)."""
