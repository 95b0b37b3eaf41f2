"""The text of a statement: what of it is code, and what may stand in no statement.

The scanner goes by MySQL's own lexical rules. What it finds is compared with sqlglot's tokens, so that a string or a
comment cannot be one thing here and another on the server.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export_pipelines.errors import SpecError
from export_pipelines.sql import PARAMETERS
from export_pipelines.sql_mysql.names import PART, split_name

_LEXEME = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.|'')*+'|"(?:[^"\\]|\\.|"")*+")
    |(?P<name>`(?:[^`]|``)*+`)
    |(?P<comment>--(?=[\x00-\x20\x7f]|\Z)[^\n]*|\#[^\n]*|/\*.*?\*/)
    |(?P<open>['"`]|/\*)""",
    re.DOTALL | re.VERBOSE,
)
_EXECUTABLE = re.compile(r"/\*M?!", re.IGNORECASE)
_PARAMETER = re.compile(r"%\((\w*)\)s|%%")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_LIKE_A_SPACE = re.compile(r"[\u200b\ufeff]|[^\S \t\n\r\v\f]")

_FUNCTIONS = (
    *("SLEEP", "BENCHMARK", "LOAD_FILE", "GET_LOCK", "RELEASE_LOCK", "RELEASE_ALL_LOCKS"),
    *("NEXTVAL", "SETVAL", "LASTVAL", "MASTER_POS_WAIT", "MASTER_GTID_WAIT", "SOURCE_POS_WAIT"),
    *("WAIT_FOR_EXECUTED_GTID_SET", "WAIT_UNTIL_SQL_THREAD_AFTER_GTIDS"),
)
_CALL = re.compile(rf"(?<![\w$])({'|'.join(_FUNCTIONS)})`?\s*\(", re.IGNORECASE)
_CALLED = re.compile(rf"((?:{PART}\s*\.\s*)?{PART})\s*\(")
_MODIFIERS = "HIGH_PRIORITY|SQL_CALC_FOUND_ROWS|SQL_BUFFER_RESULT|SQL_NO_CACHE|SQL_CACHE"
_ONLY_READS = "leave it out: what has to be locked or written is done for you"
_BY_NAME = "parameters are " + ", ".join(f"%({name})s" for name in PARAMETERS)

_REFUSED = (
    (
        r"\bINTO\b",
        "SELECT INTO writes to a file or a variable",
        f"{_ONLY_READS}; a column of that name needs `backticks`",
    ),
    (r"\bFOR\s+(?:UPDATE|SHARE)\b|\bLOCK\s+IN\s+SHARE\b", "FOR UPDATE or LOCK IN SHARE MODE locks rows", _ONLY_READS),
    (r"(?<!@)@(?!@)", "a user variable (@) makes a result depend on the session", "write its value, or a subquery"),
    (r":", "there are no parameters with a colon", _BY_NAME),
    (r"\?", "there are no parameters with a question mark", _BY_NAME),
    (r"\b(?:NEXT|PREVIOUS)\s+VALUE\s+FOR\b", "a statement that asks a sequence is no mere reading", "leave it out"),
    (r"\bROWS\s+EXAMINED\b", "LIMIT ROWS EXAMINED leaves rows out in silence", "use statement_timeout"),
    (rf"\b(?:{_MODIFIERS})\b", "a modifier such as SQL_NO_CACHE cannot stand in a subquery, as ours", "leave it out"),
    # 1.INTO and 1e3INTO are two words to the server, and one to parsers.
    (
        r"(?<![\w$])(?:\d+\.[A-Za-z_$]|(?:\d+\.?\d*|\.\d+)e[+-]?\d+[A-Za-z_$])",
        "a number runs into a word",
        "write a space between them, or quote a name with `backticks`",
    ),
)
_PATTERNS = tuple((re.compile(pattern, re.IGNORECASE), message, hint) for pattern, message, hint in _REFUSED)


@dataclass(frozen=True)
class Statement:
    """One statement. All three texts have the same length and lines, so that an offset in one is one in all."""

    text: str
    """As written, without a semicolon and what stands behind it."""
    bare: str
    """Comments are blanks."""
    code: str
    """Comments are blanks, and what stands between quotes is `x`."""
    file: Path
    line: int
    """Lines before it in the file."""

    @property
    def verb(self) -> str:
        """Its first word in capitals, behind parentheses."""
        return re.sub(r"[\s(]*([A-Za-z_]*).*", r"\1", self.code, count=1, flags=re.DOTALL).upper()

    def error(self, message: str, *, at: int = 0, hint: str = "") -> SpecError:
        """An error with the line of an offset."""
        line = self.line + self.text.count("\n", 0, at) + 1
        return SpecError(message, file=self.file, line=line, hint=hint)

    def tokens(self) -> list[Any]:
        """sqlglot's tokens; offsets count characters. Raises SpecError."""
        from sqlglot.dialects.mysql import MySQL
        from sqlglot.errors import TokenError

        try:
            tokens = MySQL().tokenize(self.bare)
        except TokenError as error:
            raise self.error("SQL does not parse: no tokens can be made of it") from error
        self._compare(tokens)
        return tokens

    def _compare(self, tokens: Sequence[Any]) -> None:
        """Refuse what sqlglot takes for a string or a quoted name where the server does not, or the other way round."""
        theirs = {token.end + 1 for token in tokens if re.search("['\"`]", self.bare[token.start : token.end + 1])}
        ours = {match.end() for match in _LEXEME.finditer(self.bare)}
        if theirs != ours:
            at = min(theirs ^ ours) - 1
            raise self.error(
                "SQL does not parse: its quotes can be read in two ways", at=at, hint="write it more plainly"
            )

    def parse(self) -> Any:
        """sqlglot's tree. Raises SpecError."""
        from sqlglot import exp, parse_one
        from sqlglot.errors import ParseError

        try:
            tree = parse_one(self.bare, dialect="mysql")
        except (ParseError, RecursionError) as error:
            found: dict[str, Any] = (getattr(error, "errors", None) or [{}])[0]
            what = str(found.get("description") or "it is nested too deeply").split(" but got <")[0].rstrip(".")
            what = "an expression is missing" if what.startswith("Required keyword") else what
            near = f" near {found['highlight']!r}" if found.get("highlight") else ""
            line = self.line + int(found.get("line") or 1)
            raise SpecError(f"SQL does not parse: {what}{near}", file=self.file, line=line) from error
        written = (exp.DML, exp.DDL, exp.Command)
        if any(isinstance(node, written) for node in tree.walk() if node is not tree):
            raise self.error("a statement inside writes (INSERT, UPDATE, DELETE or another)")
        return tree


