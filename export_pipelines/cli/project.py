"""What the commands work on: the project, its tables, and its resources as a step wants them."""

from __future__ import annotations

import fnmatch
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from export_pipelines import settings as settings_module
from export_pipelines.cli import output
from export_pipelines.components.opening import initialized, open_resource, unset_variable
from export_pipelines.errors import RequestError, SpecErrors
from export_pipelines.settings import Settings
from export_pipelines.specs.documents import suggest
from export_pipelines.specs.loader import BrokenFolder
from export_pipelines.specs.table import TableDefinition

if TYPE_CHECKING:
    from export_pipelines.catalog import Catalog
    from export_pipelines.components.project import Project
    from export_pipelines.formats.encryption import Keyring
    from export_pipelines.signing import SigningKeys
    from export_pipelines.steps.context import Source, StepContext
    from export_pipelines.stores.base import Store


@dataclass
class Opened:
    """A project whose databases are there. Resources are opened when they are first used."""

    settings: Settings
    project: Project
    _resources: dict[str, Any] = field(default_factory=dict)

    def tables(self, names: Sequence[str], *, everything: bool = True) -> list[TableDefinition]:
        """The tables of some ids, names or patterns (`sales/*`); all of them without names, if `everything`.

        Raises:
            RequestError: there is none of a name or pattern, or more than one of a name.
            SpecErrors: the table is broken.
        """
        if not names:
            return [each.table for each in self.project.tables.values()] if everything else []
        return list({table.id: table for name in names for table in self._matching(name)}.values())

    def named(self, names: Sequence[str]) -> tuple[list[TableDefinition], list[BrokenFolder]]:
        """The tables and the broken folders of some ids, names or patterns; everything without names.

        Raises:
            RequestError: there is neither of a name or pattern, or more than one table of a name.
        """
        if not names:
            return self.tables(()), self.project.broken
        broken = [each for each in self.project.broken if any(fits(name, each.id) for name in names)]
        others = {*(each.id for each in broken), *self.project.loads, *self.project.transforms}
        left = [name for name in names if not any(fits(name, each) for each in others)]
        mixed = [name for name in names if name not in left and self._globbed(name)]
        return self.tables([*left, *mixed], everything=False), broken

    def _matching(self, name: str) -> list[TableDefinition]:
        if not is_pattern(name):
            return [self.table(name)]
        found = self._globbed(name)
        if not found:
            raise RequestError(f"{name!r} matches no table", hint="`export-pipelines list` shows which there are")
        return found

    def _globbed(self, name: str) -> list[TableDefinition]:
        tables = [each.table for each in self.project.tables.values()]
        return [each for each in tables if is_pattern(name) and fits(name, each.id)]

    def table(self, name: str) -> TableDefinition:
        """The table of an id, or of a name that only one table has."""
        known = {each.table.id: each.table for each in self.project.tables.values()}
        if found := known.get(name.strip("/")):
            return found
        same = [table for table in known.values() if table.name == name]
        if len(same) == 1:
            return same[0]
        if same:
            raise RequestError(
                f"{len(same)} tables are named {name!r}", hint=f"say which: {', '.join(each.id for each in same)}"
            )
        if broken := self.broken(name):
            raise SpecErrors(broken.errors)
        near = suggest(name, [*known, *(table.name for table in known.values())])
        raise RequestError(f"there is no table {name!r}", hint=near or "`export-pipelines list` shows which there are")

    def broken(self, name: str) -> BrokenFolder | None:
        """The broken folder of that id or name."""
        return next((each for each in self.project.broken if name in (each.id, each.name)), None)

    def resource(self, key: str) -> Any:
        """The resource of a key, opened: a source, a Store or the Catalog.

        Raises:
            RequestError: there is none, or a variable that it reads is not set.
        """
        if key not in self._resources:
            self._resources[key] = open_resource(self.project.resources, key)
        return self._resources[key]

    def set_up(self, tables: Sequence[TableDefinition], *, named: bool) -> list[TableDefinition]:
        """Those of some tables that can be worked on. One whose connection is `optional`, with its variable not set, is
        passed over with a warning, unless it was `named`.

        Raises:
            RequestError: a variable is not set.
        """
        absent: dict[str, list[str]] = {}
        found = []
        for table in tables:
            key = next((key for key in sorted(self._used(table)) if unset_variable(self.project.resources[key])), None)
            if key is None:
                found.append(table)
                continue
            resource = self.project.resources[key]
            if named or not getattr(resource, "optional", False):
                initialized(key, resource)
            absent.setdefault(f"the variable {unset_variable(resource)} is not set", []).append(table.id)
        for why, ids in absent.items():
            output.warn(f"{', '.join(ids)} {'is' if len(ids) == 1 else 'are'} passed over: {why}")
        return found

    def _used(self, table: TableDefinition) -> set[str]:
        from export_pipelines.components.tables import required_resources

        return required_resources(table) & self.project.resources.keys()

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog."""
        found: Catalog = self.resource("catalog")
        return found

    @cached_property
    def keyring(self) -> Keyring:
        """What opens encrypted files."""
        from export_pipelines.formats.encryption import NO_KEYS

        return sum((self.resource(key) for key in self.project.identities), NO_KEYS)

    @cached_property
    def signing(self) -> SigningKeys:
        """The keys that manifests are signed and checked with."""
        found: SigningKeys = self.resource("signing")
        return found

    def archive(self, table: TableDefinition) -> Store:
        """The long-term store of a table."""
        store: Store = self.resource(table.spec.archive)
        return store

    def source(self, connection: str) -> Source:
        """The database of a connection's name."""
        source: Source = self.resource(connection)
        return source

    def step(self, table: TableDefinition, **more: Any) -> StepContext:
        """A table with all that a step of it needs."""
        from export_pipelines.steps.context import StepContext

        report = table.spec.dump.report
        return StepContext(
            table=table,
            reports=self.source(report.connection) if report and report.connection else None,
            source=self.source(table.spec.connection),
            deleter=self.source(table.spec.cleanup.connection) if table.spec.cleanup.connection else None,
            exports=self.resource(table.spec.store),
            archive=self.archive(table),
            catalog=self.catalog,
            keyring=self.keyring,
            signer=self.signing.signer,
            **more,
        )


