"""Reading loaded tables: clients that sign their calls, and which calls were seen."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE hawk_client (
          id text PRIMARY KEY,
          name text NOT NULL,
          tables text[] NOT NULL,
          key bytea NOT NULL,
          previous_key bytea,
          previous_until timestamptz,
          created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
          rotated_at timestamptz,
          revoked_at timestamptz,
          used_at timestamptz,
          CHECK ((previous_key IS NULL) = (previous_until IS NULL)))
    """)
    op.execute("""
        CREATE TABLE hawk_nonce (
          client text NOT NULL,
          ts bigint NOT NULL,
          nonce text NOT NULL,
          PRIMARY KEY (client, ts, nonce))
    """)
    op.execute("CREATE INDEX ON hawk_nonce (ts)")


def downgrade() -> None:
    raise NotImplementedError("the catalog is only ever migrated forward; restore a backup to go back")
