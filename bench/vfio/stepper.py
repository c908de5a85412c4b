"""Steps through a thread of another process, one instruction after another, and counts what calls into a library take (x86-64).

The way of nic/src/vfio/instructions.rs, for programs that cannot mark what is to be counted: here the marks are the calls themselves.
"""

import ctypes
import os
import signal
import sys

SEIZE, INTERRUPT, DETACH, SINGLESTEP, PEEKDATA, PEEKUSER = 0x4206, 0x4207, 17, 9, 2, 3
EXITKILL = 1 << 20
WALL = 0x40000000
# Places in struct user_regs_struct, of which each member has 8 bytes.
RAX, RIP, RSP = (8 * place for place in (10, 16, 19))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request, thread, address=0, data=0):
    ctypes.set_errno(0)
    result = _libc.ptrace(request, thread, address, data)
    if ctypes.get_errno():
        raise RuntimeError(f"ptrace request {request}: {os.strerror(ctypes.get_errno())}")
    return result


class Text:
    """Where the instructions of a file are, in the address space of a process."""

    def __init__(self, pid, name):
        with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
            lines = [line.split() for line in maps]
        ranges = [line[0].split("-") for line in lines if len(line) > 5 and "x" in line[1] and name in line[5]]
        if not ranges:
            raise RuntimeError(f"process {pid} has no {name}")
        self.first = min(int(first, 16) for first, _ in ranges)
        self.end = max(int(end, 16) for _, end in ranges)


class Call:
    """One call: the function's address, what it took in the library and elsewhere, and what it returned."""

    def __init__(self, function, back):
        self.function, self.back = function, back
        self.inside = self.outside = self.returned = 0


class Stepper:
    """Holds a thread for as long as the context lasts; then it runs on, or its process ends where an error ended the context.

    The two run in turns, so both do on the thread's `cpu`.
    """

    def __init__(self, thread, cpu):
        self.thread, self.cpu = thread, cpu

    def __enter__(self):
        self.cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, [self.cpu])
        _ptrace(SEIZE, self.thread, 0, EXITKILL)
        _ptrace(INTERRUPT, self.thread)
        self._stopped()
        return self

    def __exit__(self, kind, *_):
        os.sched_setaffinity(0, self.cpus)
        if kind is None:
            _ptrace(DETACH, self.thread)
            return
        # Its process cannot be waited for before the end of each thread that is traced.
        try:
            os.kill(self.thread, signal.SIGKILL)
            while os.WIFSTOPPED(os.waitpid(self.thread, WALL)[1]):
                pass
        except (ProcessLookupError, ChildProcessError):
            pass

    def _stopped(self):
        _, status = os.waitpid(self.thread, WALL)
        if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != signal.SIGTRAP:
            raise RuntimeError(f"the thread that is stepped through ended, or got a signal: status {status:#x}")

    def calls(self, caller, library, steps=sys.maxsize, enough=lambda _: False):
        """Steps that often, or until it is `enough`; each whole call from `caller` into `library` meanwhile, with all that it calls in turn."""
        calls, call, from_caller = [], None, False
        for _ in range(steps):
            at = _ptrace(PEEKUSER, self.thread, RIP)
            inside = library.first <= at < library.end
            if call is None:
                if inside and from_caller:
                    call = Call(at, _ptrace(PEEKDATA, self.thread, _ptrace(PEEKUSER, self.thread, RSP)))
            elif at == call.back:
                call.returned = _ptrace(PEEKUSER, self.thread, RAX) & 0xFFFF
                calls.append(call)
                call = None
                if enough(calls):
                    break
            if call:
                call.inside += inside
                call.outside += not inside
            from_caller = caller.first <= at < caller.end
            _ptrace(SINGLESTEP, self.thread)
            self._stopped()
        return calls
