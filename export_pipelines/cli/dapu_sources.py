"""Where the rows of a task of dapu come from, as the `source`, `file` and `columns` of a LoadTable."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from export_pipelines.cli.dapu_tree import Task, Tree, files_of, filled, texts, variable

Note = Callable[[str], None]

_WHOLE_VARIABLE = re.compile(r"%(\w+)%|\$\{(\w+)\}")
_PARAMETER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_LITERAL_SINCE = "'1990-01-01 00:00:00'"
POSTGRES = ("pg", "postgres", "postgresql")
MYSQL = ("maria", "mariadb", "mysql")


@dataclass
class Pull:
    """What a table is loaded from."""

    source: dict[str, Any]
    file: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    key: list[str] = field(default_factory=list)
    style: dict[str, Any] = field(default_factory=dict)
    select_sql: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    """Variables that it needs, and what they hold."""
    connections: list[str] = field(default_factory=list)
    """Connections of resources/ that it needs."""


def left_over(action: Mapping[str, Any], known: tuple[str, ...], note: Note, where: str) -> None:
    """Say which keys were not looked at."""
    for key in action:
        if key not in ("do", *known):
            note(f"{where}: `{key}` is not carried over")


# Databases


def database_pull(tree: Tree, task: Task, action: Mapping[str, Any], note: Note) -> Pull:
    """Of an action `export`, `pull` or `stream`. Raises ValueError."""
    left_over(action, ("file", "cols", "pkcols", "changedetection", "ts_col", "to"), note, str(action.get("do")))
    found = list(files_of(task, action.get("file")))
    if not found:
        raise ValueError("it names no SQL file")
    for name, _ in found[1:]:
        note(f"{name}: a pull has one statement; this one is not carried over")
    sql = filled(task, action, found[0][1])
    sql = re.sub(r"'?\{\{last_ts_value\}\}'?|'?\{ts_time\}'?", _LITERAL_SINCE, sql)
    if odd := sorted(set(re.findall(r"\{\{\w+\}\}", sql))):
        note(f"{found[0][0]}: {', '.join(odd)} means nothing here; all rows are streamed, so no paging is needed")
    source = {"type": "database", **_connection(tree, task, note)}
    method = str(action.get("changedetection") or "")
    if method == "ts" and action.get("ts_col"):
        source |= {"mode": "incremental", "column": str(action["ts_col"])}
        note(
            f"{found[0][0]}: its condition on the last timestamp is always true now: the incremental pull adds its own "
            f"by `{action['ts_col']}`, which has to be among the columns of the SELECT"
        )
    elif method == "hash":
        source["mode"] = "changes"
    elif method:
        note(f"`changedetection: {method}` is not carried over: all rows are pulled each time")
    pull = Pull(source, key=texts(action.get("pkcols")), select_sql=sql.replace("%", "%%"))
    pull.columns = _named_by_position(sql, [each.strip() for each in texts(action.get("cols"))], note)
    _needs(pull, tree, task)
    return pull


def _connection(tree: Tree, task: Task, note: Note) -> dict[str, Any]:
    alias = task.route.alias
    driver = str(tree.connections.get(alias, {}).get("driver") or "").lower()
    if not driver:
        note(f"the connection {alias!r} is described nowhere: its variable holds a SQLAlchemy URL")
    if driver in (*POSTGRES, *MYSQL):
        return {"connection": connection_key(alias)}
    return {"url": {"env": variable(alias, "url")}}


def connection_key(alias: str) -> str:
    """Name of a connection in resources/."""
    key = re.sub(r"\W+", "_", alias, flags=re.ASCII).lower()
    return f"c_{key}" if key[:1].isdigit() else key


def _needs(pull: Pull, tree: Tree, task: Task) -> None:
    alias = task.route.alias
    if "connection" in pull.source:
        pull.connections.append(alias)
    pull.variables[variable(alias, "url")] = url_shape(tree.connections.get(alias, {}))


def url_shape(profile: Mapping[str, Any]) -> str:
    """The URL of a connection without its secrets."""
    driver = str(profile.get("driver") or "").lower()
    scheme = "postgresql" if driver in POSTGRES else "mysql" if driver in MYSQL else f"{driver or 'dialect'}+driver"
    host, port = str(profile.get("host") or "HOST"), profile.get("port")
    database = str(profile.get("database") or "DATABASE")
    return f"{scheme}://USER:PASSWORD@{host}{f':{port}' if port else ''}/{database}"


def _named_by_position(sql: str, cols: list[str], note: Note) -> dict[str, dict[str, Any]]:
    """dapu takes columns by position, and we by name: where the SELECT's names differ they are the `source`."""
    import sqlglot
    from sqlglot import exp

    columns: dict[str, dict[str, Any]] = {name.lower(): {} for name in cols}
    try:
        tree = sqlglot.parse_one(sql)
        names = tree.named_selects if isinstance(tree, exp.Query) else []
    except sqlglot.errors.SqlglotError:
        names = []
    if not names or "*" in names or len(names) < len(cols):
        if cols:
            note("the columns of the SELECT could not be told apart: their names must be those of `cols`")
        return columns
    for name, column in zip(names, columns, strict=False):
        if name and name != column:
            columns[column]["source"] = name
    return columns


