"""A child process: what it prints, how long its polling thread had to wait for its CPU, and an end for it in any case."""

import os
import re
import subprocess
import threading
import time


class TimedOut(RuntimeError):
    """A child did not do in time what it should have."""


def _read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


class Process:
    """Started at once, with its input and output in pipes. Every wait ends."""

    running = set()

    def __init__(self, command):
        self.command = command
        self.output = []
        self.changed = threading.Condition()
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        Process.running.add(self)
        self.reader = threading.Thread(target=self._collect, daemon=True)
        self.reader.start()

    def _collect(self):
        while piece := os.read(self.child.stdout.fileno(), 65536):
            with self.changed:
                self.output.append(piece)
                self.changed.notify_all()
        with self.changed:
            self.output.append(None)
            self.changed.notify_all()

    def text(self):
        """All it has printed and that no expect() has taken."""
        with self.changed:
            return b"".join(piece for piece in self.output if piece).decode(errors="replace")

    def expect(self, words, seconds):
        """Waits until it has printed `words`; takes and gives back all up to there."""
        end = time.monotonic() + seconds
        with self.changed:
            while True:
                pieces = b"".join(piece for piece in self.output if piece)
                place = pieces.find(words.encode())
                if place >= 0:
                    place += len(words.encode())
                    closed = None in self.output
                    self.output = [pieces[place:]] + ([None] if closed else [])
                    return pieces[:place].decode(errors="replace")
                left = end - time.monotonic()
                if left <= 0 or None in self.output:
                    said = pieces.decode(errors="replace")[-2000:]
                    raise TimedOut(f"{self.command[0]} did not say \"{words}\"; it said:\n{said}")
                self.changed.wait(left)

    def write(self, text):
        """Types at it."""
        self.child.stdin.write(text.encode())
        self.child.stdin.flush()

    def signal(self, number):
        """Sends it a signal."""
        self.child.send_signal(number)

    def wait(self, seconds):
        """Waits for its end."""
        try:
            self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimedOut(f"{self.command[0]} did not end within {seconds} s") from None
        self.reader.join(5)
        Process.running.discard(self)

    @property
    def status(self):
        """Its exit status."""
        return self.child.returncode

    def kill(self):
        """Ends it."""
        self.child.kill()
        self.child.wait()
        Process.running.discard(self)

    def polling_thread(self, cpu, seconds, least_ns=50_000_000):
        """The directory of the thread that is bound to `cpu` alone and has run most; waits until one has run for `least_ns`."""
        tasks, end = f"/proc/{self.child.pid}/task", time.monotonic() + seconds
        while time.monotonic() < end and self.child.poll() is None:
            best = (least_ns, None)
            for thread in os.listdir(tasks):
                directory = f"{tasks}/{thread}"
                try:
                    allowed = re.search(r"^Cpus_allowed_list:\s*(\S+)", _read(f"{directory}/status"), re.M)
                    ran_ns = int(_read(f"{directory}/schedstat").split()[0])
                except OSError:
                    continue
                if allowed and allowed.group(1) == str(cpu):
                    best = max(best, (ran_ns, directory))
            if best[1]:
                return best[1]
            time.sleep(0.05)
        raise TimedOut(f"{self.command[0]} has no thread that turns on CPU {cpu}; it said:\n{self.text()[-2000:]}")


class SchedulerWait:
    """How much of a stretch of time a thread wanted its CPU and did not have it, from /proc/PID/task/TID/schedstat."""

    def __init__(self, directory):
        self.path = f"{directory}/schedstat"
        self.before = self._now()

    def _now(self):
        ran_ns, waited_ns, _ = map(int, _read(self.path).split())
        return ran_ns, waited_ns

    def share(self):
        """From 0 to 1, since this was made."""
        ran_ns, waited_ns = self._since()
        return waited_ns / max(ran_ns + waited_ns, 1)

    def ran_s(self):
        """Seconds of CPU time since this was made."""
        return self._since()[0] / 1e9

    def _since(self):
        return [now - before for now, before in zip(self._now(), self.before)]
