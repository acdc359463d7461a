"""Scripts, their versions and shares, and groups of users"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "content",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("shell", sa.Text(), nullable=False),
        sa.Column("parameters", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("defaults", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("content_pkey")),
    )
    op.create_table(
        "group",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("group_pkey")),
        sa.UniqueConstraint("name", name=op.f("group_name_key")),
    )
    op.create_table(
        "group_member",
        sa.Column("group_id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("owner", sa.Boolean(), server_default="false", nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["group.id"], name=op.f("group_member_group_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name=op.f("group_member_user_id_fkey")),
        sa.PrimaryKeyConstraint("group_id", "user_id", name=op.f("group_member_pkey")),
    )
    op.create_index(op.f("group_member_user_id_index"), "group_member", ["user_id"], unique=False)
    op.create_table(
        "script",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("max_running", sa.Integer(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), server_default="1", nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("turn", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(overlap = 'parallel') OR max_running IS NULL", name=op.f("script_max_running_check")),
        sa.CheckConstraint(
            "overlap IN ('queue', 'skip', 'cancel_previous', 'queue_latest', 'parallel')",
            name=op.f("script_overlap_check"),
        ),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name=op.f("script_user_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("script_pkey")),
    )
    op.create_index(op.f("script_user_id_name_index"), "script", ["user_id", "name"], unique=True)
    op.create_table(
        "script_share",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("script_id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.Column("group_id", sa.Integer(), nullable=True),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("level IN ('view', 'run', 'edit')", name=op.f("script_share_level_check")),
        sa.CheckConstraint("(user_id IS NULL) <> (group_id IS NULL)", name=op.f("script_share_whom_check")),
        sa.ForeignKeyConstraint(
            ["group_id"], ["group.id"], name=op.f("script_share_group_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["script_id"], ["script.id"], name=op.f("script_share_script_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name=op.f("script_share_user_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("script_share_pkey")),
    )
    op.create_index(op.f("script_share_group_id_index"), "script_share", ["group_id"], unique=False)
    op.create_index(
        op.f("script_share_script_id_group_id_index"), "script_share", ["script_id", "group_id"], unique=True
    )
    op.create_index(op.f("script_share_script_id_user_id_index"), "script_share", ["script_id", "user_id"], unique=True)
    op.create_index(op.f("script_share_user_id_index"), "script_share", ["user_id"], unique=False)
    op.create_table(
        "script_version",
        sa.Column("script_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["content.digest"], name=op.f("script_version_digest_fkey")),
        sa.ForeignKeyConstraint(["script_id"], ["script.id"], name=op.f("script_version_script_id_fkey")),
        sa.PrimaryKeyConstraint("script_id", "number", name=op.f("script_version_pkey")),
    )
    op.create_index(op.f("script_version_digest_index"), "script_version", ["digest"], unique=False)
    op.add_column("deferred_job", sa.Column("script_id", sa.Integer(), nullable=True))
    op.create_index(
        op.f("deferred_job_script_id_run_at_user_id_ord_job_id_index"),
        "deferred_job",
        ["script_id", "run_at", "user_id", "ord", "job_id"],
        unique=False,
        postgresql_where=sa.text("script_id IS NOT NULL"),
    )
    op.add_column(
        "job", sa.Column("secret_env", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False)
    )
    op.add_column("job", sa.Column("script_id", sa.Integer(), nullable=True))
    op.add_column("job", sa.Column("script", sa.Text(), nullable=True))
    op.add_column("job", sa.Column("script_version", sa.Integer(), nullable=True))
    op.add_column("job", sa.Column("parameters", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("job", sa.Column("share_output", sa.Boolean(), server_default="false", nullable=False))
    op.create_index(
        op.f("job_script_id_id_index"),
        "job",
        ["script_id", "id"],
        unique=False,
        postgresql_where=sa.text("script_id IS NOT NULL"),
    )
    op.create_index(
        op.f("job_script_id_status_id_index"),
        "job",
        ["script_id", "status", "id"],
        unique=False,
        postgresql_where=sa.text("script_id IS NOT NULL"),
    )
    op.add_column("ready_job", sa.Column("script_id", sa.Integer(), nullable=True))
    op.create_index(
        op.f("ready_job_script_id_index"),
        "ready_job",
        ["script_id"],
        unique=False,
        postgresql_where=sa.text("script_id IS NOT NULL"),
    )
    op.add_column("running_job", sa.Column("script_id", sa.Integer(), nullable=True))
    op.create_index(
        op.f("running_job_script_id_index"),
        "running_job",
        ["script_id"],
        unique=False,
        postgresql_where=sa.text("script_id IS NOT NULL"),
    )
    for table in ("content", "script_version"):
        op.execute(
            f"""
            CREATE TRIGGER {table}_never_changed BEFORE UPDATE OR TRUNCATE ON {table}
              FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
            ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_never_changed;
            """
        )


def downgrade() -> None:
    op.drop_index(op.f("running_job_script_id_index"), table_name="running_job")
    op.drop_column("running_job", "script_id")
    op.drop_index(op.f("ready_job_script_id_index"), table_name="ready_job")
    op.drop_column("ready_job", "script_id")
    op.drop_index(op.f("job_script_id_status_id_index"), table_name="job")
    op.drop_index(op.f("job_script_id_id_index"), table_name="job")
    op.drop_column("job", "share_output")
    op.drop_column("job", "parameters")
    op.drop_column("job", "script_version")
    op.drop_column("job", "script")
    op.drop_column("job", "script_id")
    op.drop_column("job", "secret_env")
    op.drop_index(op.f("deferred_job_script_id_run_at_user_id_ord_job_id_index"), table_name="deferred_job")
    op.drop_column("deferred_job", "script_id")
    op.drop_index(op.f("script_version_digest_index"), table_name="script_version")
    op.drop_table("script_version")
    op.drop_index(op.f("script_share_user_id_index"), table_name="script_share")
    op.drop_index(op.f("script_share_script_id_user_id_index"), table_name="script_share")
    op.drop_index(op.f("script_share_script_id_group_id_index"), table_name="script_share")
    op.drop_index(op.f("script_share_group_id_index"), table_name="script_share")
    op.drop_table("script_share")
    op.drop_index(op.f("script_user_id_name_index"), table_name="script")
    op.drop_table("script")
    op.drop_index(op.f("group_member_user_id_index"), table_name="group_member")
    op.drop_table("group_member")
    op.drop_table("group")
    op.drop_table("content")
