"""Names of what a chain consists of, in the folder of its table: entries, signatures, the signed head, bundles."""

from __future__ import annotations

import re

from export_pipelines.naming import table_folder

MANIFEST = re.compile(r"(?P<folder>.+)/manifests/(?P<number>\d{8,})\.json")
SIGNATURE = re.compile(r"(?P<folder>.+)/signatures/(?P<head>head/)?(?P<number>\d{8,})\.(?P<kind>sig|json)")
"""`json` is of heads only."""
BUNDLE = re.compile(r"(?P<folder>.+)/bundles/(?P<number>\d{8,})\.json\.gz")


def manifest_key(table_id: str, sequence: int) -> str:
    """Key of an entry of the chain."""
    return f"{table_folder(table_id)}/manifests/{sequence:08d}.json"


def signature_key(table_id: str, sequence: int) -> str:
    """Key of the signature of an entry."""
    return f"{table_folder(table_id)}/signatures/{sequence:08d}.sig"


def head_key(table_id: str, sequence: int, kind: str) -> str:
    """Key of a signed head (`json`) or of its signature (`sig`)."""
    return f"{table_folder(table_id)}/signatures/head/{sequence:08d}.{kind}"


def bundle_key(table_id: str, last: int) -> str:
    """Key of the bundle of entries that ends in one."""
    return f"{table_folder(table_id)}/bundles/{last:08d}.json.gz"
