"""OpenAI's own tokeniser, tiktoken, for the input of an estimate: only where it is installed and its data is here.

Nothing is ever downloaded. `recount_of` runs in the caller's thread and looks, without importing anything, whether
there can be an encoding; what it returns is called in another thread, which imports tiktoken and counts. `tokens_of`
counts at once, for budgets that ask for it. Data is taken from where tiktoken keeps it: its registry of loaded
encodings, or its cache folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any, Final

from token_meter.providers.base import Body, Call, Reading
from token_meter.providers.estimate import ESTIMATOR, estimate, sent_body
from token_meter.providers.prompt import prompt_tokens
from token_meter.providers.publishers import publisher_of
from token_meter.usage import Usage

REQUEST_BYTES_MAX: Final = 4 * 1024 * 1024
"""A larger request is not tokenised: it is mostly files, or takes seconds."""

PIECE_CHARACTERS_MAX: Final = 64 * 1024
"""Longer text is counted in pieces, which costs a token or two at each cut: tiktoken gives up on a megabyte of spaces,
and other threads wait while it hands over its result."""

MODELS_REMEMBERED_MAX: Final = 1_000

Supply = frozenset[str]
"""The encodings that are loaded and the data files that are here."""

_missed: dict[str, Supply] = {}
"""Models whose encoding was not found in a supply: not looked for again, by any Meter, until the supply changes."""


def recount_of(call: Call, reading: Reading, *, output_bytes: int) -> Recount | None:
    """How the input of this call can be counted better than by its size, or None. Takes the request from the call."""
    model = reading.model or call.model_requested
    if model is None or publisher_of(model) != "openai" or not _is_installed():
        return None
    supply = _supply()
    body = sent_body(call.sent)
    if not supply or _missed.get(model) == supply or body is None or len(body) > REQUEST_BYTES_MAX:
        return None
    call.sent = None
    return Recount(model, body, supply, output_bytes=output_bytes)


class Recount:
    """A request that waits to be tokenised; call it once, in a thread that may take its time."""

    __slots__ = ("_body", "_model", "_output_bytes", "_supply")

    def __init__(self, model: str, body: bytes, supply: Supply, *, output_bytes: int) -> None:
        self._model = model
        self._body = body
        self._supply = supply
        self._output_bytes = output_bytes

    def __call__(self) -> tuple[Usage, str] | None:
        """The usage and who estimated it; None when there is no encoding for the model, or no prompt."""
        body, self._body = self._body, b""
        encoding = _known_encoding(self._model, self._supply)
        if encoding is None:
            return None
        request = json.loads(body)
        if not isinstance(request, dict):
            raise ValueError("the request is no JSON object")
        tokens = prompt_tokens(request, lambda text: count_tokens(encoding, text))
        if tokens is None:
            return None
        output = estimate(input_bytes=0, output_bytes=self._output_bytes)
        return Usage(input=tokens) + output, f"tiktoken:{encoding.name}+{ESTIMATOR}"


def tokens_of(request: Body) -> int | None:
    """The input tokens of a request that is about to be sent; None where nothing at hand can count them.

    In the caller's thread, for those who asked for it: budgets with `tokenize`. Files and what the provider fetches
    count as `prompt` says, which is a guess.
    """
    model = request.get("model")
    if not isinstance(model, str) or publisher_of(model) != "openai" or not _is_installed():
        return None
    supply = _supply()
    if not supply or _missed.get(model) == supply:
        return None
    encoding = _known_encoding(model, supply)
    return None if encoding is None else prompt_tokens(request, lambda text: count_tokens(encoding, text))


def _known_encoding(model: str, supply: Supply) -> Any:
    encoding = None
    try:
        encoding = encoding_of(model)
    finally:
        if encoding is None:  # not here, or broken: looking again would give the same
            if len(_missed) >= MODELS_REMEMBERED_MAX:
                _missed.clear()
            _missed[model] = supply
    return encoding


def encoding_of(model: str) -> Any:
    """tiktoken's encoding of a model, loaded if its data is on this machine; None if it is not."""
    from tiktoken import Encoding, registry
    from tiktoken import model as models

    try:
        name = models.encoding_name_for_model(model.rpartition("/")[2])
    except KeyError:
        return None
    if name not in registry.ENCODINGS:
        registry.list_encoding_names()  # finds the constructors
        constructor = (registry.ENCODING_CONSTRUCTORS or {}).get(name)
        if not isinstance(constructor, FunctionType) or _LOADER not in constructor.__globals__:
            return None
        try:
            made = Encoding(**_offline(constructor)())
        except FileNotFoundError:
            return None
        # Kept where tiktoken keeps its own, so that a process holds one of each.
        registry.ENCODINGS.setdefault(name, made)
    return registry.ENCODINGS[name]


