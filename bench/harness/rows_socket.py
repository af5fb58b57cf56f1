# SPDX-License-Identifier: BSD-3-Clause
"""Rows of plain sockets: round trips, streams, connections, and what rest costs (our own small programs, sockperf,
iperf3).

Every row starts its server fresh, on the first CPU, and its client on the second, unless its name says otherwise.
"""
import json
import re
import time

from . import machine
from .machine import CLIENT_CPU, SERVER_CPU, Failure, need
from .report import HIGHER, LOWER, Cell, Row, Target, at_least, at_most, of_limit, times
from .sides import TCP, UNCLOT, UNIX

SAME, APART = (SERVER_CPU, SERVER_CPU), (SERVER_CPU, CLIENT_CPU)


def seconds(bench, share=1.0):
    return ["--seconds", "%.2f" % (bench.seconds * share)]


class PingPong(Row):
    name, number = "pingpong", 3
    title = "blocking ping-pong of 64 bytes, round trip, median"
    sides = (TCP, UNIX, UNCLOT)

    def points(self, bench):
        return [
            Cell("sockperf", "us", LOWER, at_most(1.2), at_most(0.6)),
            Cell("own client", "us", LOWER, at_most(1.2), at_most(0.6)),
            Cell("own client, same CPU", "us", LOWER, None, times(1)),
        ]

    def limits(self, bench):
        limit = bench.line_limit()
        return {"sockperf": limit, "own client": limit}

    def measure(self, bench, side):
        if side != UNIX:
            yield {"sockperf": sockperf(bench, side)}
        yield {"own client": bench.pair(side, "pingpong", client=seconds(bench))[1]["p50_us"]}
        yield {"own client, same CPU": bench.pair(side, "pingpong", client=seconds(bench, 0.5),
                                                  cpus=SAME)[1]["p50_us"]}


def sockperf(bench, side):
    """Median round trip of 64 bytes, in microseconds."""
    port = machine.free_port(bench.address)
    where = ["--tcp", "-i", bench.address, "-p", port]
    # Its table of messages is sized for 600 000 a second, and it gives up when there are more; with a rate, for that.
    rate = "--mps=5000000"
    with bench.start(side, [need("sockperf"), "server", *where], SERVER_CPU) as server:
        server.wait_port(bench.address, port)
        out = bench.run(side, [need("sockperf"), "ping-pong", *where, "-m", "64", "-t", max(1, round(bench.seconds)),
                               "--full-rtt", rate], CLIENT_CPU)
    found = re.search(r"percentile 50\.000 =\s*([\d.]+)", out)
    if not found:
        raise Failure("sockperf printed no median")
    return float(found.group(1))


class Paced(Row):
    name, number = "paced", 16
    title = "ping-pong of 64 bytes, 1000 a second, both ends asleep in between"
    sides = (TCP, UNIX, UNCLOT)

    def points(self, bench):
        better = (times(1), Target("<= 0.7 of TCP", lambda cell: cell.ratio() >= 1 / 0.7))
        return [Cell("p50", "us", LOWER, *better), Cell("p99", "us", LOWER, *better), Cell("p99.9", "us", LOWER),
                Cell("CPU per message", "us", LOWER, *better)]

    def measure(self, bench, side):
        length = max(bench.seconds, 1.0)
        server, client = bench.pair(side, "pingpong", ["--warm-up", "50"],
                                    client=["--rate", "1000", "--seconds", "%.2f" % length])
        yield {"p50": client["p50_us"], "p99": client["p99_us"], "p99.9": client["p999_us"],
               "CPU per message": (server["cpu_us"] + client["cpu_us"]) / client["messages"]}


class Stream64(Row):
    name, number = "stream64", 4
    title = "one-way stream, one send() per 64 bytes"
    sides = (TCP, UNIX, UNCLOT)

    def points(self, bench):
        return [Cell("64 B", "M/s", HIGHER, at_least(8), at_least(16))]

    def limits(self, bench):
        return {"64 B": bench.copy_limit(64) / 64 / 1e6}

    def measure(self, bench, side):
        server, client = bench.pair(side, "stream", client=seconds(bench))
        if server["bytes"] != client["bytes"]:
            raise Failure("%d bytes sent, %d received" % (client["bytes"], server["bytes"]))
        yield {"64 B": server["messages_per_second"] / 1e6}


class Iperf3(Row):
    name, number = "iperf3", 5
    title = "iperf3, one stream, no options"

    def points(self, bench):
        return [Cell("1 stream", "Gbit/s", HIGHER, at_least(55), of_limit(0.8))]

    def limits(self, bench):
        return {"1 stream": bench.copy_limit(131072) * 8 / 1e9}  # iperf3 writes 128 KiB at a time

    def measure(self, bench, side):
        port = machine.free_port(bench.address)
        with bench.start(side, [need("iperf3"), "-s", "-1", "-B", bench.address, "-p", port], SERVER_CPU) as server:
            server.wait_port(bench.address, port)
            out = bench.run(side, [need("iperf3"), "-J", "-c", bench.address, "-p", port, "-t",
                                   max(1, round(bench.seconds))], CLIENT_CPU)
        answer = json.loads(out)
        if "error" in answer:
            raise Failure("iperf3: " + answer["error"])
        yield {"1 stream": answer["end"]["sum_received"]["bits_per_second"] / 1e9}


