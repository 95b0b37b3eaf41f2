"""Uploads: who may, pieces of files, a look at what came, loads and restores. Nothing here knows HTTP or pages."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from export_pipelines.api.users import UPLOAD, Refused, Unknown, User
from export_pipelines.catalog.audit import Actor, AuditEntry
from export_pipelines.catalog.uploads import UploadRow
from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.specs.load_sources import UploadSource
from export_pipelines.specs.uploads import TYPES, Columns, column_names, upload_definition, upload_source
from export_pipelines.stores.base import Store

if TYPE_CHECKING:
    from export_pipelines.api.launching import TableRuns
    from export_pipelines.api.service import Service
    from export_pipelines.steps.inference import Inferred
    from export_pipelines.steps.load_context import LoadContext, RowDiff, TableVersion

CHUNK = 1 << 20
"""Bytes of a piece at most."""
UNFINISHED = 20
"""Uploads of a user that wait, at most."""
KEEP_DAYS = 7
"""An upload that nobody goes on with for so long is dropped; one whose load failed is to be sent again."""
LOOKED_AT = 20_000
SAMPLE = 10


class Changed(RequestError):
    """The data set has another current version than the one that was looked at."""


@dataclass(frozen=True)
class Look:
    """What a file holds, by its first records."""

    columns: tuple[Inferred, ...]
    names: tuple[str, ...]
    """Of the columns of the table, beside those of the file."""
    types: tuple[str, ...]
    """What is proposed: the type of the column that is there, if the values fit it."""
    rows: tuple[tuple[str | None, ...], ...]
    records: int
    whole: bool
    """Whether all records were looked at."""
    added: tuple[str, ...]
    missing: tuple[str, ...]
    current_types: Mapping[str, str]
    delimiter: str = ""
    """What separates its values, by its header, if that is not what the definition says."""


@dataclass(frozen=True)
class Stage:
    """How far an upload is."""

    state: str
    """Before its load that of the row; then pending, processing, succeeded, failed, cancelled."""
    reason: str = ""
    """Why the load failed."""
    percent: int | None = None
    """Of the file that the load has read; None before it says so."""


def stage_of(runs: TableRuns, row: UploadRow) -> Stage:
    """How far an upload is, as its run says."""
    if not row.run_id:
        return Stage(row.state)
    state, reason = runs.state(row.run_id)
    return Stage(state.lower(), reason, runs.percent_read(row.run_id) if state == "Processing" else None)


def areas_of(service: Service, user: User) -> list[LoadDefinition]:
    """The definitions that a user may upload to."""
    return [each for each in _areas(service) if may_upload(user, each)]


def _areas(service: Service) -> list[LoadDefinition]:
    loads = [each.load for each in service.project.loads.values()]
    return [each for each in loads if isinstance(each.spec.source, UploadSource)]


def may_upload(user: User, area: LoadDefinition) -> bool:
    """Whether a user is among those who may upload."""
    who = upload_source(area).who
    if user.operator:
        return True
    own = {"*", user.name, *(f"group:{each}" for each in user.groups)}
    return user.may(UPLOAD) and not own.isdisjoint(who)


def area_of(service: Service, user: User, name: str) -> LoadDefinition:
    """The definition of an id. Raises Unknown: there is none. Refused: not for this user."""
    found = service.project.loads.get(name)
    if found is None or not isinstance(found.load.spec.source, UploadSource):
        raise Unknown(f"nothing takes uploads as {name[:100]!r}")
    if not may_upload(user, found.load):
        raise Refused(f"{user.name} may not upload to {found.load.id}", hint="its `who` names those who may")
    return found.load


def upload_of(service: Service, user: User, upload: str) -> tuple[UploadRow, LoadDefinition]:
    """An upload of the user's own (an operator's: anybody's). Raises Unknown, Refused."""
    row = service.uploads.get(upload)
    if row is None or not (user.operator or row.username == user.name):
        raise Unknown("there is no such upload, or it is not yours")
    return row, area_of(service, user, row.area)


