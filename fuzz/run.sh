#!/bin/sh
# Fuzzes the parsers that see bytes from outside: all targets, or those that are named.
#
#   fuzz/run.sh [SECONDS [TARGET ...]]      600 s each unless said otherwise, two at a time
#
# Works with the stable compiler: its LLVM writes the coverage, libfuzzer-sys brings the fuzzer. Inputs that reach
# something new go to fuzz/target/corpus/, those that break a property to fuzz/target/findings/; the seeds in
# fuzz/corpus/ are only read. Ends with 1 when there is a finding.
set -eu

cd "$(dirname "$0")"
seconds=${1:-600}
[ $# -eq 0 ] || shift
targets=${*:-$(ls corpus)}
# Longest input: beyond it mutations hardly reach anything new, and every run takes longer.
bytes_max=4096

host=$(rustc -vV | sed -n 's/^host: //p')
# With a target named, build scripts and macros are built without the coverage.
export CARGO_ENCODED_RUSTFLAGS="$(printf '%s\037' \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Clink-arg=-Wl,-z,nostart-stop-gc)--cfg=rollcall_fuzz"
${CARGO:-cargo} build --release --locked --target "$host"
[ "$seconds" -gt 0 ] || exit 0
program=target/$host/release/rollcall-fuzz

# One target: a line when it ends, the fuzzer's own lines in target/<target>.log.
fuzz() {
    target=$1
    mkdir -p "target/corpus/$target" "target/findings/$target"
    dictionary=
    [ ! -f "dictionaries/$target.txt" ] || dictionary="-dict=dictionaries/$target.txt"
    ended=0
    # shellcheck disable=SC2086
    ROLLCALL_FUZZ_TARGET=$target "$program" -max_total_time="$seconds" -max_len="$bytes_max" -timeout=10 \
        -rss_limit_mb=2048 -print_final_stats=1 $dictionary -artifact_prefix="target/findings/$target/" \
        "target/corpus/$target" "corpus/$target" >"target/$target.log" 2>&1 || ended=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "target/$target.log")
    reached=$(grep -o 'cov: [0-9]* ft: [0-9]*' "target/$target.log" | tail -1)
    printf '%-14s %10s executions   %s   findings: %s\n' "$target" "${runs:-?}" "${reached:-cov: ?}" \
        "$(ls "target/findings/$target" | wc -l)"
    [ "$ended" -eq 0 ] || tail -40 "target/$target.log"
    return "$ended"
}

failed=0
for target in $targets; do
    [ -d "corpus/$target" ] || { echo "no target is called $target; there are:" $(ls corpus) >&2; exit 2; }
done
set -- $targets
while [ $# -gt 0 ]; do
    fuzz "$1" & first=$!
    second=
    if [ $# -gt 1 ]; then fuzz "$2" & second=$!; shift; fi
    shift
    wait "$first" || failed=1
    [ -z "$second" ] || wait "$second" || failed=1
done
exit "$failed"
