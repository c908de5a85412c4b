#!/usr/bin/env bash
# Runs every test of the project: format, lints, docs, unit and property tests, loom, tests in network namespaces and in a
# guest, the release build, and the demo. See "Testing" in CONTRIBUTING.md.
#
#   ./test.sh           everything; every property test for 10 s (5 s below nic/src/vfio), floods, starts and kills for about as long
#   ./test.sh --long    every property test for 30 s, those of what a NIC may do to its driver for 10 min, and many times the rounds of
#                       floods, starts and kills
#   ./test.sh STAGE...  only these stages, by the names that it prints: ./test.sh --long "property tests"
#
# Exit status: 0 when all passed, 1 when something failed, 2 for a wrong command line or a missing toolchain.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
export LC_ALL=C

readonly stages=("guest kit" format lints docs "test build" "unit tests" "release build" loom registrations "property tests" "guest tests"
    "namespace tests" "nothing left" demo)
usage() {
    echo "usage: ./test.sh [--long] [STAGE...]"
    local IFS=,
    echo "stages: ${stages[*]}" | sed 's/,/, /g'
}
long=
# Stages that were asked for; all where it is empty.
wanted=()
is_in() { printf '%s\n' "${@:2}" | grep -qxF -- "$1"; }
for argument in "$@"; do
    case $argument in
    --long) long=1 ;;
    -h | --help) usage && exit 0 ;;
    *)
        is_in "$argument" "${stages[@]}" && wanted+=("$argument") && continue
        echo "test.sh: no option or stage \"$argument\"" >&2 && usage >&2 && exit 2
        ;;
    esac
done
# For tests that count rounds.
if [[ $long ]]; then export ISOPLANE_LONG=1; else unset ISOPLANE_LONG; fi
campaign_seconds=$((long ? 30 : 10))
# What a NIC may write and answer, by a pattern of tests.
longest='vfio::.*whatever'

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
export CARGO_TERM_COLOR=never
# What only helps a build after this one costs the first one a sixth. Where somebody has worked, what is there is used.
[[ -d $CARGO_TARGET_DIR/debug/incremental ]] || export CARGO_INCREMENTAL=0
readonly logs=$CARGO_TARGET_DIR/test-logs
rm -rf "$logs" && mkdir -p "$logs" || exit 2
root=
((EUID == 0)) && root=1

passed=0 failed=0 skipped=0
failures=() skips=()
fail() { failed=$((failed + 1)) && failures+=("$1"); }
has() { command -v "$1" >/dev/null; }

# ---------------------------------------------------------------------------------------------------- what tests need

# Program, Debian package. Ubuntu has bpftool in other packages: see install_missing.
readonly needs=(cc:gcc ld:binutils ip:iproute2 ethtool:ethtool ping:iputils-ping bpftool:bpftool jq:jq
    setpriv:util-linux script:bsdutils timeout:coreutils shellcheck:shellcheck tshark:tshark capinfos:wireshark-common)

