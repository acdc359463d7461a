"""Files: what jobs leave"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("artifacts", sa.Integer(), nullable=True))
    op.add_column("job", sa.Column("artifacts_bytes", sa.BigInteger(), nullable=True))
    op.add_column("job", sa.Column("artifacts_truncated", sa.Boolean(), nullable=True))
    _index("stdout_bytes", "stderr_bytes", "artifacts_bytes")
    # Those that have still to run; 256 MiB is what the configuration says where nobody has changed it.
    op.execute("""UPDATE job SET limits = limits || '{"artifacts": 268435456}' WHERE status IS NULL""")


def downgrade() -> None:
    op.execute("UPDATE job SET limits = limits - 'artifacts' WHERE status IS NULL")
    _index("stdout_bytes", "stderr_bytes")
    op.drop_column("job", "artifacts_truncated")
    op.drop_column("job", "artifacts_bytes")
    op.drop_column("job", "artifacts")


def _index(*included: str) -> None:
    name = op.f("job_user_id_id_index")
    op.drop_index(name, table_name="job")
    op.create_index(name, "job", ["user_id", "id"], unique=False, postgresql_include=included)
