"""The first tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deferred_job",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("ord", sa.BigInteger(), nullable=False),
        sa.Column("run_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("deferred_job_pkey")),
        postgresql_with={
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_vacuum_threshold": "2000",
            "autovacuum_vacuum_cost_delay": "0",
        },
    )
    op.create_index(op.f("deferred_job_run_at_job_id_index"), "deferred_job", ["run_at", "job_id"], unique=False)
    op.create_index(op.f("deferred_job_user_id_index"), "deferred_job", ["user_id"], unique=False)
    op.create_table(
        "ready_job",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("ord", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("ready_job_pkey")),
        postgresql_with={
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_vacuum_threshold": "2000",
            "autovacuum_vacuum_cost_delay": "0",
        },
    )
    op.create_index("ready_job_claim", "ready_job", ["user_id", "ord", "job_id"], unique=False)
    op.create_table(
        "runner",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("incarnation", sa.Uuid(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("obstacle", sa.Text(), nullable=True),
        sa.Column("facts", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("beat", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("beat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state IN ('live', 'draining', 'gone')", name=op.f("runner_state_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("runner_pkey")),
        postgresql_with={"fillfactor": "20"},
    )
    op.create_index(op.f("runner_host_name_index"), "runner", ["host", "name"], unique=True)
    op.create_table(
        "running_job",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("ord", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("runner_id", sa.Integer(), nullable=False),
        sa.Column("incarnation", sa.Uuid(), nullable=False),
        sa.Column(
            "claimed_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", name=op.f("running_job_pkey")),
        sa.UniqueConstraint("fence", name=op.f("running_job_fence_key")),
        postgresql_with={
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_vacuum_threshold": "2000",
            "autovacuum_vacuum_cost_delay": "0",
            "fillfactor": "70",
        },
    )
    op.create_index(op.f("running_job_runner_id_index"), "running_job", ["runner_id"], unique=False)
    op.create_index(op.f("running_job_user_id_index"), "running_job", ["user_id"], unique=False)
    op.create_table(
        "user",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), server_default="user", nullable=False),
        sa.Column("active", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('user', 'admin')", name=op.f("user_role_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("user_pkey")),
        sa.UniqueConstraint("username", name=op.f("user_username_key")),
    )
    op.create_table(
        "idempotency_key",
        sa.Column("user_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False),
        sa.Column("job_ids", postgresql.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name=op.f("idempotency_key_user_id_fkey")),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("idempotency_key_pkey")),
    )
    op.create_index(op.f("idempotency_key_created_at_index"), "idempotency_key", ["created_at"], unique=False)
    op.create_table(
        "job",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("shell", sa.Text(), nullable=False),
        sa.Column("args", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("env", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("stdin", sa.Text(), nullable=False),
        sa.Column("timeout", sa.Float(), nullable=False),
        sa.Column("limits", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("network", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("secrets", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        sa.Column("secrets_in_env", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("run_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retries", sa.SmallInteger(), nullable=False),
        sa.Column("retry_delay", sa.Float(), nullable=False),
        sa.Column("on_lost", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("return_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stdout_bytes", sa.BigInteger(), nullable=True),
        sa.Column("stderr_bytes", sa.BigInteger(), nullable=True),
        sa.Column("output_truncated", sa.Boolean(), nullable=True),
        sa.Column("wall_seconds", sa.Float(), nullable=True),
        sa.Column("cpu_seconds", sa.Float(), nullable=True),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("written_bytes", sa.BigInteger(), nullable=True),
        sa.Column("runner", sa.Text(), nullable=True),
        sa.Column("cancelled_by", sa.Text(), nullable=True),
        sa.CheckConstraint("on_lost IN ('fail', 'requeue')", name=op.f("job_on_lost_check")),
        sa.CheckConstraint(
            "status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'OUT_OF_MEMORY', 'NODE_FAIL')",
            name=op.f("job_status_check"),
        ),
        sa.CheckConstraint("(status IS NULL) = (finished_at IS NULL)", name=op.f("job_final_check")),
        sa.CheckConstraint("priority BETWEEN -10 AND 10", name=op.f("job_priority_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("job_pkey")),
    )
    op.create_index(op.f("job_status_id_index"), "job", ["status", "id"], unique=False)
    op.create_index(op.f("job_user_id_id_index"), "job", ["user_id", "id"], unique=False)
    op.create_index(op.f("job_user_id_name_id_index"), "job", ["user_id", "name", "id"], unique=False)
    op.create_index(op.f("job_user_id_status_id_index"), "job", ["user_id", "status", "id"], unique=False)
    op.create_table(
        "secret",
        sa.Column("user_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name=op.f("secret_user_id_fkey")),
        sa.PrimaryKeyConstraint("user_id", "name", name=op.f("secret_pkey")),
        sa.UniqueConstraint("id", name=op.f("secret_id_key")),
    )
    op.create_table(
        "token",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name=op.f("token_user_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("token_pkey")),
        sa.UniqueConstraint("digest", name=op.f("token_digest_key")),
    )
    op.create_index(op.f("token_user_id_index"), "token", ["user_id"], unique=False)
    op.create_table(
        "user_limits",
        sa.Column("user_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("max_running", sa.Integer(), nullable=True),
        sa.Column("max_queued", sa.Integer(), nullable=True),
        sa.Column("jobs_per_minute", sa.Integer(), nullable=True),
        sa.Column("defaults", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("maxima", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("network", sa.Boolean(), server_default="false", nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name=op.f("user_limits_user_id_fkey")),
        sa.PrimaryKeyConstraint("user_id", name=op.f("user_limits_pkey")),
    )
    op.create_table(
        "submission_count",
        sa.Column("user_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("minute", sa.Integer(), nullable=False),
        sa.Column("submitted", sa.Integer(), nullable=False),
        sa.Column("before", sa.Integer(), nullable=False),
        sa.Column("queued", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("submission_count_pkey")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.Column("username", sa.Text(), nullable=True),
        sa.Column("token_id", sa.Integer(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=True),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.CheckConstraint("length(object) <= 200", name=op.f("audit_object_check")),
        sa.CheckConstraint("pg_column_size(detail) <= 4096", name=op.f("audit_detail_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_pkey")),
    )
    op.create_index(
        op.f("audit_action_at_id_index"),
        "audit",
        ["action", "at", "id"],
        unique=False,
        postgresql_where=sa.text("action <> 'job.submit'"),
    )
    op.create_index(op.f("audit_at_id_index"), "audit", ["at", "id"], unique=False)
    op.create_index(op.f("audit_object_at_id_index"), "audit", ["object", "at", "id"], unique=False)
    op.create_index(
        op.f("audit_outcome_at_id_index"),
        "audit",
        ["outcome", "at", "id"],
        unique=False,
        postgresql_where=sa.text("outcome <> 'ok'"),
    )
    op.create_index(op.f("audit_username_at_id_index"), "audit", ["username", "at", "id"], unique=False)
    op.execute("CREATE SEQUENCE fence_seq")
    op.execute(
        """
        CREATE FUNCTION refuse_change() RETURNS trigger
        LANGUAGE plpgsql AS $$
        BEGIN
          RAISE EXCEPTION 'the table % is append-only', TG_TABLE_NAME USING ERRCODE = 'SH002';
        END $$;
        CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
          FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
        -- Also where a session says that it replays what another server did (session_replication_role).
        ALTER TABLE audit ENABLE ALWAYS TRIGGER audit_append_only;
        """
    )


def downgrade() -> None:
    op.execute("DROP SEQUENCE fence_seq")
    op.drop_table("audit")
    op.execute("DROP FUNCTION refuse_change")
    op.drop_table("submission_count")
    op.drop_table("user_limits")
    op.drop_table("secret")
    op.drop_index(op.f("token_user_id_index"), table_name="token")
    op.drop_table("token")
    op.drop_index(op.f("job_user_id_status_id_index"), table_name="job")
    op.drop_index(op.f("job_user_id_name_id_index"), table_name="job")
    op.drop_index(op.f("job_user_id_id_index"), table_name="job")
    op.drop_index(op.f("job_status_id_index"), table_name="job")
    op.drop_table("job")
    op.drop_index(op.f("idempotency_key_created_at_index"), table_name="idempotency_key")
    op.drop_table("idempotency_key")
    op.drop_table("user")
    op.drop_index(op.f("running_job_user_id_index"), table_name="running_job")
    op.drop_index(op.f("running_job_runner_id_index"), table_name="running_job")
    op.drop_table("running_job")
    op.drop_index(op.f("runner_host_name_index"), table_name="runner")
    op.drop_table("runner")
    op.drop_index("ready_job_claim", table_name="ready_job")
    op.drop_table("ready_job")
    op.drop_index(op.f("deferred_job_user_id_index"), table_name="deferred_job")
    op.drop_index(op.f("deferred_job_run_at_job_id_index"), table_name="deferred_job")
    op.drop_table("deferred_job")
