"""Dumps of any range, and which files are entered in a table of reports."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE dump (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          table_id text NOT NULL,
          range text NOT NULL,
          state text NOT NULL CHECK (state IN ('running', 'publishing', 'published', 'failed')),
          store_url text NOT NULL,
          record jsonb,
          error text,
          run_id text NOT NULL,
          started_at timestamptz NOT NULL DEFAULT now(),
          finished_at timestamptz,
          CHECK (record IS NOT NULL OR state IN ('running', 'failed')))
    """)
    op.execute("CREATE INDEX ON dump (table_id, range)")
    op.execute("""
        CREATE TABLE report_entry (
          store_url text NOT NULL,
          file_key text NOT NULL,
          table_id text NOT NULL,
          entered_at timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (store_url, file_key))
    """)


def downgrade() -> None:
    raise NotImplementedError("the catalog is only ever migrated forward; restore a backup to go back")
