#!/usr/bin/env bash
# Runs Debian's DPDK testpmd beside this project's l2fwd, in turns, and prints a table of the ratios. See compare.py.
# Or l2fwd alone, by each way of waiting for packets (--idle). See idle.py.
#
#   bench/peers/run.sh [--pairs N] [--seconds S] [--most-wait PERCENT] [--only NAME,NAME]
#   bench/peers/run.sh idle [--pairs N] [--seconds S] [--most-wait PERCENT] [--probes N]
#
# Takes root and a quiet machine with two CPUs; about ten minutes. What it makes (two veth pairs in a network namespace, hugepages)
# is gone when it ends, however it ends.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

stop() { echo "peers: $1" >&2 && exit 2; }
((EUID == 0)) || stop "needs root, for AF_XDP and network namespaces: run it by sudo"
(($(nproc) >= 2)) || stop "needs 2 CPUs, one for the packets and one for all else"
script=compare.py
missing=()
if [[ ${1-} == idle ]]; then
    shift
    script=idle.py
else
    command -v dpdk-testpmd >/dev/null || missing+=(dpdk-dev)
fi
for need in ip:iproute2 python3:python3-minimal unshare:util-linux; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
((${#missing[@]})) && stop "missing: run \"apt-get install ${missing[*]}\""
command -v cargo >/dev/null || stop "no cargo in PATH: install Rust, or run \"PATH=\$PATH:~/.cargo/bin $0\""

cargo build --locked --release --bin l2fwd --bin xdpgen || exit 2

# Both programs get their packet memory from the same 2 MiB pages.
readonly pages=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
read -r pages_before <$pages || stop "this kernel has no 2 MiB hugepages"
child=
# The namespace's first process is killed with its children: --kill-child.
# shellcheck disable=SC2317 # called by a trap
undo() {
    [[ $child ]] && kill "$child" 2>/dev/null && wait "$child"
    echo "$pages_before" >"$pages"
}
trap undo EXIT
trap 'exit 130' INT TERM HUP
echo $((pages_before + 640)) >$pages
read -r pages_now <$pages
((pages_now >= pages_before + 640)) || stop "not enough free memory for 640 hugepages of 2 MiB"

# shellcheck disable=SC2016 # expanded by the inner shell
unshare --net --mount --pid --fork --kill-child --mount-proc sh -c '
    mount -t bpf bpf /sys/fs/bpf && ip link set lo up || exit
    for pair in 0 1; do
        # Without IPv6 the kernel sends nothing by itself.
        sysctl -qw net.ipv6.conf.default.disable_ipv6=1
        ip link add p$pair type veth peer name q$pair && ip link set p$pair up && ip link set q$pair up || exit
    done
    exec "$@"' sh python3 "bench/peers/$script" --programs "${CARGO_TARGET_DIR:-target}/release" "$@" &
child=$!
wait "$child"
status=$?
child=
exit "$status"
