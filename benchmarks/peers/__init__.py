"""The same work for other queues: modules that their worker processes import."""
