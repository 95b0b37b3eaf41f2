#!/usr/bin/env bash
# Install what `make test-all` needs beyond pip: a second PostgreSQL with TLS, Chromium, age, jq and zstd. Only what is missing.
set -euo pipefail

missing=()
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
command -v openssl >/dev/null || missing+=(openssl)
command -v age >/dev/null || missing+=(age)
command -v jq >/dev/null || missing+=(jq)
command -v zstd >/dev/null || missing+=(zstd)
command -v chromium >/dev/null || missing+=(chromium)

if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "these are missing, and this is no Debian or Ubuntu: ${missing[*]}" >&2
  echo "hint: run the tests that need none of them: make test" >&2
  exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "root is needed to install: ${missing[*]}" >&2
    echo "hint: as root, run: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

echo "installing ${missing[*]}"
# The tests start a server of their own: no cluster is made and nothing is started at boot.
install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qq -y --no-install-recommends)
"${install[@]}" "${missing[@]}" || { "${as_root[@]}" apt-get update -qq && "${install[@]}" "${missing[@]}"; }
