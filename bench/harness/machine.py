# SPDX-License-Identifier: BSD-3-Clause
"""Processes, CPUs, ports and /proc: everything a benchmark needs of the machine.

Used by every row.  Invariant: whatever was started through start() is ended, by its own pid, when its `with` block
or the whole run ends; nothing waits without a limit.
"""
import atexit
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

PATIENCE = 60  # seconds that one command may take, unless told otherwise


class Failure(Exception):
    """A measurement could not be made; the message says why."""


def cpus():
    return sorted(os.sched_getaffinity(0))


SERVER_CPU = cpus()[0]
CLIENT_CPU = cpus()[1 % len(cpus())]
ANY_CPU = None

_running = []
_libc = ctypes.CDLL(None, use_errno=True)


class Process:
    """A child in a process group of its own. Its output goes to a file, so that it never blocks on us."""

    def __init__(self, argv, directory, cpu=ANY_CPU, env=None):
        self.argv = [str(word) for word in argv]
        self.name = os.path.basename(self.argv[0])
        number = len(os.listdir(directory))
        self.out_path = os.path.join(directory, "out.%d" % number)
        self.err_path = os.path.join(directory, "err.%d" % number)

        def prepare():
            _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no orphans when we are killed
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})

        with open(self.out_path, "w") as out, open(self.err_path, "w") as err:
            self.popen = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env,
                                          start_new_session=True, preexec_fn=prepare)
        self.pid = self.popen.pid
        _running.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def output(self):
        with open(self.out_path) as file:
            return file.read()

    def errors(self):
        with open(self.err_path) as file:
            return file.read()

    def fail(self, what):
        said = (self.errors() or self.output()).strip().splitlines()
        raise Failure("%s: %s%s" % (" ".join(self.argv), what, ": " + said[-1] if said else ""))

    def wait(self, patience=PATIENCE):
        try:
            status = self.popen.wait(patience)
        except subprocess.TimeoutExpired:
            self.stop()
            self.fail("not done after %d seconds" % patience)
        if self in _running:
            _running.remove(self)
        if status != 0:
            self.fail("ended with status %d" % status)
        return self.output()

    def stop(self, first=signal.SIGTERM, patience=5):
        """Asks the process to end, then makes it; what it left of its own group as well."""
        if self.popen.poll() is None:
            self.popen.send_signal(first)
            try:
                self.popen.wait(patience)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self.popen.wait()
        if self in _running:
            _running.remove(self)
        return self.output()

    def wait_line(self, pattern, patience=10):
        """The first match of the pattern in what it prints."""
        end = time.monotonic() + patience
        while True:
            match = re.search(pattern, self.output(), re.M)
            if match:
                return match
            if self.popen.poll() is not None:
                self.fail("ended with status %d" % self.popen.returncode)
            if time.monotonic() > end:
                self.fail("said nothing of %r within %d seconds" % (pattern, patience))
            time.sleep(0.005)

    def wait_port(self, address, port, patience=10):
        """Until somebody listens there; looked up, not tried, so that no connection is made that counts."""
        end = time.monotonic() + patience
        while not is_listening(port):
            if self.popen.poll() is not None:
                self.fail("ended with status %d" % self.popen.returncode)
            if time.monotonic() > end:
                self.fail("does not listen on %s:%d" % (address, port))
            time.sleep(0.005)

    def json(self):
        """The last line of its output that is a JSON object."""
        for line in reversed(self.output().splitlines()):
            if line.startswith("{"):
                return json.loads(line)
        self.fail("printed no result")


@atexit.register
def stop_all():
    for process in list(_running):
        process.stop(patience=1)


def is_listening(port):
    with open("/proc/net/tcp") as v4:
        lines = v4.readlines()[1:]
    if os.path.exists("/proc/net/tcp6"):
        with open("/proc/net/tcp6") as v6:
            lines += v6.readlines()[1:]
    for line in lines:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
            return True
    return False


def free_port(address):
    """A port that was free a moment ago; for servers that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def need(program):
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        raise Failure("%s is not installed (packaging/install-packages demo)" % program)
    return path


def children(pid):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name) as file:
                    if int(file.read().rsplit(")", 1)[1].split()[1]) == pid:
                        found.append(int(name))
            except (OSError, IndexError):
                pass
    return found


def family(pid):
    """The process and everything that descends from it."""
    found = [pid]
    for child in children(pid):
        found += family(child)
    return found


def cpu_seconds(pids):
    """CPU time of these processes' living threads, to the nanosecond."""
    total = 0
    for pid in pids:
        try:
            for thread in os.listdir("/proc/%d/task" % pid):
                with open("/proc/%d/task/%s/schedstat" % (pid, thread)) as file:
                    total += int(file.read().split()[0])
        except OSError:
            pass
    return total / 1e9


def private_bytes(pids):
    """Memory that belongs to these processes alone."""
    total = 0
    for pid in pids:
        try:
            with open("/proc/%d/status" % pid) as file:
                total += sum(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon:"))
        except OSError:
            pass
    return total


def kernel_bytes():
    """What the kernel's own structures take: slabs, page tables and unaccounted pages of the socket buffers."""
    with open("/proc/meminfo") as file:
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
    return fields["Slab"] + fields.get("PageTables", 0)


def say(text):
    print(text, file=sys.stderr, flush=True)


def median_run_time(argv, times):
    """Seconds from starting a command to its end; posix_spawn, so that our own size does not count."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        pid = os.posix_spawn(argv[0], argv, os.environ)
        _, status = os.waitpid(pid, 0)
        took.append(time.perf_counter() - start)
        if status != 0:
            raise Failure("%s: wait status %d" % (" ".join(argv), status))
    return sorted(took)[len(took) // 2]
