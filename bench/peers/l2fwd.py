"""This project's l2fwd: started, stopped as by Ctrl-C, and its report read."""

import json
import os
import signal
import tempfile
import time

from process import Process
from testpmd import CONTROL_CPU, WORKER_CPU


class L2fwd:
    """One run. `ports` are port specifications, `options` more of its command line."""

    name = "l2fwd"

    def __init__(self, program, ports, mac_updating, options=()):
        descriptor, self.report = tempfile.mkstemp(suffix=".json")
        os.close(descriptor)
        arguments = [f"--port={port}" for port in ports]
        arguments += ["--workers", str(WORKER_CPU), "--control", str(CONTROL_CPU), "--no-color"]
        arguments += ["--duration", "600", "--stats-period", "600", "--report", self.report]
        arguments += options
        if not mac_updating:
            arguments.append("--no-mac-updating")
        self.process = Process([program, *arguments])
        # The worker is there once a thread sits on its CPU and turns; one that sleeps does not turn much.
        self.worker = self.process.polling_thread(WORKER_CPU, 20, 1_000_000)
        self.started = time.monotonic()

    def stop(self):
        """Stops, and says what the report says."""
        self.process.signal(signal.SIGINT)
        self.process.wait(20)
        with open(self.report, encoding="utf-8") as file:
            text = file.read()
        os.unlink(self.report)
        if self.process.status != 0 or not text:
            raise RuntimeError("l2fwd failed:\n" + self.process.text())
        report = json.loads(text)
        if report["pool"]["leaked"]:
            raise RuntimeError(f"l2fwd leaked frames: {report['pool']}")
        return {
            "packets": sum(port["tx_packets"] for port in report["ports"]),
            "seconds": report["duration_s"],
            "tsc_per_packet": report["workers"][0]["tsc_per_packet"],
        }
