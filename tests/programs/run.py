#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Real programs, unchanged, with answers that are compared: over UNCLOT, and with --plain over TCP.

Each test has a private pool (see ../faults/stage.py) and asserts that the bytes went through it; --help tells the rest.
"""
import hashlib
import json
import os
import random
import re
import signal
import socket
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "faults"))

import stage as stages  # noqa: E402
from stage import SANITIZER_RUNTIME, SLOWER, Skipped, expect, need, test, until  # noqa: E402

ADDRESS = "127.0.0.1"


def free_port():
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


def is_listening(port):
    with open("/proc/net/tcp") as file:
        lines = [line.split() for line in file.readlines()[1:]]
    return any(fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port for fields in lines)


def serve(stage, argv, port, **options):
    """A server, once it listens."""
    server = stage.run(argv, **options)
    until(lambda: is_listening(port) or not server.running(), stages.PATIENCE,
          lambda: "%s listens" % os.path.basename(argv[0]))
    if not server.running():
        server.fail("ended with status %d" % server.popen.returncode)
    return server


def client(stage, *words, seconds=60 * SLOWER):
    process = stage.run([sys.executable, os.path.join(HERE, "clients.py"), *words])
    return process.json(seconds)


def expect_bytes(stage, least):
    """Bytes that went through memory; they are counted when a connection is closed, which may be a moment later."""
    if stage.shm:
        until(lambda: stage.counted("bytes_sent_shm") >= least, 2 * SLOWER,
              lambda: "%d bytes went through memory, %d are counted; %s" % (
                  least, stage.counted("bytes_sent_shm"), stage.why()))


def quit_and_free(stage, *servers, number=signal.SIGTERM):
    for server in servers:
        server.signal(number)
        server.wait(status=None)
    stage.expect_free(3 * SLOWER)


def need_curl():
    """Debian's curl waits for ever in setlocale() when the ASan runtime is preloaded, without UNCLOT as well."""
    if SANITIZER_RUNTIME:
        raise Skipped("curl does not start under a preloaded ASan runtime")
    return need("curl")


def no_sanitizers(program):
    if SANITIZER_RUNTIME:
        raise Skipped("%s has an allocator of its own" % program)


def make_file(stage, name, size):
    path = os.path.join(stage.directory, name)
    content = random.Random(size).randbytes(size)
    with open(path, "wb") as file:
        file.write(content)
    return path, hashlib.sha256(content).hexdigest()


def digest_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else \
            hashlib.sha256(file.read()).hexdigest()


# ---- nginx, curl, wrk, ab ----

FILES = {"empty": 0, "small": 612, "middle": 1 << 20, "large": 20 << 20}

NGINX = """
daemon off;
pid {directory}/nginx.pid;
worker_processes 2;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    sendfile {sendfile};
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {directory}/files;
    }}
}}
"""


class Nginx:
    def __init__(self, stage, sendfile="on"):
        self.stage = stage
        os.mkdir(os.path.join(stage.directory, "files"), 0o755)
        self.digests = {name: make_file(stage, "files/" + name, size)[1] for name, size in FILES.items()}
        self.port = free_port()
        config = os.path.join(stage.directory, "nginx.conf")
        with open(config, "w") as file:
            file.write(NGINX.format(directory=stage.directory, port=self.port, sendfile=sendfile,
                                    user="user www-data;" if os.getuid() == 0 else ""))
        self.argv = [need("nginx"), "-e", os.path.join(stage.directory, "error.log"), "-p", stage.directory, "-c", config]
        self.process = serve(stage, self.argv, self.port)

    def url(self, name):
        return "http://%s:%d/%s" % (ADDRESS, self.port, name)

    def fetch(self, names, *options):
        """One curl for all of them; each answer compared."""
        words, paths = [], []
        for i, name in enumerate(names):
            paths.append(os.path.join(self.stage.directory, "got%d" % i))
            words += ["-o", paths[-1], self.url(name)]
        self.stage.run([need_curl(), "-sS", "--fail", *options, *words]).wait(30 * SLOWER)
        for name, path in zip(names, paths):
            expect(digest_of(path) == self.digests[name], "%s is another file than nginx has", name)
            os.unlink(path)

    def workers(self):
        return stages.children_of(self.process.pid)

    def complaints(self):
        """What nginx logged as wrong with a socket."""
        with open(os.path.join(self.stage.directory, "error.log")) as file:
            return [line for line in file if re.search(r"\[(alert|crit|emerg|error)\]", line)]

    def quit(self):
        quit_and_free(self.stage, self.process)
        expect(not self.complaints(), "nginx logged: %s", self.complaints()[:3])


