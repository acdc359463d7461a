"""Schedules"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "schedule",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("script_id", sa.Integer(), nullable=False),
        sa.Column("script", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("parameters", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("overrides", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("overlap", sa.Text(), nullable=True),
        sa.Column("cron", sa.Text(), nullable=True),
        sa.Column("every", sa.Float(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("start", sa.DateTime(timezone=True), nullable=True),
        sa.Column("end", sa.DateTime(timezone=True), nullable=True),
        sa.Column("jitter", sa.Float(), nullable=False),
        sa.Column("catch_up", sa.Text(), nullable=False),
        sa.Column("catch_up_limit", sa.Integer(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("catching_up", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), nullable=False),
        sa.Column("instant", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_instant", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_job_id", sa.Uuid(), nullable=True),
        sa.CheckConstraint("num_nonnulls(cron, every, at) = 1", name=op.f("schedule_times_check")),
        sa.CheckConstraint("catch_up IN ('none', 'last', 'all')", name=op.f("schedule_catch_up_check")),
        sa.CheckConstraint(
            "overlap IN ('skip', 'cancel_previous', 'queue_latest')",
            name=op.f("schedule_overlap_check"),
        ),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name=op.f("schedule_user_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("schedule_pkey")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index(
        op.f("schedule_due_at_id_index"),
        "schedule",
        ["due_at", "id"],
        unique=False,
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index(op.f("schedule_user_id_id_index"), "schedule", ["user_id", "id"], unique=False)
    op.add_column("job", sa.Column("schedule_id", sa.Integer(), nullable=True))
    op.add_column("job", sa.Column("fired_for", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        op.f("job_schedule_id_fired_for_index"),
        "job",
        ["schedule_id", "fired_for"],
        unique=True,
        postgresql_where=sa.text("fired_for IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index(op.f("job_schedule_id_fired_for_index"), table_name="job")
    op.drop_column("job", "fired_for")
    op.drop_column("job", "schedule_id")
    op.drop_table("schedule")
