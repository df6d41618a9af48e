"""`token-meter version`: this package, Python, and the SDKs that it can meter here."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import token_meter
from token_meter.cli import options
from token_meter.cli.output import chosen_shape, show, write_json
from token_meter.cli.tables import Column, Table
from token_meter.providers import SDKS


def version(json: options.JsonOption = False) -> None:
    """Show the version of this package, of Python and of the SDKs."""
    found = versions()
    if json:
        write_json(found)
        return
    rows = [{"package": name, "version": number} for name, number in found.items()]
    show(Table((Column("package"), Column("version")), rows, nothing="not installed"), chosen_shape())


def versions() -> dict[str, str | None]:
    """By name; None for an SDK that is not installed."""
    found: dict[str, str | None] = {"token-meter": token_meter.__version__, "python": platform.python_version()}
    return found | {sdk.package: version_of(sdk.package) for sdk in SDKS}


def version_of(package: str) -> str | None:
    """The version of an installed distribution; nothing is imported."""
    try:
        return installed(package)
    except PackageNotFoundError:
        return None
