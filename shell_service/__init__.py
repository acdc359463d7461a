"""Shell Service: a self-hosted, multi-tenant job service."""

__version__ = "0.1.0"
