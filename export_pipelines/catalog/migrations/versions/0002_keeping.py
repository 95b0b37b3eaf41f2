"""Expired exports, holds on a range of time, verifications of archived files."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE export DROP CONSTRAINT export_state_check")
    op.execute("""
        ALTER TABLE export
          ADD CONSTRAINT export_state_check
            CHECK (state IN ('running', 'exported', 'archived', 'failed', 'expiring', 'expired')),
          ADD COLUMN expire_sequence integer
    """)
    op.execute("""
        ALTER TABLE hold
          ADD COLUMN window_start timestamptz,
          ADD COLUMN window_end timestamptz,
          ADD COLUMN released_by text,
          ADD CHECK (partition IS NULL OR (window_start IS NULL AND window_end IS NULL)),
          ADD CHECK (window_start < window_end)
    """)
    op.execute("""
        CREATE TABLE verification (
          table_id text NOT NULL,
          archive_url text NOT NULL,
          sequence integer NOT NULL,
          verified_at timestamptz NOT NULL,
          intact boolean NOT NULL,
          problem text NOT NULL DEFAULT '',
          run_id text NOT NULL,
          PRIMARY KEY (table_id, archive_url, sequence))
    """)


def downgrade() -> None:
    raise NotImplementedError("the catalog is only ever migrated forward; restore a backup to go back")
