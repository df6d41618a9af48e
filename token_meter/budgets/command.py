"""The command line that changes a budget: it names the budget, and leaves everything else as it is."""

from __future__ import annotations

import shlex

from token_meter.budgets.budget import Budget


def command_of(budget: Budget, limit: str = "LIMIT", *, cut_off: bool = True) -> str:
    """What to type for another limit; without `cut_off`, for one that lets streams run on."""
    usual = Budget(limit=budget.limit)
    words = [word for name, value in budget.scope for word in ("--for", f"{name}={value}")]
    words += ["--per", str(budget.window)]
    for option, value, default in (
        ("--of", budget.measure, usual.measure),
        ("--currency", budget.currency, usual.currency),
        ("--mode", budget.mode, usual.mode),
    ):
        words += [option, value] if value != default else []
    words += ["--enforce", "soft"] if budget.enforce == "soft" else []
    words += ["--no-cut-off"] if budget.cut_off and not cut_off else []
    return f"token-meter budgets set {limit} {shlex.join(words)}"
