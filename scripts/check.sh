#!/usr/bin/env bash
# Run every check and tell of all that fail, not only of the first.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

failed=()
check() {
  local name=$1
  shift
  if output=$("$@" 2>&1); then
    echo "ok    $name"
  else
    echo "FAIL  $name"
    sed 's/^/      /' <<<"$output"
    failed+=("$name")
  fi
}

check "ruff check" ruff check
check "ruff format" ruff format --check
check "types" mypy --strict
check "layers" lint-imports
check "definitions load" dg check defs
check "project files" export-pipelines check --offline
check "reference pages" python scripts/docs.py --check
check "documentation" python scripts/check_docs.py

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
