"""tiktoken, where it is at hand: which models, which data, and that nothing is ever downloaded."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from tiktoken import registry

from tests.tokeniser_kit import ESTIMATOR, NAME, RANKS, Gated, loaded, plugged, put_data, small
from token_meter import Usage
from token_meter.providers import tokeniser
from token_meter.providers.base import Call, Reading
from token_meter.providers.tokeniser import PIECE_CHARACTERS_MAX, REQUEST_BYTES_MAX, Recount, count_tokens, recount_of

BODY = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder that is empty, and no way to fill it."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("something tried to connect")

    monkeypatch.setattr(tokeniser, "_missed", {})
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with plugged():
        yield tmp_path / "cache"


def asked(model: str | None = "gpt-4o", body: bytes = BODY, *, answered: str | None = None) -> Recount | None:
    call = Call()
    call.model_requested = model
    call.sent = SimpleNamespace(_content=body)
    recount = recount_of(call, Reading(None, model=answered), output_bytes=8)
    assert (call.sent is None) == (recount is not None)
    return recount


def counted(recount: Recount | None) -> tuple[Usage, str] | None:
    assert recount is not None
    return recount()


# `hello` is one token of the small encoding, `user` another; then 3 for the message, 3 for the reply.
HELLO = (Usage(input=8, output=2), ESTIMATOR)


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-2024-08-06", "openai/gpt-4o", "o3-mini", "ft:gpt-4o:acme::1"])
def test_the_data_file_of_a_model_is_found_where_tiktoken_keeps_it(folder: Path, model: str) -> None:
    put_data(folder)

    assert counted(asked(model)) == HELLO
    assert registry.ENCODINGS[NAME]._mergeable_ranks == RANKS, "kept where tiktoken keeps its own"


@pytest.mark.parametrize("variable", ["DATA_GYM_CACHE_DIR", "TMPDIR"])
def test_the_other_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    if variable == "TMPDIR":
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    else:
        monkeypatch.setenv(variable, str(tmp_path / "data-gym-cache"))
    put_data(tmp_path / "data-gym-cache")

    assert counted(asked()) == HELLO


def test_an_encoding_that_is_loaded_needs_no_data() -> None:
    with loaded(Gated()):
        assert counted(asked()) == HELLO


def test_the_model_that_answered_counts_rather_than_the_one_asked_for(folder: Path) -> None:
    put_data(folder)

    assert counted(asked("my-deployment", answered="gpt-4o-2024-08-06")) == HELLO
    assert asked("gpt-4o", answered="grok-4") is None


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "gemini-2.5-pro", "my-deployment", None])
def test_models_of_others_are_not_tokenised(folder: Path, model: str | None) -> None:
    put_data(folder)

    assert asked(model) is None


def test_without_data_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert asked() is None

    put_data(folder)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert asked() is None


def test_without_a_folder_for_temporary_files_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose file system is read-only: the estimate by size must not fail over it."""

    def none() -> NoReturn:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", none)

    assert asked() is None


def test_without_tiktoken_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    put_data(folder)
    monkeypatch.setattr(tokeniser, "_is_installed", lambda: False)

    assert asked() is None


def test_data_of_another_encoding_is_looked_at_once(folder: Path) -> None:
    put_data(folder).rename(folder / ("0" * 40))

    assert counted(asked()) is None
    assert asked() is None, "known to be missing"
    assert asked("gpt-4") is not None, "another model"
    put_data(folder)
    assert counted(asked()) == HELLO, "there is more data than before"


def test_a_model_that_tiktoken_does_not_know(folder: Path) -> None:
    put_data(folder)

    assert counted(asked("gpt-99")) is None
    assert asked("gpt-99") is None


def test_a_damaged_file_is_told_once_and_stays_where_it_is(folder: Path) -> None:
    path = put_data(folder, b"AAAA 1\n")
    recount = asked()
    assert recount is not None

    with pytest.raises(ValueError, match="damaged"):
        recount()

    assert asked() is None
    assert path.read_bytes() == b"AAAA 1\n"


def test_the_real_constructors_are_never_let_near_the_network(folder: Path) -> None:
    """Also those that build on another one or load with another loader."""
    put_data(folder)
    for constructor in (registry.ENCODING_CONSTRUCTORS or {}).values():
        if constructor is not small:
            with pytest.raises(FileNotFoundError):
                tokeniser._offline(constructor)()  # type: ignore[arg-type]


def test_a_constructor_that_loads_by_itself_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_data(folder)
    source: dict[str, Any] = {}
    exec("def constructor():\n    raise AssertionError('may load anything')", source)
    monkeypatch.setitem(registry.ENCODING_CONSTRUCTORS or {}, NAME, source["constructor"])

    assert counted(asked()) is None


@pytest.mark.parametrize("body", [b"", b"{garbage", b"[1]", b'"text"', b"[" * 100_000, b"\xff\xfe"])
def test_a_request_that_is_no_json_object_is_a_failure(folder: Path, body: bytes) -> None:
    put_data(folder)
    recount = asked(body=body)
    assert recount is not None

    with pytest.raises((ValueError, RecursionError)):
        recount()


def test_a_request_without_a_prompt_is_left_to_the_heuristic(folder: Path) -> None:
    put_data(folder)

    assert counted(asked(body=b'{"previous_response_id":"resp_1"}')) is None


def test_a_large_request_is_left_to_the_heuristic(folder: Path) -> None:
    put_data(folder)

    assert asked(body=b" " * (REQUEST_BYTES_MAX + 1)) is None


def test_the_request_is_let_go_of_once_it_is_counted(folder: Path) -> None:
    put_data(folder)
    recount = asked()
    counted(recount)

    assert recount is not None and recount._body == b""


def test_long_text_is_counted_in_pieces() -> None:
    encoding = Gated()

    in_pieces = count_tokens(encoding, "hello" * PIECE_CHARACTERS_MAX)

    assert 0 < in_pieces - PIECE_CHARACTERS_MAX <= 4 * 3, "each of four cuts goes through a word"
    assert count_tokens(encoding, "") == 0


def test_names_of_special_tokens_are_text_and_so_are_lone_surrogates(folder: Path) -> None:
    put_data(folder)
    request = {"input": "<|end|>\ud800"}

    assert counted(asked(body=json.dumps(request).encode())) == (Usage(input=17, output=2), ESTIMATOR)
