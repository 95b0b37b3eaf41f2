"""Names of what belongs to a loaded table. All are made from `schema.name` of its definition."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from export_pipelines.specs.load import TargetSpec
from export_pipelines.sql import quote_identifier


def qualified(schema: str, name: str) -> str:
    """Both parts quoted."""
    return f"{quote_identifier(schema)}.{quote_identifier(name)}"


@dataclass(frozen=True)
class TableNames:
    """A loaded table: `table` is what the registry calls it, the others are SQL."""

    schema: str
    name: str

    @classmethod
    def of(cls, target: TargetSpec) -> TableNames:
        return cls(target.schema_name, target.name)

    @property
    def table(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def view(self) -> str:
        """What readers read."""
        return qualified(self.schema, self.name)

    @property
    def raw(self) -> str:
        return qualified(self.schema, f"{self.name}__raw")

    @property
    def quarantine(self) -> str:
        return qualified(self.schema, f"{self.name}__quarantine")

    def version(self, number: int) -> str:
        """The table of a version."""
        return qualified(self.schema, self.version_name(number))

    def version_name(self, number: int) -> str:
        """The same without schema and quotes."""
        return f"{self.name}__v{number}"

    @property
    def lock(self) -> int:
        """Key of the advisory lock which every change of the table holds."""
        return self._key("load")

    @property
    def index_lock(self) -> int:
        """Key of the advisory lock of who makes indexes of it: a load that waited for it would be waited for."""
        return self._key("index")

    def _key(self, what: str) -> int:
        digest = hashlib.sha256(f"export_pipelines {what} {self.table}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)
