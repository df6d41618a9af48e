"""Usage that partners recorded: LiteLLM, OpenRouter, Vercel AI Gateway and Cloudflare AI Gateway.

import_file      record what a partner's exported files say
import_records   the same for records in memory, such as the body of a webhook
pull             record what a partner's API has logged since the last time
LiteLLMCallback  record each call of LiteLLM as it ends: litellm.callbacks = [LiteLLMCallback(meter)]

>>> from token_meter import Meter
>>> from token_meter.partners import import_file
>>> with Meter("usage.db") as meter:
...     print(import_file(meter, "litellm", "spend_logs.jsonl", customer_field="metadata.tenant").events)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from token_meter.partners.base import PartnerError
    from token_meter.partners.callback import LiteLLMCallback
    from token_meter.partners.importing import import_file, import_records
    from token_meter.partners.intake import BadRow, Imported, UnreadableRows
    from token_meter.partners.pulling import pull

__all__ = [
    "BadRow",
    "Imported",
    "LiteLLMCallback",
    "PartnerError",
    "UnreadableRows",
    "import_file",
    "import_records",
    "pull",
]

_LAZY = {
    "BadRow": "intake",
    "Imported": "intake",
    "LiteLLMCallback": "callback",
    "PartnerError": "base",
    "UnreadableRows": "intake",
    "import_file": "importing",
    "import_records": "importing",
    "pull": "pulling",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
