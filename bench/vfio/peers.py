"""How many instructions DPDK's virtio driver takes for a packet, received and sent in bursts of 32: what instructions.sh counts of ours.

One testpmd forwards from a virtio_user port to the same port, another plays the device (net_vhost) and offers it more than it can take. The
thread that forwards is stepped through. While nothing arrives it calls one function of the driver, which is the one that receives; the
other is the one that sends. Only bursts of 32 count. The driver has inlined most of the packet pool, which cannot be told from the rest of
it; what it calls in other libraries is the pool's ring, once its cache runs dry or over, and finding the cache (thread-local storage).

Started by peers.sh, in namespaces of its own: what is left in /run is gone with them.
"""

import argparse
import os
import re
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "peers"))

# pylint: disable=wrong-import-position
from process import Process, TimedOut  # noqa: E402
from stepper import Stepper, Text  # noqa: E402

BURST = 32
RING = 256
IDLE_STEPS = 5_000
# Packets that went through before anything counts: each ring has been filled and emptied, and so has the pool's cache.
WARM_UP_PACKETS = 20_000
# Of a hundred bursts, fewer of 32, and the figures are no result.
FEWEST_FULL = 0.9
# A path is given up after this, whatever holds it up: two seconds a burst are a machine that others keep busy.
START_SECONDS, BURST_SECONDS = 60, 2

# Ring layout, and the options of virtio_user that lead to a path. The driver says itself which one it has chosen.
PORTS = [
    ("split", "mrg_rxbuf=1,in_order=0"),
    ("split", "mrg_rxbuf=0,in_order=0"),
    ("split", "mrg_rxbuf=1,in_order=1"),
    ("split", "mrg_rxbuf=0,in_order=0,vectorized=1"),
    ("packed", "packed_vq=1,mrg_rxbuf=1,in_order=0"),
    ("packed", "packed_vq=1,mrg_rxbuf=0,in_order=0"),
    ("packed", "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1"),
]


class Testpmd:
    """One run that has not started to forward."""

    def __init__(self, name, main, worker, port, mode):
        self.process = Process(
            ["stdbuf", "-oL", "dpdk-testpmd", "-l", f"{main},{worker}", "--main-lcore", str(main), f"--vdev={port}"]
            + ["--no-pci", "--no-huge", "-m", "256", "--no-telemetry", f"--file-prefix={name}", "--log-level=pmd.net.virtio.init:info"]
            + ["--force-max-simd-bitwidth=512", "--"]
            + ["-i", "--nb-cores=1", f"--forward-mode={mode}", f"--burst={BURST}", f"--rxd={RING}", f"--txd={RING}"]
            + ["--total-num-mbufs=8192"]
        )
        self.said = self.process.expect("testpmd> ", 30)
        if "Configuring Port 0" not in self.said:
            raise RuntimeError(f"testpmd opened no port by {port}; it said:\n{self.said[-2000:]}")

    def type(self, line):
        """Types a line; what it answers."""
        self.process.write(line + "\n")
        return self.process.expect("testpmd> ", 10)

    def sent(self):
        """Packets so far."""
        found = re.search(r"TX-packets: (\d+)", self.type("show port stats 0"))
        return int(found.group(1)) if found else 0

    def path(self):
        """The names of its functions that receive and send, as the driver gives them."""
        found = dict(reversed(name) for name in re.findall(r"using (.+?) (Rx|Tx) path", self.said))
        both = [f"{found.get(side, 'unnamed')} {side}" for side in ("Rx", "Tx")]
        return ", ".join(both)


def measure(cpus, options, bursts):
    """The path's name, the calls that received and those that sent 32 packets, and which part of the calls with packets those are."""
    socket = "/run/peers.sock"
    if os.path.exists(socket):
        os.unlink(socket)
    device = Testpmd("device", cpus[0], cpus[1], f"net_vhost0,iface={socket}", "flowgen")
    driver = Testpmd("driver", cpus[1], cpus[0], f"net_virtio_user0,path={socket},queue_size={RING},{options}", "io")
    driver.type("start")
    thread = int(os.path.basename(driver.process.polling_thread(cpus[0], 20)))
    pid = driver.process.child.pid
    ranges = Text(pid, "/dpdk-testpmd"), Text(pid, "/librte_net_virtio.so")
    with Stepper(thread, cpus[0]) as stepper:
        idle = stepper.calls(*ranges, steps=IDLE_STEPS)
    functions = {call.function for call in idle}
    if len(functions) != 1 or any(call.returned for call in idle):
        raise RuntimeError("testpmd did not poll an empty queue")
    receive = functions.pop()
    device.type("start")
    end = time.monotonic() + 20
    while driver.sent() < WARM_UP_PACKETS:
        if time.monotonic() > end:
            raise TimedOut("no packets went through:\n" + device.type("show port stats 0") + driver.type("show port stats 0"))
    full = {True: [], False: []}

    def enough(calls):
        if calls[-1].returned == BURST:
            full[calls[-1].function == receive].append(calls[-1])
        return min(map(len, full.values())) >= bursts

    with Stepper(thread, cpus[0]) as stepper:
        calls = stepper.calls(*ranges, enough=enough)
    driver.process.kill()
    device.process.kill()
    share = sum(map(len, full.values())) / sum(call.returned > 0 for call in calls)
    return driver.path(), full[True][:bursts], full[False][:bursts], share


def row(layout, options, figures):
    """Prints a line of the table; whether it can be believed."""
    path, received, sent, share = figures
    if share < FEWEST_FULL:
        print(f"  {options}: only {share:.0%} of the bursts were of {BURST}: no result", file=sys.stderr)
        return False
    each = [
        sum(getattr(call, part) for call in calls) / len(calls) / BURST for calls in (received, sent) for part in ("inside", "outside")
    ]
    print(
        f"DPDK virtio, {layout} ring, {path}: {sum(each):.1f} instructions a packet"
        f" (receive {each[0]:.1f}, transmit {each[2]:.1f}, outside the driver {each[1] + each[3]:.1f}) [{options}]",
        flush=True,
    )
    return True


def main():
    """Parses, counts, prints."""
    parser = argparse.ArgumentParser(prog="bench/vfio/peers.sh", description="Instructions a packet of DPDK's virtio driver")
    parser.add_argument("--bursts", type=int, default=64, metavar="N", help=f"of {BURST} packets, to count for each path (64)")
    args = parser.parse_args()
    # The ring's worth of packets is freed at once: of whole rounds of it each packet has its part.
    if args.bursts < 1 or args.bursts % (RING // BURST):
        parser.error(f"--bursts takes multiples of {RING // BURST}")
    cpus = sorted(os.sched_getaffinity(0))[:2]
    seconds = START_SECONDS + BURST_SECONDS * args.bursts

    def late(*_):
        raise TimedOut(f"not done after {seconds} s")

    signal.signal(signal.SIGALRM, late)
    good = True
    for layout, options in PORTS:
        signal.alarm(seconds)
        good &= row(layout, options, measure(cpus, options, args.bursts))
        signal.alarm(0)
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, OSError) as error:
        print(f"peers: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        for process in list(Process.running):
            process.kill()
