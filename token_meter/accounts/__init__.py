"""Accounts: who the customers are, and what billing backends know them by.

`CustomerBook` loads SQLAlchemy when first asked for; the plain values do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from token_meter.accounts.customer import Customer, CustomerChanges

if TYPE_CHECKING:
    from token_meter.accounts.book import CustomerBook, Edited
    from token_meter.accounts.csv_export import export_csv
    from token_meter.accounts.csv_import import CsvRefused, check_csv, import_csv

__all__ = [
    "CsvRefused",
    "Customer",
    "CustomerBook",
    "CustomerChanges",
    "Edited",
    "check_csv",
    "export_csv",
    "import_csv",
]

_LAZY = {
    "CsvRefused": "csv_import",
    "CustomerBook": "book",
    "Edited": "book",
    "check_csv": "csv_import",
    "export_csv": "csv_export",
    "import_csv": "csv_import",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
