"""Making and migrating the catalog: a schema of our own in the database that Dagster's storage is in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export_pipelines.errors import CatalogError
from export_pipelines.sources.postgres import redact

_SCRIPTS = Path(__file__).parent / "migrations"


def migrate(url: str, schema: str = "export_pipelines") -> list[str]:
    """Bring the catalog to the newest version; return the versions that were applied, oldest first.

    Each migration is a transaction: a crash leaves the version before. Two at once are put one after the other.

    Raises:
        CatalogError: the database cannot be reached, or the role may not create a schema in it.
    """
    import alembic.command
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    engine = _engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": schema})
            _refuse_shared_schema(connection, schema)
            before = _version(connection, schema)
            connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
            connection.execute(text(f'SET LOCAL search_path TO "{schema}"'))
            config = _config(connection, schema)
            alembic.command.upgrade(config, "head")
            return _between(config, before)
    except SQLAlchemyError as error:
        raise CatalogError(
            f"the catalog in {redact(url)} cannot be migrated: {redact(str(error.__cause__ or error)).splitlines()[0]}",
            hint="DAGSTER_PG_URL names its database; the role needs CREATE on it",
        ) from error
    finally:
        engine.dispose()


def _refuse_shared_schema(connection: Any, schema: str) -> None:
    """Dagster makes its tables in the role's current schema, and versions them in a table of the same name as ours."""
    from sqlalchemy import text

    role, first = connection.execute(text("SELECT current_user, (current_schemas(false))[1]")).one()
    # The schema need not exist yet: a role's own name comes first in the default search_path.
    if schema in (role, first):
        raise CatalogError(
            f"role {role!r} has {schema!r} first in its search_path, so Dagster's tables would go into the catalog",
            hint="use another role, or ALTER ROLE … SET search_path TO public",
        )


def current_version(url: str, schema: str = "export_pipelines") -> str | None:
    """The version of the catalog there is, None if there is none. Raises CatalogError when it cannot be reached."""
    from sqlalchemy.exc import SQLAlchemyError

    engine = _engine(url)
    try:
        with engine.connect() as connection:
            return _version(connection, schema)
    except SQLAlchemyError as error:
        raise CatalogError(
            f"the catalog in {redact(url)} cannot be read: {redact(str(error.__cause__ or error)).splitlines()[0]}",
            hint="DAGSTER_PG_URL names its database; is it running?",
        ) from error
    finally:
        engine.dispose()


def newest_version() -> str:
    """The version that this software works with."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(_SCRIPTS)).get_current_head() or ""


def _engine(url: str) -> Any:
    from sqlalchemy import create_engine, pool

    return create_engine(url, poolclass=pool.NullPool, connect_args={"connect_timeout": 10})


def _config(connection: Any, schema: str) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.attributes.update(connection=connection, schema=schema)
    return config


def _version(connection: Any, schema: str) -> str | None:
    from sqlalchemy import text

    table = f'"{schema}".alembic_version'
    if connection.execute(text("SELECT to_regclass(:table)"), {"table": table}).scalar() is None:
        return None
    version = connection.execute(text(f"SELECT version_num FROM {table}")).scalar()
    return str(version) if version else None


def _between(config: Any, before: str | None) -> list[str]:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(config).walk_revisions("base", "heads")
    newer = []
    for script in scripts:
        if script.revision == before:
            break
        newer.append(f"{script.revision} {script.doc}")
    return newer[::-1]
