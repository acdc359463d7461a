"""The framework: configuration, web handlers, access rules, database sessions, supervision. Knows nothing of jobs."""
