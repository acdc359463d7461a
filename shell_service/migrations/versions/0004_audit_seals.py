"""Seals of the audit log"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_seal",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_id", sa.BigInteger(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("audit_seal_pkey")),
        sa.UniqueConstraint("last_id", name=op.f("audit_seal_last_id_key")),
    )
    op.execute(
        """
        CREATE TRIGGER audit_seal_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_seal
          FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
        ALTER TABLE audit_seal ENABLE ALWAYS TRIGGER audit_seal_append_only;
        """
    )


def downgrade() -> None:
    op.drop_table("audit_seal")
