"""The parts that other tests stand on really are there."""

from __future__ import annotations

import psycopg2
import pytest
from botocore.exceptions import ClientError

from tests.support.servers import Seaweed, TlsPostgres, run_sql


def test_s3_server_refuses_a_conditional_put_on_a_taken_key(seaweed: Seaweed) -> None:
    bucket = seaweed.new_bucket().removeprefix("s3://")
    client = seaweed.client()
    client.put_object(Bucket=bucket, Key="a", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=bucket, Key="a", Body=b"2", IfNoneMatch="*")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == b"1"


def test_s3_server_refuses_a_wrong_secret(seaweed: Seaweed) -> None:
    bucket = seaweed.new_bucket().removeprefix("s3://")
    stranger = Seaweed(seaweed.endpoint, seaweed.access_key, "wrong", seaweed.log)
    with pytest.raises(ClientError) as refused:
        stranger.client().list_objects_v2(Bucket=bucket)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


@pytest.mark.debian
def test_tls_server_takes_a_verified_connection_and_none_without_tls(tls_postgres: TlsPostgres) -> None:
    assert run_sql(tls_postgres.url(), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True,)]
    with pytest.raises(psycopg2.OperationalError, match="rejects"):
        run_sql(tls_postgres.url(sslmode="disable"), "SELECT 1")
