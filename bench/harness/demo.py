# SPDX-License-Identifier: BSD-3-Clause
"""The demo's choice of rows: real programs over TCP and over UNCLOT in turn, in under three minutes.

Used by bench/run.py demo.  The rows are the same as everywhere, with fewer points.
"""
from .report import LOWER, Cell, Row, at_most
from .rows_http import Ab, NginxWrk, Redis
from .rows_mpi import Bandwidth, Latency
from .rows_socket import Iperf3, sockperf
from .sides import TCP, UNCLOT


class DemoNginx(NginxWrk):
    what = ("return 200",)
    connections = (1, 2, 8, 64, 256)


class DemoRedis(Redis):
    sides = (TCP, UNCLOT)


class Sockperf(Row):
    name, number = "sockperf", 3
    title = "sockperf ping-pong of 64 bytes, round trip"

    def points(self, bench):
        return [Cell("64 B", "us", LOWER, at_most(1.2), at_most(0.6))]

    def measure(self, bench, side):
        yield {"64 B": sockperf(bench, side)}


ROWS = [DemoNginx, Ab, DemoRedis, Iperf3, Sockperf, Latency, Bandwidth]
RUNS = 3
