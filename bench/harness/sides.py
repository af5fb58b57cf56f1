# SPDX-License-Identifier: BSD-3-Clause
"""The sides that are compared, and the private pool of the UNCLOT side.

A side is a name; Bench.wrap() turns a command into that side's command.  Invariant: one pool per run, at a socket in
the run's own directory, so that neither the user's pool nor another run is touched; it is stopped at the end.
"""
import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time

from . import machine
from .machine import Failure, Process
from .proof import Proof

TCP, UNIX, UNCLOT, IDEAL = "tcp", "unix", "unclot", "ideal"
SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def find_build(given):
    for path in [given] if given else [os.environ.get("UNCLOT_BUILD"), os.path.join(SOURCE, "build")]:
        if path and os.path.exists(os.path.join(path, "build.ninja")):
            return os.path.abspath(path)
    raise Failure("no build directory: run `meson setup build && ninja -C build`, or name it with --build")


class Bench:
    """What a row gets: where things are, how long to measure, and how to start a command on one side."""

    def __init__(self, options):
        self.build = find_build(options.build)
        self.address = options.address
        self.seconds = options.seconds
        self.quick = options.quick
        self.omb = options.omb
        self.interface = options.interface
        self.full = options.full
        self.directory = tempfile.mkdtemp(prefix="unclot-bench-")
        os.chmod(self.directory, 0o755)  # nginx workers of another user read the files served
        self.socket = os.path.join(self.directory, "pool.sock")
        self.command = os.path.join(self.build, "src", "cli", "unclot")
        self.proof = Proof(self)
        self._pool_started = False
        self._limits = {}

    def close(self):
        machine.stop_all()
        if self._pool_started:
            subprocess.run([self.command, "stop", "--socket", self.socket], stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, timeout=20, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    # ---- commands ----

    def program(self, name):
        path = os.path.join(self.build, "bench", "bench-" + name)
        if not os.path.exists(path):
            raise Failure("%s is not built" % path)
        return path

    def start_pool(self):
        """Starts the agent unpinned, before any pinned program would do so and hand its own CPU down to it."""
        if self._pool_started:
            return
        if not os.path.exists(self.command):
            raise Failure("%s is not built" % self.command)
        self._pool_started = True
        with Process([self.command, "run", "--socket", self.socket, "--", "true"], self.directory) as first:
            first.wait(20)

    def wrap(self, side, argv):
        if side != UNCLOT:
            return argv
        self.start_pool()
        return [self.command, "run", "--socket", self.socket, "--"] + list(argv)

    def start(self, side, argv, cpu=machine.ANY_CPU, env=None):
        return Process(self.wrap(side, argv), self.directory, cpu, env)

    def run(self, side, argv, cpu=machine.ANY_CPU, env=None, patience=machine.PATIENCE):
        """Runs a client to its end, watching meanwhile that the UNCLOT side really goes through memory."""
        with self.proof.watching(side), self.start(side, argv, cpu, env) as process:
            return process.wait(patience)

    def agents(self):
        """Pids of the pool's agent: whoever listens on its socket, and the children of that process."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.connect(self.socket)
            pid = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return machine.family(pid)

    def pool_bytes(self):
        """Memory that the pool really has, whatever its size: blocks of the agent's memory object."""
        most = 0
        for pid in self.agents():
            for link in glob.glob("/proc/%d/fd/*" % pid):
                with contextlib.suppress(OSError):
                    if os.readlink(link).startswith("/memfd:"):
                        most = max(most, os.stat(link).st_blocks * 512)
        return most

    def pool_stat(self):
        out = subprocess.run([self.command, "stat", "--socket", self.socket, "--json"], capture_output=True, text=True,
                             timeout=20, check=False)
        return json.loads(out.stdout) if out.returncode == 0 and out.stdout else {}

    # ---- our own pairs of programs ----

    def pair(self, side, name, common=(), server=(), client=(), cpus=None, end_server=False):
        """One of bench/*.c: starts its server, runs its client; the JSON results of both."""
        server_cpu, client_cpu = cpus or (machine.SERVER_CPU, machine.CLIENT_CPU)
        program = self.program(name)
        path = os.path.join(self.directory, "unix.%d" % time.monotonic_ns())
        where = ["--unix", path] if side == UNIX else ["--address", self.address]
        with self.start(side, [program, "serve", *where, *common, *server], server_cpu) as serving:
            port = serving.wait_line(r"^port (\d+)$").group(1)
            with self.proof.watching(side), \
                    self.start(side, [program, "client", *where, "--port", port, *common, *client],
                               client_cpu) as asking:
                asking.wait()
            if end_server:
                serving.stop(signal.SIGTERM)
            else:
                serving.wait(20)
            return serving.json(), asking.json()

    # ---- limits, measured once per run ----

    def line_limit(self):
        """A cache line's round trip between two CPUs, in microseconds."""
        if "line" not in self._limits:
            self._limits["line"] = self._limit("line", "0.3")["line_ns"] / 1e3
        return self._limits["line"]

    def copy_limit(self, size):
        """Bytes a second through a ring with two copies, for messages of this size."""
        if size not in self._limits:
            self._limits[size] = self._limit("copy", "0.05" if self.quick else "0.1", size)["bytes_per_second"]
        return self._limits[size]

    def _limit(self, what, seconds, *sizes):
        if machine.SERVER_CPU == machine.CLIENT_CPU:
            raise Failure("two CPUs are needed")
        with Process([self.program("limit"), what, machine.CLIENT_CPU, machine.SERVER_CPU, seconds, *sizes],
                     self.directory) as process:
            process.wait()
            return process.json()