def begin(
    service: Service, user: User, area: LoadDefinition, organisation: str, dataset: str, name: str, mark: str, size: int
) -> UploadRow:
    """Begin an upload, or go on with the same one.

    Raises:
        RequestError: a name is not possible. Refused: it is too large (413).
    """
    upload_definition(area, organisation, dataset)
    most = upload_source(area).max_bytes
    if size > most:
        raise Refused(f"the file has {size} bytes, and {most} are the most here", status=413)
    if size < 1:
        raise RequestError("the file is empty")
    if not name.isprintable() or not 1 <= len(name) <= 200:
        raise RequestError("the name of the file is empty, too long, or has characters that cannot be shown")
    values = {"area": area.id, "organisation": organisation, "dataset": dataset, "file_name": name}
    own = {"fingerprint": mark[:100], "size": size, "username": user.name}
    row = service.uploads.begin({**values, **own}, UNFINISHED)
    # Behind that: what somebody goes on with is not old any more.
    service.later(lambda: _forget(service))
    return row


def _forget(service: Service) -> None:
    """Drop what nobody has gone on with."""
    from export_pipelines.steps.land_upload import drop_pieces, uploads_with_pieces

    service.uploads.forget(KEEP_DAYS)
    for area in {each.spec.landing: each for each in _areas(service)}.values():
        store = _store(service, area)
        for upload in service.uploads.unneeded(uploads_with_pieces(store), KEEP_DAYS):
            drop_pieces(store, upload)


def tidy(service: Service, row: UploadRow, area: LoadDefinition) -> None:
    """Delete the pieces of a file that nobody needs any more."""
    from export_pipelines.steps.land_upload import drop_pieces

    drop_pieces(_store(service, area), row.id)


def receive(
    service: Service, row: UploadRow, area: LoadDefinition, offset: int, data: bytes, actor: Actor
) -> UploadRow:
    """Take in a piece. Raises Misplaced, RequestError."""
    from export_pipelines.steps.land_upload import store_piece

    if not 1 <= len(data) <= CHUNK:
        raise RequestError(f"a piece has 1 to {CHUNK} bytes")
    store = _store(service, area)
    return service.uploads.receive(row.id, offset, len(data), actor, lambda: store_piece(store, row.id, offset, data))


def drop(service: Service, row: UploadRow, area: LoadDefinition, actor: Actor) -> None:
    """Give an upload up, with what came of it."""
    service.uploads.drop(row.id, actor)
    tidy(service, row, area)


def look(service: Service, row: UploadRow, area: LoadDefinition) -> Look:
    """What the file holds beside the current version.

    Raises:
        RequestError: it cannot be read, with line and column where they are known.
    """
    from export_pipelines.formats.parsing import other_delimiter, parse
    from export_pipelines.steps.inference import infer
    from export_pipelines.steps.land_upload import open_pieces

    made = upload_definition(area, row.organisation, row.dataset)
    opened = partial(open_pieces, _store(service, area), row.id, row.size)
    kept: list[tuple[str | None, ...]] = []
    try:
        with closing(parse(made.spec.file, None, opened, row.file_name)) as parsed:
            delimiter = (len(parsed.columns) == 1 and other_delimiter(parsed.columns)) or ""
        spec = made.spec.file.model_copy(update={"delimiter": delimiter or made.spec.file.delimiter})
        with closing(parse(spec, None, opened, row.file_name)) as parsed:
            columns = infer(parsed, LOOKED_AT, kept, SAMPLE)
    except IntegrityError as error:
        raise RequestError(error.message, hint=error.hint) from error
    names = tuple(column_names(parsed.columns))
    there = current_columns(service, made)
    records = max((each.values + each.nulls for each in columns), default=0)
    types = tuple(_proposed(each, there.get(name)) for each, name in zip(columns, names, strict=True))
    added = tuple(name for name in names if there and name not in there)
    missing = tuple(name for name in there if name not in names)
    whole = records < LOOKED_AT
    return Look(tuple(columns), names, types, tuple(kept), records, whole, added, missing, there, delimiter)


def _proposed(column: Inferred, there: str | None) -> str:
    if there in TYPES and (there == "text" or there in column.types or not column.values):
        return there
    return column.type


