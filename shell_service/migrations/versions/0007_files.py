"""Files: what jobs are given, and what they leave"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "upload",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("files", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("requirements", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("upload_pkey")),
    )
    op.create_index(op.f("upload_user_id_used_at_index"), "upload", ["user_id", "used_at"], unique=False)
    for table in ("content", "job"):
        op.add_column(table, sa.Column("upload", sa.LargeBinary(), nullable=True))
        op.add_column(table, sa.Column("entrypoint", sa.Text(), nullable=True))
        op.create_foreign_key(op.f(f"{table}_upload_fkey"), table, "upload", ["upload"], ["digest"])
        given = sa.text("upload IS NOT NULL")
        op.create_index(op.f(f"{table}_upload_index"), table, ["upload"], unique=False, postgresql_where=given)
    op.create_index(
        op.f("job_user_id_upload_id_index"), "job", ["user_id", "upload", "id"], unique=False, postgresql_where=given
    )
    op.add_column("job", sa.Column("artifacts", sa.Integer(), nullable=True))
    op.add_column("job", sa.Column("artifacts_bytes", sa.BigInteger(), nullable=True))
    op.add_column("job", sa.Column("artifacts_truncated", sa.Boolean(), nullable=True))
    _index("stdout_bytes", "stderr_bytes", "artifacts_bytes", "upload")
    # Those that have still to run; 256 MiB is what the configuration says where nobody has changed it.
    op.execute("""UPDATE job SET limits = limits || '{"artifacts": 268435456}' WHERE status IS NULL""")


def downgrade() -> None:
    op.execute("UPDATE job SET limits = limits - 'artifacts' WHERE status IS NULL")
    _index("stdout_bytes", "stderr_bytes")
    op.drop_column("job", "artifacts_truncated")
    op.drop_column("job", "artifacts_bytes")
    op.drop_column("job", "artifacts")
    op.drop_index(op.f("job_user_id_upload_id_index"), table_name="job")
    for table in ("content", "job"):
        op.drop_index(op.f(f"{table}_upload_index"), table_name=table)
        op.drop_constraint(op.f(f"{table}_upload_fkey"), table, type_="foreignkey")
        op.drop_column(table, "entrypoint")
        op.drop_column(table, "upload")
    op.drop_table("upload")


def _index(*included: str) -> None:
    name = op.f("job_user_id_id_index")
    op.drop_index(name, table_name="job")
    op.create_index(name, "job", ["user_id", "id"], unique=False, postgresql_include=included)