missing_packages() {
    local need
    for need in "${needs[@]}"; do has "${need%%:*}" || echo "${need#*:}"; done
    # A linker without the C library's start files links nothing.
    [[ $(cc -print-file-name=crt1.o 2>/dev/null) == /* ]] || echo libc6-dev
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends "$@" </dev/null; }

# Package lists may be missing or old: the first refusal is answered by an update.
apt_install() { apt install "$@" || { apt update && apt install "$@"; }; }

install_missing() {
    local package
    for package in "$@"; do
        case $package in
        bpftool) apt_install bpftool || apt_install linux-tools-common linux-tools-generic ;;
        *) apt_install "$package" ;;
        esac || return
    done
}

find_cargo() {
    has cargo && return
    local home=${HOME:-$(getent passwd "$EUID" | cut -d: -f6)}
    PATH=$PATH:${CARGO_HOME:-$home/.cargo}/bin
    has cargo
}

prepare() {
    if ! find_cargo; then
        echo "test.sh: no cargo: install Rust by rustup (https://rustup.rs), then run ./test.sh again" >&2
        exit 2
    fi
    local component
    for component in fmt clippy; do
        cargo "$component" --version >/dev/null 2>&1 && continue
        rustup component add rustfmt clippy </dev/null >>"$logs/prepare.log" 2>&1
    done
    local missing
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    if [[ $root ]] && has apt-get; then
        echo "installing ${missing[*]}"
        install_missing "${missing[@]}" >>"$logs/prepare.log" 2>&1 || tail -n 5 "$logs/prepare.log"
        mapfile -t missing < <(missing_packages)
        ((${#missing[@]})) || return 0
    fi
    echo "test.sh: missing: ${missing[*]}: run \"apt-get install ${missing[*]}\" as root" >&2
}

# ------------------------------------------------------------------------------------------------------------- stages

# A stage runs as a background job, so that Ctrl-C reaches this script at once and the script ends the job. It has a
# shell of its own, since timeout(1) starts programs and not functions: what it uses is exported at the end of the file.
declare -A jobs=() began=()
interrupted() {
    ((${#jobs[@]})) && kill -TERM "${jobs[@]}" 2>/dev/null && wait "${jobs[@]}"
    echo "interrupted"
    exit 130
}
trap interrupted INT TERM HUP

log_of() { echo "$logs/${1// /-}.log"; }

# begin NAME MINUTES COMMAND...: starts it, with its output in a log, if it is wanted.
begin() {
    local name=$1 minutes=$2
    shift 2
    ((${#wanted[@]})) && ! is_in "$name" "${wanted[@]}" && return
    began[$name]=$SECONDS
    timeout -k 10 $((minutes * 60)) bash -uc '"$@"' stage "$@" </dev/null >"$(log_of "$name")" 2>&1 &
    jobs[$name]=$!
}

# finish NAME: waits for it, and prints one line.
# Tests that cargo counts are added one by one, any other stage counts as one test.
finish() {
    local name=$1 status
    [[ ${jobs[$name]-} ]] || return
    log=$(log_of "$name")
    wait "${jobs[$name]}"
    status=$?
    unset "jobs[$name]"
    count_stage "$name" "$status"
    printf '%-18s%s  %4d s  %s\n' "$name" "$verdict" $((SECONDS - began[$name])) "$detail"
    if [[ $verdict == FAILED ]]; then
        ((status == 124 || status == 137)) && echo "    not done in time"
        relevant_lines "$log" | sed 's/^/    /'
        echo "    (all of it: $log)"
    fi
}

stage() { begin "$@"; finish "$1"; }

# Sums up cargo's "test result: ok. 3 passed; 1 failed; ..." lines and our own "SKIPPED test: why" lines.
count_stage() {
    local name=$1 status=$2 log_passed log_failed log_skipped
    verdict=ok detail=
    ((status == 0)) || verdict=FAILED
    read -r log_passed log_failed < <(awk '
        /^test result: / { for (i = 1; i < NF; i++) { if ($(i + 1) == "passed;") p += $i; if ($(i + 1) == "failed;") f += $i } }
        END { print p + 0, f + 0 }' "$log")
    check_skips
    if [[ $name != *tests && $name != loom && $name != registrations ]]; then
        if ((status)); then fail "$name"; else passed=$((passed + 1)); fi
        return
    fi
    log_passed=$((log_passed - log_skipped))
    passed=$((passed + log_passed)) skipped=$((skipped + log_skipped))
    detail="$log_passed passed"
    ((log_skipped)) && detail+=", $log_skipped SKIPPED"
    local test named=0
    while read -r test; do named=1 && fail "$name: $test"; done < <(failed_tests "$log")
    # A build that broke, a test that was killed: a failure without a name.
    ((status && !named)) && fail "$name"
    if ((status == 0 && log_passed + log_skipped == 0)); then
        fail "$name: ran no test" && verdict=FAILED
    fi
    ((log_failed)) && detail+=", $log_failed failed"
}

# The list that libtest prints last: "failures:", then the names, indented.
failed_tests() {
    awk '/^failures:$/ { list = 1; next } list && /^    [^ ]/ { sub(/^ +/, ""); print; next } { list = 0 }' "$1" | sort -u
}

# From the first complaint on, as far as it helps.
relevant_lines() {
    local lines
    lines=$(grep -nE '^(error|warning|Diff in|In .* line )|panicked at|: error' "$1" | head -n 1)
    if [[ $lines ]]; then sed -n "${lines%%:*},\$p" "$1" | head -n 40; else tail -n 25 "$1"; fi
}

# -------------------------------------------------------------------------------------------------------------- skips

# A test may skip itself only for what this table names, and only where the probe finds that the machine lacks it.
# The first word that occurs in the reason decides. CONTRIBUTING.md lists them: keep both alike.
readonly lacks=(QEMU:lacks_guest PREEMPT_RT:lacks_special_kernel zero-copy:lacks_special_kernel root:lacks_root install:lacks_apt real-time:lacks_real_time namespace:lacks_namespaces
    AF_XDP:lacks_af_xdp veth:lacks_veth hugepage:lacks_hugepages offline:lacks_cpu_hotplug CPU:lacks_second_cpu
    XDP_MAX_TX_SKB_BUDGET:lacks_linux_6_17 BTF:lacks_btf "BPF LSM:lacks_bpf_lsm" cpuset:lacks_cpusets)
lacks_root() { [[ ! $root ]]; }
# What apt can install, this script has installed.
lacks_apt() { [[ ! $root ]] || ! has apt-get; }
lacks_real_time() { ! chrt --fifo 1 true 2>/dev/null; }
lacks_namespaces() { ! unshare --net true 2>/dev/null; }
lacks_af_xdp() { ! grep -q '^XDP ' /proc/net/protocols; }
lacks_veth() { ! unshare --net ip link add probe type veth peer name ebborp 2>/dev/null; }
lacks_second_cpu() { (($(nproc) < 2)); }
# What bench/vm/fetch.sh needs: an x86-64 machine with apt, and an archive that answers. It is asked once.
archive=
lacks_guest() {
    [[ $(uname -m) != x86_64 ]] && return
    { has apt-get && has dpkg-deb; } || return 0
    if [[ ! $archive ]]; then
        local uri
        uri=$(apt-get --print-uris update 2>/dev/null | awk -F "'" '{ print $2; exit }')
        timeout 60 /usr/lib/apt/apt-helper -o APT::Sandbox::User= download-file "$uri" "$logs/archive" >/dev/null 2>&1 &&
            archive=answers || archive=silent
    fi
    [[ $archive == silent ]]
}
# Of the distributions that bench/vm/fetch.sh knows, Debian has such kernels.
lacks_special_kernel() { lacks_guest || ! grep -qx 'ID="\?debian"\?' /etc/os-release; }
# The kernel may still refuse what it offers.
lacks_cpu_hotplug() { [[ ! $root ]] || (($(nproc) < 2)) || ! compgen -G '/sys/devices/system/cpu/cpu[1-9]*/online' >/dev/null; }
lacks_linux_6_17() { printf '6.17\n%s\n' "$(uname -r)" | sort -VC && return 1 || return 0; }
lacks_btf() { [[ ! -r /sys/kernel/btf/vmlinux ]]; }
# Built in, enabled, and allowed: bpftool tries to load a program. Where it cannot say, the list of security modules must.
lacks_bpf_lsm() {
    has bpftool && bpftool feature probe kernel 2>/dev/null | grep -q 'program_type lsm is NOT available' && return
    ! unshare --mount sh -c 'mount -t securityfs none /mnt && grep -qw bpf /mnt/lsm' 2>/dev/null
}
lacks_cpusets() { ! grep -qw cpuset /proc/self/cgroup && ! grep -qsw cpuset /sys/fs/cgroup/cgroup.controllers; }
# Asks for one page more than there are, and puts the number back.
lacks_hugepages() {
    local pool=/sys/kernel/mm/hugepages/hugepages-2048kB before after
    read -r before 2>/dev/null <$pool/nr_hugepages || return 0
    { echo $((before + 1)) >$pool/nr_hugepages; } 2>/dev/null || return 0
    read -r after <$pool/nr_hugepages
    echo "$before" >$pool/nr_hugepages
    ((after <= before))
}

# Sets log_skipped; a skip that this machine gives no reason for is a failure.
check_skips() {
    log_skipped=0
    local test why entry lack
    while IFS=: read -r test why; do
        log_skipped=$((log_skipped + 1))
        skips+=("${test:-a test}:$why")
        lack=
        for entry in "${lacks[@]}"; do
            [[ ${why,,} == *"${entry%%:*}"* || $why == *"${entry%%:*}"* ]] && lack=${entry#*:} && break
        done
        if [[ ! $lack ]]; then
            fail "$test skipped for a reason that CONTRIBUTING.md does not list:$why" && verdict=FAILED
        elif ! "$lack"; then
            fail "$test skipped, but this machine has what it needs:$why" && verdict=FAILED
        fi
    done < <(grep -oE 'SKIPPED[^:]*: .*' "$log" | sed -E 's/^SKIPPED ?//' | sort -u)
}

# ---------------------------------------------------------------------------------------------------------- leftovers

# What a test could leave behind on the host, one a line.
host_state() {
    local pid exe
    if has ip; then
        ip netns list | sed 's/ .*//; s/^/network namespace /'
        ip -o link show | sed -nE 's/^[0-9]+: ([^:@]+).*/interface \1/p'
        ip -o link show | sed -nE 's/^[0-9]+: ([^:@]+).* (prog\/xdp|xdp[a-z]*)( id [0-9]+)?.*/XDP program on \1/p'
    fi
    if [[ $root ]] && has bpftool; then
        bpftool link show 2>/dev/null | sed -nE 's/^([0-9]+): .*/BPF link \1/p'
        bpftool prog show 2>/dev/null | sed -nE 's/^([0-9]+): xdp .*/XDP program \1/p'
    fi
    awk '/^HugePages_Total/ { total = $2 } /^HugePages_Free/ { free = $2 }
        END { print "hugepages: " total ", of them in use: " total - free }' /proc/meminfo
    # The folder itself ip(8) mounts at its first "netns add" after the boot, and for good.
    cut -d' ' -f2 /proc/self/mounts | grep -vx /run/netns | sed 's/^/mount /'
    for pid in /proc/[0-9]*; do
        exe=$(readlink "$pid/exe" 2>/dev/null) || continue
        [[ $exe == "$CARGO_TARGET_DIR"/* ]] && echo "process ${pid#/proc/} $exe"
    done
    return 0
}

# The kernel frees namespaces and programs a little after their last user has gone: asks for up to five seconds.
nothing_left_behind() {
    local before=$1 left _
    for _ in {1..25}; do
        left=$(diff <(sort "$before") <(host_state | sort)) && return
        sleep 0.2
    done
    echo "left behind (>) or gone (<):"
    grep '^[<>]' <<<"$left"
    return 1
}

# --------------------------------------------------------------------------------------------------------------- smoke

# Two seconds of the demo of the README, without privileges: what it prints, and its report.
smoke() {
    local place report printed status words run as=()
    place=$(mktemp -d) || return
    # shellcheck disable=SC2064 # the value of now
    trap "rm -rf '$place'" EXIT
    cp "$CARGO_TARGET_DIR/release/l2fwd" "$place/" || return
    chmod 777 "$place"
    report=$place/report.json
    [[ $root ]] && as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    # On a terminal, where its tables would be coloured and redrawn if it were not told otherwise; the log is another matter.
    printed=$place/printed run="./l2fwd --duration 2 --no-color --report '$report' 2>'$place/log'"
    if has script; then as+=(script -qe -c "$run" /dev/null); else
        echo "SKIPPED the demo on a terminal: install bsdutils"
        as+=(sh -c "$run")
    fi
    (cd "$place" && "${as[@]}") >"$printed"
    status=$?
    cat "$place/log" "$printed"
    ((status == 0)) || return "$status"
    ! grep -q $'\e' "$printed" || { echo "error: --no-color, and yet it prints escape sequences"; return 1; }
    # Of a worker, the packets, the ticks for each, and five percentiles.
    for words in 'rx pps' '^Totals after [0-9.]+ s' 'p99\.99' ', 0 leaked' \
        'worker 0 on CPU [0-9]+ +[0-9]+ +[0-9.]+( +[0-9.]+ (ns|us|ms|s)){5}'; do
        grep -qE "$words" "$printed" || { echo "error: it does not print \"$words\""; return 1; }
    done
    cat "$report"
    has jq || { echo "SKIPPED the demo's report: install jq, which checks it"; return; }
    # The totals are those of the report.
    for words in $(jq '.ports[] | .rx_packets, .tx_packets' "$report"); do
        grep -qE "(received|sent) +$words packets" "$printed" || { echo "error: no total is $words packets"; return 1; }
    done
    jq -e '
        def sum(f): map(f) | add;
        (.ports | length) >= 2 and (.workers | length) >= 1
        and .pool.leaked == 0
        and (.ports | sum(.tx_packets)) > 100000
        and ([.workers[] | .loop_gap_ns | .p50 > 0 and .max >= .p9999] | all)
        and (.ports | sum(.rx_packets)) == (.ports | sum(.tx_packets))
            + ([.ports[].drops | to_entries[] | select(.key | startswith("rx_") | not) | .value] | add // 0)
    ' "$report" || { echo "error: the report is wrong: see the conditions in test.sh, smoke()"; return 1; }
}

lints() {
    cargo clippy --locked --workspace --all-targets -- -D warnings || return
    has shellcheck || { echo "SKIPPED shellcheck: install shellcheck"; return; }
    shellcheck test.sh .ci/run bench/peers/*.sh bench/vfio/*.sh bench/vm/fetch.sh bench/vm/init
}

# The property tests run by themselves, below, and more cases of each. Where they cannot be found, they are unit tests.
unit_tests() {
    local skip=(namespace_ guest_)
    has jq && skip+=(property_)
    cargo test --locked --workspace --no-fail-fast -- "${skip[@]/#/--skip=}" --show-output
}

# What stands on rseq, on the two registrations that a process here does not choose by itself; and the guide's example.
# The drivers of NICs do not: they have the pool's frames as everybody has.
registrations() {
    local built crate binary said failed=0
    # The binaries of the stage before: for two crates alone cargo would choose other features, and build everything anew.
    if ! built=$(cargo test --locked --workspace --no-run 2>&1); then
        echo "$built"
        return 1
    fi
    for crate in percpu nic; do
        binary=$(realpath "$(sed -nE "s|.*\((.*/deps/$crate-[0-9a-f]+)\)|\1|p" <<<"$built")") || return
        (
            cd "$crate" || exit
            GLIBC_TUNABLES=glibc.pthread.rseq=0 ISOPLANE_RSEQ=own "$binary" --skip namespace_ --skip vfio:: &&
                ISOPLANE_RSEQ=off "$binary" --skip namespace_ --skip vfio::
        ) || failed=1
    done
    said=$("$CARGO_TARGET_DIR/debug/examples/requests") || return
    echo "$said"
    ((failed == 0)) && [[ $said == *"1024 of 1024 buffers are free, all of them in the shared part: 1024" ]]
}

loom() {
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=$CARGO_TARGET_DIR/loom \
        cargo test --locked -p percpu -p nic --profile loom --lib -- claim depot qsbr ring
}

namespace_tests() {
    cargo test --locked --workspace --tests --no-fail-fast -- namespace_ --test-threads=1 --nocapture
}

# What guest tests need. Where it cannot be had (3), they skip themselves.
guest_kit() {
    bench/vm/fetch.sh || (($? == 3)) || return 1
    bench/vm/fetch.sh rt || (($? == 3)) || return 1
    bench/vm/fetch.sh zerocopy || (($? == 3)) || return 1
}

# Machines that QEMU plays.
guest_tests() {
    # Of the whole workspace, or cargo would choose other features and build much anew.
    cargo test --locked --workspace --test vm --test isolation --no-fail-fast -- guest_ --nocapture
}

# The property tests, by their names' beginning, two at a time on each CPU: what counts is that each has its seconds.
campaigns() {
    local binaries list=$logs/campaigns.txt
    if ! has jq; then
        # As libtest counts a test that skips itself.
        printf '%s\n' "SKIPPED property tests: install jq, which finds them" "test result: ok. 1 passed; 0 failed;"
        return
    fi
    binaries=$(cargo test --locked --workspace --no-run --message-format=json) || return
    binaries=$(jq -r 'select(.profile.test and .executable) | "\(.executable) \(.manifest_path)"' <<<"$binaries")
    while read -r binary manifest; do
        "$binary" --list --format terse | sed -nE "s|(.*property_.*): test\$|$binary $(dirname "$manifest") \1|p"
    done <<<"$binaries" >"$list"
    # The longest first.
    { grep "$longest" "$list"; grep -v "$longest" "$list"; } |
        xargs -L 1 -P $(($(nproc) * 2)) bash -uc 'campaign "$@"' campaign
}

# Runs one test again and again, each time on other random input.
campaign() {
    local binary=$1 folder=$2 test=$3 rounds=0 log seconds=$campaign_seconds
    log=$logs/campaign-${test//:/_}.log
    cd "$folder" || return
    # What a NIC may write and answer: ten minutes for each driver, where there is time; else the drivers share what there is.
    if [[ ${ISOPLANE_LONG-} ]]; then
        [[ $test =~ $longest ]] && seconds=600
    elif [[ $test == vfio::* ]]; then
        seconds=5
    fi
    while ((SECONDS < seconds)); do
        if ! PROPTEST_CASES=100 "$binary" --exact "$test" >"$log" 2>&1; then
            cat "$log"
            return 1
        fi
        rounds=$((rounds + 1))
    done
    # A test may set its own number of cases.
    echo "test result: ok. 1 passed; 0 failed; $test: $rounds rounds"
}

export logs root campaign_seconds longest
export -f has lints unit_tests registrations campaign campaigns loom namespace_tests guest_kit guest_tests host_state nothing_left_behind smoke

# A function, so that bash has read the whole file before it begins: it may be edited meanwhile.
main() {
    prepare
    local started=$SECONDS
    # Waits for the network.
    begin "guest kit" 12 guest_kit
    stage "format" 2 cargo fmt --all --check
    stage "lints" 15 lints
    stage "docs" 10 env RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items
    stage "test build" 15 cargo test --locked --workspace --no-run
    finish "guest kit"
    host_state >"$logs/host-before.txt"
    stage "unit tests" 15 unit_tests
    # From here on, until the namespace tests want a quiet machine, it takes what others leave of the CPUs. (Unit tests want one too.)
    begin "release build" 15 nice -n 10 cargo build --locked --release --bin l2fwd
    begin "loom" 15 nice -n 10 bash -uc loom
    stage "registrations" 10 registrations
    # Guests take one CPU at a time.
    begin "property tests" $((long ? 60 : 10)) nice -n 19 bash -uc campaigns
    stage "guest tests" 10 guest_tests
    finish "loom"
    finish "property tests"
    finish "release build"
    stage "namespace tests" $((long ? 120 : 15)) namespace_tests
    stage "nothing left" 1 nothing_left_behind "$logs/host-before.txt"
    stage "demo" 2 smoke

    echo
    ((skipped)) && printf 'SKIPPED %s\n' "${skips[@]}"
    ((failed)) && printf 'FAILED  %s\n' "${failures[@]}"
    echo "$((SECONDS - started)) s, logs in $logs"
    echo "$passed passed, $failed failed, $skipped skipped"
    ((failed == 0))
}
main
