"""Check the documentation against the program: links, commands, make targets. Exit 1 names each that is wrong.

Checked are README.md, CHANGELOG.md and all of docs/: relative links and pictures must lead to a file, and their anchors
to a heading; `export-pipelines …` in code must be a command with these options, by click's own word; `make …` in code
must be a target of the Makefile; `test_…` in code must be the name of a test.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "export-pipelines"

_FENCE = re.compile(r"^( *)(`{3,})([^\n]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)(?: \"[^\"]*\")?\)")
_ABSENT = re.compile(r"^[A-Z][A-Z0-9_]*=\S* ")


def main() -> None:
    """Check all pages; print what is wrong."""
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    problems = [f"{page.relative_to(ROOT)}:{line}: {text}" for page in pages for line, text in check(page)]
    commands = sum(1 for page in pages for _ in commands_of(page.read_text()))
    if not commands:
        problems.append("no command was found in any page: this check checks nothing")
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(pages)} pages, {commands} commands: links, commands and make targets are right")


def check(page: Path) -> Iterator[tuple[int, str]]:
    """Line and description of each thing that is wrong in a page."""
    text = page.read_text()
    for line, target in links_of(text):
        if problem := link_problem(page, target):
            yield line, problem
    for match in _INLINE.finditer(text):
        if re.fullmatch(r"test_\w+", match[1]) and match[1] not in test_names():
            yield text.count("\n", 0, match.start()) + 1, f"there is no test {match[1]}"
    for line, command in commands_of(text):
        if problem := command_problem(command):
            yield line, f"{command!r}: {problem}"


def links_of(text: str) -> Iterator[tuple[int, str]]:
    """Line and target of each link outside of code."""
    prose = _INLINE.sub(lambda m: " " * len(m[0]), _FENCE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text))
    for match in _LINK.finditer(prose):
        yield text.count("\n", 0, match.start()) + 1, match[1]


def link_problem(page: Path, target: str) -> str:
    """What is wrong with a link; empty when nothing is. Addresses elsewhere are not tried."""
    if re.match(r"[a-z]+:", target):
        return ""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return f"link to {target}: there is no such file"
    if not file.is_relative_to(ROOT):
        return f"link to {target}: it leaves the project"
    if anchor and file.suffix == ".md" and anchor not in anchors_of(file):
        return f"link to {target}: there is no such heading"
    return ""


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Anchors of a page's headings, as web sites of repositories make them."""
    text = _FENCE.sub("", page.read_text())
    titles = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return frozenset(title.replace(" ", "-") for title in plain)


def commands_of(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each command of ours, in blocks of code and in code within a line."""
    for block in _FENCE.finditer(text):
        first = text.count("\n", 0, block.start()) + 2
        for number, line in enumerate(joined(block[4])):
            shell = line.strip().removeprefix("$ ")
            while _ABSENT.match(shell):
                shell = _ABSENT.sub("", shell)
            shell = re.sub(r"^(uv run |\.venv/bin/|.*[;&|] )", "", shell)
            if is_ours(shell) and (block[3].strip() in ("console", "sh", "bash", "shell") or line.strip()[0] == "$"):
                yield first + number, shell
    prose = _FENCE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    for match in _INLINE.finditer(prose):
        if is_ours(match[1]):
            yield prose.count("\n", 0, match.start()) + 1, match[1]


def joined(block: str) -> Iterator[str]:
    """Lines of a block, with those that end in a backslash joined to the next; one item a line, so that they count."""
    pending = ""
    for line in block.splitlines():
        if line.endswith("\\"):
            pending += line[:-1] + " "
            yield ""
        else:
            yield pending + line
            pending = ""


def is_ours(command: str) -> bool:
    """Whether a command is of this project: its program with something behind it, or make."""
    return command.startswith((PROGRAM + " ", "make "))


def command_problem(command: str) -> str:
    """What is wrong with a command; empty when nothing is."""
    try:
        words = shlex.split(
            command.split(" | ", maxsplit=1)[0].split(" > ", maxsplit=1)[0].split(" && ", maxsplit=1)[0], comments=True
        )
    except ValueError as error:
        return str(error)
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        unknown = [word for word in targets if word not in make_targets() and "…" not in word]
        return f"the Makefile has no {unknown[0]!r}" if unknown else ""
    return program_problem([word for word in words[1:] if "…" not in word])


@cache
def test_names() -> frozenset[str]:
    """Names of all tests."""
    files = (ROOT / "tests").rglob("test_*.py")
    return frozenset(name for file in files for name in re.findall(r"def (test_\w+)\(", file.read_text()))


@cache
def make_targets() -> frozenset[str]:
    """Targets of the Makefile."""
    return frozenset(re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def program_problem(words: list[str]) -> str:
    """What click says of a command line: an unknown command or option, or an argument too few or too many.

    A command alone is a mention of it, and may lack its arguments.
    """
    command, context = program(), click.Context(program(), info_name=PROGRAM)
    try:
        while isinstance(command, click.Group):
            _, words, _ = command.make_parser(context).parse_args(list(words))
            if not words:
                return ""
            found = command.get_command(context, words[0])
            if found is None:
                return f"there is no command {words[0]!r}"
            command, words = found, words[1:]
            context = click.Context(command, info_name=command.name, parent=context)
        values, rest, _ = command.make_parser(context).parse_args(list(words))
    except click.UsageError as error:
        return error.format_message()
    if rest:
        return f"there is no place for {rest[0]!r}"
    missing = [each.name for each in command.params if each.required and not _given(values.get(each.name or ""))]
    return f"{missing[0]} is missing" if missing and words else ""


def _given(value: object) -> bool:
    """Whether click's parser has a value: a text or several; its mark for none is neither."""
    return isinstance(value, str | list | tuple) and bool(value)


@cache
def program() -> click.Group:
    """The command group behind `export-pipelines`."""
    from export_pipelines.cli import main as group

    return group


if __name__ == "__main__":
    main()
