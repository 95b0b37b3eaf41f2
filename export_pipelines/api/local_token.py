"""The token of the person whose machine this is: made anew at each start, in a file that only they can read."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from export_pipelines.api.users import SCOPES
from export_pipelines.catalog.audit import SYSTEM
from export_pipelines.catalog.tokens import Tokens

NAME = "local"


def token_file(state: Path) -> Path:
    """Where the token of the project is whose state (`.local`) this is."""
    return state / "keys" / "local.token"


def fresh_local_token(tokens: Tokens, state: Path) -> str:
    """Make the token, with every scope, in place of the last one; also written into its file, of mode 0600."""
    token, text = tokens.create(NAME, _person(), SCOPES, SYSTEM, replace=True)
    path = token_file(state)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{token.id}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    new.replace(path)
    return text


def _person() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return "local"
