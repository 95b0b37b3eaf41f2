"""One run of a small table in a new process: `python -m benchmarks.startup_probe SECONDS`, when it was asked for."""

from __future__ import annotations

import json
import sys
import time

_JOB = "nycflights13__airlines_export"


def main(begun: float) -> None:
    """Run the job; the seconds of its parts as JSON."""
    marks = {"python": time.time()}
    import dagster as dg

    marks["dagster"] = time.time()
    from export_pipelines.definitions import defs

    job = defs.resolve_job_def(_JOB)
    marks["definitions"] = time.time()
    from export_pipelines.steps import export

    export_partition = export.export_partition

    def timed(*args: object) -> object:
        marks["asset"] = time.time()
        try:
            return export_partition(*args)  # type: ignore[arg-type]
        finally:
            marks["step"] = time.time()

    export.export_partition = timed  # type: ignore[assignment]
    with dg.DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(instance=instance).success
    marks["end"] = time.time()
    before = [begun, *list(marks.values())[:-1]]
    json.dump({name: at - last for (name, at), last in zip(marks.items(), before, strict=True)}, sys.stdout)


if __name__ == "__main__":
    main(float(sys.argv[1]))
