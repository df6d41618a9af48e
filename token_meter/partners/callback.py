"""LiteLLM's callback: each call of LiteLLM, SDK or proxy, is an event when it ends.

    litellm.callbacks = [LiteLLMCallback(meter)]

LiteLLM calls only instances of its own base class, so the callback becomes one where LiteLLM is installed. Nothing is
ever raised into LiteLLM: a failure is a counted problem, as everywhere in metering (decision D3).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from token_meter.partners.base import Unreadable
from token_meter.partners.fields import Field, attributing
from token_meter.partners.intake import Imported, Intake, Recent
from token_meter.partners.known import PARTNERS

if TYPE_CHECKING:
    from token_meter.meter import Meter

NAME: Final = "litellm"
REMEMBERED_MAX: Final = 10_000
"""So many calls are remembered, because some LiteLLM versions tell of a call twice."""


class LiteLLMCallback:
    """Give it to `litellm.callbacks`; events go to `meter`.

    `customer_field` and `dimensions` are fields of LiteLLM's standard payload, as in `import_file`. `metadata` is the
    call's own (`metadata={"tenant": …}`) with LiteLLM's beside it, and `user` is the call's `user`. Without
    `customer_field`, `end_user` names the customer (the proxy fills it in), else `user`.
    """

    def __new__(cls, *args: object, **kwargs: object) -> LiteLLMCallback:
        made: LiteLLMCallback = object.__new__(_joined(cls))  # type: ignore[arg-type]  # a class is hashable
        return made

    def __init__(
        self, meter: Meter, *, customer_field: Field | None = None, dimensions: Mapping[str, Field] | None = None
    ) -> None:
        super().__init__()
        partner = PARTNERS[NAME]
        chosen = attributing(customer_field, dimensions, default=(*partner.customer_fields, "user"))
        self._meter = meter
        self._lock = threading.Lock()
        self._intake = Intake(partner, chosen, recent=Recent(most=REMEMBERED_MAX))

    @property
    def report(self) -> Imported:
        """What became of the calls so far."""
        with self._lock:
            return self._intake.report(recorded=not self._meter.disabled)

    def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """LiteLLM: a call ended."""
        self._take(kwargs, response_obj, start_time, end_time)

    def log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """LiteLLM: a call failed. One that had cost tokens until then is recorded."""
        self._take(kwargs, response_obj, start_time, end_time)

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """LiteLLM: an asynchronous call ended."""
        self._take(kwargs, response_obj, start_time, end_time)

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """LiteLLM: an asynchronous call failed."""
        self._take(kwargs, response_obj, start_time, end_time)

    def _take(self, kwargs: Any, response: Any, began: Any, ended: Any) -> None:
        try:
            row = _payload(kwargs, response, began, ended)
            with self._lock:
                bad = self._intake.bad_rows
                event = self._intake.take(row, "callback", bad + 1)
                refused = self._intake.bad_rows > bad
                reason = self._intake.last_reason
            if event is not None:
                self._meter.record_event(event)
            elif refused:
                self._problem(Unreadable(reason or "a call could not be read"))
        except Exception as error:  # noqa: BLE001 - D3: told, never raised into LiteLLM
            self._problem(error)

    def _problem(self, problem: BaseException) -> None:
        self._meter._recorder.problem("LiteLLM callback", problem)


@cache
def _joined(cls: Any) -> Any:
    """The class, below LiteLLM's own where that is installed."""
    try:
        from litellm.integrations.custom_logger import CustomLogger
    except ImportError:
        return cls
    return type(cls.__name__, (cls, CustomLogger), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


def _payload(kwargs: Mapping[str, Any], response: Any, began: Any, ended: Any) -> dict[str, Any]:
    """LiteLLM's standard payload, with the metadata and the user of the call, which it leaves out."""
    standard = kwargs.get("standard_logging_object")
    row = dict(standard) if isinstance(standard, Mapping) else _made_up(kwargs, response, began, ended)
    sent = kwargs.get("litellm_params")
    own = sent.get("metadata") if isinstance(sent, Mapping) else None
    told = {name: each for name, each in (row.get("metadata") or {}).items() if each is not None}
    row["metadata"] = {**(own if isinstance(own, Mapping) else {}), **told}
    if row.get("user") is None:
        row["user"] = kwargs.get("user")
    return row


def _made_up(kwargs: Mapping[str, Any], response: Any, began: Any, ended: Any) -> dict[str, Any]:
    """The fields that count, where LiteLLM could not make its payload."""
    answer = _plain(response)
    usage = _plain(answer.get("usage"))
    return {
        "id": answer.get("id") or kwargs.get("litellm_call_id"),
        "litellm_call_id": kwargs.get("litellm_call_id"),
        "call_type": kwargs.get("call_type") or "completion",
        "status": "success" if usage else "failure",
        "model": kwargs.get("model"),
        "custom_llm_provider": kwargs.get("custom_llm_provider"),
        "cache_hit": kwargs.get("cache_hit"),
        "response_cost": kwargs.get("response_cost"),
        "startTime": _seconds(began),
        "endTime": _seconds(ended),
        "metadata": {"usage_object": usage},
        **{name: usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
    }


def _plain(value: Any) -> dict[str, Any]:
    dump = getattr(value, "model_dump", None)
    plain = dump() if callable(dump) else value
    return plain if isinstance(plain, dict) else {}


def _seconds(moment: Any) -> Any:
    """LiteLLM's times have no zone and are local."""
    return moment.timestamp() if hasattr(moment, "timestamp") else moment
