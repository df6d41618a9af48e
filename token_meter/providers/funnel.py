"""The one pair of hooks that openai and anthropic share: around the logical call, and on the delivered response.

Both SDKs are generated from one template: every REST call of every client class passes `request` (once per call)
and `_process_response` (once per delivered response). The first binds the customer and sends nothing further; the
second counts, on the HTTP response, below every helper. Sync and async differ in two lines each.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final, NamedTuple

from token_meter.context import Attribution
from token_meter.errors import BudgetExceeded
from token_meter.providers.asking import given_of
from token_meter.providers.base import Call, Endpoint, Recorder, mapping, text
from token_meter.providers.failures import may_have_been_billed, was_refused
from token_meter.providers.hops import carry_hops
from token_meter.providers.hosts import host_named
from token_meter.providers.settle import take_body
from token_meter.providers.stream import BodyTap, Hide, Tap, framer_for, tee

MARK: Final = "token_meter"
"""The response extension that says: counted."""

FREE: Final = "free"
"""Stands for the call while a request is sent that bills nothing."""

_ACTIVE: ContextVar[Call | str | None] = ContextVar("token_meter.call", default=None)


class Vendor(NamedTuple):
    """What differs between the SDKs of this family: a name and the pure functions of its provider file."""

    name: str
    endpoint: Callable[[str, str], Endpoint | None]
    provider_by_path: Callable[[str], str | None]
    is_usage_only: Callable[[bytes], bool] | None = None
    may_ask_for_usage: Callable[[Any, Mapping[str, Any]], bool] = lambda client, asked: False


class Binding(NamedTuple):
    """What a wrapped client carries: who records its calls and, if bound, for whom."""

    recorder: Recorder
    attribution: Attribution | None = None


def call_sync(vendor: Vendor, binding: Binding, original: Any, client: Any, args: Any, kwargs: Any) -> Any:
    """Around `SyncAPIClient.request`."""
    call, args, kwargs = _begin(vendor, binding, client, args, kwargs)
    if call is not None and call.guarded:
        call.recorder.admit(call, _asked(args, kwargs))
    outer, handled = _ACTIVE.get(), sys.exception()
    _ACTIVE.set(call or FREE)
    try:
        result = original(*args, **kwargs)
    except BaseException as error:
        failed(call, error, handled)
        raise
    finally:
        _ACTIVE.set(outer)
    if call is not None:
        _returned(call, client, result)
    return result


async def call_async(vendor: Vendor, binding: Binding, original: Any, client: Any, args: Any, kwargs: Any) -> Any:
    """Around `AsyncAPIClient.request`."""
    call, args, kwargs = _begin(vendor, binding, client, args, kwargs)
    if call is not None and call.guarded:
        await call.recorder.aadmit(call, _asked(args, kwargs))
    outer, handled = _ACTIVE.get(), sys.exception()
    _ACTIVE.set(call or FREE)
    try:
        result = await original(*args, **kwargs)
    except BaseException as error:
        failed(call, error, handled)
        raise
    finally:
        if _ACTIVE.get() is (call or FREE):  # a coroutine that was dropped ends in any other context
            _ACTIVE.set(outer)
    if call is not None:
        _returned(call, client, result)
    return result


def answered(vendor: Vendor, binding: Binding, client: Any, kwargs: dict[str, Any], *, is_async: bool) -> None:
    """Before `_process_response`: count a whole answer, or put the tee on an open one."""
    call = _ACTIVE.get()
    try:
        response = kwargs["response"]
        if call is FREE or not 200 <= response.status_code < 300 or MARK in response.extensions:
            return
        if call is None:  # a middleware sends again while its stream is read
            call = _opened(vendor, binding, client, kwargs["options"])
        if isinstance(call, Call):
            response.extensions[MARK] = True
            _count(vendor, call if call.fresh else _next_hop(call, kwargs), kwargs, is_async=is_async)
    except Exception as error:  # noqa: BLE001 - nothing metering does may reach the caller
        binding.recorder.problem("response", error)
        if isinstance(call, Call):
            call.fresh = False
            call.recorder.unmetered(call, "unreadable")


def _count(vendor: Vendor, call: Call, kwargs: dict[str, Any], *, is_async: bool) -> None:
    call.fresh = False
    response = kwargs["response"]
    call.sent = response.request
    if response.is_stream_consumed or response.is_closed:
        take_body(call, response.content)
        return
    content_type = response.headers.get("content-type", "")
    if "json" in content_type or ("event-stream" not in content_type and not kwargs.get("stream")):
        tee(response, BodyTap(call, keep="json" in content_type), is_async=is_async)
        return
    hide = Hide(vendor.is_usage_only) if call.injected and vendor.is_usage_only else None
    tap = Tap(call, call.endpoint.fold(), framer_for(content_type), hide)
    tee(response, tap, is_async=is_async, hides=hide is not None)


def _next_hop(call: Call, kwargs: dict[str, Any]) -> Call:
    """A second response inside one logical call (a fallback after a refusal): billed by itself."""
    model = text(mapping(kwargs["options"].json_data).get("model")) or call.model_requested
    hop = call.recorder.begin(
        call.endpoint, provider=call.provider, host=call.host, model=model, bound=call.attribution
    )
    hop.injected = call.injected
    return hop


def _begin(
    vendor: Vendor, binding: Binding, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Call | None, tuple[Any, ...], dict[str, Any]]:
    """Bind the call to its customer and make it durable; None for a request that bills nothing."""
    options = kwargs["options"] if "options" in kwargs else args[1] if len(args) > 1 else None
    call = _opened(vendor, binding, client, options)
    if call is None:
        return None, args, kwargs
    asked = mapping(options.json_data)  # type: ignore[union-attr]
    if (
        call.endpoint.injects_usage
        and asked.get("stream")
        and binding.recorder.accepts_include_usage(call.host)
        and vendor.may_ask_for_usage(client, asked)
    ):
        return _ask_for_usage(call, options, asked, args, kwargs)
    return call, args, kwargs


def _asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """What is asked for; `extra_body` has the last word."""
    options = kwargs["options"] if "options" in kwargs else args[1]
    return given_of({**mapping(options.json_data), **mapping(getattr(options, "extra_json", None))})


def _opened(vendor: Vendor, binding: Binding, client: Any, options: Any) -> Call | None:
    try:
        host, base_path = _host(client, options.url)
        endpoint, provider = _route(vendor, options.method, options.url, host, base_path)
        if endpoint is None:
            return None
        model = text(mapping(options.json_data).get("model"))
        return binding.recorder.begin(endpoint, provider=provider, host=host, model=model, bound=binding.attribution)
    except BudgetExceeded:
        raise
    except Exception as error:  # noqa: BLE001 - nothing metering does may reach the caller
        binding.recorder.problem("request", error)
        return None


def _ask_for_usage(
    call: Call, options: Any, asked: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Call, tuple[Any, ...], dict[str, Any]]:
    """Add `include_usage` to a copy of the request, unless the caller decided either way."""
    chosen = asked.get("stream_options")
    if chosen is not None and (not isinstance(chosen, dict) or "include_usage" in chosen):
        return call, args, kwargs
    if "stream_options" in mapping(getattr(options, "extra_json", None)):  # `extra_body` has the last word
        return call, args, kwargs
    options = copy.copy(options)
    options.json_data = {**asked, "stream_options": {**mapping(chosen), "include_usage": True}}
    call.injected = True
    if "options" in kwargs:
        return call, args, {**kwargs, "options": options}
    return call, (args[0], options, *args[2:]), kwargs


def _returned(call: Call, client: Any, result: Any) -> None:
    """The call returned. Without a response seen, a middleware answered by itself, or the hook was taken away."""
    has_middleware = bool(getattr(client, "_middleware", None))
    if call.fresh:
        call.fresh = False
        if has_middleware:
            call.recorder.void(call, "not_sent")
        else:
            call.recorder.unmetered(call, "response_not_seen")
    elif has_middleware:
        try:
            carry_hops(result, call.attribution, mark=MARK)
        except Exception as error:  # noqa: BLE001 - nothing metering does may reach the caller
            call.recorder.problem("middleware", error)


def failed(call: Call | None, error: BaseException, handled: BaseException | None) -> None:
    """The call raised before any response was counted: void it, or say that nobody knows.

    `handled` is what the caller was already handling when the call began: it says nothing about this call.
    """
    if call is None or not call.fresh:
        return
    call.fresh = False
    refused = was_refused(error)
    if refused:
        call.recorder.void(call, refused)
    elif may_have_been_billed(error, handled):
        call.recorder.unmetered(call, type(error).__name__)
    else:
        call.recorder.void(call, type(error).__name__)


@lru_cache(maxsize=1024)
def _route(vendor: Vendor, method: str, url: str, host: str, base_path: str) -> tuple[Endpoint | None, str]:
    """Which endpoint a request goes to and who serves it."""
    known = host_named(host)
    provider = vendor.provider_by_path(base_path + url) or (known.provider if known else vendor.name)
    return vendor.endpoint(method.lower(), url), provider


def _host(client: Any, url: str) -> tuple[str, str]:
    """`(host[:port], base path)` of a request, remembered per client while its base URL stays the same."""
    if url.startswith("http"):
        return url.partition("://")[2].partition("/")[0].lower(), ""
    base = client._base_url
    known = client.__dict__.get("_token_meter_host")
    if known is None or known[0] is not base:
        host = base.host.lower()
        known = (base, (f"{host}:{base.port}" if base.port else host, base.path))
        client.__dict__["_token_meter_host"] = known
    found: tuple[str, str] = known[1]
    return found
