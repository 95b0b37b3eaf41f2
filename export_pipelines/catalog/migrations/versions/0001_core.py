"""Exports, chain heads, cleanups and their batches, holds."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE export (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          table_id text NOT NULL,
          partition text NOT NULL,
          generation integer NOT NULL,
          attempt text NOT NULL UNIQUE,
          state text NOT NULL CHECK (state IN ('running', 'exported', 'archived', 'failed')),
          store_url text NOT NULL,
          file_key text NOT NULL,
          record jsonb,
          rows bigint,
          archive_url text,
          sequence integer,
          error text,
          run_id text NOT NULL,
          started_at timestamptz NOT NULL DEFAULT now(),
          finished_at timestamptz,
          UNIQUE (table_id, partition, generation))
    """)
    op.execute("""
        CREATE TABLE chain_head (
          table_id text NOT NULL,
          archive_url text NOT NULL,
          sequence integer NOT NULL,
          sha256 text NOT NULL,
          PRIMARY KEY (table_id, archive_url))
    """)
    op.execute("""
        CREATE TABLE cleanup_batch (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          export_id bigint NOT NULL REFERENCES export,
          bucket integer NOT NULL,
          state text NOT NULL CHECK (state IN ('committing', 'committed', 'rolled back')),
          source_xid bigint NOT NULL,
          rows bigint NOT NULL,
          deleted jsonb NOT NULL,
          proof text NOT NULL,
          receipt_sequence integer,
          run_id text NOT NULL,
          at timestamptz NOT NULL DEFAULT now())
    """)
    op.execute("CREATE INDEX ON cleanup_batch (export_id)")
    op.execute("""
        CREATE TABLE cleanup (
          table_id text NOT NULL,
          partition text NOT NULL,
          complete boolean NOT NULL,
          result jsonb NOT NULL,
          run_id text NOT NULL,
          at timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (table_id, partition))
    """)
    op.execute("""
        CREATE TABLE hold (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          table_id text NOT NULL,
          partition text,
          reason text NOT NULL,
          owner text NOT NULL,
          placed_at timestamptz NOT NULL DEFAULT now(),
          released_at timestamptz)
    """)


def downgrade() -> None:
    raise NotImplementedError("the catalog is only ever migrated forward; restore a backup to go back")
