"""What the handlers of the service work with: the project, its catalog, keys, store and limits, made once a process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from export_pipelines.api.limits import Limits
from export_pipelines.api.named import named
from export_pipelines.api.tokens import TokenCache
from export_pipelines.api.versions import Versions
from export_pipelines.api.watching import Watcher
from export_pipelines.catalog.audit import Actor, AuditEntry, write_audit
from export_pipelines.catalog.downloads import Downloads
from export_pipelines.catalog.hawk import HawkClients
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.catalog.requests import Queue, Requests
from export_pipelines.catalog.tokens import Tokens
from export_pipelines.catalog.uploads import Uploads
from export_pipelines.components.opening import open_resource
from export_pipelines.components.project import Project, load_project
from export_pipelines.components.stamp import stamp_of
from export_pipelines.errors import CatalogError, ExportPipelinesError, SpecErrors
from export_pipelines.formats.encryption import Keyring
from export_pipelines.service_keys import IDENTITY, ServiceKeys, load_service_keys
from export_pipelines.settings import Settings
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.service import ServiceSpec
from export_pipelines.stores.base import Store

if TYPE_CHECKING:
    from export_pipelines.api.columns import Columns
    from export_pipelines.api.estimates import Estimates

log = logging.getLogger("export_pipelines.api")

CONNECTIONS = 12
"""To the catalog, a process."""

_QUEUE_SECONDS = 2.0


class Service:
    """The service of a project whose databases are there and whose settings are in the environment.

    Its parts are safe for threads. Nothing is connected to before it is used.

    Raises:
        CatalogError: there is no catalog. RequestError: a key cannot be read or made.
        SpecErrors: the service's document is broken: other settings than those that are meant would be worse than none.
    """

    def __init__(self, settings: Settings, project: Project | None = None) -> None:
        if not settings.dagster_pg_url:
            raise CatalogError("there is no catalog: no server was started", hint="start it with `export-pipelines up`")
        self.settings = settings
        self._stamp = stamp_of(settings)
        self.project = project or load_project(settings.root, settings.dsl_path, automations=False)
        if self.project.service_errors:
            raise SpecErrors(self.project.service_errors)
        self.keys: ServiceKeys = load_service_keys(settings.state)
        self.pool = CatalogPool(settings.dagster_pg_url, settings.catalog_schema, size=CONNECTIONS)
        self.requests = Requests(self.pool)
        self.tokens = Tokens(self.pool)
        self.downloads = Downloads(self.pool)
        self.uploads = Uploads(self.pool)
        self.hawk = HawkClients(self.pool, self.keys.key("hawk"))
        self.limits = Limits(self.spec.rates)
        self.token_cache = TokenCache(self.tokens)
        self.watcher = Watcher(settings.dagster_pg_url, self.pool.channel, tokens_changed=self.token_cache.forget)
        self.versions = Versions()
        self._background = ThreadPoolExecutor(2, thread_name_prefix="background")
        self._resources: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._queue: tuple[Queue | None, float] = (None, 0.0)

    @property
    def spec(self) -> ServiceSpec:
        """What resources/service/defs.yaml says."""
        return self.project.service

    def refresh(self) -> bool:
        """Read the definitions anew if their files have changed; whether they were. A service document that is broken
        now changes nothing; rates, proxies and connections to the catalog stay as they were until the next start."""
        stamp = stamp_of(self.settings)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        project = load_project(self.settings.root, self.settings.dsl_path, automations=False)
        if project.service_errors:
            log.warning("the old definitions stay: %s", project.service_errors[0])
            return False
        with self._lock:
            self.project = project
            self._resources.clear()
        return True

    @cached_property
    def estimates(self) -> Estimates:
        """Estimates of rows, remembered for a while."""
        from export_pipelines.api.estimates import Estimates

        return Estimates(self)

    @cached_property
    def columns(self) -> Columns:
        """Columns of data sets, remembered."""
        from export_pipelines.api.columns import Columns

        return Columns(self)

    def dataset(self, name: str) -> DataSetDefinition:
        """The data set of an id, or of a last part that only one has.

        Raises:
            Unknown: there is none, or more than one.
        """
        return named("data set", self.project.datasets, name, hint="GET /datasets lists those there are")

    def resource(self, key: str) -> Any:
        """A resource of the project, opened. Raises RequestError."""
        with self._lock:
            if key not in self._resources:
                self._resources[key] = open_resource(self.project.resources, key)
            return self._resources[key]

    def source(self, dataset: DataSetDefinition) -> Any:
        """What a data set is read from."""
        return self.resource(dataset.spec.connection)

    @property
    def store(self) -> Store:
        """Where files of requests are."""
        store: Store = self.resource(self.spec.store)
        return store

    def store_at(self, url: str | None) -> Store:
        """The store that a file was written to: that of today, unless the setting has changed since."""
        from export_pipelines.stores import open_store

        return self.store if url in (None, self.store.url) else open_store(url or "")

    @cached_property
    def keyring(self) -> Keyring:
        """What opens files: the service's own identity, and those of the project."""
        own = Keyring((str(self.settings.state / "keys" / "service.age"),), (IDENTITY,))
        return sum((self.resource(key) for key in self.project.identities), own)

    def queue(self) -> Queue:
        """The queue as it was within the last two seconds."""
        found, until = self._queue
        if found is None or until < time.monotonic():
            found = self.requests.queue()
            self._queue = (found, time.monotonic() + _QUEUE_SECONDS)
        return found

    def audit(self, actor: Actor, *entries: AuditEntry) -> None:
        """Write entries into the audit log, in a transaction of their own."""
        with self.pool.transaction() as cursor:
            write_audit(cursor, actor, *entries)

    def later(self, work: Callable[[], object]) -> None:
        """Do something beside the answer; its errors are logged."""
        with suppress(RuntimeError):  # the service ends
            self._background.submit(self._quietly, work)

    def _quietly(self, work: Callable[[], object]) -> None:
        try:
            work()
        except ExportPipelinesError as error:
            log.warning("%s", error)
        except Exception:
            log.exception("work beside an answer failed")

    def close(self) -> None:
        """End threads and connections."""
        self.watcher.close()
        if "estimates" in self.__dict__:
            self.estimates.close()
        self._background.shutdown(wait=True)
        self.versions.close()
        self.pool.close()
