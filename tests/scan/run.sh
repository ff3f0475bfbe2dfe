#!/usr/bin/env bash
# Scans a server with the tools of other people: sslscan and testssl.sh for its TLS, slowhttptest for callers that dawdle
# with their head, their body, or the answer. Prints a table, and fails when something in it is not as it must be.
#
# The server is the debug build in `rollcall dev`, on a free port of 127.0.0.1, with a certificate made for the occasion.
# What the tools wrote stays in target/scan. CONNECTIONS is how many dawdle at a time, SECONDS_EACH for how long.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
cargo=${CARGO:-cargo}
out=$target/scan
connections=${CONNECTIONS:-300}
seconds=${SECONDS_EACH:-40}
# Longest wait, in seconds, of the caller that asks every half second meanwhile. A server that is held up does not answer at
# all; the debug build needs up to two seconds when 3,000 long lists are asked for at once.
probe_max=5
failed=0

# The tools, from Debian's packages: package and program.
missing=()
for pair in sslscan:sslscan testssl.sh:testssl slowhttptest:slowhttptest openssl:openssl curl:curl; do
    command -v "${pair#*:}" > /dev/null || missing+=("${pair%%:*}")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}"
    apt-get install -y -qq "${missing[@]}" > /dev/null ||
        { echo "install these packages, or their programs, and run it again: ${missing[*]}" >&2; exit 2; }
fi

"$cargo" build --quiet --locked
rm -rf "$out"
mkdir -p "$out"

# A root and a certificate for 127.0.0.1; the server trusts the root, because it calls itself in `dev`.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 90 -subj '/CN=Scan root' \
    -keyout "$out/root.key" -out "$out/root.pem" 2> /dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj '/CN=127.0.0.1' \
    -keyout "$out/key.pem" -out "$out/request.pem" 2> /dev/null
printf 'basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n' > "$out/extensions"
openssl x509 -req -in "$out/request.pem" -CA "$out/root.pem" -CAkey "$out/root.key" -CAcreateserial -days 90 \
    -extfile "$out/extensions" -out "$out/cert.pem" 2> /dev/null

SSL_CERT_FILE=$out/root.pem "$target/debug/rollcall" dev --json --log info --listen 127.0.0.1:0 --data-dir "$out/data" \
    --tls-cert "$out/cert.pem" --tls-key "$out/key.pem" > "$out/dev.json" 2> "$out/server.log" &
server=$!
trap 'kill $server 2> /dev/null; wait $server 2> /dev/null || true' EXIT
for _ in $(seq 150); do
    grep -q '}' "$out/dev.json" && break
    kill -0 $server 2> /dev/null || { cat "$out/server.log" >&2; exit 2; }
    sleep 0.2
