"""What lies beside an archived file so that a person with a shell needs nothing of ours: SHA256SUMS and CREATE TABLE.

Both stand in the artifact's folder, so that `sha256sum -c SHA256SUMS` there checks all of it, and the manifest names
them with their own digests. They prove nothing that the manifest does not; nothing of ours reads them but to verify.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from export_pipelines.errors import IntegrityError
from export_pipelines.formats.csv import copy_options
from export_pipelines.manifest import ExportRecord, FileProof, digest
from export_pipelines.naming import safe
from export_pipelines.sources.postgres import PINNED
from export_pipelines.sql import quote_identifier, quote_literal
from export_pipelines.sql_mysql import quote_identifier as mysql_identifier
from export_pipelines.sql_mysql import quote_literal as mysql_literal
from export_pipelines.steps.ddl import create_table_sql, mysql_load_sql, mysql_table_sql
from export_pipelines.stores.base import Store

SUMS = "SHA256SUMS"
# On which it depends how text is read.
_SETTINGS = ("DateStyle", "IntervalStyle", "TimeZone", "bytea_output", "lc_monetary", "xmloption")
_OTHER_FORMAT = "The file is {}: restore it with export-pipelines, or read it with any program that knows the format."


def write_companions(
    archive: Store, folder: str, export: ExportRecord, files: Sequence[FileProof]
) -> tuple[FileProof, ...]:
    """Write both into the folder of an artifact, whose `files` are there; return their proofs for the manifest.

    Crash: as of all in the folder, without its manifest it does not exist, and `sweep` removes it.
    """
    sql = _put(archive, f"{folder}/{safe(_name(export))}.sql", table_sql(export).encode())
    lines = [f"{proof.sha256}  {posixpath.basename(proof.key)}\n" for proof in (*files, sql)]
    return sql, _put(archive, f"{folder}/{SUMS}", "".join(lines).encode())


def table_sql(export: ExportRecord) -> str:
    """CREATE TABLE of an export's columns in the dialect of its source, and in comments how its file is loaded."""
    if export.source.engine == "mysql":
        return _mysql_sql(export)
    table = quote_identifier(_name(export))
    notes = [
        f"{export.table}, partition {export.partition}, generation {export.generation}: {export.rows} rows",
        "These settings and this statement, then in the same session, the file (decrypted and decompressed) as STDIN:",
        f"COPY {table} FROM STDIN WITH ({copy_options(export.csv)})",
    ]
    if export.layout is not None:
        notes[1:] = [_OTHER_FORMAT.format(export.format)]
    # A line end within a comment would end it, and make SQL of what follows.
    comments = "".join(f"-- {' '.join(note.split())}\n" for note in notes)
    settings = {**PINNED, "TimeZone": "UTC", **export.source.settings}
    sets = "".join(f"SET {name} = {quote_literal(settings[name])};\n" for name in _SETTINGS)
    return f"{comments}{sets}{create_table_sql(table, export.columns)};\n"


def _mysql_sql(export: ExportRecord) -> str:
    table = mysql_identifier(_name(export))
    settings = {"sql_mode": "", "time_zone": "+00:00", **export.source.settings}
    notes = [
        f"{export.table}, partition {export.partition}, generation {export.generation}: {export.rows} rows",
        "These settings and this statement, then in the same session the file (decrypted and decompressed).",
        "LOAD DATA takes an empty string for NULL: where both matter, restore the file with export-pipelines.",
        mysql_load_sql(table, export.columns, export.csv),
    ]
    if export.layout is not None:
        notes[1:] = [_OTHER_FORMAT.format(export.format)]
    comments = "".join(f"-- {' '.join(note.split())}\n" for note in notes)
    sets = [f"SET {name} = {mysql_literal(settings[name])};\n" for name in ("sql_mode", "time_zone")]
    return f"{comments}SET NAMES utf8mb4;\n{''.join(sets)}{mysql_table_sql(table, export.columns)};\n"


def _name(export: ExportRecord) -> str:
    return export.table.rpartition("/")[2]


def _put(archive: Store, key: str, data: bytes) -> FileProof:
    archive.put(key, data)
    sha256 = digest(data)
    return FileProof(key=key, size=len(data), sha256=sha256, raw_size=len(data), raw_sha256=sha256)


def check_companion(archive: Store, proof: FileProof) -> None:
    """Raises IntegrityError: it is missing, or not as it was written."""
    info = archive.head(proof.key)
    if info is None:
        raise IntegrityError(f"{archive.locate(proof.key)} is missing")
    if info.size != proof.size or digest(archive.get(proof.key)) != proof.sha256:
        raise IntegrityError(f"{archive.locate(proof.key)} is not what its manifest says: size or SHA-256 differs")