def one_statement(text: str, file: Path) -> Statement:
    """The one statement of a file, without anything that may stand in none.

    Raises:
        SpecError: with the line; there is none or more than one, or something in it is refused.
    """
    whole = _scanned(text, file)
    pieces = _pieces(whole)
    if len(pieces) != 1:
        found = f"{len(pieces)} statements" if pieces else "no statement"
        raise SpecError(f"{found} where one is expected", file=file, line=1, hint="a file holds one statement")
    return pieces[0]


def refuse_words(statement: Statement) -> None:
    """Raise SpecError for what would write, lock, wait, or make a proof meaningless."""
    if call := _CALL.search(_with_names(statement)):
        raise statement.error(
            f"{call[1].upper()}() has effects beyond its result", at=call.start(), hint="leave it out"
        )
    for pattern, message, hint in _PATTERNS:
        if match := pattern.search(statement.code):
            raise statement.error(message, at=match.start(), hint=hint)


def called(statement: Statement) -> frozenset[tuple[str | None, str]]:
    """Schema (or None) and name, in lower case, of what stands before a parenthesis: functions, and other words."""
    found = (split_name(match[1]) for match in _CALLED.finditer(_with_names(statement)))
    return frozenset((schema.lower() if schema else None, name.lower()) for schema, name in found)


def parameters_used(text: str) -> set[str]:
    """Names of the parameters in a statement's text, known or not; those in comments bound nothing and do not count."""
    bare = _LEXEME.sub(lambda m: " " if m["comment"] and not _EXECUTABLE.match(m[0]) else m[0], text)
    return {match[1] for match in _PARAMETER.finditer(bare) if match[0] != "%%"}


def top_level(tokens: Sequence[Any]) -> list[Any]:
    """Tokens outside of parentheses, without the parentheses themselves."""
    depth, top = 0, []
    for token in tokens:
        if token.token_type.name in ("L_PAREN", "L_BRACE"):
            depth += 1
        elif token.token_type.name in ("R_PAREN", "R_BRACE"):
            depth -= 1
        elif depth == 0:
            top.append(token)
    return top


def _pieces(whole: Statement) -> list[Statement]:
    """The text cut at semicolons; empty pieces are none."""
    found, start = [], 0
    for end in [*(match.start() for match in re.finditer(";", whole.code)), len(whole.code)]:
        if whole.code[start:end].strip():
            stop = start + len(whole.code[start:end].rstrip())
            cut = slice(start, stop)
            lines = whole.line + whole.text.count("\n", 0, start)
            found.append(Statement(whole.text[cut], whole.bare[cut], whole.code[cut], whole.file, lines))
        start = end + 1
    return found


def _scanned(text: str, file: Path) -> Statement:
    unread = Statement(text, text, text, file, 0)
    for match in _LEXEME.finditer(text):
        if match["open"]:
            raise unread.error(f"SQL does not parse: {match[0]} has no end", at=match.start())
        if _EXECUTABLE.match(match[0]):
            raise unread.error(
                "a comment that the server executes (/*! */)", at=match.start(), hint="write it as a plain statement"
            )
        if match["comment"] and re.match(r"/\*\+.*\bSET_VAR\b", match[0], re.IGNORECASE | re.DOTALL):
            raise unread.error("the hint SET_VAR changes settings", at=match.start(), hint="leave it out")
    bare = _LEXEME.sub(lambda m: _blank(m[0]) if m["comment"] else m[0], text)
    code = _LEXEME.sub(lambda m: _hidden(m[0]), bare)
    # To the server a NUL ends a comment.
    visible = _LEXEME.sub(lambda m: m[0] if m["comment"] else _hidden(m[0]), text)
    for odd in (_CONTROL.search(visible), _LIKE_A_SPACE.search(code)):
        if odd:
            raise unread.error(
                f"the character U+{ord(odd[0]):04X} stands outside of quotes",
                at=odd.start(),
                hint="write a plain space",
            )
    return Statement(text, bare, code, file, 0)


def _with_names(statement: Statement) -> str:
    """Its code, with what stands between backticks."""
    return _LEXEME.sub(lambda m: m[0] if m["name"] else _hidden(m[0]), statement.bare)


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def _hidden(quoted: str) -> str:
    """Quotes with nothing to read between them, of the same length and lines."""
    return quoted[0] + re.sub(r"[^\n]", "x", quoted[1:-1]) + quoted[-1]
