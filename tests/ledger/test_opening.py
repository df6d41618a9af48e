"""Opening: URLs, files, migrations, and clear words when something is wrong."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import token_meter
from token_meter.ledger import Ledger, LedgerError, migrate
from token_meter.ledger.opening import make_store, parse
from token_meter.ledger.tables import VERSION_TABLE, metadata
from token_meter.testing.builders import make_event, make_events


def python(*lines, **environment):
    """Run these lines in a fresh interpreter; what they print."""
    command = [sys.executable, "-W", "error", "-c", "\n".join(lines)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_path_and_a_url_name_the_same_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Ledger("usage.db") as by_name:
        monkeypatch.chdir("/")
        by_name.record([make_event(1)])

    assert by_name.file == tmp_path / "usage.db"
    for same in (tmp_path / "usage.db", f"sqlite:///{tmp_path}/usage.db"):
        with Ledger(same) as ledger:
            assert ledger.events() == [make_event(1)]


def test_a_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert Ledger("~/usage.db").file == tmp_path / "usage.db"


def test_file_names_may_hold_anything(tmp_path):
    for name in ("100% ?#&.db", "Ω 株.db", "file:x.db"):
        with Ledger(tmp_path / name) as ledger:
            ledger.record([make_event(1)])

        assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgres://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me@host/db?sslmode=require", "postgresql+psycopg://me@host/db?sslmode=require"),
    ],
)
def test_a_password_is_never_shown(url, shown):
    ledger = Ledger(url)

    assert repr(ledger) == f"Ledger('{shown}')"
    assert ("secret" in ledger.url) == ("secret" in url)
    assert ledger.file is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "name a file"),
        (":memory:", "name a file"),
        ("sqlite://", "name a file"),
        ("mysql://host/db", "cannot live in 'mysql'"),
        ("postgresql+asyncpg://host/db", "cannot live in"),
        ("sqlite:///x.db?mode=ro", "no option mode"),
        ("postgresql://host:port/db", "cannot be read"),
    ],
)
def test_what_is_no_ledger_url_is_refused_at_once(url, message):
    with pytest.raises(ValueError, match=message):
        Ledger(url)


def test_nothing_is_made_before_the_first_use(tmp_path):
    Ledger(tmp_path / "usage.db").close()

    assert list(tmp_path.iterdir()) == []


def test_the_file_is_for_its_owner_only(tmp_path):
    with Ledger(tmp_path / "usage.db") as ledger:
        ledger.record([make_event(1)])
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}

    assert modes == {"usage.db": 0o600, "usage.db-wal": 0o600, "usage.db-shm": 0o600}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing" / "usage.db", "the folder .*missing does not exist"),
        (lambda folder: folder, "it is a folder"),
        (
            lambda folder: write(folder / "notes.txt", b"not a database, but long enough to look like one" * 9),
            "is not a SQLite",
        ),
    ],
    ids=["missing folder", "folder", "other file"],
)
def test_a_file_that_cannot_be_a_ledger_is_explained(tmp_path, make, message):
    with Ledger(make(tmp_path)) as ledger:
        with pytest.raises(LedgerError, match=message):
            ledger.events()
        with pytest.raises(LedgerError, match=message):
            ledger.record([make_event(1)])


def write(path, content):
    path.write_bytes(content)
    return path


def test_a_file_that_becomes_usable_is_used(tmp_path):
    with Ledger(tmp_path / "later" / "usage.db") as ledger:
        with pytest.raises(LedgerError):
            ledger.events()
        (tmp_path / "later").mkdir()

        assert ledger.events() == []


def test_an_empty_file_and_one_with_other_tables_are_fine(tmp_path):
    (tmp_path / "empty.db").touch()
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE events (mine)")

    for name in ("empty.db", "other.db"):
        with Ledger(tmp_path / name) as ledger:
            ledger.record([make_event(1)])
            assert ledger.events() == [make_event(1)]


def test_a_schema_shared_with_another_application_is_fine(schema_url, postgresql):
    schema = schema_url.rpartition("%3D")[2]
    postgresql.execute(
        f"CREATE TABLE {schema}.events (mine int); CREATE TABLE {schema}.alembic_version (version_num text)"
    )

    with Ledger(schema_url) as ledger:
        ledger.record([make_event(1)])

    assert postgresql.execute(f"SELECT count(*) FROM {schema}.alembic_version").fetchone() == (0,)


def test_a_forgotten_ledger_warns(url):
    ledger = Ledger(url)
    ledger.events()

    with pytest.warns(ResourceWarning, match="was not closed"):
        del ledger
        gc.collect()


def test_a_ledger_never_opened_and_one_closed_twice_do_not_warn(url):
    Ledger(url)
    ledger = Ledger(url)
    ledger.events()
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.events()
    del ledger
    gc.collect()


def test_threads_read_while_one_writes(ledger):
    stop = threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            seen.append((len(ledger.events()), sum(row.events for row in ledger.usage())))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 60, 2):
        ledger.record([make_event(number), make_event(number + 1)])
    stop.set()
    for reader in readers:
        reader.join()

    assert all(counted % 2 == 0 and counted <= later % 2 + 60 for counted, later in seen)
    assert len(ledger.events()) == 60


def test_closing_waits_for_a_thread_that_reads(url):
    ledger = Ledger(url)
    ledger.record(make_events(500))
    ended = []

    def read_until_closed():
        try:
            while True:
                ledger.events()
        except LedgerError as closed:
            ended.append(str(closed))

    readers = [threading.Thread(target=read_until_closed) for _ in range(3)]
    for reader in readers:
        reader.start()
    ledger.close()
    for reader in readers:
        reader.join()
    gc.collect()

    assert ended == ["this ledger is closed"] * 3


def test_two_ledgers_on_one_place_in_one_process(url):
    with Ledger(url) as one, Ledger(url) as other:
        one.record(make_events(2))
        other.record(make_events(3))
        one.close()

        assert other.events() == make_events(3)


# Migrations


def test_the_code_knows_every_revision():
    script = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))

    assert tuple(revision.revision for revision in reversed(list(script.walk_revisions()))) == migrate.REVISIONS


def test_the_migrations_make_exactly_the_tables_of_the_code(url):
    with Ledger(url) as ledger:
        ledger.events()
    store = make_store(parse(url))
    with store.reading() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_server_default": False}
        )
        differences = compare_metadata(context, metadata)
        indexes = connection.dialect.get_indexes(connection, "token_meter_events")
    store.engine.dispose()

    assert differences == []
    assert {index["name"] for index in indexes if index["name"].startswith("token_meter")} == {
        "token_meter_events_anomalies", "token_meter_events_corrects", "token_meter_events_customer",
        "token_meter_events_pending", "token_meter_events_time",
    }  # fmt: skip


def test_migrating_says_nothing_in_the_log_of_the_application(url, caplog):
    caplog.set_level(logging.DEBUG)
    before = {name: (each.level, each.handlers, each.filters) for name, each in loggers().items()}

    with Ledger(url, dimensions=["x"]) as ledger:
        ledger.record([make_event(1)])

    assert [
        record for record in caplog.records if record.name.split(".")[0] in ("alembic", "sqlalchemy", "token_meter")
    ] == []
    after = {name: (each.level, each.handlers, each.filters) for name, each in loggers().items()}
    assert {name: after[name] for name in before} == before


def loggers():
    known = logging.root.manager.loggerDict
    return {name: each for name, each in known.items() if isinstance(each, logging.Logger)} | {"": logging.root}


def test_a_ledger_that_is_up_to_date_opens_without_alembic(tmp_path):
    with Ledger(tmp_path / "usage.db", dimensions=["team"]) as ledger:
        ledger.events()

    said = python(
        "import sys",
        "from token_meter.ledger import Ledger",
        f"with Ledger({str(tmp_path / 'usage.db')!r}, dimensions=['team']) as ledger: print(ledger.usage())",
        "print('alembic' in sys.modules)",
    )

    assert said == "[]\nFalse"


def test_plain_values_load_no_database_code():
    said = python(
        "import sys, token_meter.ledger, token_meter.sinks",
        "token_meter.ledger.UsageRow, token_meter.ledger.ANY",
        "print('sqlalchemy' in sys.modules)",
    )

    assert said == "False"


def test_the_package_migrates_from_wherever_it_is_installed(tmp_path):
    package = Path(token_meter.__file__).parent
    site = tmp_path / "100% site packages"
    shutil.copytree(package, site / "token_meter", ignore=shutil.ignore_patterns("__pycache__"))

    said = python(
        "import token_meter.ledger",
        "from token_meter.ledger import Ledger",
        "print(token_meter.ledger.__file__)",
        f"with Ledger({str(tmp_path / 'usage.db')!r}) as ledger: print(ledger.events())",
        PYTHONPATH=str(site),
    )

    assert said.splitlines() == [str(site / "token_meter" / "ledger" / "__init__.py"), "[]"]
