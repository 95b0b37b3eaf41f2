"""A feed to load from: a local HTTP server with the flights of 2013 as monthly CSV files, a sheet, and a paged API."""

from __future__ import annotations

import csv
import gzip
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from export_pipelines.demo.flights import open_table

PAGE = 500
"""Greatest number of records of a page of the API."""


class Feed:
    """What is served. Each part is made when it is first asked for."""

    @cached_property
    def months(self) -> dict[str, bytes]:
        """Name and bytes of the monthly files of flights, gzip-compressed CSV."""
        with open_table("flights") as file:
            lines = io.TextIOWrapper(file, "utf-8", newline="")
            header = next(lines)
            found: dict[str, list[str]] = {}
            at = next(csv.reader([header])).index("month")
            for line in lines:
                month = line.split(",", at + 1)[at].strip('"')
                found.setdefault(f"flights-2013-{int(month):02d}.csv.gz", [header]).append(line)
        return {name: gzip.compress("".join(rows).encode(), 1, mtime=0) for name, rows in sorted(found.items())}

    @cached_property
    def sheet(self) -> bytes:
        """The airlines as an Excel file, its header in the third row."""
        import xlsxwriter

        out = io.BytesIO()
        book = xlsxwriter.Workbook(out)
        # Else the file would be another one each time.
        book.set_properties({"created": datetime(2013, 12, 31)})
        sheet = book.add_worksheet()
        sheet.write(0, 0, "Airlines of New York, 2013")
        with open_table("airlines") as file:
            for number, row in enumerate(csv.reader(io.TextIOWrapper(file, "utf-8", newline="")), 2):
                sheet.write_row(number, 0, row)
        book.close()
        return out.getvalue()

    @cached_property
    def planes(self) -> list[dict[str, str | None]]:
        """The records of the API."""
        with open_table("planes") as file:
            rows = csv.DictReader(io.TextIOWrapper(file, "utf-8", newline=""))
            return [{name: None if value == "NA" else value for name, value in row.items()} for row in rows]

    def reply(self, target: str) -> tuple[str, bytes] | None:
        """Content type and bytes of a path with its query; None if there is nothing."""
        parts = urlsplit(target)
        match parts.path.strip("/"):
            case "flights":
                names = [
                    {"url": f"/flights/{name}", "name": name, "bytes": len(data)} for name, data in self.months.items()
                ]
                return "application/json", json.dumps({"files": names}).encode()
            case "airlines.xlsx":
                return "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", self.sheet
            case "api/planes":
                query = parse_qs(parts.query)
                offset, limit = int(query.get("offset", ["0"])[0]), int(query.get("limit", ["100"])[0])
                records = self.planes[offset : offset + min(limit, PAGE)]
                return "application/json", json.dumps({"total": len(self.planes), "records": records}).encode()
        folder, _, name = parts.path.strip("/").partition("/")
        if folder == "flights" and name in self.months:
            return "application/gzip", self.months[name]
        return None


@contextmanager
def serving() -> Iterator[str]:
    """The feed on a free port of this machine, for as long as the block; its URL."""
    feed, lock = Feed(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                found = feed.reply(self.path)
            kind, body = found or ("text/plain", b"there is nothing of that name\n")
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the terminal is the demo's."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="feed", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
