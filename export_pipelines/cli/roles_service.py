"""SQL of the role that serves exports on demand: all of a service's work, and no power over the audit log."""

from __future__ import annotations

from collections.abc import Iterator

from export_pipelines.sql import quote_identifier


def catalog_grants(role: str, schema: str) -> Iterator[str]:
    """Rights of a (quoted) role in the catalog: `migrate` must have made it."""
    where = quote_identifier(schema)
    yield f"GRANT USAGE ON SCHEMA {where} TO {role};"
    # Runs of tables that the service starts read and write the rest as well; of the audit log nobody but its owner may.
    yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {where} TO {role};"
    yield f"REVOKE UPDATE, DELETE, TRUNCATE ON {where}.audit FROM {role};"
    yield f"REVOKE INSERT, UPDATE, DELETE ON {where}.audit_setting, {where}.alembic_version FROM {role};"
    yield f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {where} TO {role};"
    yield f"GRANT EXECUTE ON FUNCTION {where}.audit_set_keep(integer), {where}.audit_prune() TO {role};"


def storage_grants(role: str) -> Iterator[str]:
    """Rights of a (quoted) role in Dagster's storage, whose tables its first start makes: the service makes runs."""
    yield f"GRANT USAGE ON SCHEMA public TO {role};"
    yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};"
    yield f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role};"


def tables_are_there(url: str, schema: str) -> bool:
    """Whether the catalog has the tables of requests, and Dagster's storage its own. Raises SourceError."""
    from export_pipelines.sources.postgres import PostgresSource

    with PostgresSource(url).session() as session:
        session.begin()
        found = session.one(
            "SELECT to_regclass(%s) IS NOT NULL AND to_regclass('public.runs') IS NOT NULL",
            (f"{quote_identifier(schema)}.audit",),
        )
    return bool(found[0])
