"""Alembic's entry: migrates over the connection that `shell_service.migrations.upgrade` hands it."""

from __future__ import annotations

from alembic import context

import shell_service.models
from baselayer.models import Base

assert shell_service.models  # imported so that its tables are known

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
