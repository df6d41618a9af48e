"""Why a call raised, as far as billing goes: nothing was sent, the provider refused, or nobody knows."""

from __future__ import annotations

from typing import Final

_NOT_SENT: Final = frozenset({
    "ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "LocalProtocolError", "ProxyError",
    "InvalidURL", "ClientConnectorError", "ClientConnectorDNSError", "ConnectionRefusedError", "gaierror",
})  # fmt: skip
_SENT: Final = frozenset({
    "TimeoutException", "NetworkError", "ProtocolError", "TransportError", "CancelledError", "KeyboardInterrupt",
    "SystemExit", "GeneratorExit", "TimeoutError", "ClientError", "ConnectionError", "APIConnectionError",
    "RequestException",
})  # fmt: skip
_CHAIN_MAX: Final = 8


def was_refused(error: BaseException) -> str | None:
    """The HTTP status of a refusal (nothing is billed for it), or None."""
    for name in ("status_code", "code"):
        status = getattr(error, name, None)
        if type(status) is int and status >= 300:
            return f"http_{status}"
    return None


def may_have_been_billed(error: BaseException, handled: BaseException | None = None) -> bool:
    """Whether the request may have reached the provider although no response was seen.

    The vendors wrap their HTTP library's errors, so the chain of causes is read; the innermost known one decides.
    The chain ends at `handled`, an error that was there before the call.
    """
    verdict = False
    link: BaseException | None = error
    for _ in range(_CHAIN_MAX):
        if link is None or link is handled:
            break
        names = {each.__name__ for each in type(link).__mro__}
        if names & _NOT_SENT:
            return False
        verdict = verdict or bool(names & _SENT)
        link = link.__cause__ or link.__context__
    return verdict
