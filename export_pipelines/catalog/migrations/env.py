"""Run by Alembic, inside of the transaction that `catalog.migrate` opened."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table_schema=context.config.attributes["schema"],
)
context.run_migrations()
