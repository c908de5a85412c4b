"""What waiting for packets costs by each way of l2fwd's --idle: CPU time, a packet's delay, the rate under load; and the delay with --kick control.

Started by run.sh, where compare.py is: p0-q0 and p1-q1 are two veth pairs, l2fwd forwards between p0 and p1.

The rates are compared as compare.py does it, poll and adaptive in turns. A first packet is sent into q0 after 20 ms in which there was
none, a next one when the one before has arrived; a delay is from before the call that sends a packet to the kernel's time stamp at q1, so it is there
and not back, and the sender's own call is in it.
"""

import os
import select
import socket
import statistics
import struct
import time

from compare import Measurement, argument_parser, compare, end_well, generated, no_load, rows, table
from l2fwd import L2fwd
from process import SchedulerWait

MODES = ["poll", "adaptive", "interrupt"]
PORTS = ["afxdp:p0", "afxdp:p1"]
QUIET_S = 0.02
LIGHT_PPS = 10_000
EVERY_PROTOCOL, SO_TIMESTAMPNS = 3, 35
# An experimental EtherType, by which the packets are told from all others.
HEADER = bytes.fromhex("020000000001" + "020000000002" + "88b5")


def load_rows(programs, pairs, seconds, most_wait_percent):
    """Poll and adaptive under load."""

    def pair(ports):
        return [lambda idle=idle: L2fwd(f"{programs}/l2fwd", ports, True, [f"--idle={idle}"]) for idle in MODES[:2]]

    packets = [("Mpps", lambda run: run["packets"] / run["seconds"] / 1e6)]
    received = [("Mpps", lambda run: run["received_pps"] / 1e6)]
    lost = [("lost, %", lambda run: 100 * (1 - run["received"] / run["sent"]))]
    null = ["mem:null", "mem:null"]
    chosen = [
        Measurement("idle-null", "null ports", *pair(null), no_load, packets),
        Measurement("idle-xdp", "AF_XDP, flood", *pair(PORTS), generated(programs, 0), received),
        Measurement("idle-loss", "AF_XDP, 0.5 Mpps", *pair(PORTS), generated(programs, 500_000), lost),
    ]
    lines, short = [("l2fwd", "", "--idle poll [min max]", "--idle adaptive [min max]", "adaptive : poll", "pairs")], False
    for measurement in chosen:
        good, _ = compare(measurement, pairs, seconds, most_wait_percent)
        lines += rows(measurement, good) if good else []
        short |= len(good) < pairs
    table(lines)
    return short


class Prober:
    """Sends single packets into q0, and tells how long each took to q1."""

    def __init__(self):
        self.out, self.into = (socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_PROTOCOL)) for _ in range(2))
        self.out.bind(("q0", 0))
        self.into.bind(("q1", EVERY_PROTOCOL))
        self.into.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.number = 0

    def delay_us(self):
        """One packet's; None where it did not come within half a second."""
        # Numbered: one that comes late is not the next one's answer.
        self.number += 1
        tail = HEADER[12:] + struct.pack("!I", self.number)
        frame = HEADER[:12] + tail + bytes(46)
        sent = time.clock_gettime_ns(time.CLOCK_REALTIME)
        self.out.send(frame)
        while select.select([self.into], [], [], 0.5)[0]:
            data, control, _, _ = self.into.recvmsg(2048, 256)
            if data[12:18] == tail:
                seconds, nanoseconds = struct.unpack("qq", control[0][2])
                return (seconds * 1_000_000_000 + nanoseconds - sent) / 1000
        return None

    def delays_us(self, count, pause_s):
        """Those of so many packets that came, in order of length."""
        delays = []
        for _ in range(count):
            time.sleep(pause_s)
            delays.append(self.delay_us())
        return sorted(delay for delay in delays if delay is not None)

    def close(self):
        """Closes both sockets."""
        self.out.close()
        self.into.close()


def busy_percent(program, seconds, meanwhile):
    """CPU time of the worker's thread while `meanwhile` runs."""
    wait, start = SchedulerWait(program.worker), time.monotonic()
    meanwhile(seconds)
    return 100 * wait.ran_s() / (time.monotonic() - start)


def waiting(programs, option, probes, seconds):
    """A row of the first table."""
    program = L2fwd(f"{programs}/l2fwd", PORTS, True, [option])
    quiet = busy_percent(program, seconds, time.sleep)
    light = busy_percent(program, seconds, generated(programs, LIGHT_PPS))
    prober = Prober()
    first, after = prober.delays_us(probes, QUIET_S), prober.delays_us(probes, 0)
    prober.close()
    program.stop()
    if not first or not after:
        raise RuntimeError(f"{option}: no packet came out")
    tail = first[min(len(first) - 1, len(first) * 99 // 100)]
    figures = [f"{quiet:.1f}", f"{light:.1f}", f"{statistics.median(first):.0f}", f"{tail:.0f}"]
    return option, *figures, f"{statistics.median(after):.0f}", str(2 * probes - len(first) - len(after))


def main():
    """Everything."""
    parser = argument_parser("l2fwd's ways of waiting: rates, CPU time, and the delay of a first packet")
    parser.add_argument("--probes", type=int, default=200)
    args = parser.parse_args()
    if args.pairs < 1 or not 0 < args.seconds <= 60 or args.probes < 1:
        parser.error("choose --pairs and --probes from 1, --seconds from above 0 to 60")
    programs = os.path.abspath(args.programs)
    heading = ("l2fwd, AF_XDP", "CPU % quiet", f"CPU % at {LIGHT_PPS} pps", "first packet us", "99 of 100 us", "next us", "lost")
    options = [*(f"--idle={idle}" for idle in MODES), "--kick=control"]
    table([heading, *(waiting(programs, option, args.probes, args.seconds) for option in options)])
    print()
    short = load_rows(programs, args.pairs, args.seconds, args.most_wait)
    if short:
        print(f"fewer than {args.pairs} good pairs: the machine is busy, and these figures are no result")
    return 1 if short else 0


if __name__ == "__main__":
    end_well(main)
