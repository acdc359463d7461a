"""Alembic's entry: migrates over the connection that `shell_service.migrations.upgrade` hands it."""

from __future__ import annotations

from alembic import context

import shell_service.models
from baselayer.models import Base
from shell_service.migrations import functions

assert shell_service.models  # imported so that its tables are known

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata)
with context.begin_transaction():  # tables and functions together, or neither
    context.run_migrations()
    functions.remove(connection)
    if context.get_context().get_current_heads():
        functions.create(connection)
