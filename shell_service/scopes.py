"""What a token may be good for, and what each role may do. Checks and docs are both made from these."""

from __future__ import annotations

from baselayer.access import EVERY_SCOPE, Scopes

MEANINGS = {
    "jobs:read": "See one's jobs, their output, and figures about them.",
    "jobs:write": "Submit, rerun and cancel jobs.",
    "jobs:network": "Give jobs the network, where an administrator has allowed it to the token's owner.",
    "secrets:read": "See the names of one's secrets.",
    "secrets:write": "Store and delete secrets.",
    "secrets:use": "Hand secrets to jobs.",
    "scripts:read": "See saved scripts.",
    "scripts:write": "Save and change scripts.",
    "scripts:run": "Run saved scripts.",
    "groups:read": "See the groups that one is in.",
    "groups:write": "Manage groups, as their owner or an administrator.",
    "schedules:read": "See schedules.",
    "schedules:write": "Make and change schedules.",
    "tokens:read": "See one's tokens (never their secrets).",
    "tokens:write": "Make, rotate and revoke tokens, within the scopes of the token that is used.",
    "users:admin": "Manage users, and see the service's metrics. Administrators only.",
    "audit:read": "See the audit log. Administrators only.",
    EVERY_SCOPE: "Everything that the token's owner may do.",
}
_ADMIN = frozenset({"users:admin", "audit:read"})
_USER = frozenset(MEANINGS) - {EVERY_SCOPE} - _ADMIN
SCOPES = Scopes(MEANINGS, {"user": _USER, "admin": _USER | _ADMIN})
