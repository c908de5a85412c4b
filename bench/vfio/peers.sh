#!/usr/bin/env bash
# How many instructions DPDK's virtio driver takes for a packet, received and sent in bursts of 32, on each of its paths: beside what instructions.sh
# says of this project's. Takes Debian's dpdk-dev, two CPUs and three minutes; no root, no hugepages, no device. See peers.py.
#
#   bench/vfio/peers.sh [--bursts N]
set -u
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
export LC_ALL=C

if (($# != 0)) && { (($# != 2)) || [[ $1 != --bursts || ! $2 =~ ^[1-9][0-9]{0,5}$ ]]; }; then
    echo "usage: bench/vfio/peers.sh [--bursts N]" >&2
    exit 2
fi
skip() { echo "SKIPPED peers: $1" >&2 && exit 0; }
for need in dpdk-testpmd:dpdk-dev python3:python3-minimal unshare:util-linux stdbuf:coreutils; do
    command -v "${need%%:*}" >/dev/null || skip "install ${need#*:}"
done
[[ $(uname -m) == x86_64 ]] || skip "reads x86-64's registers, and this is $(uname -m)"
(($(nproc) >= 2)) || skip "needs 2 CPUs, one for the driver and one for the device"
apart=(unshare --mount --pid --fork --kill-child --mount-proc)
((EUID == 0)) || apart+=(--map-root-user)
"${apart[@]}" true 2>/dev/null || skip "this machine grants no namespace"
# The namespaces' first process dies with unshare, and with it all that it started. unshare itself heeds no gentler signal.
child=
# shellcheck disable=SC2317 # called by a trap
undo() { [[ $child ]] && kill -KILL "$child" 2>/dev/null; }
trap undo EXIT
trap 'exit 130' INT TERM HUP
# shellcheck disable=SC2016 # expanded by the inner shell
"${apart[@]}" sh -c 'mount -t tmpfs tmpfs /run && exec python3 -B peers.py "$@"' sh "$@" &
child=$!
wait "$child"
status=$?
child=
exit "$status"
