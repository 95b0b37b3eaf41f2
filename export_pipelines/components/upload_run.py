"""What a run does for uploads: each landed file goes into the table of its data set, which is a partition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg

from export_pipelines import naming
from export_pipelines.components.load_run import LoadRun
from export_pipelines.components.load_telling import Context
from export_pipelines.manifest import LandedManifest
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.specs.load_loader import load_version
from export_pipelines.specs.uploads import Columns, upload_definition, upload_version


def run_uploads(context: Context, area: LoadDefinition, wanted: Sequence[str], *, force: bool) -> dict[str, Any]:
    """Load landed files, `organisation/data set/landed name`; of `organisation/data set` the newest.

    Raises:
        dagster.Failure: one failed; those behind it are not tried.
        dagster.RetryRequested: a transient error.
    """
    from export_pipelines.steps.land_upload import landed_columns, landed_delimiter

    total = {"landed": 0, "loaded": 0, "rows": 0}
    if not wanted:
        context.log.info("uploads are loaded by the service, or by their names")
    for each in wanted:
        organisation, _, rest = each.partition("/")
        dataset, _, name = rest.partition("/")
        made = upload_definition(area, organisation, dataset)
        landed = _landed(context, made, name)
        if landed is None:
            raise dg.Failure(f"nothing has landed as {each!r}", allow_retries=False)
        columns, delimiter = landed_columns(landed), landed_delimiter(landed)
        run = UploadRun(context, upload_definition(area, organisation, dataset, columns, delimiter), None, force=force)
        run.take(area, columns, landed)
        run.run(land=False, load=True, keys=None)
        total["loaded"] += run.loaded
        total["rows"] += run.rows
    return total


def _landed(context: Context, load: LoadDefinition, name: str) -> LandedManifest | None:
    from export_pipelines.steps.land import landed_files

    found = landed_files(getattr(context.resources, load.spec.landing).open(), load.landed_as)
    return next((each for each in reversed(found) if not name or each.name == name), None)


class UploadRun(LoadRun):
    """The load of one upload; told to Dagster as a partition of the definition that takes uploads."""

    area: LoadDefinition
    columns: Columns
    landing: LandedManifest

    def take(self, area: LoadDefinition, columns: Columns, landing: LandedManifest) -> None:
        """What it is to load."""
        self.area, self.columns, self.landing = area, columns, landing

    @property
    def asset_id(self) -> str:
        return self.area.id

    def _partition(self, landed: LandedManifest) -> str | None:
        return naming.safe(self.load.name.replace("_", ".", 1))

    def _current_version(self) -> str:
        from export_pipelines.steps.land_upload import landed_delimiter

        return upload_version(load_version(self.load.folder), self.columns, landed_delimiter(self.landing))

    def _todo(self, keys: Sequence[str] | None) -> list[LandedManifest]:
        self._tell_landed(self.landing, 0.0)
        self.landed = 0
        return [self.landing]