def wrk(stage, url, connections, seconds, size, during=None):
    process = stage.run([need("wrk"), "-t", min(2, connections), "-c", connections, "-d", "%ds" % seconds, url])
    if during:
        time.sleep(seconds / 2)
        during()
    output = process.wait(seconds + 20 * SLOWER)
    for sign in ("Non-2xx", "Socket errors"):
        expect(sign not in output, "wrk: %s", output.strip())
    requests = int(re.search(r"(\d+) requests in", output).group(1))
    expect(requests > 0, "wrk: no request was answered")
    expect_bytes(stage, requests * size * 0.9)
    return requests


@test(timeout=60)
def nginx_files(stage):
    nginx = Nginx(stage)
    for name in FILES:
        nginx.fetch([name])
        nginx.fetch([name] * 3, "-H", "Connection: close")
    nginx.fetch(list(FILES) * 3)
    nginx.fetch(["large"] * 4, "--parallel", "--parallel-immediate")
    expect_bytes(stage, 4 * FILES["large"])
    nginx.quit()


@test(timeout=60)
def nginx_files_without_sendfile(stage):
    nginx = Nginx(stage, "off")
    nginx.fetch(list(FILES) * 2)
    nginx.fetch(["large"] * 4, "--parallel", "--parallel-immediate")
    expect_bytes(stage, FILES["large"])
    nginx.quit()


@test(timeout=60)
def nginx_wrk(stage):
    nginx = Nginx(stage)

    def look():
        if stage.shm:
            paths = [row["path"] for row in stage.ps() if row["pid"] in nginx.workers()]
            expect(paths.count("shm") > 0.9 * len(paths) > 0, "the workers' connections: %s", paths)
    for name, connections in (("empty", 8), ("small", 1), ("small", 64), ("middle", 16), ("large", 4)):
        wrk(stage, nginx.url(name), connections, 1, FILES[name], look)
    nginx.quit()


