#!/usr/bin/env python3
"""Counts the instructions of a worker's loop turns, off and isolated, by single steps. See cost.sh.

A worker of l2fwd on mem:null ports does the same in every turn, so that some dozen turns say it all. Each begins where the loop reads the
time stamp counter. The isolated one is armed as users have it: a single step is no kernel entry of the thread's own making.

Stepping makes each turn last longer than the limit above which an isolated worker tells of a gap. That call is left out: it is owed to
the stepping, and not to isolation.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import time

# linux/ptrace.h, and offsets in struct user_regs_struct.
PEEKTEXT, PEEKUSER, SINGLESTEP, ATTACH, DETACH = 1, 3, 9, 16, 17
RIP, RSP = 16 * 8, 19 * 8
WALL = 0x40000000
RDTSC = (b"\x0f\x31", b"\x0f\x01\xf9")
TURNS = 40
MOST_STEPS = 3_000_000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, tid, address=0, data=0):
    ctypes.set_errno(0)
    result = libc.ptrace(request, tid, address, data)
    if result == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"ptrace {request}: {os.strerror(ctypes.get_errno())}")
    return result & 0xFFFFFFFFFFFFFFFF


def stopped(tid):
    _, status = os.waitpid(tid, WALL)
    if not os.WIFSTOPPED(status):
        raise SystemExit(f"instructions.py: the worker ended under the debugger (status {status:#x})")
    return os.WSTOPSIG(status)


def worker_of(pid):
    """The thread, once it is in its loop: a thread in isolation or not, it uses its CPU and nothing else."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/stat") as file:
                name, rest = re.match(r"\d+ \((.*)\) (.*)", file.read()).groups()
            # utime, in ticks of 10 ms.
            if name == "worker-0" and int(rest.split()[11]) >= 20:
                return int(tid)
        time.sleep(0.01)
    raise SystemExit("instructions.py: the worker does not begin")


def gap_function(pid, program):
    """Where the worker tells of a gap; None where it never does."""
    symbols = subprocess.run(["nm", program], check=True, capture_output=True, text=True).stdout
    found = re.search(r"^(\w+) [tT] \S*tell_gap\S*$", symbols, re.M)
    with open(f"/proc/{pid}/maps") as file:
        base = int(next(line for line in file if os.path.realpath(program) in line).split("-")[0], 16)
    return base + int(found.group(1), 16) if found else None


def turns_of(pid, program):
    """Instructions of each of some turns."""
    tid = worker_of(pid)
    gap = gap_function(pid, program)
    ptrace(ATTACH, tid)
    stopped(tid)
    turns, steps, beginning, back = [], 0, None, None
    is_rdtsc = {}
    for _ in range(MOST_STEPS):
        ip = ptrace(PEEKUSER, tid, RIP)
        if back is None and ip == gap:
            back = ptrace(PEEKTEXT, tid, ptrace(PEEKUSER, tid, RSP))
        if ip == back:
            back = None
        if back is None:
            if ip not in is_rdtsc:
                is_rdtsc[ip] = ptrace(PEEKTEXT, tid, ip).to_bytes(8, "little").startswith(RDTSC)
            if beginning is None and is_rdtsc[ip]:
                beginning = ip
            elif ip == beginning:
                turns.append(steps)
            if ip == beginning:
                steps = 0
            steps += 1
        if len(turns) == TURNS:
            break
        ptrace(SINGLESTEP, tid)
        if (signal := stopped(tid)) != 5:
            raise SystemExit(f"instructions.py: signal {signal} while stepping")
    ptrace(DETACH, tid)
    if len(turns) < TURNS:
        raise SystemExit(f"instructions.py: only {len(turns)} turns in {MOST_STEPS} steps")
    return turns


def per_packet(program, *options):
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        ports = ["--port", "mem:null"] * 2 + ["--stats-period", "0", "--report", report]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([program, *ports, *options], **quiet) as child:
            try:
                turns = turns_of(child.pid, program)
            finally:
                child.terminate()
            child.wait(20)
        with open(report) as file:
            worker = json.load(file)["workers"][0]
    packets = round(worker["packets"] / worker["turns"])
    return sum(turns) / len(turns) / packets, packets


def main():
    program = os.path.realpath(sys.argv[1])
    off, packets = per_packet(program, "--isolation", "off")
    soft, _ = per_packet(program, "--isolation", "soft", "--signal", "syscalls,exceptions")
    print(f"instructions a packet (mem:null to mem:null, {packets} packets a turn, {TURNS} turns)")
    print(f"  off   {off:10.4f}\n  soft  {soft:10.4f}\n  ratio {soft / off:10.4f} (limits 0.99 to 1.01)")
    sys.exit(not 0.99 <= soft / off <= 1.01)


main()
