"""A Stripe of our own for usage-based billing: meters, meter events (v1, v2, stream), adjustments, summaries, reports.

FakeStripe           the backend
TOKEN_BILLING_EVENT  the event name of Stripe's own token billing
"""

from __future__ import annotations

from token_meter.testing.backends.stripe.fake import TOKEN_BILLING_EVENT, FakeStripe

__all__ = ["TOKEN_BILLING_EVENT", "FakeStripe"]
