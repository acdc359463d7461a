"""Who owns what in the database: the role that the services log in with adds to the audit log, and cannot change it.

Who owns a table can switch off its triggers. So migrations are another role's, the owner's: to it belong the tables
that are only ever added to, the version, and all functions. The other tables are the services': who vacuums has to own.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

import shell_service.models
from baselayer.models import Base
from shell_service.migrations import functions

assert shell_service.models  # imported so that its tables are known

APPEND_ONLY = ("audit", "audit_seal")
_VERSION = "alembic_version"
_SEQUENCES = ("fence_seq",)  # those of columns follow their tables

# Whatever else may be in that schema is not ours. Of functions, ours are those of `functions` and our triggers'.
_OURS = """
WITH relation AS (
  SELECT c.oid, c.relname, c.relkind, c.relowner FROM pg_class c
  WHERE c.relnamespace = CAST(current_schema() AS regnamespace) AND c.relname = ANY(:relations)
)
SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, CAST(CAST(oid AS regclass) AS text) AS name,
  relname = ANY(:owners) AS is_owners, pg_get_userbyid(relowner) AS owner
FROM relation
UNION ALL
SELECT 'FUNCTION', CAST(CAST(p.oid AS regprocedure) AS text), true, pg_get_userbyid(p.proowner)
FROM pg_proc p
WHERE p.pronamespace = CAST(current_schema() AS regnamespace) AND (p.proname = ANY(:functions)
  OR p.oid IN (SELECT t.tgfoid FROM pg_trigger t JOIN relation r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal))
ORDER BY 1, 2
"""

_RIGHTS = """
SELECT rolsuper, rolcreaterole, (
  SELECT bool_or(has_table_privilege(name, 'UPDATE, DELETE, TRUNCATE, TRIGGER')
    OR has_any_column_privilege(name, 'UPDATE')) FROM unnest(CAST(:tables AS text[])) AS name)
FROM pg_roles WHERE rolname = current_user
"""

# What it is the owner of, or can become the owner of.
_REACH = """
SELECT what FROM (
  SELECT 1 AS place, 'the table ' || relname AS what, relowner AS owner FROM pg_class
  WHERE oid IN (SELECT CAST(name AS regclass) FROM unnest(CAST(:tables AS text[])) AS name)
  UNION ALL
  SELECT DISTINCT 2, 'the function ' || proname, proowner FROM pg_proc
  WHERE oid IN (SELECT tgfoid FROM pg_trigger
    WHERE NOT tgisinternal AND tgrelid IN (SELECT CAST(name AS regclass) FROM unnest(CAST(:tables AS text[])) AS name))
  UNION ALL
  SELECT 3, 'the schema ' || nspname, nspowner FROM pg_namespace WHERE nspname = current_schema()
  UNION ALL
  SELECT 4, 'the database ' || datname, datdba FROM pg_database WHERE datname = current_database()
) AS o WHERE pg_has_role(owner, 'MEMBER') ORDER BY place, what
"""


class OwnershipError(Exception):
    """The owner's role lacks what it needs; the message says what to do."""


def check(connection: Connection, service: str) -> None:
    """Make sure that the connection's role may give `service` what is its. Raises `OwnershipError`."""
    me, schema, is_owner, acts = connection.execute(
        text(
            "SELECT current_user, nspname, pg_has_role(nspowner, 'USAGE'), pg_has_role(:service, 'USAGE')"
            " FROM pg_namespace WHERE nspname = current_schema()"
        ),
        {"service": service},
    ).one()
    if not is_owner:
        raise OwnershipError(
            f"the role {me} of database.owner_url does not own the schema {schema}: `make db_init` with an --admin-url "
            f'makes it its, and so does ALTER DATABASE ... OWNER TO "{me}"'
        )
    if not acts:
        raise OwnershipError(
            f"the role {me} of database.owner_url may not act for the role {service} of database.url: "
            f'`make db_init` with an --admin-url lets it, and so does GRANT "{service}" TO "{me}"'
        )


def settle(connection: Connection, service: str) -> None:
    """Let the role `service` do what services do, and keep what guards the audit log for the connection's own role.

    Whoever owned what before, such as `service` everything. In one transaction, which is left to the caller to commit:
    nobody sees it half done.
    """
    quote = connection.dialect.identifier_preparer.quote_identifier
    me, schema = connection.execute(text("SELECT current_user, current_schema()")).one()
    theirs = quote(service)
    found = connection.execute(
        text(_OURS),
        {
            "relations": [*Base.metadata.tables, *_SEQUENCES, _VERSION],
            "owners": [*APPEND_ONLY, _VERSION],
            "functions": functions.names(),
        },
    )
    statements = [f"GRANT CREATE ON SCHEMA {quote(schema)} TO {theirs}"]  # who gets a table must be able to make one
    for kind, name, is_owners, owner in found:
        wanted = me if is_owners else service
        if owner != wanted:  # it takes a lock that waits for everybody
            statements.append(f"ALTER {kind} {name} OWNER TO {quote(wanted)}")
    kept = ", ".join((*APPEND_ONLY, _VERSION))
    statements += [
        f"REVOKE CREATE ON SCHEMA {quote(schema)} FROM {theirs}",
        f"REVOKE ALL ON {kept} FROM PUBLIC, {theirs}",
        f"GRANT SELECT ON {kept} TO {theirs}",
        f"GRANT INSERT ON {', '.join(APPEND_ONLY)} TO {theirs}",
        f"GRANT SELECT ON SEQUENCE audit_id_seq TO {theirs}",  # for pg_dump; the column itself asks for no right
    ]
    for statement in statements:
        connection.exec_driver_sql(statement.replace("%", "%%"))


def gap(connection: Connection) -> str | None:
    """Why the connection's role could change the audit log in spite of its triggers; None where it cannot.

    A clause that follows its name, for people.
    """
    tables = {"tables": list(APPEND_ONLY)}
    is_super, makes_roles, may_change = connection.execute(text(_RIGHTS), tables).one()
    if is_super:
        return "is a superuser"
    reached = connection.scalars(text(_REACH), tables).all()
    if reached:
        return f"owns, or can act for the owner of, {', '.join(reached)}"
    if makes_roles:
        return "may make roles, and so become others"
    return "was given rights to change it" if may_change else None
