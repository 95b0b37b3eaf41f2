"""The OpenAPI document against the service itself, by schemathesis: every check that it has, no deviation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from export_pipelines.api.users import SCOPES
from export_pipelines.local.postgres import Address
from export_pipelines.local.project import write_dagster_yaml
from tests.integration.test_api_exports import FILES as TABLES
from tests.support.api import FILES, answered, ask, caller, ended
from tests.support.pages import served
from tests.support.servers import new_database
from tests.support.uploads import AREA_FILES

SETTINGS = """
    environments: [default, lab]
    wait_seconds: 1
    max_pending_per_user: 100000
    rates:
      requests_per_user: 1000000/minute
      requests_per_address: 1000000/minute
      exports_per_user: 1000000/minute
      failed_logins_per_address: 1000000/minute
"""
CONFIG = """
# What fits the document may still ask for what there is not, or be more than is taken here: filters and columns are
# those of a data set, and uploads have a limit of their own.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 409, 410, 413, 414, 416, 422]
# An address that is too long is refused before anything is known of who calls.
[checks.missing_required_header]
expected-statuses = [401, 406, 414]
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 410, 413, 414, 415, 422, 428, 429, 431]
"""


SEED = os.environ.get("SCHEMATHESIS_SEED", "1")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_service_answers_as_its_document_says(postgres: Address, migrated_database: str, tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(root, source, catalog, lambda port: SETTINGS, {**FILES, **TABLES, **AREA_FILES}) as up,
        caller(up, "op", *SCOPES) as operator,
    ):
        write_dagster_yaml(up.service.settings)
        told = ask(operator, limit=10)
        answered(up, told["id"])
        assert ended(operator, told["id"])["status"] == "Succeeded"
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config), "run",
            f"{up.url}/openapi.json", "--header", f"Authorization: {operator.headers['Authorization']}",
            "--checks", "all", "--max-examples", "30", "--max-time", "60", "--seed", SEED, "--no-color",
            "--warnings", "off", "--suppress-health-check", "all", "--request-timeout", "20",
        ]  # fmt: skip
        proxyless = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        done = subprocess.run(
            command, cwd=tmp_path, env=proxyless, capture_output=True, text=True, timeout=350, check=False
        )
    said = "\n".join(line[:400] for line in (done.stdout + done.stderr).splitlines())
    assert done.returncode == 0, said[-40_000:]
