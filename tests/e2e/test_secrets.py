"""Secrets are planted in everything that a project may be given, failures provoked, and all that was said and kept is
searched: what was printed, Dagster's storage, the catalog, and every file."""

from __future__ import annotations

import re
import secrets
import traceback
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psycopg2
import pyrage
import pytest

from export_pipelines.components.automation import FailureNoticeSpec
from export_pipelines.components.notices import Notice, send
from export_pipelines.signing import make_keys
from tests.support.command_line import CommandLine
from tests.support.dagster_project import EVENTS, RESOURCES, make_events, new_project
from tests.support.servers import Seaweed, run_sql

STORES = """
---
type: export_pipelines.S3Store
attributes:
  resource_key: bucket
  url: {env: BUCKET_URL}
  endpoint_url: {env: BUCKET_ENDPOINT}
  region_name: us-east-1
  aws_access_key_id: {env: BUCKET_KEY}
  aws_secret_access_key: {env: BUCKET_SECRET}
---
type: export_pipelines.AgeIdentity
attributes: {env: AGE_IDENTITY}
---
type: export_pipelines.SigningKey
attributes: {env: SIGNING_KEY}
"""

NOTICE = """
type: export_pipelines.FailureNotice
attributes:
  name: tell
  email_to: [somebody@example.com]
  smtp_port: 1
  smtp_user: {env: SMTP_USER}
  smtp_password: {env: SMTP_PASSWORD}
  webhook_url: {env: WEBHOOK_URL}
"""


@dataclass
class Planted:
    """A project whose every secret is known, and all that it has printed."""

    cli: CommandLine
    secrets: dict[str, str]
    printed: list[tuple[str, str]] = field(default_factory=list)

    def run(self, *arguments: str, code: int | None = None, **variables: str) -> str:
        """Run a command as talkative as it can be; what it printed is kept."""
        result = self.cli(*arguments, "--verbose", **variables)
        text = result.out + result.err
        self.printed.append((" ".join(arguments), text))
        assert code in (None, result.code), text
        return text

    def leaks(self, place: str, text: str) -> Iterator[str]:
        for name, secret in self.secrets.items():
            for form in {secret, quote(secret, safe="")}:
                if form in text:
                    around = text.index(form)
                    yield f"{name} in {place}: …{text[max(0, around - 200) : around]}"


