"""What providers charge: the price book, dated and versioned, and what a usage cost by it.

from token_meter.prices import PriceBook

book = PriceBook.load()
cost = book.cost(provider="openai", model="gpt-5", usage={"input": 1000}, at="2026-11-15T12:00Z")
cost.amount, cost.lines
"""

from __future__ import annotations

from token_meter.prices.book import PriceBook
from token_meter.prices.factors import CURRENCY
from token_meter.prices.model import Model
from token_meter.prices.price import Applied, Cost, CostLine, Factor, Price
from token_meter.prices.tariff import Rated, Tariff

__all__ = ["CURRENCY", "Applied", "Cost", "CostLine", "Factor", "Model", "Price", "PriceBook", "Rated", "Tariff"]