# APIs and their JSON


def rest_pull(task: Task, action: Mapping[str, Any], note: Note) -> Pull:
    """Of an action `restapi`. Raises ValueError."""
    known = ("api_source", "repeat", "repeat_sql", "single_destination", "destination", "continue_on_error")
    left_over(action, known, note, "restapi")
    source = action.get("api_source")
    if not isinstance(source, dict):
        raise ValueError("it has no `api_source`")
    api = str(source.get("api") or "")
    conf = task.route.spec.get(api)
    if not isinstance(conf, dict) or not conf.get("url"):
        raise ValueError(f"route.yaml has no API {api!r} with a url")
    pull = Pull({"type": "rest"}, file={"format": "json"})
    url = _joined(str(conf["url"]), _PARAMETER.sub(r"{\1}", str(source.get("path") or "")))
    pull.source["url"] = _text(url, pull, (task.route.code, api, task.table, "url"), note)
    if str(source.get("method") or conf.get("method") or "GET").upper() == "POST":
        pull.source["method"] = "POST"
    for name in ("params", "body"):
        value = source.get(name, conf.get(name))
        if value is not None:
            pull.source[name] = value
            if _WHOLE_VARIABLE.search(str(value)):
                note(f"`{name}` refers to environment variables, which is only done for url, headers and auth")
    _http_options(pull, task, api, conf, source, note)
    if action.get("continue_on_error"):
        note("`continue_on_error` is not carried over: a page that fails fails the landing, and is tried again")
    _repeat(pull, task, action, note)
    _as_wfs(pull, note)
    return pull


def _http_options(
    pull: Pull, task: Task, api: str, conf: Mapping[str, Any], source: Mapping[str, Any], note: Note
) -> None:
    headers = {**(conf.get("headers") or {}), **(source.get("headers") or {})}
    if headers:
        named = {str(name): str(value) for name, value in headers.items()}
        # A header's text may be a secret: what is not plainly harmless comes from a variable.
        pull.source["headers"] = {
            name: value
            if name.lower() in ("accept", "content-type", "accept-language", "user-agent")
            else _variable(value, pull, (task.route.code, api, name), note)
            for name, value in named.items()
        }
    timeout = source.get("timeout", conf.get("timeout"))
    if isinstance(timeout, dict):
        pull.source |= {f"{name}_timeout": timeout[name] for name in ("connect", "read") if name in timeout}
    elif isinstance(timeout, int | float):
        pull.source["read_timeout"] = timeout
    if isinstance(retry := source.get("retry"), int):
        pull.source["attempts"] = min(max(retry + 1, 1), 20)
    _auth(pull, task, api, conf.get("auth") or {}, note)


def _auth(pull: Pull, task: Task, api: str, auth: Mapping[str, Any], note: Note) -> None:
    method = str(auth.get("method") or "none").lower()
    where = (task.route.code, api)
    if method in ("bearer", "token", "bearer_token"):
        token = _variable(str(auth.get("token") or ""), pull, (*where, "token"), note)
        pull.source["auth"] = {"type": "bearer", "token": token}
    elif method == "basic":
        pull.source["auth"] = {
            "type": "basic",
            "user": _variable(str(auth.get("username") or ""), pull, (*where, "user"), note),
            "password": _variable(str(auth.get("password") or ""), pull, (*where, "password"), note),
        }
    elif method not in ("none", "public"):
        note(f"the authentication {method!r} is not carried over")