@test(timeout=60)
def nginx_reload(stage):
    """New workers, the same listener; requests go on without one that fails."""
    nginx = Nginx(stage)
    before = set(nginx.workers())
    asking = stage.run([need("ab"), "-q", "-n", 60000 // SLOWER, "-c", 8, nginx.url("small")])
    for _ in range(3):
        time.sleep(0.3)
        nginx.process.signal(signal.SIGHUP)
    output = asking.wait(50 * SLOWER)
    expect(re.search(r"^Failed requests:\s+0$", output, re.M), "ab: %s", output)
    until(lambda: len(nginx.workers()) == 2 and not before & set(nginx.workers()), 10, "two new workers")
    nginx.fetch(["small", "middle"])
    stage.expect_direct(10000 // SLOWER)
    nginx.quit()


@test(timeout=60)
def ab_without_keep_alive(stage):
    nginx = Nginx(stage)
    for count, concurrency, name in ((5000, 16, "small"), (1000, 1, "small"), (300, 8, "middle")):
        output = stage.run([need("ab"), "-q", "-n", count, "-c", concurrency, nginx.url(name)]).wait(40 * SLOWER)
        expect(re.search(r"^Failed requests:\s+0$", output, re.M) and
               re.search(r"^Complete requests:\s+%d$" % count, output, re.M), "ab: %s", output)
        expect(re.search(r"^HTML transferred:\s+%d bytes" % (count * FILES[name]), output, re.M), "ab: %s", output)
    stage.expect_direct(6000)
    nginx.quit()


# ---- redis, memcached ----


def redis(stage, *options):
    no_sanitizers("redis")
    port = free_port()
    server = serve(stage, [need("redis-server"), "--port", port, "--bind", ADDRESS, "--dir", stage.directory, "--save",
                           "", "--loglevel", "warning", *options], port)
    return server, port


@test(timeout=60)
def redis_values_and_saving(stage):
    server, port = redis(stage)
    result = client(stage, "redis", port)
    expect(result["compared"] > 24 << 20 and result["keys"] == 20204, "redis: %s", result)
    expect_bytes(stage, 2 * 24 << 20)
    expect(os.path.getsize(os.path.join(stage.directory, "dump.rdb")) > 4 << 20, "nothing was saved")
    quit_and_free(stage, server)


@test(timeout=60)
def redis_benchmark(stage):
    server, port = redis(stage)
    for words in (["-n", 3000], ["-n", 20000, "-P", 16, "-t", "set,get,lpush,lrange_100"],
                  ["-n", 2000, "-c", 200, "-d", 10000, "-t", "set,get"]):
        output = stage.run([need("redis-benchmark"), "-p", port, "--csv", "-r", 1000, *words]).wait(50)
        rows = re.findall(r'^"[A-Z].*?","([\d.]+)"', output, re.M)
        expect(len(rows) >= 2 and all(float(rate) > 0 for rate in rows), "redis-benchmark: %s", output)
        expect("rror" not in output, "redis-benchmark: %s", output)
    expect_bytes(stage, 20 << 20)
    quit_and_free(stage, server)


@test(timeout=60)
def redis_with_threads(stage):
    server, port = redis(stage, "--io-threads", 3, "--io-threads-do-reads", "yes")
    client(stage, "redis", port)
    stage.expect_shm(1)
    quit_and_free(stage, server)


@test(timeout=60)
def memcached_items(stage):
    port = free_port()
    server = serve(stage, [need("memcached"), "-u", "root", "-l", ADDRESS, "-p", port, "-U", 0, "-t", 4, "-m", 512], port)
    expect(client(stage, "memcached", port)["compared"] == 10000, "not all was compared")
    expect_bytes(stage, 100 << 20)
    quit_and_free(stage, server)


# ---- iperf3, sockperf ----


@test(timeout=60)
def iperf3_bytes(stage):
    port = free_port()
    server = serve(stage, [need("iperf3"), "-s", "-B", ADDRESS, "-p", port], port)
    for words in ([], ["-R"], ["-P", 4], ["-P", 4, "-R"], ["--bidir"]):
        output = stage.run([need("iperf3"), "-c", ADDRESS, "-p", port, "-J", "-t", 1, *words]).wait(20 * SLOWER)
        end = json.loads(output)["end"]
        for sent, received in (("sum_sent", "sum_received"), ("sum_sent_bidir_reverse", "sum_received_bidir_reverse")):
            if sent in end:
                sent, received = end[sent]["bytes"], end[received]["bytes"]
                # The receiver stops counting while the last bytes are under way.
                expect(sent > 0 and 0 <= sent - received <= max(sent * 0.02, 64 << 20), "iperf3 %s: %d sent, %d received",
                       " ".join(map(str, words)), sent, received)
    stage.expect_shm(5)
    expect_bytes(stage, 100 << 20)
    server.signal(signal.SIGTERM)
    server.popen.wait(5)
    stage.expect_free(3 * SLOWER)


@test(timeout=60)
def sockperf_messages(stage):
    port = free_port()
    server = serve(stage, [need("sockperf"), "sr", "--tcp", "-i", ADDRESS, "-p", port], port)
    # Its table of messages is sized for 600 000 a second, and it gives up when there are more; with a rate, for that.
    for words in (["pp", "-m", 64, "--mps", 5000000], ["pp", "-m", 20000],
                  ["ul", "-m", 200, "--mps", 50000, "--reply-every", 5]):
        output = stage.run([need("sockperf"), *words, "--tcp", "-i", ADDRESS, "-p", port, "-t", 1]).wait(30 * SLOWER)
        expect(re.search(r"dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0", output),
               "sockperf %s: %s", " ".join(map(str, words)), output[-400:])
    stage.expect_shm(3)
    server.signal(signal.SIGINT)
    server.popen.wait(5)
    stage.expect_free(3 * SLOWER)


# ---- Open MPI ----


@test(timeout=90)
def open_mpi_all_to_all(stage):
    no_sanitizers("Open MPI")
    program = os.path.join(stage.build, "tests", "programs", "alltoall")
    if not os.path.exists(program):
        raise Skipped("Open MPI's development files are not installed")
    for ranks in (2, 4):
        argv = [need("mpirun"), "-np", ranks, "--oversubscribe", "--bind-to", "none", "--mca", "plm", "isolated", "--mca",
                "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo", "--mca",
                "btl_base_warn_component_unused", "0", program]
        output = stage.run(argv, {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}).wait(60)
        expect(re.search(r"^checked (\d+) of \1$", output, re.M), "alltoall: %s", output)
    stage.expect_shm(2)
    expect_bytes(stage, 20 << 20)
    stage.expect_free(3 * SLOWER)


# ---- files through a pipe ----


def piped(stage, server_argv, client_argv, port, output=None):
    path, digest = make_file(stage, "in%d" % port, 50 << 20)
    server = serve(stage, server_argv, port)
    with open(path, "rb") as source:
        sending = stage.run(client_argv, stdin=source)
    sending.wait(30 * SLOWER)
    server.wait(10 * SLOWER)
    expect(digest_of(output or server.base + ".out") == digest, "another file came out (%s)", os.path.basename(client_argv[0]))
    os.unlink(path)


@test(timeout=60)
def socat_file(stage):
    for words in ([], ["-b", "1000000"]):
        port = free_port()
        output = os.path.join(stage.directory, "out%d" % port)
        piped(stage, [need("socat"), *words, "-u", "TCP-LISTEN:%d,bind=%s,reuseaddr" % (port, ADDRESS),
                      "OPEN:%s,creat,trunc" % output],
              [need("socat"), *words, "-u", "STDIN", "TCP:%s:%d" % (ADDRESS, port)], port, output)
    stage.expect_shm(2)
    stage.expect_free(3 * SLOWER)


@test(timeout=60)
def netcat_file(stage):
    port = free_port()
    piped(stage, [need("nc"), "-l", ADDRESS, port], [need("nc"), "-N", ADDRESS, port], port)
    stage.expect_shm(1)
    stage.expect_free(3 * SLOWER)


@test(timeout=60)
def socat_to_netcat(stage):
    port = free_port()
    piped(stage, [need("nc"), "-l", ADDRESS, port], [need("socat"), "-u", "STDIN", "TCP:%s:%d" % (ADDRESS, port)], port)
    stage.expect_shm(1)
    stage.expect_free(3 * SLOWER)


# ---- Python ----


@test(timeout=60)
def python_http(stage):
    port = free_port()
    path, digest = make_file(stage, "page", 3 << 20)
    server = serve(stage, [sys.executable, "-m", "http.server", port, "--bind", ADDRESS, "--directory", stage.directory],
                   port)
    url = "http://%s:%d/page" % (ADDRESS, port)
    expect(client(stage, "http", url, digest, os.path.getsize(path))["compared"] == 20, "not all was compared")
    got = os.path.join(stage.directory, "got")
    stage.run([need_curl(), "-sS", "--fail", "-o", got, url]).wait()
    expect(digest_of(got) == digest, "another file")
    stage.expect_direct(15)
    expect_bytes(stage, 50 << 20)
    server.signal(signal.SIGINT)
    server.wait(status=None)
    stage.expect_free(3 * SLOWER)


if __name__ == "__main__":
    sys.exit(stages.main(__doc__.splitlines()[0]))
