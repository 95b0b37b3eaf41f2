"""Why a request failed, as far as it says who can do something about it."""

from alembic import op

revision = "0007"
down_revision = "0005"


def upgrade() -> None:
    op.execute("ALTER TABLE request ADD COLUMN fault text CHECK (fault IN ('question', 'away', 'inside'))")


def downgrade() -> None:
    raise NotImplementedError("the catalog is only ever migrated forward; restore a backup to go back")
