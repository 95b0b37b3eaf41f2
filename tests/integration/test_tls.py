"""TLS parameters of a connection reach the server, and one that cannot be verified is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from export_pipelines.components.resources import PostgresConnectionSpec
from export_pipelines.errors import SourceError
from export_pipelines.sources.postgres import PostgresSource
from tests.support.servers import TlsPostgres


def source(server: TlsPostgres, **parameters: str) -> PostgresSource:
    """The source of a connection whose URL says nothing of TLS."""
    os.environ["TLS_URL"] = server.url(sslmode="prefer").partition("?")[0]
    given = {"resource_key": "source", "url": {"env": "TLS_URL"}, **parameters}
    spec = PostgresConnectionSpec.model_validate(given)
    found: PostgresSource = spec.resource().process_config_and_initialize().open()
    return found


def encrypted(found: PostgresSource) -> bool:
    with found.session() as session:
        session.begin()
        return bool(session.one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")[0])


@pytest.mark.debian
def test_tls_parameters_of_a_connection_reach_the_server(tls_postgres: TlsPostgres, tmp_path: Path) -> None:
    assert encrypted(source(tls_postgres, sslmode="verify-full", sslrootcert=str(tls_postgres.certificate)))
    with pytest.raises(SourceError, match="rejects connection"):
        encrypted(source(tls_postgres, sslmode="disable"))
    other = tmp_path / "other.crt"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-out", str(other)]
    subprocess.run([*make, "-keyout", str(tmp_path / "other.key")], check=True, capture_output=True)
    with pytest.raises(SourceError, match="certificate verify failed"):
        encrypted(source(tls_postgres, sslmode="verify-full", sslrootcert=str(other)))
