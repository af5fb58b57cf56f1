# SPDX-License-Identifier: BSD-3-Clause
"""Rows of real servers: nginx with wrk and ab, redis, and the CPU time that a request costs.

Servers are Debian's, unchanged, with a configuration written into the run's directory.
"""
import csv
import io
import os
import re
import time

from . import machine
from .machine import ANY_CPU, CLIENT_CPU, SERVER_CPU, Failure, need
from .report import HIGHER, LOWER, Cell, Row, times
from .sides import TCP, UNCLOT, UNIX

CONNECTIONS = (1, 2, 8, 64, 256, 1024)
PATHS = {"return 200": "/return", "612 B file": "/file612", "1 MiB file": "/file1m"}
UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
SIZES = {"612 B file": 612, "1 MiB file": 1 << 20}

NGINX_CONF = """
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
worker_processes {workers};
worker_rlimit_nofile 16384;
{user}
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    sendfile on;
    server {{
        listen {address}:{port} backlog=4096;
        root {directory}/files;
        location = /return {{ return 200 "hello\\n"; }}
    }}
}}
"""


class Nginx:
    """nginx, running inside the `with` block."""

    def __init__(self, bench, side, workers=1, cpu=SERVER_CPU):
        self.directory = os.path.join(bench.directory, "nginx.%d" % time.monotonic_ns())
        files = os.path.join(self.directory, "files")
        os.makedirs(files)
        for name, size in (("file612", 612), ("file1m", 1 << 20)):
            with open(os.path.join(files, name), "wb") as file:
                file.write(bytes(i % 251 for i in range(size)))
        self.port = machine.free_port(bench.address)
        self.url = "http://%s:%d" % (bench.address, self.port)
        config = os.path.join(self.directory, "nginx.conf")
        with open(config, "w") as file:
            file.write(NGINX_CONF.format(directory=self.directory, workers=workers, address=bench.address,
                                         port=self.port, user="user www-data;" if os.getuid() == 0 else ""))
        self.process = bench.start(side, [need("nginx"), "-e", os.path.join(self.directory, "error.log"), "-p",
                                          self.directory, "-c", config], cpu)
        try:
            self.process.wait_port(bench.address, self.port)
        except Failure:
            self.process.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stop()

    def pids(self):
        return machine.family(self.process.pid)


def wrk(bench, side, url, connections, threads=1, cpu=CLIENT_CPU, size=None):
    """Requests a second; wrong answers are failures."""
    out = bench.run(side, [need("wrk"), "-t", threads, "-c", connections, "-d",
                           "%ds" % max(1, round(bench.seconds)), url], cpu)
    for sign in ("Non-2xx", "Socket errors"):
        found = re.search(r"^.*%s.*$" % sign, out, re.M)
        if found:
            raise Failure("wrk: " + found.group(0).strip())
    total = re.search(r"(\d+) requests in [\d.]+\w+, ([\d.]+)([KMGT]?B) read", out)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", out)
    if not total or not rate or int(total.group(1)) == 0:
        raise Failure("wrk: no request was answered")
    requests, read = int(total.group(1)), float(total.group(2)) * UNITS[total.group(3)]
    if size is not None and read < 0.9 * size * requests:
        raise Failure("wrk: %d requests brought only %d bytes" % (requests, read))
    return float(rate.group(1))


class NginxWrk(Row):
    name, number = "nginx", "7,8"
    title = "nginx, one worker, and wrk, one thread, keep-alive"
    what = tuple(PATHS)
    connections = CONNECTIONS

    def points(self, bench):
        cells = []
        for what in self.what:
            for count in self.chosen(bench, what):
                small = what != "1 MiB file"
                first, real = {1: (times(5), times(10)), 2: (times(3), times(6))}.get(count, (times(1.5), times(2.5)))
                if not small and count < 8:
                    first, real = None, None
                cells.append(Cell("%s, %d conn." % (what, count), "k/s", HIGHER, first, real))
        return cells

    def chosen(self, bench, what):
        if bench.quick and what != "return 200":
            return [count for count in self.connections if count in (1, 64)]
        return self.connections

    def measure(self, bench, side):
        with Nginx(bench, side) as nginx:
            for what in self.what:
                for count in self.chosen(bench, what):
                    rate = wrk(bench, side, nginx.url + PATHS[what], count, size=SIZES.get(what))
                    yield {"%s, %d conn." % (what, count): rate / 1e3}