done
value() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$out/dev.json" | head -1; }
url=$(value baseURL)
address=${url#https://}
token=$(value appToken)
app=$url/v1/api/apps/$(value appID)
[ -n "$address" ] && [ -n "$token" ] || { echo "rollcall dev printed something else" >&2; exit 2; }

# One line of the table: what, what was seen, and `ok` or `FAIL`.
row() { printf '%-44s %-52s %s\n' "$1" "$2" "$3"; [ "$3" = ok ] || failed=1; }
must() { if "${@:3}"; then row "$1" "$2" ok; else row "$1" "$2" FAIL; fi; }

echo "TLS, $(sslscan --version 2>&1 | tr -d '\t' | sed 's/\x1b[^m]*m//g' | head -1) and" \
    "$(testssl --version 2> /dev/null | sed 's/\x1b[^m]*m//g' | awk '/testssl/ {print $1, $2; exit}')"
sslscan --no-colour "$address" > "$out/sslscan.txt" 2>&1 || true
offered=$(awk '/^(SSL|TLS)v[0-9.]+ +enabled/ {printf "%s%s", sep, $1; sep=", "}' "$out/sslscan.txt")
must 'protocols' "$offered" [ "$offered" = 'TLSv1.2, TLSv1.3' ]
ciphers=$(awk '/^(Preferred|Accepted)/ {print $5}' "$out/sslscan.txt" | sort -u)
weak=$(grep -Ev '^TLS_(AES|CHACHA20)|^ECDHE-.*(GCM|CHACHA20)' <<< "$ciphers" || true)
must 'ciphers, each with forward secrecy and AEAD' "$(wc -l <<< "$ciphers") offered${weak:+, weak: $weak}" \
    [ -n "$ciphers" -a -z "$weak" ]

testssl --quiet --color 0 --warnings off --protocols --server-defaults --server-preference --fs --vulnerable \
    --jsonfile "$out/testssl.json" "$address" > "$out/testssl.txt" 2>&1 || true
# One finding a line: id, severity, text.
tr -d '\n' < "$out/testssl.json" | sed 's/},{/}\n{/g; s/}[[:space:]]*,[[:space:]]*{/}\n{/g' |
    sed -n 's/.*"id" *: *"\([^"]*\)".*"severity" *: *"\([^"]*\)".*"finding" *: *"\([^"]*\)".*/\2 \1: \3/p' \
        > "$out/findings.txt"
# A certificate that was made for the occasion has no authority that revokes it, and none that the tool trusts. The
# order of ciphers is the caller's on purpose: all of them are good, and the caller knows which it computes fastest.
bad=$(grep -E '^(MEDIUM|HIGH|CRITICAL|FATAL)' "$out/findings.txt" |
    grep -Ev ' cert_(chain_of_trust|revocation|crlDistributionPoints|ocspURL|trust|mustStapleExtension)| cipher_order:' || true)
checked=$(grep -c . "$out/findings.txt" || true)
must 'findings of testssl.sh, medium or worse' "${bad:-none of $checked findings}" [ "$checked" -gt 30 -a -z "$bad" ]
names='heartbleed|CCS|ticketbleed|ROBOT|secure_renego|secure_client_renego|CRIME_TLS|BREACH|POODLE_SSL|fallback_SCSV|SWEET32|FREAK|DROWN|LOGJAM|BEAST|LUCKY13|RC4'
not_ok=$(grep -E " ($names)[:_]" "$out/findings.txt" | grep -vE '^(OK|INFO|WARN) ' || true)
known=$(grep -cE " ($names)[:_]" "$out/findings.txt" || true)
must 'known attacks (Heartbleed to RC4)' "${not_ok:-$known looked for, none found}" [ "$known" -ge 12 -a -z "$not_ok" ]

# A long answer for the slow reader: 500 contacts in one batch, a list of them all.
items=$(for n in $(seq 500); do
    printf '%s{"op":"create","contact":{"firstName":"Ana","lastName":"No %d","email":"a%d@example.com"}}' \
        "$([ "$n" = 1 ] || echo ,)" "$n" "$n"
done)
call() { curl --silent --fail --cacert "$out/root.pem" -H "Authorization: Bearer $token" "$@"; }
echo "{\"items\":[$items]}" | call -o /dev/null --data-binary @- "$app/contacts/staff-batch"
list="$app/contacts/staffcontact-list?limit=500"
bytes=$(call "$list" | wc -c)

# Asks like any caller until it is stopped; one line for each answer: status and seconds.
probe() {
    while :; do
        curl --silent --max-time 10 --cacert "$out/root.pem" -H "Authorization: Bearer $token" -o /dev/null \
            -w '%{http_code} %{time_total}\n' "$app/contacts/staffcontact-list?limit=1" || true
        sleep 0.5
    done
}

echo
echo "Slow callers, slowhttptest $(slowhttptest -h 2>&1 | sed -n 's/.*version \([0-9.]*\).*/\1/p' | head -1):" \
    "$connections connections for $seconds s, a caller of good will beside them"
# Name, the seconds after which the server must have closed every one (0: the reader goes on, so it may), options.
dawdle() {
    local name=$1 close_within=$2; shift 2
    probe > "$out/$name.probe" & local prober=$!
    slowhttptest "$@" -c "$connections" -r "$connections" -l "$seconds" -p "$probe_max" -g -o "$out/$name" \
        > "$out/$name.txt" 2>&1 || true
    kill $prober 2> /dev/null; wait $prober 2> /dev/null || true
    local good slowest open_at
    good=$(awk -v max=$probe_max '$1 != 200 || $2 > max {bad++} END {printf "%d of %d", NR - bad, NR}' "$out/$name.probe")
    slowest=$(awk '$2 > most {most = $2} END {printf "%.0f ms", most * 1000}' "$out/$name.probe")
    must "$name: answers to others" "$good within $probe_max s, slowest $slowest" \
        [ "${good% of *}" = "${good#* of }" -a "${good#* of }" -gt 5 ]
    # Columns: seconds, closed, pending, connected, service available.
    open_at=$(awk -F, 'NR > 1 {gsub(/[" ]/, ""); if ($4 + 0 > 0) last = $1} END {print last + 0}' "$out/$name.csv")
    most=$(awk -F, 'NR > 1 {gsub(/[" ]/, ""); if ($4 + 0 > most) most = $4} END {print most + 0}' "$out/$name.csv")
    if [ "$close_within" -gt 0 ]; then
        must "$name: closed by the server" "$most open at most, the last seen after $open_at s (limit $close_within s)" \
            [ "$most" -gt 0 -a "$open_at" -le "$close_within" ]
    else
        must "$name: open at a time" "$most at most, the last seen after $open_at s" [ "$most" -gt 0 ]
    fi
}
# Long and short lists that were answered.
answered() { grep -c 'staffcontact-list" status=200' "$out/server.log" || true; }
bearer=$'\r\nAuthorization: Bearer '$token
# The limits are 10 s for a head and 15 s for a body (src/http/limits.rs); the handshake and the tool's own clock take time too.
dawdle slow-head 15 -H -i 3 -x 24 -u "$list" -t GET
dawdle slow-body 22 -B -i 3 -x 8 -s 8192 -u "$app/contacts/staff" -t POST -f "application/json$bearer"
# Ten long answers in a row, the most that the tool asks for. The machine's buffers take them, so this caller holds a
# connection and memory of the system, and nothing else. When they are full, the server gives up after 30 s without a byte.
before=$(answered)
dawdle slow-read 0 -X -n 3 -z 32 -w 8 -y 16 -k 10 -u "$list" -j "a=b$bearer"
# The tool's requests must have been let in, or nothing was shown.
good=$(($(answered) - before - $(grep -c '^200 ' "$out/slow-read.probe" || true)))
must 'slow-read: requests that were let in' "$good answers of $bytes bytes to $connections callers" \
    [ "$good" -ge "$connections" ]
late=$(grep -c 'contacts/staff" status=408' "$out/server.log" || true)
must 'slow-body: requests that were let in' "$late answered 408 after 15 s" [ "$late" -ge "$connections" ]

echo
call -o /dev/null "$list" || { echo 'the server does not answer any more' >&2; failed=1; }
kill -TERM $server
if wait $server; then row 'orderly stop afterwards' 'exit code 0' ok; else row 'orderly stop afterwards' "exit code $?" FAIL; fi
trap - EXIT
echo "what the tools wrote: $out"
exit $failed
