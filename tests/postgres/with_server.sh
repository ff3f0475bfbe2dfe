#!/usr/bin/env bash
# Runs a command with a PostgreSQL for tests:  tests/postgres/with_server.sh cargo test
#
# The command finds the server in TEST_POSTGRES_URL. When that is set already, nothing else happens. Otherwise a server is
# started in a directory of its own, on a free port of 127.0.0.1, and both go away with this script, however it ends.
# PostgreSQL's programs come from TEST_POSTGRES_BIN, else from Debian's package, which is installed when it is missing.
#
# For a benchmark POSTGRES_URL_NAME names another variable for the URL (BENCH_POSTGRES_URL), POSTGRES_DURABLE=1 leaves
# everything on that keeps a commit, POSTGRES_OPTIONS adds options (-c name=value), and the directory is made in TMPDIR.
#
#   tests/postgres/with_server.sh --programs    prints the directory of those programs
set -euo pipefail

# Where Debian puts each version (elsewhere only to try what happens without them), and the package that brings the newest.
debian=${TEST_POSTGRES_DEBIAN_DIR:-/usr/lib/postgresql}
package=postgresql

url_name=${POSTGRES_URL_NAME:-TEST_POSTGRES_URL}

fail() {
    echo "$0: $1" >&2
    exit 2
}

# The directory of the newest version, or nothing.
find_programs() {
    find "$debian" -mindepth 3 -maxdepth 3 -path '*/bin/initdb' 2> /dev/null | sort -V | tail -n 1 | sed 's|/initdb$||'
}

install_package() {
    local todo="install PostgreSQL (Debian: apt-get install $package), or name the directory of initdb in \
TEST_POSTGRES_BIN, or a running server in TEST_POSTGRES_URL (postgres://user@host:port/postgres, a user that may make \
databases)"
    command -v apt-get > /dev/null || fail "PostgreSQL is not here, and neither is apt-get: $todo"
    local root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo > /dev/null || fail "PostgreSQL is not here, and only root may install it: $todo"
        root=(sudo)
    fi
    echo "installing Debian's package $package" >&2
    # The tests have their own server: the package is not to start one. What says so is there for that time only.
    local no_cluster=/etc/postgresql-common/createcluster.d/rollcall-tests.conf
    # shellcheck disable=SC2016 # the inner shell expands it
    "${root[@]}" sh -eu -c '
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends postgresql-common
        mkdir -p "${1%/*}"
        trap "rm -f \"$1\"" EXIT
        echo "create_main_cluster = false" > "$1"
        apt-get install -y -qq --no-install-recommends "$2"
    ' install "$no_cluster" "$package" >&2 || fail "the package could not be installed, see above: $todo"
}

programs() {
    local found=${TEST_POSTGRES_BIN:-}
    if [ -n "$found" ]; then
        [ -x "$found/initdb" ] || fail "there is no initdb in $found: correct TEST_POSTGRES_BIN, or leave it out"
    else
        found=$(find_programs)
        if [ -z "$found" ]; then
            install_package
            found=$(find_programs)
            [ -n "$found" ] || fail "no initdb below $debian: name its directory in TEST_POSTGRES_BIN"
        fi
    fi
    echo "$found"
}

# PostgreSQL refuses to run as root.
as_user() {
    if [ "$(id -u)" = 0 ]; then
        (cd / && exec runuser -u postgres -- "$@")
    else
        "$@"
    fi
}

# Stops the server and removes its directory, as soon as nobody holds the other end of standard input any more.
clean_up() {
    local dir=$1 bin=$2
    cat > /dev/null
    if [ -e "$dir/data/postmaster.pid" ]; then
        as_user "$bin/pg_ctl" stop --silent --mode=immediate --pgdata="$dir/data" > /dev/null 2>&1 || true
    fi
    rm -rf "$dir"
}

# Starts the server on a free port, which is left in `port`.
start() {
    local dir=$1 bin=$2 options
    for _ in 1 2 3 4 5 6 7 8; do
        # Below the ports that systems give to outgoing connections.
        port=$((20000 + RANDOM % 12000))
        # Tests run side by side, several nodes each.
        options="-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories='' -c max_connections=400"
        # Nothing of a test outlives it, so nothing is made safe against a loss of power.
        if [ -z "${POSTGRES_DURABLE:-}" ]; then
            options+=" -c fsync=off -c full_page_writes=off -c max_wal_size=2GB -c autovacuum_naptime=5s"
        fi
        options+=" ${POSTGRES_OPTIONS:-}"
        if as_user "$bin/pg_ctl" start --silent --wait --timeout=60 --pgdata="$dir/data" --log="$dir/log" \
            --options="$options" > /dev/null 2>&1 3>&-; then
            return
        fi
        grep -q 'Address already in use' "$dir/log" || break
        : > "$dir/log"
    done
    tail -n 20 "$dir/log" >&2
    fail "PostgreSQL does not start, its log is above: correct that, or name a running server in $url_name"
}

case ${1:-} in
    --programs) programs; exit ;;
    --clean-up) clean_up "$2" "$3"; exit ;;
    '' | -*) fail "say which command to run, for example: $0 cargo test --locked" ;;
esac
if [ -n "${!url_name:-}" ]; then
    exec "$@"
fi

bin=$(programs)
if [ "$(id -u)" = 0 ] && ! id postgres > /dev/null 2>&1; then
    fail "PostgreSQL refuses to run as root: make a user postgres, or run this as another user"
fi
dir=$(mktemp -d "${TMPDIR:-/tmp}/rollcall-postgres.XXXXXX")
[ "$(id -u)" != 0 ] || chown postgres "$dir"
# Cleaning up is done by a process of its own, which hears by the end of this pipe that the script is no more: also after a
# SIGKILL. It has its own session, so that it does not get the signals of a terminal.
mkfifo "$dir/alive"
setsid "$0" --clean-up "$dir" "$bin" < "$dir/alive" &
cleaner=$!
exec 3> "$dir/alive"

if ! as_user "$bin/initdb" --pgdata="$dir/data" --username=rollcall --auth=trust --encoding=UTF8 --locale=C --no-sync \
    > "$dir/initdb.log" 2>&1 3>&-; then
    cat "$dir/initdb.log" >&2
    fail "initdb failed, see above"
fi
start "$dir" "$bin"

status=0
env "$url_name=postgres://rollcall@127.0.0.1:$port/postgres" "$@" 3>&- || status=$?
exec 3>&-
wait "$cleaner" || true
exit "$status"