def _variable(value: str, pull: Pull, name: tuple[str, ...], note: Note) -> dict[str, str]:
    """A reference to a variable. What stands in the file is not written anywhere."""
    found = _WHOLE_VARIABLE.fullmatch(value)
    key = (found[1] or found[2]) if found else variable(*name)
    pull.variables[key] = "as it was" if found else "what stands in route.yaml"
    return {"env": key}


def _text(value: str, pull: Pull, name: tuple[str, ...], note: Note) -> Any:
    """A text, or a reference to a variable where variables are part of it."""
    if not _WHOLE_VARIABLE.search(value):
        return value
    if _WHOLE_VARIABLE.fullmatch(value):
        return _variable(value, pull, name, note)
    pull.variables[variable(*name)] = value
    return {"env": variable(*name)}


def _joined(base: str, path: str) -> str:
    return f"{base.rstrip('/')}/{path.lstrip('/')}" if path else base


def _repeat(pull: Pull, task: Task, action: Mapping[str, Any], note: Note) -> None:
    values = [each["params"] for each in action.get("repeat") or [] if isinstance(each, dict) and each.get("params")]
    if values:
        pull.source["repeat"] = {"values": values}
    repeat = action.get("repeat_sql")
    if not isinstance(repeat, dict):
        return
    if values:
        note("`repeat_sql` is not carried over beside `repeat`")
        return
    [(name, sql)] = list(files_of(task, repeat.get("file")))
    names = {number: key for key, number in (repeat.get("mapping") or {}).items()}
    width = max((number for number in names if isinstance(number, int)), default=0)
    given = ", ".join(str(names.get(number, f"column_{number}")) for number in range(1, width + 1))
    pull.source["repeat"] = {"sql": f"SELECT * FROM ({sql.strip().rstrip(';')}) AS each ({given})"}
    note(f"{name}: its query is in the `repeat` of defs.yaml now")


def _as_wfs(pull: Pull, note: Note) -> None:
    """A call whose parameters are those of a WFS is a source of its own."""
    params = {str(name).lower(): value for name, value in (pull.source.get("params") or {}).items()}
    kind = params.get("typenames") or params.get("typename")
    if str(params.get("service", "")).upper() != "WFS" or not kind:
        return
    kept = {key: value for key, value in pull.source.items() if key not in ("params", "method", "body", "repeat")}
    pull.source = {**kept, "type": "wfs", "type_name": str(kind)}
    if output := params.get("outputformat"):
        pull.source["output_format"] = str(output)
    if srs := params.get("srsname"):
        pull.source["srs_name"] = str(srs)
    known = ("service", "version", "request", "typenames", "typename", "outputformat", "srsname", "count", "startindex")
    if rest := sorted(params.keys() - set(known)):
        note(f"of the WFS parameters, {', '.join(rest)} are not carried over")
    pull.file = {}


def take_json(pull: Pull, action: Mapping[str, Any], note: Note) -> None:
    """Columns of an action `json`."""
    left_over(action, ("origin", "extract", "cols", "pkcols"), note, "json")
    extract = action.get("extract")
    pull.file = {"format": "json", **({"records": f"to_array(@)[].{extract}[]"} if extract else {})}
    pull.key = texts(action.get("pkcols"))
    for col in action.get("cols") or ():
        name, origin = str(col.get("name") or "").lower(), str(col.get("from") or "")
        column = {"type": str(col["type"])} if col.get("type") else {}
        if origin == "const":
            value = str(col.get("data")).replace("'", "''")
            pull.columns[name] = {**column, "sql": f"'{value}'"}
        elif origin == ("extract" if extract else "data"):
            pull.columns[name] = {**column, **({"source": str(col["data"])} if col.get("data", name) != name else {})}
        else:
            note(f"column {name!r} comes from `{origin or 'nothing'}`, which a record does not hold: it is left out")


