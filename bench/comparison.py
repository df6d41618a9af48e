"""The vendors' own metering clients beside token_meter: the same calls, what reached the backend of what was billed.

    python -m bench.comparison [--only openai] [--kills 200]

The real SDKs talk to a provider on this machine, whose bill is the truth. Each call is made once without any tool, to
see what the application sees, and once with each tool, set up as its documentation says and flushed before anything is
read. Every call runs in a process of its own, so that one that breaks stops nothing. Prints a Markdown table:

    right            every token that was billed reached the backend, as what it is priced as
    cached as input  every token did, but cached ones cannot be told from fresh ones, which cost up to ten times as much
    wrong            so many of the tokens that were billed
    N of M tokens    the stream was closed early, and nobody can know the rest; flagged: the event says so by its status
    none             nothing reached the backend
    caller breaks    the application's own code raised, which it does not without the tool
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.comparison_calls import CASES, Case, chat
from bench.comparison_tools import KEY, TOOLS, Split, Tool, bare, split_of
from token_meter.testing.backends import FakeAmberflo, FakeLago
from token_meter.testing.provider import LoopbackProvider

SECONDS_MAX: Final = 60
RIVALS: Final = ("lago-agent-sdk", "amberflo-metering-python")
SDKS: Final = ("openai", "anthropic", "google-genai")


class Outcome(NamedTuple):
    """What one call came to with one tool. `broke` is what the application raised, `seen` what it got."""

    broke: str | None = None
    seen: str = ""
    events: int = 0
    split: Split = Split()
    billed: Split = Split()
    statuses: tuple[str, ...] = ()


def verdict(outcome: Outcome, *, seen: str, cut: bool = False) -> str:
    """The cell of the table; `seen` is what the application sees without a tool."""
    if outcome.broke is not None:
        return f"caller breaks: {outcome.broke}"
    told = _told(outcome, cut=cut)
    return told if outcome.seen == seen else f"{told}, but the application sees something else"


def _told(outcome: Outcome, *, cut: bool) -> str:
    found, billed = outcome.split, outcome.billed
    of = f"{found.total:,} of {billed.total:,} tokens"
    if not outcome.events:
        return "right: nothing" if not billed.total else "none"
    if cut:
        flags = sorted(set(outcome.statuses) - {"complete"})
        return f"{of}, flagged as {', '.join(flags)}" if flags else of
    if found == billed:
        return "right"
    if found.total == billed.total and found.output == billed.output:
        return "cached as input"
    return f"wrong: {of}"


def outcome_of(case: Case, make: Callable[[], Tool]) -> Outcome:
    """Make the call in a forked process, with everything it needs in there too."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        os.close(readable)
        signal.alarm(SECONDS_MAX)
        _in_the_child(case, make, writable)
    os.close(writable)
    with os.fdopen(readable, "rb") as said:
        text = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not text:
        return Outcome(broke=f"the process ended with {code}")
    fields = json.loads(text)
    split, billed = Split(*fields.pop("split")), Split(*fields.pop("billed"))
    return Outcome(split=split, billed=billed, **{**fields, "statuses": tuple(fields["statuses"])})


def _in_the_child(case: Case, make: Callable[[], Tool], writable: int) -> None:
    try:
        document = json.dumps(_made(case, make)._asdict())
        os.write(writable, document.encode())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _made(case: Case, make: Callable[[], Tool]) -> Outcome:
    provider = LoopbackProvider().start()
    tool = make()
    broke, seen = None, ""
    try:
        seen = repr(case.run(tool.wrap(client_for(case, provider)), tool.metered))
    except Exception as problem:
        broke = type(problem).__name__
    gc.collect()  # a program that lives on comes to that: an abandoned stream ends then
    result = tool.finish()
    billed = Split()
    for line in provider.billed:
        billed |= split_of(line.usage)
    return Outcome(broke, seen, result.events, result.split, billed, tuple(result.statuses))


def client_for(case: Case, provider: LoopbackProvider) -> Any:
    """The SDK's client, pointed at the provider on this machine."""
    url = provider.url_with(fail="400x0") if case.fails else provider.url
    if case.sdk == "openai":
        import openai

        kind: Any = openai.AsyncOpenAI if case.is_async else openai.OpenAI
        return kind(base_url=f"{url}/v1", api_key="none", max_retries=0)
    if case.sdk == "anthropic":
        import anthropic

        kind = anthropic.AsyncAnthropic if case.is_async else anthropic.Anthropic
        return kind(base_url=url, api_key="none", max_retries=0)
    from google import genai

    return genai.Client(api_key="none", http_options={"base_url": url})