class NginxOver(Row):
    name, number = "nginx-over", 9
    title = "nginx with 4 workers and wrk with 4 threads, not pinned, on as many CPUs as there are"

    def points(self, bench):
        return [Cell("return 200, %d conn." % count, "k/s", HIGHER, times(1), times(2)) for count in CONNECTIONS]

    def measure(self, bench, side):
        with Nginx(bench, side, workers=4, cpu=ANY_CPU) as nginx:
            for count in CONNECTIONS:
                rate = wrk(bench, side, nginx.url + "/return", count, threads=min(4, count), cpu=ANY_CPU)
                yield {"return 200, %d conn." % count: rate / 1e3}


class Ab(Row):
    name, number = "ab", 10
    title = "ab without keep-alive, 8 at a time"

    def points(self, bench):
        return [Cell("8 at a time", "k/s", HIGHER, times(1.5), times(3))]

    def measure(self, bench, side):
        requests = int(20000 * min(1.0, bench.seconds))
        with Nginx(bench, side) as nginx:
            out = bench.run(side, [need("ab"), "-q", "-c", "8", "-n", requests, nginx.url + "/return"], CLIENT_CPU)
        if not re.search(r"Complete requests:\s+%d$" % requests, out, re.M) or \
                not re.search(r"Failed requests:\s+0$", out, re.M) or "Non-2xx" in out:
            raise Failure("ab: requests failed")
        yield {"8 at a time": float(re.search(r"Requests per second:\s+([\d.]+)", out).group(1)) / 1e3}


class Redis(Row):
    name, number = "redis", 11
    title = "redis-benchmark, GET"
    sides = (TCP, UNIX, UNCLOT)
    connections = (1, 50)

    def points(self, bench):
        return [Cell("1 connection", "k/s", HIGHER, times(5), times(12)),
                Cell("50 connections", "k/s", HIGHER, times(1.5), times(2.5))]

    def measure(self, bench, side):
        port = machine.free_port(bench.address)
        path = os.path.join(bench.directory, "redis.%d" % time.monotonic_ns())
        argv = [need("redis-server"), "--port", port, "--bind", bench.address, "--unixsocket", path, "--save", "",
                "--appendonly", "no", "--protected-mode", "no", "--dir", bench.directory, "--daemonize", "no"]
        where = ["-s", path] if side == UNIX else ["-h", bench.address, "-p", port]
        with bench.start(side, argv, SERVER_CPU) as server:
            server.wait_port(bench.address, port)
            server.wait_line("Ready to accept|ready to accept")
            for name, count, guess in (("1 connection", 1, 14000), ("50 connections", 50, 140000)):
                # As many requests as take about the time on this side, judged by a short first go.
                rate = self.get(bench, side, where, count, guess // 10)
                yield {name: self.get(bench, side, where, count, max(1000, int(rate * bench.seconds))) / 1e3}

    @staticmethod
    def get(bench, side, where, connections, requests):
        argv = [need("redis-benchmark"), *where, "-t", "get", "-c", connections, "-n", requests, "--csv"]
        out = bench.run(side, argv, CLIENT_CPU)
        for line in csv.reader(io.StringIO(out)):
            if line and line[0] == "GET":
                return float(line[1])
        raise Failure("redis-benchmark printed no result")


class Cpu(Row):
    name, number = "cpu", 12
    title = "CPU time of both ends, per GB streamed and per request served"
    sides = (TCP, UNIX, UNCLOT)

    def points(self, bench):
        return [Cell("stream, 64 KiB writes", "ms/GB", LOWER, times(1), times(2)),
                Cell("stream, 1 KiB writes", "ms/GB", LOWER, times(1), times(2))] + \
            [Cell("request, %d conn." % count, "us", LOWER, times(1), times(2)) for count in (1, 8, 64)]

    def measure(self, bench, side):
        for name, size in (("64 KiB", 65536), ("1 KiB", 1024)):
            server, client = bench.pair(side, "stream", ["--size", str(size)],
                                        client=["--seconds", "%.2f" % bench.seconds])
            yield {"stream, %s writes" % name: (server["cpu_us"] + client["cpu_us"]) / 1e3 / (server["bytes"] / 1e9)}
        if side == UNIX:
            return
        for count in (1, 8, 64):
            with Nginx(bench, side) as nginx:
                pids = nginx.pids()
                agents = bench.agents() if side == UNCLOT else []
                before = machine.cpu_seconds(pids + agents), os.times()
                rate = wrk(bench, side, nginx.url + "/return", count)
                after = machine.cpu_seconds(pids + agents), os.times()
                # The client is our only child to end meanwhile, but for the few looks of `unclot ps`.
                used = after[0] - before[0] + after[1].children_user - before[1].children_user + \
                    after[1].children_system - before[1].children_system
            yield {"request, %d conn." % count: used * 1e6 / (rate * max(1, round(bench.seconds)))}


ROWS = [NginxWrk, NginxOver, Ab, Redis, Cpu]
