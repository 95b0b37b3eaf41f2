#!/usr/bin/env bash
# Install what `make test-all` and `make demo-mysql` need beyond pip: a second PostgreSQL with TLS, MariaDB, Chromium, age, curl,
# jq, zstd and npm. Only what is missing. With an argument, that alone: `mariadb` for the demo, `bench` for the benchmarks.
set -euo pipefail

missing=()
need() {
  command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || missing+=("$2")
}
case ${1:-test} in
  test)
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
    need mariadbd mariadb-server-core
    need my_print_defaults mariadb-client-core
    need openssl openssl
    need age age
    need curl curl
    need jq jq
    need zstd zstd
    need chromium chromium
    need node nodejs
    need npm npm
    ;;
  mariadb)
    # Other systems' MariaDB does as well, and is not always on the PATH: the demo itself says so if it finds none.
    command -v apt-get >/dev/null || exit 0
    need mariadbd mariadb-server-core
    need my_print_defaults mariadb-client-core
    ;;
  bench)
    need mariadbd mariadb-server-core
    need mariadb mariadb-client-core
    need pt-archiver percona-toolkit
    need node nodejs
    need npm npm
    ;;
  *)
    echo "there is no set of packages '$1'" >&2
    echo "hint: scripts/debian-packages.sh [test|mariadb|bench]" >&2
    exit 2
    ;;
esac

if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "these are missing, and this is no Debian or Ubuntu: ${missing[*]}" >&2
  echo "hint: install them in your system's way, or run the tests that need none of them: make test" >&2
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
# The tests start servers of their own: no cluster is made and nothing is started at boot. Of MariaDB these are only the
# programs, without service and user.
install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qq -y --no-install-recommends)
"${install[@]}" "${missing[@]}" || { "${as_root[@]}" apt-get update -qq && "${install[@]}" "${missing[@]}"; }
