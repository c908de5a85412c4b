"""DPDK's testpmd: started, told to forward, and asked for its numbers."""

import re
import time

from process import Process, TimedOut

WORKER_CPU, CONTROL_CPU = 1, 0


class Testpmd:
    """One run. `ports` are the --vdev arguments."""

    name = "testpmd"

    def __init__(self, ports, mode):
        # It prints by stdio, which keeps what goes into a pipe: stdbuf has it print line by line.
        self.process = Process(
            ["stdbuf", "-oL", "dpdk-testpmd", "-l", f"{CONTROL_CPU},{WORKER_CPU}", "--main-lcore", str(CONTROL_CPU), "--no-pci"]
            + ["-m", "512", "--in-memory", "--no-telemetry", *(f"--vdev={port}" for port in ports)]
            + ["--", "-i", "--nb-cores=1", f"--forward-mode={mode}", "--record-core-cycles"]
        )
        self.process.expect("testpmd> ", 30)
        self.process.write("start\n")
        self.process.expect("testpmd> ", 10)
        self.started = time.monotonic()

    def stop(self):
        """Stops, and says how many packets it forwarded in how many seconds, and its own cycles a packet."""
        self.process.write("stop\n")
        seconds = time.monotonic() - self.started
        text = self.process.expect("Done.", 15)
        self.process.write("quit\n")
        try:
            self.process.wait(20)
        except TimedOut:  # it has given its numbers: how it ends is not what is measured
            self.process.kill()
        cycles = re.search(r"CPU cycles/packet=([\d.]+)", text)
        total = re.search(r"Accumulated forward statistics.*?TX-packets: (\d+)", text, re.S)
        if not total:
            raise RuntimeError("testpmd printed no statistics:\n" + text)
        return {
            "packets": int(total.group(1)),
            "seconds": seconds,
            "tsc_per_packet": float(cycles.group(1)) if cycles else None,
        }
