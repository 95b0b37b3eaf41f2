"""The client of HAWK's own authors (npm `hawk`) reads a whole table, and checks each answer's signature."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from export_pipelines.local.postgres import Address
from tests.support.reading import reading, rows

PACKAGE = "hawk@9.0.2"
ROWS = 95

SCRIPT = """
const Hawk = require('hawk');
const [first, id, key] = process.argv.slice(2);
const credentials = { id, key, algorithm: 'sha256' };

async function read(uri, method = 'GET', options = {}) {
  const { header, artifacts } = Hawk.client.header(uri, method, { credentials, ...options });
  const reply = await fetch(uri, { method, headers: { authorization: header } });
  const payload = await reply.text();
  const headers = Object.fromEntries(reply.headers.entries());
  await Hawk.client.authenticate({ headers }, credentials, artifacts, { payload, required: true });
  return { status: reply.status, payload };
}

(async () => {
  const ids = [];
  for (let uri = first; uri;) {
    const page = JSON.parse((await read(uri)).payload);
    ids.push(...page.results.map((row) => row.id));
    uri = page.next;
  }
  const missing = await read(first.replace('orders', 'nothing'));
  const hashed = await read(first, 'GET', { payload: '', contentType: '', ext: 'some text', app: 'a', dlg: 'd' });
  const bewit = Hawk.client.getBewit(first, { credentials, ttlSec: 60 });
  const opened = await fetch(`${first}&bewit=${bewit}`);
  const late = Hawk.client.header(first, 'GET', { credentials, timestamp: Math.floor(Date.now() / 1000) - 600 });
  const stale = await fetch(first, { headers: { authorization: late.header } });
  const challenge = { headers: { 'www-authenticate': stale.headers.get('www-authenticate') } };
  const { headers: told } = await Hawk.client.authenticate(challenge, credentials, late.artifacts);
  console.log(JSON.stringify({
    ids, missing: missing.status, hashed: hashed.status, opened: opened.status, stale: stale.status,
    clock: Math.abs(told['www-authenticate'].ts - Date.now() / 1000) < 10,
  }));
})().catch((error) => { console.error(error); process.exit(1); });
"""


@pytest.mark.debian
@pytest.mark.timeout(180)
def test_the_npm_client_reads_a_table_to_its_end(postgres: Address, migrated_database: str, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    assert npm and node, "scripts/debian-packages.sh installs nodejs and npm"
    folder = tmp_path / "client"
    folder.mkdir()
    (folder / "package.json").write_text("{}")
    (folder / "read.js").write_text(SCRIPT)
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", PACKAGE]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    root = tmp_path / "project"
    root.mkdir()
    with reading(postgres, migrated_database, root) as shop:
        shop.kit.load(rows(1, ROWS))
        proxyless = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        first = shop.url("/api/v1/table-data/shop/orders?orientation=records")
        done = subprocess.run(
            [node, "read.js", first, shop.client, shop.key],
            cwd=folder, env=proxyless, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("ids") == list(range(1, ROWS + 1))
    assert found == {"missing": 404, "hashed": 200, "opened": 200, "stale": 401, "clock": True}