def is_pattern(name: str) -> bool:
    """Whether it stands for several tables."""
    return any(character in name for character in "*?[")


def fits(name: str, table_id: str) -> bool:
    """Whether an id, a name or a pattern of either means this table."""
    return any(fnmatch.fnmatchcase(each, name.strip("/")) for each in (table_id, table_id.rpartition("/")[2]))


def quiet() -> None:
    """Keep warnings and logs of libraries off the terminal, unless --verbose is given."""
    if not os.environ.get("EXPORT_PIPELINES_VERBOSE"):
        warnings.simplefilter("ignore")
        for name in ("export_pipelines", "alembic", "dagster", "botocore"):
            logging.getLogger(name).addHandler(logging.NullHandler())
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("export_pipelines").setLevel(logging.CRITICAL)


def read_project(settings: Settings, *, automations: bool = False) -> Project:
    """Read the three folders; nothing is connected to. The settings go into the environment."""
    quiet()
    from export_pipelines.components.project import load_project

    settings_module.apply(settings)
    return load_project(settings.root, settings.dsl_path, automations=automations)


@contextmanager
def opened(*, migrate: bool = False, automations: bool = False, settings: Settings | None = None) -> Iterator[Opened]:
    """The project with its databases; the embedded server runs for as long as the block.

    A catalog in the embedded server is ours, and always brought to the newest version; another one only by `migrate`.
    Whoever has read the project before gives its `settings`: read again, the environment would hide what is embedded.
    """
    quiet()
    from export_pipelines.local.project import running

    found = settings or settings_module.load_settings()
    with running(found, migrate_catalog=migrate or found.embedded_dagster) as full:
        yield Opened(full, read_project(full, automations=automations))


def warn_of_broken(project: Project) -> None:
    """Say which folders are left out."""
    for each in project.broken:
        output.warn(f"{each.id} is left out, since it is broken: {each.errors[0]}")
