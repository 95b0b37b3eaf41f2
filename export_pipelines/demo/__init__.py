"""Demo data: real flights of 2013, a generated knowledge base, and a small upstream code location.

`flights.load` and `knowledge_base.load` fill a source database once; `upstream` is a Dagster code location of its own.
"""
