"""Exports on demand by HTTP: the service that `export-pipelines api` runs."""
