"""What the provider files and the taps agree on: endpoints, readings, calls, and who records them.

Endpoint   one metered path of an API: what it is called and how its answers are read
Reading    what an answer said about one billed line
Fold       what is kept of an open stream: bounded, whatever its length
Call       one logical call, from before it is sent until it is recorded
Recorder   takes calls and readings further (the Meter); providers know nothing behind it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol, TypeGuard

from token_meter.context import Attribution
from token_meter.schema import Status
from token_meter.usage import QUANTITY_MAX, Usage

if TYPE_CHECKING:
    from token_meter.providers.asking import Ask

Body = dict[str, Any]
"""A parsed JSON object as a provider sent it: hostile until read."""


class Reading:
    """What an answer said about one billed line.

    `usage` is None when the provider told no counts; `raw_usage` is the provider's own block, filtered when written.
    `object_id` names an object whose usage may be read again or arrives later: the event id is then derived from it
    instead of minted (decision D5). `recount` estimates again, better and slower: for another thread than the caller's.
    """

    __slots__ = (
        "anomalies", "estimator", "event_id", "model", "object_id", "price_context", "raw_usage", "recount",
        "response_id", "status", "usage",
    )  # fmt: skip

    def __init__(
        self,
        usage: Usage | None,
        *,
        model: str | None = None,
        response_id: str | None = None,
        status: Status = "complete",
        anomalies: list[str] | None = None,
        raw_usage: Mapping[str, Any] | None = None,
    ) -> None:
        self.usage = usage
        self.model = model
        self.response_id = response_id
        self.price_context: dict[str, Any] = {}
        self.raw_usage = raw_usage
        self.anomalies = [] if anomalies is None else anomalies
        self.object_id: str | None = None
        self.event_id = ""
        self.status: Status = status
        self.estimator: str | None = None
        self.recount: Callable[[], tuple[Usage, str] | None] | None = None


class Fold:
    """What is kept of an open stream: the merged fields that count, never the chunks.

    `block` is given one or more whole events; `weight` says for how many blocks it stands in the text estimate. A
    JSON block that contains none of the two `marks` says nothing new and need not be given. `document` is what the
    endpoint's `read` takes, `terminal` is true once the provider's own end marker was seen, `final` once nothing
    that counts can follow; `text_bytes` counts the visible output for an estimate.
    """

    __slots__ = ("document", "terminal", "text_bytes")
    marks: ClassVar[tuple[bytes, bytes]]
    document: Body
    terminal: bool
    text_bytes: int

    def __init__(self) -> None:
        self.document = {}
        self.terminal = False
        self.text_bytes = 0

    @property
    def final(self) -> bool:
        """Whether the provider has finished and told its counts."""
        return self.terminal and self.document.get("usage") is not None

    def block(self, data: bytes, weight: int) -> None:
        """Take notice of whole events."""
        raise NotImplementedError

    def close(self) -> None:
        """The stream ended: read what was only remembered so far."""


class Endpoint(NamedTuple):
    """One metered path: its operation name and pure functions that read its answers.

    `fields` are the top-level fields wanted, `bulky` the one with the content, which is read around. `estimates` says
    whether missing counts can be estimated from text, `injects_usage` marks the endpoints that take
    `stream_options.include_usage`. `dialect` is the name by which `answers` finds `read` again, where an answer whose
    counts stand alone at its end may be written down as it came. `ask` reads out of a request what bounds its cost; an
    endpoint without it bills nothing that was not admitted before.
    """

    operation: str
    read: Callable[[Body], list[Reading]]
    fold: Callable[[], Fold]
    fields: tuple[str, ...] = ()
    bulky: str = ""
    estimates: bool = True
    injects_usage: bool = False
    dialect: str = ""
    ask: Callable[[Body], Ask] | None = None


class Host(NamedTuple):
    """A row of the host table: who answers there, and whether `include_usage` is known to be accepted."""

    provider: str
    accepts_include_usage: bool = False


class CutOff(NamedTuple):
    """A stream ends with this error when it has shown more than so many bytes of text."""

    bytes: int
    error: BaseException


class Call:
    """One logical call: bound to its customer when it begins, recorded once per delivered response.

    `fresh` is true until a response (or the failure) of the call was taken. `sent` is the request as the SDK built
    it, looked at only when an estimate is needed. `hold` is what was reserved for it, `guarded` says that something may
    have to be. `static` is the part of its journal lines that never changes.
    """

    __slots__ = (
        "attribution",
        "began",
        "cut_off",
        "ended",
        "endpoint",
        "fresh",
        "guarded",
        "hold",
        "host",
        "id",
        "injected",
        "is_async",
        "model_requested",
        "operation",
        "provider",
        "recorder",
        "sent",
        "static",
    )  # fmt: skip

    id: str
    attribution: Attribution
    provider: str
    host: str
    operation: str
    model_requested: str | None
    endpoint: Endpoint
    recorder: Recorder
    static: str
    began: float

    def __init__(self) -> None:
        self.ended = False
        self.fresh = True
        self.injected = False
        self.guarded = False
        self.is_async = False
        self.hold: Any = None
        self.cut_off: CutOff | None = None
        self.sent: object = None


class Recorder(Protocol):
    """What the taps hand calls and readings to. None of these raises, except `admit` with BudgetExceeded."""

    def begin(
        self, endpoint: Endpoint, *, provider: str, host: str, model: str | None, bound: Attribution | None
    ) -> Call: ...

    def admit(self, call: Call, body: Mapping[str, Any]) -> None: ...

    async def aadmit(self, call: Call, body: Mapping[str, Any]) -> None: ...

    def accepts_include_usage(self, host: str) -> bool: ...

    def answered(self, call: Call, excerpt: str) -> None: ...

    def record(self, call: Call, readings: list[Reading]) -> None: ...

    def record_later(self, call: Call, readings: list[Reading]) -> None: ...

    def void(self, call: Call, reason: str) -> None: ...

    def unmetered(self, call: Call, reason: str) -> None: ...

    def problem(self, what: str, error: BaseException) -> None: ...


def whole(value: Any, anomalies: list[str], name: str) -> int:
    """A quantity as a non-negative integer; anything else is clamped and leaves an anomaly behind.

    An absent or null quantity is zero. A float with an integral value counts (some providers send 12.0).
    """
    if type(value) is int and 0 <= value <= QUANTITY_MAX:
        return value
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer() and 0 <= value <= QUANTITY_MAX:
        return int(value)
    anomalies.append(f"odd_quantity:{name}")
    return QUANTITY_MAX if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def fit(total: int, parts: dict[str, int], plain: str, anomalies: list[str]) -> dict[str, int]:
    """`parts` of a `total`, and what is left of it as `plain`: together they are the total, whatever was claimed.

    Parts that exceed the total are cut, the last named first, and leave an anomaly behind.
    """
    left = total
    fitted: dict[str, int] = {}
    for name, count in parts.items():
        if not count:
            continue
        if count > left:
            anomalies.append(f"parts_exceed_total:{plain}")
            count = left
        if count:
            fitted[name] = count
            left -= count
    if left:
        fitted[plain] = left
    return fitted


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def tells_counts(block: Any) -> TypeGuard[Body]:
    """Whether a usage block is one: an object with a number in it. An empty one tells nothing, not even zero."""
    return isinstance(block, dict) and any(type(value) is int or type(value) is float for value in block.values())


def text(value: Any) -> str | None:
    """`value` if it is a non-empty string of sane length, else None."""
    return value if isinstance(value, str) and 0 < len(value) <= 512 else None


RAW_USAGE_BYTES_MAX: Final = 4096
_RAW_TEXT_MAX: Final = 64
_RAW_DEPTH_MAX: Final = 6


ENUMS: Final = frozenset({
    "inference_geo", "modality", "model", "serviceTier", "service_tier", "speed", "status", "trafficType", "ttl",
    "type",
})  # fmt: skip
"""The fields of usage blocks that hold a word: whatever else is text may be anything."""


def raw_numbers(value: Any, name: str = "", depth: int = 0) -> Any:
    """The numbers and enum words of a usage block: what may be kept (decision D12). Other text is dropped."""
    kind = type(value)
    if kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return value if math.isfinite(value) else None  # JSON has no other
    if kind is str:
        return value if name in ENUMS and is_word(value) else None
    if depth >= _RAW_DEPTH_MAX:
        return None
    if isinstance(value, dict):
        kept = {key: raw_numbers(each, key, depth + 1) for key, each in list(value.items())[:64] if is_word(key)}
        return {key: each for key, each in kept.items() if each is not None}
    if kind is list:
        items = [raw_numbers(each, name, depth + 1) for each in value[:16]]
        return [each for each in items if each is not None]
    return None


def is_word(text: str) -> bool:
    """Whether a text is an id or an enum: short, ASCII, no spaces."""
    return len(text) <= _RAW_TEXT_MAX and _is_word(text)


@lru_cache(maxsize=4096)
def _is_word(text: str) -> bool:
    return text.isascii() and text.replace("-", "").replace("_", "").replace(".", "").isalnum()