def count_tokens(encoding: Any, text: str) -> int:
    """The tokens of a text, which is text throughout: the names of special tokens mean nothing in it."""
    starts = range(0, len(text), PIECE_CHARACTERS_MAX)
    return sum(len(encoding.encode_ordinary(text[start : start + PIECE_CHARACTERS_MAX])) for start in starts)


_LOADER: Final = "load_tiktoken_bpe"
_OTHER_LOADER: Final = "data_gym_to_mergeable_bpe_ranks"


def _offline(constructor: FunctionType) -> Callable[[], dict[str, Any]]:
    """The constructor of an encoding with loaders that only read files.

    tiktoken's loader downloads what is not in its cache, and what does not match its hash. To look first and load
    afterwards would leave a gap between the two, so the constructor runs with other globals: nothing is patched.
    """
    theirs = constructor.__globals__
    names = dict(theirs)
    for name, value in theirs.items():
        if isinstance(value, FunctionType) and value.__globals__ is theirs:  # they build on each other
            names[name] = _with_globals(value, names)
    names[_LOADER] = _ranks
    names[_OTHER_LOADER] = _not_here
    return _with_globals(constructor, names)


def _with_globals(function: FunctionType, names: dict[str, Any]) -> FunctionType:
    made = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _ranks(blob: str, expected_hash: str | None = None) -> dict[bytes, int]:
    """What tiktoken's loader returns, from its cache. Raises FileNotFoundError when it is not there."""
    from base64 import b64decode
    from hashlib import sha1, sha256

    folder = _cache_folder()
    if not folder:
        raise FileNotFoundError("tiktoken's cache is switched off")
    key = sha1(blob.encode(), usedforsecurity=False).hexdigest()
    with open(os.path.join(folder, key), "rb") as file:
        data = file.read()
    if expected_hash is not None and sha256(data).hexdigest() != expected_hash:
        raise ValueError("a data file of tiktoken is damaged")
    pairs = (line.split() for line in data.splitlines() if line)
    return {b64decode(token): int(rank) for token, rank in pairs}


def _not_here(**_: object) -> dict[bytes, int]:
    raise FileNotFoundError("the encodings made of two files are not read")


@lru_cache(maxsize=1)
def _is_installed() -> bool:
    from importlib.util import find_spec

    try:
        return find_spec("tiktoken") is not None
    except (ImportError, ValueError):
        return False


def _supply() -> Supply:
    """What there is to count with; looking costs microseconds and imports nothing of tiktoken's."""
    loaded = getattr(sys.modules.get("tiktoken.registry"), "ENCODINGS", {})
    folder = _cache_folder()
    try:
        files = os.listdir(folder) if folder else []
    except OSError:
        files = []
    return frozenset([*loaded, *(name for name in files if len(name) == _KEY_CHARACTERS)])


_KEY_CHARACTERS: Final = 40
"""tiktoken names a data file by the SHA-1 of its address."""


def _cache_folder() -> str:
    """Where tiktoken keeps its data; empty when it keeps none."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if (folder := os.environ.get(variable)) is not None:
            return folder
    from tempfile import gettempdir

    try:
        return os.path.join(gettempdir(), "data-gym-cache")
    except OSError:  # a file system that is read-only throughout has no such place
        return ""
