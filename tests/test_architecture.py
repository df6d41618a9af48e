"""The shape of the code: who may import whom, what `import token_meter` must not load, where vendors are named.

`LAYERS` names every module. A module imports only from its own layer and those above it, also inside functions and for
type checkers. A new file has to be entered here: the moment to ask whether it is in the right place.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from token_meter.providers import SDKS, hosts

PACKAGE = Path(__file__).parent.parent / "token_meter"

LAYERS: tuple[tuple[str, str], ...] = (
    # 1: the words. No input, no output.
    ("", "clock context documents errors event money patience schema steps usage"),
    # 2: from an answer to a row. Each package stands for itself, see ISLANDS.
    ("providers", ". anthropic asking base body estimate failures frames funnel genai genai_streams google hops hosts openai openai_asks "
                  "patching prompt publishers settle sse stainless stream tokeniser"),
    ("", "answers aside attempts awaiting backlog backoff batch cursors decisions deliver delivery estimates folder journal keeper locks problems quarantine recovery "
         "registry released reporter retention segment_file segments standing writer"),
    ("sinks", ". amberflo backend base callback connections file_formats file_index files http json_text jsonl lago ledger lock mapping "
              "memory named native openmeter opentelemetry priced recording records repeats stripe stripe_corrections stripe_counted stripe_keys "
              "stripe_lanes stripe_models stripe_refusals stripe_reports stripe_session stripe_summaries stripe_tokens "
              "stripe_wire webhook"),
    ("ledger", ". corrections costs first_sight lateness ledger migrate opening periods postgresql query rater ratings "
               "record rollups rows sqlite store tables text usage values"),
    ("ledger.migrations", ". env versions versions.v0001_first versions.v0002_customers versions.v0003_rating "
                          "versions.v0004_credit_scope versions.v0005_subscriptions versions.v0006_budgets versions.v0007_lost_holds"),
    ("accounts", ". book csv_columns csv_export csv_import customer directory"),
    ("prices", ". book change context drift factors feed_check feeds genai likely merge model names overrides price "
               "shipped stated tariff windows"),
    # 3: what is charged. `billing` is pure, `bookkeeping` keeps it in a ledger.
    ("billing", ". cards catalogue collapse correction credit credit_line fields invoice line lines meters plan_lines "
                "plans rating render replay"),
    ("bookkeeping", ". accrual aggregates credit_book credit_rows customers drawing event_corrections event_prices "
                    "invoice_book invoice_desk invoice_rows "
                    "lazy notice_rows page plan_book plan_files price_desk price_impact price_rows rater segments "
                    "settings shipped_books subscription_rows verification"),
    ("budgets", ". amounts bound budget command crossing desk door following gate history hold holding known learned memory_store needs plan policy postgresql_store rates refusal rows snapshot sqlite_store stores tidings window"),
    ("notices", ". desk endpoint herald post postman"),
    # 4: what users hold in their hands.
    ("", "charging customer health lines meter reconcile recorder telling"),
    ("partners", ". base callback client cloudflare events fields files importing intake known litellm names openrouter pulling "
                 "quantities state vercel walking"),
    # 5: around it.
    ("testing", ". builders capturing conformance plugin"),
    ("testing.provider", ". __main__ account answer delivery exchange failures faults http models reply request routes "
                         "server state transport weird"),
    ("testing.provider.anthropic", ". batches content messages usage"),
    ("testing.provider.google", ". embed fields generate interactions usage"),
    ("testing.provider.openai", ". audio chat completions embeddings files images items responses tools usage"),
    ("testing.backends", ". __main__ amberflo amberflo_usage base cloudevents lago lago_wire openmeter openmeter_query "
                         "values webhook"),
    ("testing.backends.stripe", ". account book documents errors fake idempotency limits moments params reports rules"),
    ("cli", ". __main__ app budget_view budgets catch_up checks costs credits customer_book customer_edits customer_files customers deliver "
            "doctor dry_run event_corrections event_ids event_rows events exits facts filters follow invoice "
            "invoice_edits metrics mode moments notices options output partners place plans price_sync price_view prices "
            "progress quarantine rated reconcile search setup sidecar sink_names subscriptions tables terminal text usage version waiting"),
    ("cli.demo", ". acme crew customers folder globex initech reconciliation report screen story worker"),
)  # fmt: skip
LAYER_OF_ROW = (1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5)
FACADE = 4
"""`import token_meter` gives everything up to the Meter."""

ISLANDS = {
    "providers": ("providers",),
    "sinks": ("sinks", "ledger"),
    "ledger": ("ledger",),
    "accounts": ("accounts", "ledger"),
    "prices": ("prices", "providers.publishers"),
}
"""What these packages may import besides layer 1: nothing of the journal, and not each other."""

BRIDGE = "answers"
"""The journal knows no provider; this one module reads what a provider said out of a line."""

THIRD_PARTIES = {
    "sqlalchemy": ("ledger", "accounts", "bookkeeping", "budgets", "notices", "cli.place"),
    "alembic": ("ledger",),
    "wrapt": ("providers.patching",),
    "requests": ("sinks.http", "sinks.connections", "prices.feeds", "notices.post"),
    "urllib3": ("sinks.http", "sinks.connections", "notices.post"),
    "stripe": ("sinks.stripe_reports",),
    "standardwebhooks": ("sinks.webhook", "testing.backends.webhook", "notices.postman"),
    "typer": ("cli",),
    "rich": ("cli",),
    "pytest": ("testing.plugin",),
    "hypothesis": ("testing.builders",),
    "openai": ("cli.demo",),
    "anthropic": ("cli.demo",),
    "google": ("cli.demo",),
    "pydantic": ("cli.demo", "documents", "prices.overrides", "billing", "bookkeeping"),
    "yaml": ("documents", "cli.plans"),
    "genai_prices": ("prices.genai",),
    "tiktoken": ("providers.tokeniser",),
    "pyarrow": ("sinks.file_formats",),
    "opentelemetry": ("sinks.opentelemetry",),
    "litellm": ("partners.callback",),
    "anyio": ("recorder",),
}
"""Who may import which package that is not of the standard library. Nobody else, not even inside a function."""

HEAVY = (
    "openai", "anthropic", "google.genai", "sqlalchemy", "alembic", "rich", "typer", "requests", "httpx", "httpx2",
    "pydantic", "wrapt", "psycopg", "tiktoken", "pyarrow", "opentelemetry", "token_meter.ledger", "token_meter.journal",
    "token_meter.cli", "token_meter.testing",
)  # fmt: skip
"""What `import token_meter` must not load."""


def _layers() -> dict[str, int]:
    table = {}
    for (package, names), layer in zip(LAYERS, LAYER_OF_ROW, strict=True):
        for name in names.split():
            table[".".join(part for part in (package, name) if part not in ("", "."))] = layer
    return table


LAYER = _layers()


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
NAMES = [name for name in MODULES if name]


def _imports(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported anywhere in a file, as absolute names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            module = node.module or ""
            inner = module.removeprefix("token_meter").lstrip(".")
            for each in node.names:
                full = f"{inner}.{each.name}".lstrip(".")
                yield f"token_meter.{full}" if module.startswith("token_meter") and full in MODULES else module


def _own(tree: ast.Module) -> set[str]:
    """The modules of this package that a file imports; the facade is the empty name."""
    found = (name for name in _imports(tree) if name == "token_meter" or name.startswith("token_meter."))
    return {name.removeprefix("token_meter").lstrip(".") for name in found}


def _inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_every_module_has_a_layer() -> None:
    new, gone = set(NAMES) - set(LAYER), set(LAYER) - set(NAMES)

    assert not new, f"enter them in LAYERS: {', '.join(sorted(new))}"
    assert not gone, f"take them out of LAYERS: {', '.join(sorted(gone))}"


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_in_one_direction(name: str) -> None:
    wrong = {other for other in _own(MODULES[name]) if LAYER.get(other, FACADE) > LAYER.get(name, 0)}

    assert not wrong, f"{name} is in layer {LAYER.get(name)} and imports {', '.join(sorted(wrong))} of a later one"


@pytest.mark.parametrize("name", [name for name in NAMES if _inside(name, tuple(ISLANDS))])
def test_providers_sinks_and_ledger_know_only_themselves(name: str) -> None:
    allowed = ISLANDS[name.partition(".")[0]]

    wrong = {other for other in _own(MODULES[name]) if LAYER.get(other) != 1 and not _inside(other, allowed)}

    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_the_journal_knows_no_provider_and_no_ledger(name: str) -> None:
    if LAYER.get(name) == 2 and not _inside(name, (*ISLANDS, BRIDGE)):
        assert not {other for other in _own(MODULES[name]) if _inside(other, ("providers", "ledger"))}


@pytest.mark.parametrize("name", NAMES)
def test_third_parties_are_imported_where_they_belong(name: str) -> None:
    roots = {each.partition(".")[0] for each in _imports(MODULES[name])} - {"token_meter", "__future__"}
    outside = roots - set(sys.stdlib_module_names)

    assert not {each for each in outside if not _inside(name, THIRD_PARTIES.get(each, ()))}


VENDORS = {host.provider for host in hosts._EXACT.values()} | {host.provider for _, host in hosts._SUFFIXES}
VENDORS |= {sdk.name for sdk in SDKS} | {"gemini", "claude", "gpt"}


def _conditions(tree: ast.Module) -> Iterator[ast.expr]:
    """Every expression that something is decided by."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)):
            yield node.test
        elif isinstance(node, (ast.Compare, ast.BoolOp)):
            yield node
        elif isinstance(node, ast.comprehension):
            yield from node.ifs
        elif isinstance(node, ast.match_case):
            yield from (each for each in ast.walk(node.pattern) if isinstance(each, ast.expr))


