"""Which rows somebody may see: a SQL predicate that every query about a model is composed with.

``select(Job).where(visible(Job, caller.viewer))``. A model says its rule in a class method ``visible_to(viewer)``; one
without a rule shows nothing. The viewer is an expression too, so that one query can serve many callers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, false


@dataclass(frozen=True)
class Viewer:
    """Whoever looks at rows, as SQL expressions."""

    user_id: ColumnElement[int]
    is_admin: ColumnElement[bool]


def visible(model: type[Any], viewer: Viewer) -> ColumnElement[bool]:
    """The predicate that leaves of `model` only what `viewer` may see; nothing where the model has no rule."""
    rule = getattr(model, "visible_to", None)
    return rule(viewer) if rule else false()