class Connect(Row):
    name, number = "connect", 6
    title = "connect + accept + close, one after the other"

    def points(self, bench):
        return [Cell("alone", "k/s", HIGHER, times(5), times(15)),
                Cell("beside 10000 others", "k/s", HIGHER, times(5), times(15))]

    def measure(self, bench, side):
        for cell, others in (("alone", 0), ("beside 10000 others", 10000)):
            # The others use 127.0.1.x, so the server listens on all addresses; the measured client uses --address.
            client = bench.pair(side, "connect", ["--count", str(others)], ["--address", "0.0.0.0"],
                                seconds(bench) + ["--addresses", "8"], end_server=True)[1]
            yield {cell: client["per_second"] / 1e3}


class Resting:
    """Connections of bench/idle.c, open and at rest inside the `with` block."""

    def __init__(self, bench, side, count):
        common = ["--count", str(count), "--addresses", "16"]
        self.server = bench.start(side, [bench.program("idle"), "serve", "--address", "0.0.0.0", *common], SERVER_CPU)
        try:
            port = self.server.wait_line(r"^port (\d+)$").group(1)
            self.before = machine.private_bytes([self.server.pid])
            self.client = bench.start(side, [bench.program("idle"), "client", "--port", port, *common], CLIENT_CPU)
        except Failure:
            self.server.stop()
            raise

    def __enter__(self):
        try:
            self.client.wait_line(r'"open"', 60)
        except Failure:
            self.__exit__()
            raise
        time.sleep(0.5)  # what was armed or grown for the last messages comes to rest
        return self

    def __exit__(self, *_):
        self.client.stop()
        self.server.stop()

    def pids(self):
        return machine.family(self.server.pid) + machine.family(self.client.pid)

    def check(self):
        for process in (self.server, self.client):
            if "unexpected_event" in process.output():
                process.fail("an event came on an idle connection")


class Idle(Row):
    name, number = "idle", 14
    title = "CPU of 10 000 idle connections, both ends and the agent"

    def points(self, bench):
        free = Target("0", lambda cell: cell.median(UNCLOT) < 0.05)
        return [Cell("10000 connections", "ms CPU/s", LOWER, free, free)]

    def measure(self, bench, side):
        length = 3.0 if bench.quick else 5.0
        with Resting(bench, side, 10000) as resting:
            pids = resting.pids()
            if side == UNCLOT:
                bench.proof.look()
                pids += bench.agents()
            before = machine.cpu_seconds(pids)
            time.sleep(length)
            used = machine.cpu_seconds(pids) - before
            resting.check()
        yield {"10000 connections": used * 1e3 / length}


class Memory(Row):
    name, number = "memory", 13
    title = "memory of a connection that has carried one message each way"

    def points(self, bench):
        self.many = 100000 if bench.full else 10000
        return [Cell("pool, per connection", "KiB", LOWER, at_most(64), at_most(4)),
                Cell("pool's pages, per connection", "KiB", LOWER),
                Cell("both processes, per connection", "KiB", LOWER),
                Cell("kernel, per connection", "KiB", LOWER),
                Cell("connections in the pool", "k", HIGHER, at_least(10), at_least(100))]

    def measure(self, bench, side):
        values = {}
        if side == UNCLOT:
            bench.start_pool()
        pool, used = (bench.pool_bytes(), bench.pool_stat()["used"]) if side == UNCLOT else (0, 0)
        kernel = machine.kernel_bytes()
        with Resting(bench, side, self.many) as resting:
            if side == UNCLOT:
                bench.proof.look()
                held = bench.proof.seen["shm"] // 2
                values["pool, per connection"] = (bench.pool_stat()["used"] - used) / self.many / 1024
                values["pool's pages, per connection"] = max(0, bench.pool_bytes() - pool) / self.many / 1024
                values["connections in the pool"] = held / 1e3
            private = machine.private_bytes(resting.pids()) - 2 * resting.before
            values["both processes, per connection"] = max(0, private) / self.many / 1024
            values["kernel, per connection"] = max(0, machine.kernel_bytes() - kernel) / self.many / 1024
        if not bench.full:
            self.note = "10 000 connections were opened; --full opens 100 000"
        yield values


class Startup(Row):
    name, number = "startup", 15
    title = "`unclot run -- true` against `true`"
    needs_proof = False

    def points(self, bench):
        def extra(limit):
            return Target("<= %g ms more" % limit, lambda cell: cell.median(UNCLOT) - cell.median(TCP) <= limit)

        return [Cell("true", "ms", LOWER, extra(5), extra(1))]

    def measure(self, bench, side):
        command = bench.wrap(side, [need("true")])
        yield {"true": machine.median_run_time(command, 30 if bench.quick else 100) * 1e3}


ROWS = [PingPong, Stream64, Iperf3, Connect, Memory, Idle, Startup, Paced]
