"""What retention needs to know of jobs, and the outputs that it leaves"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "discarded",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("discarded_pkey")),
    )
    op.add_column("job", sa.Column("pinned", sa.Boolean(), server_default="false", nullable=False))
    op.drop_index(op.f("job_user_id_id_index"), table_name="job")
    op.create_index(
        op.f("job_user_id_id_index"),
        "job",
        ["user_id", "id"],
        unique=False,
        postgresql_include=["stdout_bytes", "stderr_bytes"],
    )
    op.create_index(
        op.f("job_user_id_pinned_index"), "job", ["user_id", "pinned"], unique=False, postgresql_where=sa.text("pinned")
    )


def downgrade() -> None:
    op.drop_index(op.f("job_user_id_pinned_index"), table_name="job")
    op.drop_index(op.f("job_user_id_id_index"), table_name="job")
    op.create_index(op.f("job_user_id_id_index"), "job", ["user_id", "id"], unique=False)
    op.drop_column("job", "pinned")
    op.drop_table("discarded")