# Files


def file_pull(task: Task, origin: Mapping[str, Any]) -> Pull | None:
    """Of a file of the machine; None of one that another task has fetched."""
    if str(origin.get("type") or "task") != "fs" or not origin.get("dir"):
        return None
    path = PurePosixPath(str(origin["dir"]))
    pull = Pull({"type": "folder", "path": str(path), "pattern": str(origin.get("file") or "*")})
    if not path.is_absolute():
        key = variable(task.route.code, task.table, "path")
        pull.source["path"] = {"env": key}
        pull.variables[key] = f"the absolute path of {path}"
    return pull


def excel_pull(tree: Tree, task: Task, action: Mapping[str, Any], note: Note) -> Pull:
    """Of an action `excel`. Raises ValueError."""
    left_over(action, ("source", "cols", "delete", "delete_date_column", "insert", "management"), note, "excel")
    source = action.get("source")
    if not isinstance(source, dict) or not source.get("name"):
        raise ValueError("it names no file (`source: {name: …}`)")
    key = variable(task.route.alias, "path")
    pull = Pull({"type": "folder", "path": {"env": key}, "pattern": str(source["name"])})
    pull.variables[key] = str(tree.connections.get(task.route.alias, {}).get("path") or "the folder of its files")
    sheet, first = source.get("sheet", 1), source.get("start_row", 1)
    pull.file = {"format": "excel", "header": False, "skip_rows": int(first) - 1}
    pull.file |= {"sheet": sheet - 1 if isinstance(sheet, int) else str(sheet)}
    pull.columns = _lettered(action.get("cols") or (), note)
    if action.get("management") == "delete":
        note("`management: delete` is not carried over: files at the source are never deleted, and loaded once")
    _excel_style(pull, action, note)
    return pull


def _excel_style(pull: Pull, action: Mapping[str, Any], note: Note) -> None:
    delete, column = str(action.get("delete") or "month"), action.get("delete_date_column")
    if delete == "all":
        pull.style = {"style": "replace"}
    elif delete in ("year", "month", "day") and column:
        pull.style = {"style": "partition", "partition_by": f"{delete}({str(column).lower()})"}
    elif delete not in ("none", "year", "month", "day"):
        note(f"`delete: {delete}` is not carried over: rows are added")
    if str(action.get("insert") or "simple") != "simple":
        note(f"`insert: {action['insert']}` is not carried over")


def _lettered(cols: Any, note: Note) -> dict[str, dict[str, Any]]:
    """Columns in the order of the sheet, whose letters are the names that `source` says. Letters that nothing takes get
    a column each, since those of a sheet without a header are told apart by their places."""
    taken: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    made: dict[str, dict[str, Any]] = {}
    for col in cols:
        name, letter = str(col.get("name") or "").lower(), str(col.get("from") or "").lower()
        if not re.fullmatch(r"[a-z]{1,3}", letter):
            value = col.get("fixed") if col.get("fixed") is not None else f"'{col['value']}'" if "value" in col else ""
            if value:
                made[name] = {"sql": str(value)}
            else:
                note(f"column {name!r} comes from no column of the sheet: it is left out")
            continue
        column: dict[str, Any] = {"source": letter}
        transform = str(col.get("transform") or col.get("action") or "")
        if "date" in transform:
            column |= {"type": "date", "transform": "date"}
        elif "hash" in transform:
            column["transform"] = "hash"
        elif transform:
            note(f"`transform: {transform}` of column {name!r} is not carried over: give it a type")
        taken.setdefault(_number(letter), []).append((name, column))
    columns: dict[str, dict[str, Any]] = {}
    for number in range(1, max(taken, default=0) + 1):
        if number not in taken:
            note(f"column {_letter(number).upper()} of the sheet is loaded as `unused_{_letter(number)}`")
            columns[f"unused_{_letter(number)}"] = {"source": _letter(number)}
        columns |= dict(taken.get(number, ()))
    note(
        "a row that has values beyond the columns named here goes to quarantine, which fails the load: see `quarantine`"
    )
    return {**columns, **made}


def _number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - 96
    return number


def _letter(number: int) -> str:
    text = ""
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(97 + rest) + text
    return text
