"""The partners there are, by name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

from token_meter.partners.base import Partner
from token_meter.partners.cloudflare import CLOUDFLARE
from token_meter.partners.litellm import LITELLM
from token_meter.partners.openrouter import OPENROUTER
from token_meter.partners.vercel import VERCEL

PARTNERS: Final = {partner.name: partner for partner in (LITELLM, OPENROUTER, VERCEL, CLOUDFLARE)}


def partner_named(name: str) -> Partner:
    """The partner's table. Raises ValueError for one that is not known."""
    found = PARTNERS.get(name.lower())
    if found is None:
        close = get_close_matches(name.lower(), PARTNERS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no partner is called {name!r}. Known: {', '.join(PARTNERS)}.{hint}")
    return found
