"""The documentation is true: its code runs, its commands exist, its tables follow the code, its links lead somewhere.

The ```python blocks of one page run as one program, exactly as a reader would type them, in an empty folder, with the
SDKs pointed at a loopback provider by their own environment variables. A ```text prints block holds what the block
above it prints.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import token_meter
import token_meter.sinks
import token_meter.testing
from tests.doc_tables import MEANINGS, PAGES, ROOT, TABLES, every_command, names_in, renewed
from token_meter.cli.exits import EPILOG
from token_meter.testing import LoopbackProvider
from token_meter.usage import TOKEN_TYPES

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)
SHELL = ("bash", "console", "sh")

RUNNER = """
import contextlib, io, json, sys
path, blocks = sys.argv[1], json.loads(sys.stdin.read())
shared, printed = {"__name__": "__main__"}, []
for line, body in blocks:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile("\\n" * line + body, path, "exec"), shared)
    printed.append(output.getvalue())
sys.__stdout__.write(json.dumps(printed))
"""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: what its opening fence says, its text, the line it begins on."""

    info: str
    body: str
    line: int


def blocks(path: Path) -> list[Block]:
    """Every fenced block of a page."""
    text = path.read_text("utf-8")
    return [
        Block(match["info"].strip(), match["body"], text.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(text)
    ]


def programs() -> list[Path]:
    """The pages with code."""
    return [path for path in PAGES if any(block.info == "python" for block in blocks(path))]


def named(path: Path) -> str:
    """A page as a test id."""
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def provider() -> Iterator[LoopbackProvider]:
    with LoopbackProvider() as provider:
        yield provider


def environment(provider: LoopbackProvider) -> dict[str, str]:
    """What a reader has: keys, and no variable of ours; the loopback provider stands in the vendors' place."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TOKEN_METER_")}
    return {
        **inherited,
        "OPENAI_BASE_URL": provider.openai_url,
        "OPENAI_API_KEY": "none",
        "ANTHROPIC_BASE_URL": provider.anthropic_url,
        "ANTHROPIC_API_KEY": "none",
        "GOOGLE_GEMINI_BASE_URL": provider.google_url,
        "GEMINI_API_KEY": "none",
        "TOKEN_METER_INCLUDE_USAGE_HOSTS": "127.0.0.1:*",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.parametrize("path", programs(), ids=named)
def test_code_runs_and_prints_what_the_page_says(path: Path, provider: LoopbackProvider, tmp_path: Path) -> None:
    found = blocks(path)
    code = [block for block in found if block.info == "python"]

    ran = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:Inheritance class AiohttpClientSession:DeprecationWarning",
         "-c", RUNNER, named(path)],
        input=json.dumps([[block.line, block.body] for block in code]),
        cwd=tmp_path, env=environment(provider), capture_output=True, text=True, timeout=100,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    assert "Exception ignored" not in ran.stderr, ran.stderr
    printed = dict(zip((block.line for block in code), json.loads(ran.stdout), strict=True))
    before = ""
    for block in found:
        if block.info == "python":
            before = printed[block.line]
        elif block.info == "text prints":
            assert before.rstrip("\n") == block.body.rstrip("\n"), f"{named(path)}:{block.line}"
    for command in told(path, to_be_run=True):
        done = subprocess.run(command, cwd=tmp_path, env=environment(provider), capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"


def told(path: Path, *, to_be_run: bool = False) -> Iterator[list[str]]:
    """The `token-meter` commands in the shell blocks of a page; those of a `bash run` block can be run as they are."""
    for block in blocks(path):
        if block.info.partition(" ")[0] not in SHELL or (to_be_run and not block.info.endswith(" run")):
            continue
        for line in block.body.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line.removeprefix("$ ")):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words and words[0].rpartition("/")[2] == "token-meter":
                    yield ["token-meter", *words[1:]]


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_commands_and_options_exist(path: Path) -> None:
    known = every_command()
    for _, *words in told(path):
        if words[0].startswith("-"):
            continue
        name = next((" ".join(words[:size]) for size in (3, 2, 1) if " ".join(words[:size]) in known), None)
        assert name is not None, f"{named(path)}: there is no command {' '.join(words)!r}"
        options = {option for each in known[name].params for option in (*each.opts, *each.secondary_opts)}
        used = {word.partition("=")[0] for word in words if word.startswith("-")} - {"--help", "-h"}
        assert used <= options, f"{named(path)}: token-meter {name} has no {', '.join(used - options)}"


@pytest.mark.parametrize("command", every_command())
def test_every_command_is_documented(command: str) -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")

    assert re.search(rf"^#+ `token-meter {re.escape(command)}`$", page, re.MULTILINE), "needs a heading of its own"
    section = page.split(f"`token-meter {command}`\n", 1)[1].split("\n#", 1)[0]
    own = [option for each in every_command()[command].params for option in each.opts if option.startswith("--")]
    missing = [option for option in own if f"`{option}" not in section and option not in page.split("\n## ")[1]]
    assert not missing, f"docs/cli.md does not tell about {', '.join(missing)} of token-meter {command}"


def test_exit_codes_are_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")

    codes = re.findall(r"(\d+) ([a-z][^·.]*)", EPILOG)

    assert codes
    for code, _ in codes:
        assert re.search(rf"^\| {code} \|", page, re.MULTILINE), f"exit code {code}"


PUBLIC = {
    "token_meter": token_meter.__all__,
    "token_meter.sinks": token_meter.sinks.__all__,
    "token_meter.testing": token_meter.testing.__all__,
    "Meter": [name for name in vars(token_meter.Meter) if not name.startswith("_")],
}


@pytest.mark.parametrize("name", [f"{home}.{name}" for home, names in PUBLIC.items() for name in names])
def test_every_public_name_is_documented(name: str) -> None:
    pages = "\n".join(path.read_text("utf-8") for path in PAGES if path.parent.name == "docs")
    code = " ".join(re.findall(r"`[^`]+`", FENCE.sub(" ", pages))) + " ".join(
        block.body for path in PAGES if path.parent.name == "docs" for block in blocks(path)
    )

    assert re.search(rf"\b{re.escape(name.rpartition('.')[2])}\b", code)


def test_every_environment_variable_is_documented() -> None:
    used: set[str] = set()
    for path in (ROOT / "token_meter").rglob("*.py"):
        used |= set(re.findall(r"TOKEN_METER_[A-Z_]*[A-Z]", path.read_text("utf-8")))
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")

    assert not {name for name in used if f"| `{name}` |" not in page}


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_modules_and_test_files_that_are_named_exist(path: Path) -> None:
    page = path.read_text("utf-8")

    modules = re.findall(r"python -m ((?:bench|tests|token_meter)(?:\.\w+)+)", page)
    files = re.findall(r"python -m pytest (tests/[\w/.]+)", page)
    homes = [ROOT / module.replace(".", "/") for module in modules]
    assert all(home.with_suffix(".py").exists() or (home / "__main__.py").exists() for home in homes), modules
    assert all((ROOT / file).exists() for file in files), files


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_tables_are_those_of_the_code(path: Path) -> None:
    page = path.read_text("utf-8")

    assert renewed(page) == page, "run: python -m tests.doc_tables"


def test_every_table_stands_somewhere() -> None:
    assert {name for path in PAGES for name in names_in(path.read_text("utf-8"))} == set(TABLES)
    assert set(MEANINGS) == set(TOKEN_TYPES)


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    for match in LINK.finditer(FENCE.sub("", path.read_text("utf-8"))):
        target = match["target"]
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{named(path)} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{named(path)} links to {target}"


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = HEADING.findall(FENCE.sub("", path.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_every_page_is_reachable_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")

    assert not [path.name for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in readme]


def test_the_readme_tests_what_ci_tests() -> None:
    """Whoever follows the README runs what CI runs."""
    readme = (ROOT / "README.md").read_text("utf-8")
    ci = (ROOT / ".ci" / "run").read_text("utf-8")

    assert "-m pytest" in readme and "-m pytest" in ci
    assert "install -q -e '.[test]'" in readme and "install -q -e '.[test]'" in ci
    assert "install -q '.[demo]'" in readme and "[demo]" in ci


def test_nothing_of_this_machine_or_of_a_registry_stands_in_the_pages() -> None:
    for path in [*PAGES, ROOT / "CHANGELOG.md", ROOT / ".ci" / "run", *sorted((ROOT / "examples").glob("*.py"))]:
        text = path.read_text("utf-8")
        assert not re.search(r"/(opt|work|root|home)/|index-url|pypi\.org", text), named(path)
