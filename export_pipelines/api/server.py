"""How the application is served: by uvicorn, with limits of its own."""

from __future__ import annotations

import signal
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

OPTIONS: dict[str, Any] = {
    # Its limits are known, which those of httptools are not.
    "http": "h11",
    "h11_max_incomplete_event_size": 64 * 1024,
    "ws": "none",
    "lifespan": "on",
    # The service's own setting `trusted_proxies` counts.
    "proxy_headers": False,
    "server_header": False,
    "log_config": None,
    "access_log": False,
    "timeout_keep_alive": 30,
    "timeout_graceful_shutdown": 5,
    "backlog": 1024,
}


class Server(uvicorn.Server):
    """Serves an application in this process; streams of events end when it is to stop, rather than to be cut off."""

    def __init__(self, app: FastAPI, **options: Any) -> None:
        super().__init__(uvicorn.Config(app, **{**OPTIONS, **options}))
        # The event loop wants Python back after each word from the network, and would wait 5 ms for it each time.
        sys.setswitchinterval(0.0005)
        self._app = app

    def handle_exit(self, sig: int, frame: Any) -> None:
        # uvicorn's own would raise the signal anew in the end, and what is around us would not be left in order.
        self._app.state.service.watcher.stop()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
