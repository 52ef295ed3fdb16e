"""The table of runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create it."""
    op.create_table(
        "run",
        sa.Column("project", sa.String(100), primary_key=True),
        sa.Column("run", sa.String(100), primary_key=True),
        sa.Column("verb", sa.String(100), primary_key=True),
        sa.Column("status", sa.String(100), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pause_ms", sa.Float),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
    )
    op.create_index("run_newest", "run", ["ended_at"])


def downgrade() -> None:
    """Remove it."""
    op.drop_table("run")
