"""The statements of a table in MySQL's dialect: the counterpart of `export_pipelines.sql` for MySQL and MariaDB.

A scanner of our own says what is code, string, name and comment, sqlglot's parser what a statement is; a text that they
see differently is refused. The text is never printed anew, only cut at token borders, so that what runs is what was
written. All of it holds for the sql_mode that sessions are pinned to: no ANSI_QUOTES, no NO_BACKSLASH_ESCAPES.

What no parser can know, because only the server knows its functions: whether a stored function writes, or is an
aggregate of somebody's own. READ ONLY transactions guard against the first (a cleanup tries delete.sql in one before
it deletes), ONLY_FULL_GROUP_BY against the second.
"""

from export_pipelines.sql_mysql.delete import MysqlDelete, parse_delete
from export_pipelines.sql_mysql.names import MysqlRelation, parameters, quote_identifier, quote_literal, split_name
from export_pipelines.sql_mysql.select import MysqlSelect, parse_select, tables_of
from export_pipelines.sql_mysql.text import parameters_used

__all__ = [
    "MysqlDelete",
    "MysqlRelation",
    "MysqlSelect",
    "parameters",
    "parameters_used",
    "parse_delete",
    "parse_select",
    "quote_identifier",
    "quote_literal",
    "split_name",
    "tables_of",
]
