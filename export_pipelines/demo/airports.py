"""The airports of the United States in a MariaDB, for `demo --load` to pull from."""

from __future__ import annotations

import csv
import io
from contextlib import closing

from export_pipelines.demo.flights import open_table
from export_pipelines.sources.mysql import MysqlSource

DATABASE = "airports"

_TABLE = """
CREATE TABLE IF NOT EXISTS airports (
  faa varchar(3) PRIMARY KEY, name varchar(200) NOT NULL, lat double NOT NULL, lon double NOT NULL
)
"""


def fill_airports(url: str) -> None:
    """Make the table `airports` if it is missing, and add the rows that it lacks. One transaction.

    Raises:
        SourceError: the database is away.
    """
    with open_table("airports") as file:
        rows = [
            (row["faa"], row["name"], row["lat"], row["lon"])
            for row in csv.DictReader(io.TextIOWrapper(file, "utf-8", newline=""))
        ]
    with closing(MysqlSource(url).connect()) as connection, connection.cursor() as cursor:
        cursor.execute(_TABLE)
        connection.begin()
        cursor.executemany("INSERT IGNORE INTO airports VALUES (%s, %s, %s, %s)", rows)
        connection.commit()
