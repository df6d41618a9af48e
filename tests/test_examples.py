"""Every example runs, without a key, with warnings as errors, and prints what it is about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = {
    "async_app": ["acme: 2 calls", "globex: 2 calls", "initech: 2 calls", "  initech  anthropic"],
    "chatbot_plan": ["model a input   1,000  x 0.00001 = 0.01   0.01", "API calls          10  x 0.01 = 0.1       0.10", "0.17 USD"],
    "decorator": ["acme     summary", "umbrella orders", "globex   stream", "initech  stream", "14 pieces"],
    "django_app": ["/stream for globex: 200", "  acme   /ask    1 call", "  globex /stream 1 call"],
    "fastapi_app": ["  acme   /ask      1 call", "  acme   /stream   1 call", "  globex /ask-sync 1 call"],
    "hard_cap": ["answered, answered, refused (budget: two calls a minute for each key)", "globex without credit: refused (credit: credit)",
                 "globex with credit: answered", "acme, paused: refused (paused: paused)", "  heard: budget.exceeded",
                 "the provider has seen 4 requests"],
    "flask_app": ["/stream for globex: 200", "  acme   /ask    1 call", "  globex /stream 1 call"],
    "instrument_libraries": ["answered 4 requests", "metered: acme gemini-2.5-flash", "metered: acme gpt-5-mini"],
    "manual_record": ["attempt 3 recorded job-4711", "globex  llama-3.3-70b {'input': 100}, 1 event", "  acme    12"],
    "orb_sink": ["Orb bills acme 4000 tokens of cached input", "1 event delivered, 1 in quarantine"],
    "own_sink": ["busy 1 time and now has 2 events", "billing: 2 delivered, 1 in quarantine", "jsonl: 3 delivered, 0"],
    "quickstart": ["this block: 1 call, Usage(input=2, output=19)", "globex   search   text-embedding-3-small"],
    "serverless": ["acme: 23 tokens; 0 events wait", "globex: 23 tokens; 0 events wait"],
    "streaming": ["0 of them without choices", "read to the end      complete", "given up, openai     estimated",
                  "given up, anthropic  partial", "cut by a proxy       estimated"],
    "threads": ["customer (none)   way (lost)", "customer acme     way instrumented pool", "globex   way bound client"],
    "worker": ["workers left with 0 and -9", "acme     complete", "globex   complete", "initech  unmetered"],
}  # fmt: skip


def test_every_example_is_in_the_list() -> None:
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.py")) == sorted(EXAMPLES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, as for a reader who tries one example after another: none may find what another left."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_prints_what_it_promises(name: str, folder: Path) -> None:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("TOKEN_METER_", "OPENAI_"))}

    ran = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:Inheritance class AiohttpClientSession:DeprecationWarning",
         str(ROOT / "examples" / f"{name}.py")],
        cwd=folder, env={**inherited, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    assert "Exception ignored" not in ran.stderr and "Traceback" not in ran.stderr, ran.stderr
    for line in EXAMPLES[name]:
        assert line in ran.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_says_what_it_shows_and_how_to_run_it(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text("utf-8")

    assert text.startswith('"""')
    assert f"python examples/{name}.py" in text.split('"""')[1]
