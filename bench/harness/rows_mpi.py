# SPDX-License-Identifier: BSD-3-Clause
"""Rows of Open MPI: latency and bandwidth over message size, over its TCP transport and its own shared memory.

The programs are bench/mpi/*.c, or a user's own build of the OSU micro-benchmarks (--omb).  Open MPI is Debian's,
unchanged; UNCLOT comes in by running mpirun under `unclot run`.
"""
import os
import re

from .machine import ANY_CPU, Failure, cpus, need
from .report import HIGHER, LOWER, Cell, Row, Target, of_limit, times
from .sides import IDEAL, TCP, UNCLOT

SIZES = [1 << i for i in range(23)]
SHOWN = {1, 8, 64, 1024, 8192, 65536, 524288, 4194304}  # in the table; JSON and plots have all


def label(size):
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return "%d %s" % (size // factor, unit)
    return "%d B" % size


def find_omb(directory, name):
    for where, _, files in os.walk(directory):
        if name in files and os.access(os.path.join(where, name), os.X_OK):
            return os.path.join(where, name)
    raise Failure("no %s under %s" % (name, directory))


def mpirun(bench, side, ours, osu):
    """Runs the program on two ranks; {size: value} and its comments."""
    if bench.omb:
        program = [find_omb(bench.omb, osu), "-m", "1:%d" % SIZES[-1]]
    else:
        program = [bench.program("mpi-" + ours), "--seconds", "%.3f" % (bench.seconds * (0.03 if bench.quick else 0.1))]
    transport = ["--mca", "btl", "self,vader"] if side == IDEAL else \
        ["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", bench.interface]
    place = ["--map-by", "core", "--bind-to", "core"] if len(cpus()) > 1 else ["--bind-to", "none"]
    # Two ranks on this machine, no remote shells, and no complaint about network cards that nobody uses.
    argv = [need("mpirun"), "-np", "2", "--oversubscribe", *place, "--mca", "plm", "isolated", "--mca", "pml", "ob1",
            "--mca", "btl_base_warn_component_unused", "0", *transport, *program]
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    out = bench.run(side, argv, ANY_CPU, env, patience=120)
    values = {int(size): float(value) for size, value in re.findall(r"^(\d+)\s+([\d.]+)\s*$", out, re.M)}
    if not values:
        raise Failure("mpirun printed no figures")
    return values, out


class Latency(Row):
    name, number = "mpi-latency", 1
    title = "MPI ping-pong latency, Open MPI over its TCP transport"
    sides = (TCP, UNCLOT, IDEAL)

    def points(self, bench):
        self.user_time = []
        first = Target("<= 0.9 us", lambda cell: cell.median(UNCLOT) <= 0.9)
        real = Target("<= 2x MPI shm, or Open MPI's own time + 0.25 us", lambda cell: cell.median(UNCLOT) <= max(
            2 * cell.median(IDEAL), (max(self.user_time) + 0.25) if self.user_time else 0))
        return [Cell(label(size), "us", LOWER, first if size == 8 else None, real if size == 8 else None,
                     size in SHOWN) for size in SIZES]

    def measure(self, bench, side):
        values, out = mpirun(bench, side, "latency", "osu_latency")
        share = re.search(r"^# user-share ([\d.]+)", out, re.M)
        if side == TCP and share:
            self.user_time.append(float(share.group(1)) * values[8])
        yield {label(size): values[size] for size in SIZES if size in values}

    def finish(self, cells):
        if self.user_time and max(self.user_time) > 0:
            self.note = "Open MPI's own user-mode time over TCP: %.2f us per message of 8 bytes" % max(self.user_time)


class Bandwidth(Row):
    name, number = "mpi-bandwidth", 2
    title = "MPI bandwidth, Open MPI over its TCP transport, window of 64"
    sides = (TCP, UNCLOT, IDEAL)
    first = {1024: 3, 65536: 2.5, 4194304: 1.8}

    def points(self, bench):
        return [Cell(label(size), "GB/s", HIGHER, times(self.first[size]) if size in self.first else None,
                     of_limit(0.8) if size in self.first else None, size in SHOWN) for size in SIZES]

    def limits(self, bench):
        return {label(size): bench.copy_limit(size) / 1e9 for size in self.first}

    def measure(self, bench, side):
        values, _ = mpirun(bench, side, "bandwidth", "osu_bw")
        yield {label(size): values[size] / 1e3 for size in SIZES if size in values}


ROWS = [Latency, Bandwidth]
