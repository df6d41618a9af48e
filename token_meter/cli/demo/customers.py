"""Who takes part in the demo: a customer, the SDK its service uses, and what the service does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from token_meter import Meter

Service = Callable[[Meter, str], Any]


@dataclass(frozen=True, slots=True)
class Customer:
    """One customer.

    Its service imports `package` of the installed `distribution`; that SDK's variables begin with `environment`.
    """

    name: str
    package: str
    distribution: str
    service: str
    environment: tuple[str, ...]
    tasks: tuple[str, ...]

    @property
    def possible(self) -> bool:
        """Whether the SDK is installed; it is not imported for that."""
        try:
            return find_spec(self.package) is not None
        except ModuleNotFoundError:
            return False

    def load(self) -> Service:
        """The class of its service; imports the SDK."""
        module, _, name = self.service.partition(":")
        return getattr(import_module(module), name)  # type: ignore[no-any-return]


GIVEN_UP: Final = "abandon_stream"
"""The task that gives a stream up, after which nobody can know what the rest would have said."""

CUSTOMERS: Final = (
    Customer(
        "acme",
        "openai",
        "openai",
        "token_meter.cli.demo.acme:Acme",
        ("OPENAI_", "AZURE_OPENAI_"),
        (
            "think", "read_handbook", "stream", "use_tool", "structure", "survive_rate_limit", "abandon_stream",
            "stream_many",
        ),
    ),
    Customer(
        "globex",
        "anthropic",
        "anthropic",
        "token_meter.cli.demo.globex:Globex",
        ("ANTHROPIC_",),
        ("write_cache", "read_cache", "stream", "think", "use_tool", "abandon_stream", "ask_many"),
    ),
    Customer(
        "initech",
        "google.genai",
        "google-genai",
        "token_meter.cli.demo.initech:Initech",
        ("GOOGLE_", "GEMINI_"),
        ("ask", "read_manual", "think", "stream", "use_tool", "chat", "ask_many"),
    ),
)  # fmt: skip
