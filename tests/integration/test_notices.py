"""Operators are told, by a real mail server and a real webhook: once a cause, with hint and link."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from aiosmtpd.controller import Controller
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, ScheduleInstigatorData
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from export_pipelines.local.children import free_port
from tests.support.dagster_project import EVENTS, Folder, make_events, new_project, query
from tests.support.load_project import ORDERS, new_load_project, variables


class Mailbox:
    """Takes what the mail server receives."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.messages.append(message)
        return "250 OK"


@pytest.fixture
def mail() -> Iterator[tuple[Mailbox, int]]:
    """A mail server, and its port."""
    mailbox, port = Mailbox(), free_port()
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    yield mailbox, port
    controller.stop()


@pytest.fixture
def webhook() -> Iterator[tuple[list[dict[str, str]], str]]:
    """What a webhook received, and its URL."""
    received: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield received, f"http://127.0.0.1:{server.server_port}/hook"
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, database: str, catalog_url: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A project with the table `demo/events`."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("DAGSTER_PG_URL", catalog_url)
    monkeypatch.setenv("EXPORT_PATH", str(tmp_path / "exports"))
    monkeypatch.setenv("ARCHIVE_URL", (tmp_path / "archive").as_uri())
    root = tmp_path / "project"
    root.mkdir()
    made = new_project(root)
    made.write("assets/demo/events/defs.yaml", EVENTS)
    make_events(database)
    return made


def run(folder: Folder, instance: dg.DagsterInstance, stage: str, day: str) -> str:
    job = folder.load().definitions().resolve_job_def(f"demo__events_{stage}")
    return job.execute_in_process(instance=instance, partition_key=day, raise_on_error=False).run_id


def tick(folder: Folder, instance: dg.DagsterInstance, cursor: str | None) -> str | None:
    definitions = folder.load().definitions()
    with dg.build_sensor_context(
        instance=instance, cursor=cursor, sensor_name="notices", repository_def=definitions.get_repository_def()
    ) as context:
        return definitions.resolve_sensor_def("notices").evaluate_tick(context).cursor


def test_refused_cleanup_is_told_once_with_hint_and_link(
    folder: Folder,
    mail: tuple[Mailbox, int],
    webhook: tuple[list[dict[str, str]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mailbox, port = mail
    received, url = webhook
    monkeypatch.setenv("WEBHOOK_URL", url)
    folder.write(
        "schedules/notices/defs.yaml",
        f"""
        type: export_pipelines.FailureNotice
        attributes:
          name: notices
          email_to: [operators@example.org]
          smtp_host: 127.0.0.1
          smtp_port: {port}
          webhook_url: {{env: WEBHOOK_URL}}
          ui_url: https://dagster.example.org/
        """,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        first = run(folder, instance, "cleanup", "2025-01-02")
        run(folder, instance, "cleanup", "2025-01-03")
        cursor = tick(folder, instance, None)
        tick(folder, instance, cursor)
    (message,) = mailbox.messages
    assert message["To"] == "operators@example.org"
    assert message["Subject"] == "demo/events: a run failed"
    text = message.get_content()
    assert "partition 2025-01-02 of 'demo/events' is not archived" in text
    assert "hint: run its export and archive first" in text
    assert f"https://dagster.example.org/runs/{first}" in text
    (posted,) = received
    assert posted["table"] == "demo/events"
    assert posted["link"].endswith(first)


def test_late_rows_are_told_and_wait_while_the_mail_server_is_down(
    folder: Folder, mail: tuple[Mailbox, int], database: str
) -> None:
    mailbox, port = mail
    document = """
        type: export_pipelines.FailureNotice
        attributes: {{name: notices, email_to: [a@example.org], smtp_host: 127.0.0.1, smtp_port: {port}}}
        """
    with dg.DagsterInstance.ephemeral() as instance:
        for stage in ("export", "archive"):
            run(folder, instance, stage, "2025-01-01")
        query(database, "INSERT INTO events VALUES (999999, '2025-01-01 12:00+00', 'late')")
        run(folder, instance, "cleanup", "2025-01-01")
        folder.write("schedules/notices/defs.yaml", document.format(port=1))
        with pytest.raises(ConnectionRefusedError):
            tick(folder, instance, None)
        folder.write("schedules/notices/defs.yaml", document.format(port=port))
        tick(folder, instance, None)
    (message,) = mailbox.messages
    assert message["Subject"] == "demo/events: check no_late_rows failed"
    assert "1 rows came or changed after the export" in message.get_content()


def switched_on(instance: dg.DagsterInstance, schedule: str, at: float) -> None:
    """The state that the UI's switch makes; no daemon has ticked since."""
    location = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name="project"), "project")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), schedule)
    data = ScheduleInstigatorData("0 0 * * *", start_timestamp=at)
    instance.add_instigator_state(InstigatorState(origin, InstigatorType.SCHEDULE, InstigatorStatus.RUNNING, data))


@pytest.mark.parametrize(("days", "told"), [(0.5, 0), (3, 1)])
def test_a_missed_schedule_is_told_once(folder: Folder, mail: tuple[Mailbox, int], days: float, told: int) -> None:
    mailbox, port = mail
    folder.write(
        "schedules/all/defs.yaml",
        f"""
        type: export_pipelines.ExportSchedule
        attributes: {{name: nightly}}
        ---
        type: export_pipelines.FailureNotice
        attributes: {{name: notices, email_to: [a@example.org], smtp_host: 127.0.0.1, smtp_port: {port}}}
        """,
    )
    with dg.instance_for_test() as instance:
        switched_on(instance, "nightly", time.time() - days * 86400)
        tick(folder, instance, tick(folder, instance, None))
    assert [message["Subject"] for message in mailbox.messages] == ["demo/events: a schedule was missed"] * told


def test_owners_of_a_table_are_told_of_its_failed_load(
    tmp_path: Path, database: str, catalog_url: str, mail: tuple[Mailbox, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox, port = mail
    root = tmp_path / "project"
    root.mkdir()
    for name, value in variables(root, database, catalog_url, database).items():
        monkeypatch.setenv(name, value)
    folder = new_load_project(root)
    folder.write("assets/shop/orders/defs.yaml", ORDERS + '  owners: [ann@example.org, "team:data"]\n')
    folder.write(
        "schedules/notices/defs.yaml",
        f"""
        type: export_pipelines.FailureNotice
        attributes: {{name: notices, email_owners: true, smtp_host: 127.0.0.1, smtp_port: {port}}}
        """,
    )
    (root / "drops" / "bad.csv").write_text("id,name\nx,Eve\ny,Eve\n")
    with dg.DagsterInstance.ephemeral() as instance:
        job = folder.load().definitions().resolve_job_def("shop__orders_load")
        assert not job.execute_in_process(instance=instance, raise_on_error=False).success
        tick(folder, instance, tick(folder, instance, None))
    (message,) = mailbox.messages
    assert (message["To"], message["Subject"]) == ("ann@example.org", "shop/orders: a run failed")
    assert "bad.csv" in message.get_content()
