"""Land files one by one: what a source lists, as far as it is not what landed before."""

from __future__ import annotations

import time

from export_pipelines.errors import SourceError
from export_pipelines.manifest import LandedManifest
from export_pipelines.sources.files import Download, FileSource, Found, Gone
from export_pipelines.sources.files_folder import FolderFiles
from export_pipelines.sources.files_sftp import SftpFiles
from export_pipelines.steps.land_context import LandContext, LandResult
from export_pipelines.steps.land_sources import file_source
from export_pipelines.steps.land_storing import Chain, Spool, land_content, spool

_TRIES = 3
_REPORT_BYTES = 16 << 20


class FilesLanding:
    """The landing of a source of files, or of pages that are a file each. `run` is done once."""

    def __init__(self, ctx: LandContext, chain: Chain, force: bool) -> None:
        self._ctx = ctx
        self._chain = chain
        self._force = force
        self._before = dict(chain.latest)
        self._landed: list[LandedManifest] = []
        self._unchanged = 0
        self._gone: list[str] = []
        self._bytes = 0

    def run(self) -> LandResult:
        """Land what is new. Raises what `land` says."""
        source = file_source(self._ctx.load.spec, self._ctx.window, self._ctx.target)
        listed: set[str] = set()
        for found in source.list():
            listed.add(found.name)
            if self._ctx.names and found.name not in self._ctx.names:
                continue
            try:
                self._take(source, found)
            except Gone:
                # The listing is older than what happened to the file.
                self._gone.append(found.name)
        waiting = source.waiting if isinstance(source, FolderFiles | SftpFiles) else []
        if missing := [name for name in self._ctx.names if name not in listed and name not in waiting]:
            self._gone += missing
        elif not self._ctx.names:
            mine = {name for name, entry in self._before.items() if entry.partition == self._ctx.partition}
            self._gone += sorted(mine - listed - set(waiting))
        return LandResult(tuple(self._landed), self._unchanged, tuple(dict.fromkeys(self._gone)), tuple(waiting))

    def _take(self, source: FileSource, found: Found) -> None:
        for attempt in range(1, _TRIES + 1):
            try:
                return self._take_once(source, found)
            except SourceError as error:
                if not error.transient or attempt == _TRIES or isinstance(error, Gone):
                    raise
                time.sleep(attempt * 0.2)
        return None

    def _take_once(self, source: FileSource, found: Found) -> None:
        last = self._chain.latest.get(found.name)
        known = last.version if last is not None and not self._force else ""
        with source.open(found, known) as download, spool() as content:
            if download is None:
                self._unchanged += 1
                return
            self._read(download, content)
            if (
                last is not None
                and last.file.raw_sha256 == content.raw_sha256
                and last.partition == self._ctx.partition
            ):
                self._unchanged += 1
                return
            entry, new = land_content(self._ctx, self._chain, found, content, version=download.version)
        if new:
            self._landed.append(entry)
        else:
            self._unchanged += 1

    def _read(self, download: Download, content: Spool) -> None:
        reported = self._bytes
        for piece in download.pieces:
            content.write(piece)
            self._bytes += len(piece)
            if self._bytes - reported >= _REPORT_BYTES:
                reported = self._bytes
                self._ctx.report(self._bytes)
        content.finish()
