"""The service with its page, up in a thread, on a small project; requests are answered when a test wants it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg2

from export_pipelines.api.app import create_app
from export_pipelines.api.server import Server
from export_pipelines.api.service import Service
from export_pipelines.catalog.audit import SYSTEM
from export_pipelines.catalog.requests import RequestRow
from export_pipelines.local.children import free_port
from export_pipelines.settings import apply, load_settings
from export_pipelines.steps.request import RequestContext, recipients_of, run_request
from tests.support.dagster_project import Folder, new_project

FLIGHTS = """
type: export_pipelines.DataSet
attributes:
  table: public.flights
  title: Flights from New York
  description: >-
    Every flight that left Newark, Kennedy or La Guardia in January 2013, with its delays in minutes.
  column_descriptions:
    dep_delay: Minutes; negative when it left early.
    carrier: Two letters of the airline.
  columns: [id, departure, carrier, origin, dest, flight, dep_delay, cancelled, note]
  order_by: [id]
  row_limit: 2000
  filters:
    carrier: {values: [AA, B6, DL, UA], description: Two letters of the airline.}
    dep_delay: {type: integer, description: Minutes.}
    departure: {type: timestamp}
    day: {type: date}
    note: {}
    cancelled: {type: boolean}
  timezone: America/New_York
  who: ["*"]
"""

SECRET_SET = """
type: export_pipelines.DataSet
attributes:
  table: public.salaries
  title: Salaries
  description: For the people of finance alone.
  who: ["group:finance"]
"""

NAUGHTY = "<script>window.hacked = 1</script>"

TABLES = f"""
CREATE TABLE flights (id bigint PRIMARY KEY, departure timestamptz NOT NULL, day date, carrier text, origin text,
    dest text, flight integer, dep_delay numeric, cancelled boolean, note text);
INSERT INTO flights SELECT n, timestamptz '2013-01-01 05:00-05' + n * interval '15 minutes',
    (timestamptz '2013-01-01 05:00-05' + n * interval '15 minutes')::date,
    (ARRAY['UA', 'AA', 'B6', 'DL'])[1 + n % 4], (ARRAY['EWR', 'JFK', 'LGA'])[1 + n % 3],
    (ARRAY['IAH', 'MIA', 'BQN', 'ATL', 'ORD'])[1 + n % 5], 1000 + n % 700,
    CASE WHEN n % 50 = 0 THEN NULL ELSE (n * 7919) % 180 - 20 END, n % 50 = 0,
    CASE WHEN n = 1 THEN '{NAUGHTY}' WHEN n % 50 = 0 THEN 'cancelled' END
    FROM generate_series(1, 3000) n;
CREATE TABLE salaries (name text, amount numeric);
INSERT INTO salaries VALUES ('ann', 1);
ANALYZE flights;
"""


@dataclass
class Served:
    """The service that is up."""

    url: str
    service: Service
    folder: Folder

    def token(self, user: str = "ann", *scopes: str, **values: Any) -> str:
        """A token of a user."""
        wanted = scopes or ("read", "request")
        return self.service.tokens.create(f"of {user}", user, wanted, SYSTEM, **values)[1]

    def client(self) -> httpx.Client:
        """A browser without a screen: it keeps cookies, and asks for pages."""
        return httpx.Client(base_url=self.url, headers={"Accept": "text/html"}, trust_env=False, timeout=60)

    def begin(self, row: RequestRow) -> RequestRow:
        """Begin to work on a request."""
        begun = self.service.requests.begin(row.id, f"run-{row.id}")
        assert begun is not None
        return begun

    def answer(self, row: RequestRow) -> None:
        """Answer a request as a run does."""
        service = self.service
        dataset = service.dataset(row.dataset)
        keys = recipients_of(service.spec, dataset, service.keys.recipient)
        run_request(
            RequestContext(
                dataset, service.source(dataset), service.store, service.requests, service.spec, service.keyring, keys,
                run_id=row.run_id or f"run-{row.id}",
            ),
            row,
        )  # fmt: skip

    def answer_all(self) -> int:
        """Answer what waits; how many that were."""
        waiting = self.service.requests.unsubmitted()
        for each in waiting:
            self.answer(self.begin(each))
        return len(waiting)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Answer each request soon, in a thread."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(0.1):
                self.answer_all()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def audit(self, action: str) -> list[dict[str, Any]]:
        """Entries of the audit log, oldest first."""
        return self.service.pool.rows("SELECT * FROM audit WHERE action = %(a)s ORDER BY id", {"a": action})


def make_tables(url: str) -> None:
    """The source of the data sets."""
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute(TABLES)
    connection.close()


def write_project(root: Path, service: str = "", files: Mapping[str, str] | None = None) -> Folder:
    """The project: two data sets, and what resources/service/defs.yaml says."""
    folder = new_project(root)
    folder.write("assets/demo/flights/defs.yaml", FLIGHTS)
    folder.write("assets/finance/salaries/defs.yaml", SECRET_SET)
    if service:
        folder.write("resources/service/defs.yaml", f"type: export_pipelines.Service\nattributes:\n{service}")
    for name, text in (files or {}).items():
        folder.write(name, text)
    return folder


@contextmanager
def served(
    root: Path,
    source_url: str,
    catalog_url: str,
    service: Callable[[int], str] = lambda port: "",
    files: Mapping[str, str] | None = None,
    more: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """The service of a new project in a folder, on a free port; `service` gives its settings for the port, `files`
    are added to it, and `more` to its variables."""
    port = free_port()
    folder = write_project(root, service(port), files)
    variables = {
        "DATABASE_URL": source_url,
        "DAGSTER_PG_URL": catalog_url,
        "EXPORT_PATH": str(root / "exports"),
        "ARCHIVE_URL": (root / "archive").as_uri(),
        **(more or {}),
    }
    folder.write(".env", "".join(f"{name}={value}\n" for name, value in variables.items()))
    make_tables(source_url)
    before = dict(os.environ)
    for name in (*variables, "DAGSTER_HOME"):
        os.environ.pop(name, None)  # of another service of the same tests
    settings = load_settings(root)
    apply(settings)
    app = create_app(settings)
    server = Server(app, port=port, timeout_graceful_shutdown=2)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 90
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the service did not start"
            time.sleep(0.05)
        yield Served(f"http://127.0.0.1:{port}", app.state.service, folder)
    finally:
        server.should_exit = True
        thread.join(30)
        os.environ.clear()
        os.environ.update(before)


def csrf(page: httpx.Response) -> str:
    """The secret in a page's forms."""
    return page.text.split('name="csrf" value="', 1)[1].split('"', 1)[0]


def log_in(client: httpx.Client, token: str) -> httpx.Response:
    """Log in by a token."""
    return client.post("/login", data={"csrf": csrf(client.get("/login")), "token": token, "next": "/"})
