"""Webhooks: targets of jobs, scripts and schedules, and what is delivered to them"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "webhook_key",
        sa.Column("user_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("previous", sa.LargeBinary(), nullable=True),
        sa.Column("replaced_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name=op.f("webhook_key_user_id_fkey")),
        sa.PrimaryKeyConstraint("user_id", name=op.f("webhook_key_pkey")),
    )
    op.create_table(
        "delivery",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("answer", sa.SmallInteger(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("delivery_pkey")),
    )
    op.create_index(op.f("delivery_job_id_index"), "delivery", ["job_id"], unique=False)
    op.create_index(
        op.f("delivery_due_at_index"),
        "delivery",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index(
        op.f("delivery_user_id_due_at_index"),
        "delivery",
        ["user_id", "due_at"],
        unique=False,
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    kind = postgresql.JSONB(astext_type=sa.Text())
    op.add_column("job", sa.Column("notify", kind, nullable=True))
    op.add_column("script", sa.Column("notify", kind, server_default="[]", nullable=False))
    op.add_column("schedule", sa.Column("notify", kind, server_default="[]", nullable=False))
    op.execute(
        """
        CREATE FUNCTION tell_targets() RETURNS trigger
        LANGUAGE plpgsql AS $$
        BEGIN
          INSERT INTO delivery (id, job_id, user_id, url, status, due_at)
          SELECT gen_random_uuid(), NEW.id, (t ->> 'user_id')::int, t ->> 'url', NEW.status, now()
          FROM jsonb_array_elements(NEW.notify) AS t WHERE t -> 'on' ? NEW.status;
          RETURN NULL;
        END $$;
        CREATE TRIGGER job_ended AFTER UPDATE OF status ON job
          FOR EACH ROW WHEN (OLD.status IS NULL AND NEW.status IS NOT NULL AND NEW.notify IS NOT NULL)
          EXECUTE FUNCTION tell_targets();
        """
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER job_ended ON job; DROP FUNCTION tell_targets")
    op.drop_column("schedule", "notify")
    op.drop_column("script", "notify")
    op.drop_column("job", "notify")
    op.drop_table("delivery")
    op.drop_table("webhook_key")
