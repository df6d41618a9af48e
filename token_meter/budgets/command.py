"""The command line that sets a budget anew, with all that is not as usual: setting replaces it as a whole."""

from __future__ import annotations

import shlex

from token_meter.budgets.budget import Budget


def command_of(budget: Budget, limit: str = "LIMIT", *, cut_off: bool = True) -> str:
    """What to type for a budget of another limit; without `cut_off`, for one that lets streams run on."""
    usual = Budget(limit=budget.limit)
    words = [word for name, value in budget.scope for word in ("--for", f"{name}={value}")]
    words += ["--per", str(budget.window)]
    for option, value, default in (
        ("--of", budget.measure, usual.measure),
        ("--currency", budget.currency, usual.currency),
        ("--enforce", budget.enforce, usual.enforce),
        ("--time-zone", budget.time_zone, usual.time_zone),
        ("--unpriced", budget.unpriced, usual.unpriced),
        ("--mode", budget.mode, usual.mode),
        ("--name", budget.name, usual.name),
    ):
        words += [option, value] if value != default else []
    if budget.thresholds != usual.thresholds:
        words += [word for each in budget.thresholds for word in ("--threshold", str(each))]
    words += ["--cut-off"] if budget.cut_off and cut_off else []
    words += ["--tokenize"] if budget.tokenize else []
    return f"token-meter budgets set {limit} {shlex.join(words)}"
