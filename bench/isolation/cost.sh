#!/usr/bin/env bash
# What isolation costs while nothing happens: l2fwd with --isolation soft --signal syscalls,exceptions beside --isolation off, on in-memory
# ports. Prints two tables; exits with 1 where a limit is passed.
#
#   bench/isolation/cost.sh [--pairs N] [--seconds S]
#
# Instructions a packet, counted by single steps over some dozen turns of the worker's loop, must be equal within 1 %. (Callgrind cannot run
# l2fwd: packet memory reserves more address space than it has, and it would be trapped itself by what traps system calls.) What arming
# adds is in the kernel alone, and takes effect at a kernel entry, of which there is none.
#
# Ticks a packet, from the reports of both, armed as users have it: in turns, so that what the machine does meanwhile hits both. The median of
# the pairs' ratios must not be above 1.10.
#
# No root is needed; a quiet machine with two CPUs makes the second table mean something.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
export LC_ALL=C

stop() { echo "cost: $1" >&2 && exit 2; }
pairs=7 seconds=2
while (($#)); do
    case $1 in
    --pairs) pairs=${2:-} && shift ;;
    --seconds) seconds=${2:-} && shift ;;
    *) stop "unknown option \"$1\": cost.sh [--pairs N] [--seconds S]" ;;
    esac
    shift
done
[[ $pairs =~ ^[1-9][0-9]*$ ]] || stop "--pairs $pairs: choose a number of pairs, such as 7"
[[ $seconds =~ ^[0-9]+([.][0-9]+)?$ ]] || stop "--seconds $seconds: choose a number of seconds, such as 2"
missing=()
for need in python3:python3-minimal nm:binutils; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
((${#missing[@]})) && stop "missing: run \"apt-get install ${missing[*]}\""
command -v cargo >/dev/null || stop "no cargo in PATH: install Rust, or run \"PATH=\$PATH:~/.cargo/bin $0\""

cargo build --locked --release --bin l2fwd || exit 2
readonly l2fwd=${CARGO_TARGET_DIR:-target}/release/l2fwd
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM HUP
failed=0

python3 bench/isolation/instructions.py "$l2fwd" || failed=1

# ticks OPTIONS...
ticks() {
    "$l2fwd" --port mem:null --port mem:null --stats-period 0 --duration "$seconds" --report "$folder/report.json" "$@" \
        >"$folder/log" 2>&1 || stop "l2fwd failed: $(tail -n 3 "$folder/log")"
    sed -n 's/.*"tsc_per_packet": \([0-9.]*\).*/\1/p' "$folder/report.json"
}

echo
echo "ticks a packet (mem:null to mem:null), $pairs pairs of $seconds s"
echo "        off       soft      ratio"
readonly armed=(--isolation soft "--signal=syscalls,exceptions")
for ((pair = 0; pair < pairs; pair++)); do
    # Neither is always the first.
    if ((pair % 2)); then
        soft=$(ticks "${armed[@]}") && off=$(ticks --isolation off) || exit
    else
        off=$(ticks --isolation off) && soft=$(ticks "${armed[@]}") || exit
    fi
    awk -v off="$off" -v soft="$soft" 'BEGIN { printf "%11.2f%11.2f%11.4f\n", off, soft, soft / off }'
done | tee "$folder/pairs"
awk '{ print $3 }' "$folder/pairs" | sort -n | awk -v pairs="$pairs" '
    { ratio[NR] = $1 }
    END {
        if (NR != pairs) exit 1
        median = NR % 2 ? ratio[(NR + 1) / 2] : (ratio[NR / 2] + ratio[NR / 2 + 1]) / 2
        printf "  median ratio %.4f (limit 1.10)\n", median
        exit !(median <= 1.10)
    }' || failed=1
exit $failed