# ---- killed before it flushed ----

WORKER: Final = """
import os, signal, sys
from pathlib import Path
from bench.comparison import many_calls
many_calls(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]))
if sys.argv[6] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def many_calls(name: str, url: str, provider_url: str, count: int, journal: Path) -> None:
    """So many plain calls in a row, and no flush."""
    import openai

    options = {"journal": journal} if name.startswith("token_meter") else {}
    tool = TOOLS[name](url, **options)
    client = tool.wrap(openai.OpenAI(base_url=provider_url, api_key="none"))
    for _ in range(count):
        chat(client, tool.metered)


def ended(name: str, count: int, *, how: str) -> str:
    """How many of the calls have reached the backend when the process is gone, and after its next start."""
    fake = FakeLago(key=KEY) if "ago" in name else FakeAmberflo(key=KEY)
    with LoopbackProvider() as provider, fake as backend, tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal"
        arguments = [name, backend.url, provider.openai_url, str(count), str(journal), how]
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", WORKER, *arguments],
            cwd=Path(__file__).parents[1],
            timeout=10 * SECONDS_MAX,
            stderr=subprocess.DEVNULL,
            check=how != "kill",
        )
        before = _calls_in(backend)
        if name.startswith("token_meter"):
            _start_again(name, backend.url, journal)
        after = _calls_in(backend)
    later = f"; {after:,} after the next start" if after != before else ""
    return f"{before:,} of {count:,}{later}"


def _calls_in(backend: FakeLago | FakeAmberflo) -> int:
    """How many calls are counted: by their output, of which every call has some."""
    outputs = ("llm_output_tokens", "output_tokens")
    return sum(each.meter in outputs or each.group[-1:] == ("output",) for each in backend.counted)


def _start_again(name: str, url: str, journal: Path) -> None:
    tool = TOOLS[name](url, journal=journal)
    tool.finish()


# ---- the table ----


def table(cases: Sequence[Case], tell: Callable[[str], None]) -> list[list[str]]:
    """A row for each call: what it is, and how each tool did."""
    rows = []
    for number, case in enumerate(cases, start=1):
        tell(f"{number}/{len(cases)} {case.name}")
        without = outcome_of(case, bare)
        if without.broke is not None:
            raise RuntimeError(f"{case.name}: breaks without any tool: {without.broke}")
        cells = [verdict(outcome_of(case, make), seen=without.seen, cut=case.cut) for make in TOOLS.values()]
        rows.append([case.sdk, case.shown, *cells])
    return rows


def sums(rows: Sequence[Sequence[str]]) -> list[str]:
    """How many calls each tool got right."""
    columns = list(zip(*rows, strict=True))[2:]
    return [
        "",
        f"**right, of {len(rows)} calls**",
        *(str(sum(cell.startswith("right") for cell in each)) for each in columns),
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    heading = ["SDK", "Call", *TOOLS]
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def versions() -> str:
    """What was compared, where and when."""
    named = ", ".join(f"{name} {version(name)}" for name in (*RIVALS, "token-meter", *SDKS))
    return f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {named}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SDKS, help="only calls of this SDK")
    parser.add_argument("--kills", type=int, default=200, help="calls of a process that is killed; 0: leave that out")
    given = parser.parse_args()

    def tell(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    _import_everything()
    cases = [case for case in CASES if given.only in (None, case.sdk)]
    rows = table(cases, tell)
    rows.append(sums(rows))
    if given.kills:
        for how, shown in (("kill", "killed after the last call"), ("exit", "ended without `flush()`")):
            tell(shown)
            rows.append(
                ["openai", f"{given.kills} calls, then {shown}", *(ended(name, given.kills, how=how) for name in TOOLS)]
            )
    print(f"{versions()}\n\n{markdown(rows)}")


def _import_everything() -> None:
    """Once, before the first fork."""
    for name in IMPORTED:
        import_module(name)


IMPORTED: Final = (
    "openai", "anthropic", "google.genai", "pydantic", "requests", "lago_agent_sdk", "metering.llms", "metering.ingest",
    "token_meter.testing.provider", "token_meter.journal", "token_meter.reporter", "token_meter.estimates",
    "token_meter.sinks.lago", "token_meter.sinks.amberflo", "token_meter.providers.openai",
    "token_meter.providers.anthropic", "token_meter.providers.google",
)  # fmt: skip


if __name__ == "__main__":
    main()