@pytest.mark.parametrize("name", [name for name in NAMES if not _inside(name, ("providers", "testing", "cli.demo"))])
def test_no_vendor_is_named_in_a_condition(name: str) -> None:
    texts = [
        str(node.value).lower()
        for condition in _conditions(MODULES[name])
        for node in ast.walk(condition)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]

    assert not {word for text in texts for word in re.findall(r"[a-z]+", text) if word in VENDORS}


def test_the_check_for_vendors_finds_one() -> None:
    tree = ast.parse("if event.provider == 'anthropic': total = 1")

    constants = [node.value for each in _conditions(tree) for node in ast.walk(each) if isinstance(node, ast.Constant)]

    assert "anthropic" in constants and "anthropic" in VENDORS


@pytest.mark.parametrize("name", [name for name in NAMES if not _inside(name, ("cli",))])
def test_nothing_is_printed_outside_the_command_line(name: str) -> None:
    calls = [node for node in ast.walk(MODULES[name]) if isinstance(node, ast.Call)]

    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_why_it_exists(name: str) -> None:
    assert ast.get_docstring(MODULES[name])


@pytest.mark.parametrize("name", NAMES)
def test_no_error_is_swallowed_in_silence(name: str) -> None:
    handlers = [node for node in ast.walk(MODULES[name]) if isinstance(node, ast.ExceptHandler)]
    broad = [each for each in handlers if each.type is None or ast.unparse(each.type) in ("Exception", "BaseException")]

    assert not [each.lineno for each in broad if all(isinstance(line, ast.Pass) for line in each.body)]


@pytest.mark.parametrize("module", ["token_meter", "token_meter.sinks"])
def test_importing_it_loads_nothing_heavy(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"

    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)

    assert not {name for name in json.loads(ran.stdout) if _inside(name, HEAVY)}
