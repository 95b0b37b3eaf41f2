"""Files that people upload, from their first byte to their load."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE upload (
          id text PRIMARY KEY,
          area text NOT NULL,
          organisation text NOT NULL,
          dataset text NOT NULL,
          file_name text NOT NULL,
          fingerprint text NOT NULL,
          size bigint NOT NULL CHECK (size > 0),
          received bigint NOT NULL DEFAULT 0 CHECK (received BETWEEN 0 AND size),
          state text NOT NULL DEFAULT 'receiving'
            CHECK (state IN ('receiving', 'received', 'loading', 'dropped')),
          username text NOT NULL,
          created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
          updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
          attempts integer NOT NULL DEFAULT 0,
          run_id text,
          landed text)
    """)
    op.execute("CREATE INDEX ON upload (area, organisation, dataset, created_at)")


def downgrade() -> None:
    raise NotImplementedError("the catalog is only ever migrated forward; restore a backup to go back")
