"""`python -m export_pipelines.cli`: the same as `export-pipelines`."""

from export_pipelines.cli import main

if __name__ == "__main__":
    main(prog_name="export-pipelines")
