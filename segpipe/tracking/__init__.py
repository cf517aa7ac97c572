"""The MLflow tracking store: connection, runs, tags, artifacts with their cache, lineage."""
