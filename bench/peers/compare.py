"""testpmd and l2fwd, A B A B: the ratios of runs next to each other, and their spread.

A virtual machine's speed drifts by tens of per cent from minute to minute, so a number by itself says little: each run of
ours is compared with the run of theirs just before it, and the median of those ratios counts. A run in which the polling
thread waited for its CPU for more than 5 % of the time (--most-wait) is dropped with its pair, and the pair is run again.

Started by run.sh, in a network namespace with two veth pairs: p0-q0 and p1-q1. The programs forward between p0 and p1; xdpgen
sends into q0 and counts what comes out of q1.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time

from l2fwd import L2fwd
from process import Process, SchedulerWait, TimedOut
from testpmd import CONTROL_CPU, WORKER_CPU, Testpmd

MOST_WAIT_PERCENT = 5.0
WARM_UP_S = 0.5


class Measurement:
    """One row, or more, of the table: who runs, under what load, and what is read off."""

    def __init__(self, name, what, theirs, ours, load, figures):
        self.name, self.what = name, what
        self.theirs, self.ours, self.load, self.figures = theirs, ours, load, figures


def no_load(seconds):
    """In-memory ports are their own load."""
    time.sleep(seconds)
    return {}


def generated(programs, rate):
    """Sends packets through the program under test, and gives back what came out."""

    def load(seconds):
        command = [f"{programs}/xdpgen", "--interface=q0", "--sink=q1", "--size=64", f"--cpu={CONTROL_CPU}"]
        command += [f"--rate={rate}", f"--seconds={seconds}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 2 + 30, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout)

    return load


def measurements(programs):
    """All there are."""
    null = (["net_null0", "net_null1"], ["mem:null", "mem:null"])
    xdp = (["net_af_xdp0,iface=p0", "net_af_xdp1,iface=p1"], ["afxdp:p0", "afxdp:p1"])

    def pair(ports, mode, mac_updating, options=()):
        return (
            lambda: Testpmd(ports[0], mode),
            lambda: L2fwd(f"{programs}/l2fwd", ports[1], mac_updating, options),
        )

    cycles = [
        ("tsc/packet", lambda run: run["tsc_per_packet"]),
        ("Mpps", lambda run: run["packets"] / run["seconds"] / 1e6),
    ]
    rate = [("Mpps", lambda run: run["received_pps"] / 1e6)]
    loss = [("lost, %", lambda run: 100 * (1 - run["received"] / run["sent"]))]
    both = [*rate, *loss]
    flood, half, tenth = (generated(programs, rate) for rate in (0, 500_000, 100_000))
    # The control core has CPU 0 together with the generator here, and copies the packets too.
    control = pair(xdp, "mac", True, ["--kick=control"])
    return [
        Measurement("null-io", "null ports, io / --no-mac-updating", *pair(null, "io", False), no_load, cycles),
        Measurement("null-mac", "null ports, macswap / l2fwd", *pair(null, "macswap", True), no_load, cycles),
        Measurement("xdp-macswap", "AF_XDP, flood, macswap / l2fwd", *pair(xdp, "macswap", True), flood, rate),
        Measurement("xdp-mac", "AF_XDP, flood, mac / l2fwd", *pair(xdp, "mac", True), flood, rate),
        Measurement("xdp-loss", "AF_XDP, 0.5 Mpps, mac / l2fwd", *pair(xdp, "mac", True), half, loss),
        Measurement("control-loss", "AF_XDP, 0.1 Mpps, mac / l2fwd --kick control", *control, tenth, both),
        Measurement("control-flood", "AF_XDP, flood, mac / l2fwd --kick control", *control, flood, rate),
    ]


def run(start, load, seconds):
    """One run of one program: its numbers, and the share of time its polling thread waited."""
    program = start()
    load(WARM_UP_S)
    wait = SchedulerWait(program.process.polling_thread(WORKER_CPU, 20, 1_000_000))
    result = load(seconds)
    share = wait.share()
    return program.stop() | result | {"wait": share}


def compare(measurement, pairs, seconds, most_wait_percent):
    """Runs pairs until enough of them are good, or twice as many have been run."""
    good, dropped = [], 0
    for _ in range(2 * pairs):
        theirs = run(measurement.theirs, measurement.load, seconds)
        ours = run(measurement.ours, measurement.load, seconds)
        waits = f"scheduler wait {theirs['wait']:.1%} / {ours['wait']:.1%}"
        figures = [f"{name} {read(theirs):.2f} / {read(ours):.2f}" for name, read in measurement.figures]
        keep = 100 * max(theirs["wait"], ours["wait"]) <= most_wait_percent
        print(f"  {measurement.name}: {', '.join(figures)}; {waits}{'' if keep else ': dropped'}", file=sys.stderr)
        if keep:
            good.append((theirs, ours))
        else:
            dropped += 1
        if len(good) == pairs:
            break
    return good, dropped


def spread(values, form):
    """Median, least and most."""
    return f"{statistics.median(values):{form}} [{min(values):{form}} {max(values):{form}}]"


def rows(measurement, good):
    """The table's rows: theirs, ours, and ours divided by theirs pair by pair."""
    for name, read in measurement.figures:
        theirs, ours = [read(pair[0]) for pair in good], [read(pair[1]) for pair in good]
        ratios = [b / a for a, b in zip(theirs, ours) if a > 0]
        # A ratio of losses says nothing where there are none.
        ratio = spread(ratios, ".2f") if ratios and not name.startswith("lost") else "-"
        form = ".3f" if name.startswith("lost") else ".2f"
        yield measurement.what, name, spread(theirs, form), spread(ours, form), ratio, str(len(good))


def table(lines):
    """Columns wide enough for what is in them."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def argument_parser(description):
    """With the options of every comparison."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--programs", required=True, help="the directory of l2fwd and xdpgen")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--most-wait", type=float, default=MOST_WAIT_PERCENT, help="per cent of a run")
    return parser


def main():
    """Everything."""
    parser = argument_parser("testpmd and l2fwd in turns: a table of ratios")
    parser.add_argument("--only", help="names of measurements, separated by commas")
    args = parser.parse_args()
    if args.pairs < 1 or not 0 < args.seconds <= 60:
        parser.error("choose --pairs from 1, --seconds from above 0 to 60")
    chosen = measurements(os.path.abspath(args.programs))
    if args.only:
        wanted = args.only.split(",")
        names = [measurement.name for measurement in chosen]
        for name in wanted:
            if name not in names:
                parser.error(f'no measurement "{name}": choose from {", ".join(names)}')
        chosen = [measurement for measurement in chosen if measurement.name in wanted]
    lines = [("testpmd / l2fwd", "", "testpmd [min max]", "l2fwd [min max]", "l2fwd : testpmd", "pairs")]
    short = False
    for measurement in chosen:
        good, dropped = compare(measurement, args.pairs, args.seconds, args.most_wait)
        if good:
            lines += rows(measurement, good)
        short |= len(good) < args.pairs
        if dropped:
            print(f"  {measurement.name}: dropped {dropped} pairs: other programs want CPU {WORKER_CPU}", file=sys.stderr)
    table(lines)
    if short:
        print(f"fewer than {args.pairs} good pairs: the machine is busy, and these figures are no result")
    return 1 if short else 0


def end_well(body):
    """Runs it, and leaves no process behind, however it ends."""
    # Ended from outside: the processes started here go first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(body())
    except (RuntimeError, TimedOut) as error:
        print(f"peers: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        for process in list(Process.running):
            process.kill()


if __name__ == "__main__":
    end_well(main)
