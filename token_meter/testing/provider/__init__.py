"""A loopback LLM provider that speaks the wire formats of OpenAI, Anthropic and Google. Standard library
only.

Used by this package's tests, examples and demo, and free to use in yours: no key, no network, no cost, counts
you can predict, and every fault you may want to see. `python -m token_meter.testing.provider --port N` serves
it on its own.
"""

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.faults import FaultOptions, Faults
from token_meter.testing.provider.reply import Reply
from token_meter.testing.provider.request import Request, SeenRequest
from token_meter.testing.provider.server import LoopbackProvider
from token_meter.testing.provider.weird import WEIRD

__all__ = ["WEIRD", "Billed", "FaultOptions", "Faults", "LoopbackProvider", "Reply", "Request", "SeenRequest"]
