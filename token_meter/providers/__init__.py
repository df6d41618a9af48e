"""The SDKs this package meters: one row each.

A row names the module root by which a client is recognised, the extra that installs the SDK, and the hook file.
"""

from __future__ import annotations

import importlib
from typing import Any, Final, NamedTuple


class Sdk(NamedTuple):
    """One metered SDK: `name` as `instrument` takes it, `package` as pip does, and the file that hooks it."""

    name: str
    package: str
    root: str
    hooks: str

    def load(self) -> Any:
        """The hook file (loaded when first needed)."""
        return importlib.import_module(self.hooks)


SDKS: Final = (
    Sdk("openai", "openai", "openai", "token_meter.providers.stainless"),
    Sdk("anthropic", "anthropic", "anthropic", "token_meter.providers.stainless"),
    Sdk("google", "google-genai", "google.genai", "token_meter.providers.genai"),
)


def sdk_of(client: object) -> Sdk | None:
    """The row of the SDK that `client` comes from (its own class or a base class), or None."""
    for cls in type(client).__mro__:
        for sdk in SDKS:
            if (cls.__module__ == sdk.root or cls.__module__.startswith(sdk.root + ".")) and sdk.load().supports(
                client
            ):
                return sdk
    return None


def supported() -> str:
    """The supported SDKs, for messages."""
    return ", ".join(sdk.package for sdk in SDKS)
