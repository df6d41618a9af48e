"""What a period comes to beyond what was invoiced for it: lines of the next invoice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from token_meter.billing.line import Line, Segment, of_usage
from token_meter.money import EXACT, ZERO, plain


@dataclass(frozen=True, slots=True)
class Correction:
    """What an earlier period comes to now beyond what was invoiced for it: late events, voids, corrected prices."""

    invoice: str
    lines: tuple[Line, ...]
    segments: tuple[Segment, ...] = ()
    """What was used in that period, as it is now."""


def corrections_to(invoiced: Sequence[Line], now: Sequence[Line], *, number: str) -> Correction | None:
    """What a period comes to now beyond what was invoiced for it, line by line; None: nothing.

    `invoiced` are the lines of its final invoice and every correction since. Fees and the like are compared too, so a
    plan that was changed for the past is corrected as well.
    """
    before, after = _by_key(invoiced), _by_key(now)
    lines = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        exact = EXACT.subtract(new.exact if new else ZERO, old.exact if old else ZERO)
        if not exact:
            continue
        base = new or old
        assert base is not None
        quantity = None
        if base.quantity is not None:
            quantity = ((new.quantity or 0) if new else 0) - ((old.quantity or 0) if old else 0)
        title = base.title if base.corrects == number else f"Correction of {number}: {base.title}"
        math = base.math
        if key.startswith("discount|"):
            math = {"usage": plain(EXACT.subtract(of_usage(new) if new else ZERO, of_usage(old) if old else ZERO))}
        lines.append(
            replace(
                base, kind="correction", title=title, exact=exact, quantity=quantity, amount=None, corrects=number,
                math=math,
            )
        )  # fmt: skip
    return Correction(number, tuple(lines)) if lines else None


def _by_key(lines: Sequence[Line]) -> dict[str, Line]:
    found: dict[str, Line] = {}
    for line in lines:
        if line.kind in ("tax", "credit", "pack"):
            continue
        seen = found.get(line.key)
        if seen is None:
            found[line.key] = line
        else:
            quantity = None if line.quantity is None else (seen.quantity or 0) + line.quantity
            math = seen.math
            if line.key.startswith("discount|"):
                math = {**(math or {}), "usage": plain(EXACT.add(of_usage(seen), of_usage(line)))}
            found[line.key] = replace(seen, exact=EXACT.add(seen.exact, line.exact), quantity=quantity, math=math)
    return found