def current_columns(service: Service, made: LoadDefinition) -> dict[str, str]:
    """Names and types of the columns that readers see; empty before the first load."""
    from export_pipelines.specs.load_names import OWN_COLUMNS
    from export_pipelines.targets.names import TableNames
    from export_pipelines.targets.tables import columns_of, exists

    names = TableNames.of(made.spec.target)
    with service.resource(made.spec.target.connection).session() as session:
        session.begin()
        found = columns_of(session, names.view) if exists(session, names.view) else []
        session.rollback()
    return {each.name: _SHORT.get(each.type, each.type) for each in found if each.name not in OWN_COLUMNS}


_SHORT = {"timestamp without time zone": "timestamp", "timestamp with time zone": "timestamptz"}


def load(
    service: Service,
    runs: TableRuns,
    row: UploadRow,
    area: LoadDefinition,
    types: Mapping[int, str],
    base: int,
    actor: Actor,
) -> UploadRow:
    """Land the file, and start the run that loads it. `types` are those chosen, by the number of the column; `base` is
    the version that was current when it was looked at.

    Raises:
        Changed: there is a newer version. RequestError: it cannot be done.
    """
    from export_pipelines.steps.land_upload import land_upload

    found = look(service, row, area)
    columns: Columns = [
        (name, column.name, types.get(number, found.types[number]))
        for number, (name, column) in enumerate(zip(found.names, found.columns, strict=True))
    ]
    made = upload_definition(area, row.organisation, row.dataset, columns, found.delimiter)
    if current_version(service, made) != base:
        raise Changed("somebody has loaded another file since you looked", hint="compare once more, then load")

    def start(locked: UploadRow) -> tuple[str, str]:
        if locked.run_id and runs.state(locked.run_id)[0] in ("Pending", "Processing", "Succeeded"):
            raise RequestError("it is being loaded already")
        name = f"{row.id}-{locked.attempts + 1}/{row.file_name}"
        landed = land_upload(made, _store(service, area), row.id, row.size, name, columns, found.delimiter)
        return landed.name, runs.load(area, [f"{row.organisation}/{row.dataset}/{landed.name}"], actor.who)

    return service.uploads.load(row.id, actor, start)


def versions(service: Service, area: LoadDefinition, organisation: str, dataset: str) -> list[TableVersion]:
    """The versions of a data set that are kept, newest first, with the names of the files as they were sent."""
    from export_pipelines.steps.load import table_versions

    found = table_versions(_context(service, upload_definition(area, organisation, dataset)))[::-1]
    # Each landed under a name that no other upload has.
    return [replace(each, file_name=each.file_name.partition("/")[2]) for each in found]


def current_version(service: Service, made: LoadDefinition) -> int:
    """Number of the version that readers see; 0 before the first load."""
    from export_pipelines.steps.load import table_versions

    return next((each.number for each in table_versions(_context(service, made)) if each.current), 0)


def difference(
    service: Service, area: LoadDefinition, organisation: str, dataset: str, old: int, new: int, sample: int = 5
) -> RowDiff:
    """How two versions differ, with so many rows of each kind at most. Raises TargetError: one is not kept."""
    from export_pipelines.steps.load import diff

    return diff(_context(service, upload_definition(area, organisation, dataset)), old, new, sample=sample)


def restore(
    service: Service, area: LoadDefinition, organisation: str, dataset: str, version: int, actor: Actor
) -> None:
    """Have readers see a version again that is kept. Raises TargetError: there is none."""
    from export_pipelines.steps.load import rollback

    rollback(_context(service, upload_definition(area, organisation, dataset)), version)
    detail: dict[str, Any] = {"version": version}
    service.audit(actor, AuditEntry("upload.restored", f"{area.id}/{organisation}/{dataset}", "ok", detail))


def _context(service: Service, made: LoadDefinition) -> LoadContext:
    from export_pipelines.steps.load import LoadContext

    return LoadContext(made, service.resource(made.spec.target.connection), _store(service, made))


def _store(service: Service, area: LoadDefinition) -> Store:
    store: Store = service.resource(area.spec.landing)
    return store
