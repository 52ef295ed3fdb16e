"""The table of measurements."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create it."""
    op.create_table(
        "measurement",
        sa.Column("subject", sa.String(300), primary_key=True),
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("taken", sa.Double, primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
    )


def downgrade() -> None:
    """Remove it."""
    op.drop_table("measurement")
