#!/usr/bin/env bash
# How many instructions each VFIO driver takes for a packet, received and sent in bursts of 32, on a model of its device: the tests of crate nic
# named "instructions_...", in the release build. Exits with 1 where one takes more than 100. No root, no device.
#
#   bench/vfio/instructions.sh
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
export LC_ALL=C

cargo test --locked --release -p nic --lib -- --ignored --nocapture --test-threads=1 instructions_ |
    sed -n 's/.*INSTRUCTIONS //p; /panicked/p'
((PIPESTATUS[0] == 0))
