"""What delete.sql matches after a cleanup: rows that came late, and rows that select.sql does not give."""

from __future__ import annotations

from export_pipelines.manifest import ArtifactManifest
from export_pipelines.sources import mysql_inspect
from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.sql_mysql import MysqlDelete, quote_identifier
from export_pipelines.steps.keys import PLAIN
from export_pipelines.steps.mysql.reading import described, relation_of, text_of
from export_pipelines.steps.mysql.statements import MysqlStatements


def left(
    session: MysqlSession, parts: MysqlStatements, delete: MysqlDelete, latest: ArtifactManifest
) -> tuple[int, int]:
    """Rows that delete.sql still matches: those that the next export will take, and the others.

    A row is told from others by its key; of a table without one by its content.
    """
    total = int(session.one(f"SELECT COUNT(*) FROM ({delete.selection('1 AS one')}\n) AS matched")[0])
    if not total:
        return 0, 0
    table = mysql_inspect.base_table(session, delete.relation.schema, delete.relation.name)
    columns = described(session, table)
    key = latest.export.identity.key
    relation = relation_of(session, parts, table)
    names = key or table.names
    own = [columns[name.lower()] for name in names if name.lower() in columns]
    mark = f"MD5({text_of(own, PLAIN)}) AS mark"
    matched = delete.selection(mark)
    if relation is not None and latest.export.identity.mode == "record":
        carried = ", ".join(
            f"{relation.qualifier}.{quote_identifier(column.name)} AS {quote_identifier(f'export_pipelines_{n}')}"
            for n, column in enumerate(own)
        )
        inner = parts.select.with_columns(carried)
        given = text_of(own, PLAIN, [f"export_pipelines_{n}" for n in range(len(own))])
    elif latest.export.identity.mode == "key":
        inner, given = parts.select.query, text_of(own, PLAIN)
    else:
        return total, 0
    query = (
        f"SELECT COUNT(*) FROM ({matched}\n) AS matched WHERE mark IN "
        f"(SELECT MD5({given}) FROM ({inner}\n) AS export_pipelines_rows)"
    )
    late = int(session.one(query)[0])
    return late, total - late