@pytest.fixture
def planted(tmp_path: Path, database: str, catalog_url: str, seaweed: Seaweed) -> Iterator[Planted]:
    identity = pyrage.x25519.Identity.generate()
    role, password = f"r_{secrets.token_hex(4)}", f"p@ss/{secrets.token_hex(12)}%:"
    folder = new_project(tmp_path / "project")
    make_events(database, days=2)
    run_sql(database, f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{password}'")
    make_keys(tmp_path / "signing.pem")
    pem = (tmp_path / "signing.pem").read_text()
    folder.write("resources/defs.yaml", RESOURCES + STORES)
    sealed = f"  encryption: {{recipients: [{identity.to_public()}]}}\n  retries: {{attempts: 0}}\n  store: bucket\n"
    folder.write("assets/sales/events/defs.yaml", EVENTS.replace("2025-01-11", "2025-01-03") + sealed)
    folder.write("schedules/tell/defs.yaml", NOTICE)
    host, smtp, hook = database.split("@")[1], secrets.token_hex(12), secrets.token_hex(12)
    variables = {
        "DATABASE_URL": f"postgresql://{role}:{quote(password, safe='')}@{host}",
        "DAGSTER_PG_URL": catalog_url,
        "EXPORT_PATH": str(folder.root / "exports"),
        "ARCHIVE_URL": (folder.root / "archive").as_uri(),
        "DAGSTER_HOME": str(folder.root / "home"),
        "BUCKET_URL": seaweed.new_bucket(),
        "BUCKET_ENDPOINT": seaweed.endpoint,
        "BUCKET_KEY": seaweed.access_key,
        "BUCKET_SECRET": seaweed.secret_key,
        "AGE_IDENTITY": str(identity),
        "SIGNING_KEY": pem,
        "SMTP_USER": "mailer",
        "SMTP_PASSWORD": smtp,
        "WEBHOOK_URL": f"https://127.0.0.1:1/hooks/{hook}",
    }
    known = {
        "password of the source": password,
        "password of the catalog": catalog_url.split(":")[2].split("@", maxsplit=1)[0],
        "key of the bucket": seaweed.secret_key,
        "identity": str(identity),
        "signing key": pem.splitlines()[1],
        "password of the mail server": smtp,
        "URL of the webhook": hook,
    }
    yield Planted(CommandLine(folder.root, variables), known)
    run_sql(database, f"DROP OWNED BY {role}")
    run_sql(database, f"DROP ROLE {role}")


def kept_in(url: str) -> Iterator[tuple[str, str]]:
    """Every value of every table of a database, what is compressed in it unpacked."""
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
                "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
            for (table,) in cursor.fetchall():
                cursor.execute(f"SELECT * FROM {table}")
                for row in cursor.fetchall():
                    for value in row:
                        yield table, unpacked(value)
    finally:
        connection.close()


def unpacked(value: object) -> str:
    if isinstance(value, memoryview | bytes):
        data = bytes(value)
        with suppress(zlib.error):
            data = zlib.decompress(data)
        return data.decode(errors="replace")
    return str(value)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_secret_is_in_anything_that_is_printed_logged_or_kept(planted: Planted) -> None:
    ok = planted.cli.variables
    planted.run("run", "--all", code=0)
    planted.run("check")
    planted.run("doctor")
    planted.run("list", "--json", code=0)
    planted.run("status", code=0)
    planted.run("verify", "--json", code=0)
    planted.run("plan", "sales/events", "--partition", "2025-01-01")
    planted.run("roles", "--password-placeholders", code=0)
    planted.run("restore", "sales/events", "--all", "--into", "again", code=0)

    wrong = planted.secrets["wrong password"] = secrets.token_hex(12)
    role, host = re.findall(r"//(\w+):.*@(.*)", ok["DATABASE_URL"])[0]
    failing = {
        "a wrong password": {"DATABASE_URL": f"postgresql://{role}:{wrong}@{host}"},
        "nobody there": {"DATABASE_URL": f"postgresql://{role}:{wrong}@127.0.0.1:1/none"},
        "no such host": {"DATABASE_URL": f"postgresql://{role}:{wrong}@no-such-host.invalid/none"},
        "an @ in the password": {"DATABASE_URL": f"postgresql://{role}:{wrong}@{wrong}@{host}"},
        "key=value": {"DATABASE_URL": f"host=127.0.0.1 port=1 user={role} password={wrong}"},
        "a wrong key of the bucket": {"BUCKET_SECRET": wrong},
        "no identity": {"AGE_IDENTITY": f"AGE-SECRET-KEY-1{wrong.upper()}"},
        "no signing key": {"SIGNING_KEY": f"-----BEGIN PRIVATE KEY-----\n{wrong}\n-----END PRIVATE KEY-----\n"},
    }
    planted.secrets["wrong identity"] = wrong.upper()
    for variables in failing.values():
        planted.run("run", "--all", "--force", **variables)
    for name in ("a wrong password", "an @ in the password", "no identity", "no signing key"):
        planted.run("check", **failing[name])
    for name in ("no identity", "no signing key"):
        planted.run("verify", **failing[name])
    catalog = ok["DAGSTER_PG_URL"].replace(planted.secrets["password of the catalog"], wrong)
    planted.run("status", DAGSTER_PG_URL=catalog, code=1)
    assert any("Traceback" in text for _, text in planted.printed)

    kept = list(kept_in(ok["DAGSTER_PG_URL"]))
    # What is looked for would be found: in events of runs that failed, and in what Dagster keeps compressed.
    assert any("event_logs" in table and "password authentication failed" in text for table, text in kept)
    assert any("snapshots" in table and "BUCKET_SECRET" in text for table, text in kept)
    leaks = [leak for command, text in planted.printed for leak in planted.leaks(f"the output of {command}", text)]
    for table, text in kept:
        leaks += planted.leaks(f"table {table}", text)
    files = [path for path in planted.cli.root.rglob("*") if path.is_file()]
    for path in files:
        leaks += planted.leaks(f"file {path.relative_to(planted.cli.root)}", path.read_bytes().decode(errors="replace"))
    assert leaks == []
    assert {path.suffix for path in files} >= {".json", ".sql", ".age"}


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1:1/hooks/{}",
        "https://127.0.0.1:1/hooks/{} \n",
        "ftp://{}/",
        "http://user:{}@127.0.0.1:1/",
        "{}",
    ],
)
def test_a_notice_that_cannot_be_sent_does_not_tell_the_url_of_the_webhook(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = secrets.token_hex(12)
    monkeypatch.setenv("WEBHOOK_URL", url.format(secret))
    spec = FailureNoticeSpec.model_validate({"name": "tell", "webhook_url": {"env": "WEBHOOK_URL"}})
    with pytest.raises((OSError, ValueError)) as raised:
        send(spec, Notice("cause", "title", "text", "hint", "link", "table", "run"))
    assert secret not in "".join(traceback.format_exception(raised.value))
