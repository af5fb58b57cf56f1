# SPDX-License-Identifier: BSD-3-Clause
"""Members stopped or killed at single instructions, offers whose addresses pass to another, and a hostile member."""
import os
import random
import re
import signal
import time

from deaths import SOON
from stage import SANITIZER_RUNTIME, SLOWER, Skipped, expect, is_gone, test, until
from traffic import asked, rows, served

ARCHITECTURE = os.uname().machine


def step(stage, *words, talk):
    if ARCHITECTURE != "x86_64":
        raise Skipped("step knows x86-64 only")
    if stage.shm and not stage.pool_started:
        stage.start_pool()
    argv = stage.wrap([stage.program("talk"), "ask", "--mark", "--up", 300, "--down", 300, *talk])
    env = {"LD_PRELOAD": SANITIZER_RUNTIME} if SANITIZER_RUNTIME else None
    return stage.start([stage.program("step"), *words, "--", "env", *("%s=%s" % item for item in (env or {}).items()),
                        *argv])


def instructions(stage, port, turn):
    """How many a turn takes: the first connection of a process is offered, the second direct."""
    process = step(stage, "--turn", turn, talk=["--port", port, "--seconds", 0.02 * turn])
    return int(process.line(r"^turn %d: (\d+) instructions$" % turn, 60).group(1))


@test(timeout=120)
def stopped_at_single_instructions(stage):
    """One that connects, sends, receives and closes is stopped anywhere in between; others go on meanwhile."""
    server, other_server = stage.talk("serve"), stage.talk("serve")
    port = server.port()
    for turn in (1, 2):
        length = instructions(stage, port, turn)
        others = [stage.talk("ask", "--port", where, "--connections", 2, "--seconds", 40 * SLOWER)
                  for where in (port, other_server.port())]
        time.sleep(0.2)
        for i in range(8):
            at = int(length * (i + random.random()) / 8)
            process = step(stage, "--turn", turn, "--at", at, "--stop", 1200, talk=["--port", port, "--seconds", 0.02 * turn])
            output = process.wait(60)
            expect(re.search('"wrong": 0, "failed": 0', output), "stopped at %d of %d: %s", at, length, output)
        for other in others:
            other.signal(signal.SIGTERM)
            result = asked(other)
            expect(result["slowest_ms"] < 1000 * SLOWER, "waited for one that was stopped: %s", result)
    served(server)
    served(other_server)
    stage.expect_free()


@test(timeout=120)
def killed_at_single_instructions(stage):
    server, other_server = stage.talk("serve"), stage.talk("serve")
    port = server.port()
    killed = 0
    for turn in (1, 2):
        length = instructions(stage, port, turn)
        others = [stage.talk("ask", "--port", where, "--connections", 2, "--seconds", 60 * SLOWER)
                  for where in (port, other_server.port())]
        for i in range(12):
            at = int(length * (i + random.random()) / 12)
            process = step(stage, "--turn", turn, "--at", at, "--kill", talk=["--port", port, "--seconds", 0.02 * turn])
            process.wait(60, status=None)
            killed += "at %d" % at in process.output()
        for other in others:
            other.signal(signal.SIGTERM)
            asked(other)
    expect(killed >= 18, "only %d were killed", killed)
    if stage.shm:
        until(lambda: stage.stat()["members"] == 2 and stage.stat()["connections"] == 0, SOON + 1,
              lambda: "the dead are settled: %s" % stage.why())
    asked(stage.talk("ask", "--port", port, "--connections", 20))
    expect(server.term()["wrong"] == 0, "the server got wrong bytes")
    served(other_server)
    stage.expect_free()


@test(timeout=120)
def server_killed_at_random_moments(stage):
    """While clients connect to it without a pause; they must hear of it, whatever it was doing."""
    for _ in range(15):
        server = stage.talk("serve")
        port = server.port()
        clients = [stage.talk("ask", "--port", port, "--connections", 2, "--seconds", 60, "--tolerate")
                   for _ in range(2)]
        time.sleep(0.15 * SLOWER + random.random() / 10)
        server.kill()
        time.sleep(0.02)
        for client in clients:
            client.signal(signal.SIGTERM)
        start = time.monotonic()
        for client in clients:
            result = client.json(SOON + 2)
            expect(result["wrong"] == 0, "a client: %s", result)
        expect(time.monotonic() - start < SOON, "a client hung for %.2f s", time.monotonic() - start)
    stage.expect_free()


# ---- offers ----


def held_server(stage):
    """A server that is stopped: TCP connections to it are made, nobody accepts them yet."""
    server = stage.talk("serve")
    port = server.port()
    server.signal(signal.SIGSTOP)
    return server, port


FROM = 21000  # local ports below the kernel's own range


def free_from():
    return FROM + random.randrange(9000)


@test
def offer_reset_and_port_taken_by_another(stage):
    for _ in range(5):
        server, port = held_server(stage)
        source = free_from()
        first = stage.talk("ask", "--port", port, "--from", source, "--linger", "--tolerate", "--timeout-ms", 50)
        expect(first.json()["failed"] == 1, "nobody accepted, but somebody answered")
        second = stage.talk("ask", "--port", port, "--from", source, "--up", 100000)
        time.sleep(0.15 * SLOWER)
        server.signal(signal.SIGCONT)
        asked(second)
        expect(server.term()["wrong"] == 0, "a byte on the wrong socket")
    stage.expect_free()


@test
def killed_client_and_port_inherited_by_a_plain_one(stage):
    for _ in range(5):
        server, port = held_server(stage)
        source = free_from()
        first = stage.talk("ask", "--port", port, "--from", source, "--linger")
        time.sleep(0.1 * SLOWER + random.random() / 12)
        first.kill()
        second = stage.talk("ask", "--port", port, "--from", source, "--up", 100000, plain=True)
        time.sleep(0.1)
        server.signal(signal.SIGCONT)
        asked(second)
        expect(server.term()["wrong"] == 0, "a byte on the wrong socket")
    stage.expect_free()


def at_connect(stage, port, source):
    """A client that stands right before its kernel connect(): its offer is out."""
    process = step(stage, "--connect", talk=["--port", port, "--from", source, "--tolerate"])
    process.line("^at connect$")
    return process


@test
def two_offers_at_once(stage):
    server = stage.talk("serve")
    port = server.port()
    for _ in range(5):
        source = free_from()
        first = at_connect(stage, port, source)
        second = stage.talk("ask", "--port", port, "--from", source, "--up", 100000, "--hold")
        second.line("^ready$")
        if stage.shm:
            seen = rows(stage, pid=second.pid)
            expect(all(row["path"] == "tcp" for row in seen), "of two offers one was taken: %s", seen)
        first.signal(signal.SIGUSR1)
        result = first.json()
        expect(result["wrong"] == 0 and result["failed"] == 1, "the first: %s", result)
        second.signal(signal.SIGTERM)
        asked(second)
    expect(server.term()["wrong"] == 0, "a byte on the wrong socket")
    stage.expect_free()


@test
def offer_of_one_killed_before_it_connects(stage):
    """A plain client, and one of the pool, come from its port at once."""
    server = stage.talk("serve")
    port = server.port()
    for plain in (True, False) * 3:
        source = free_from()
        first = at_connect(stage, port, source)
        first.signal(signal.SIGTERM)
        first.wait(status=137)
        asked(stage.talk("ask", "--port", port, "--from", source, "--up", 100000, "--linger", plain=plain))
    expect(server.term()["wrong"] == 0, "a byte on the wrong socket")
    stage.expect_free()


@test
def plain_client_comes_while_an_offer_stands(stage):
    """The offer's own client is stopped; somebody else's connection has its addresses, and must stay TCP."""
    server = stage.talk("serve")
    port = server.port()
    for _ in range(5):
        source = free_from()
        first = at_connect(stage, port, source)
        asked(stage.talk("ask", "--port", port, "--from", source, "--up", 100000, "--down", 100000, "--linger", plain=True))
        first.signal(signal.SIGUSR1)
        result = first.json()
        expect(result["wrong"] == 0, "the first: %s", result)
    expect(server.term()["wrong"] == 0, "a byte on the wrong socket")
    stage.expect_free()


# ---- several pools ----


@test(pool=True)
def process_in_several_pools(stage):
    """In two by the public library, and, under `unclot run`, in a third one (whose sockets it could use) as well."""
    others = [stage.another_pool("first"), stage.another_pool("second")]
    for start in (stage.start, stage.run):
        writer = start([stage.program("pools"), "write", *others])
        writer.line("^ready$")
        readers = [stage.start([stage.program("pools"), "read", path, number]) for number, path in enumerate(others)]
        for number, reader in enumerate(readers):
            expect(reader.json() == {"read": number}, "a reader")
        expect(writer.term() == {"pools": 2}, "the writer")
    stage.expect_free()


@test(pool=True)
def same_pool_by_library_and_by_sockets(stage):
    """A program under `unclot run` joins by the library the pool that its sockets are in."""
    writer = stage.run([stage.program("pools"), "write", stage.socket])
    writer.line("^ready$")
    expect(stage.run([stage.program("pools"), "read", stage.socket, 0]).json() == {"read": 0}, "the reader")
    asked_server = stage.talk("serve")
    asked(stage.talk("ask", "--port", asked_server.port(), "--warm", 1, "--connections", 5))
    expect(writer.term() == {"pools": 1}, "the writer")
    served(asked_server)
    stage.expect_free()


# ---- a hostile member ----


@test(timeout=60, pool=True)
def hostile_member(stage):
    """It writes random bytes all over the pool; others may lose connections, not their lives."""
    stage.start_pool("32M")
    keeper, worker = stage.agent()
    servers = [stage.talk("serve"), stage.talk("serve")]
    clients = [stage.talk("ask", "--port", server.port(), "--connections", connections, "--up", 20000, "--down", 20000,
                          "--seconds", 5 * SLOWER, "--tolerate", "--timeout-ms", 500)
               for server in servers for connections in (1, 5, 20)]
    time.sleep(0.3)
    hostile = stage.start([stage.program("hostile"), stage.socket, 2])
    seed = hostile.line(r"^seed (\d+)").group(1)
    while hostile.running():
        for command in ("ps", "stat"):
            stage.unclot(command, "--json", seconds=10 * SLOWER, status=None)
    hostile.wait()
    for process in clients:
        try:
            process.popen.wait(20 * SLOWER)
        except Exception:
            process.fail("hangs, seed %s" % seed)
        expect(process.popen.returncode >= 0, "a client crashed with signal %d, seed %s", -process.popen.returncode, seed)
    for process in servers:
        process.signal(signal.SIGTERM)
        try:
            process.popen.wait(5 * SLOWER)
        except Exception:
            process.fail("hangs, seed %s" % seed)
        expect(process.popen.returncode >= 0, "a server crashed with signal %d, seed %s", -process.popen.returncode, seed)
    expect(not is_gone(keeper), "the agent's keeper died, seed %s", seed)
    expect(not is_gone(worker), "the agent's worker died, seed %s", seed)
    for command in ("ps", "stat"):
        stage.unclot(command, "--json", seconds=10 * SLOWER, status=None)
    # New programs run, over whichever path.
    server = stage.talk("serve")
    result = stage.talk("ask", "--port", server.port(), "--connections", 5, "--tolerate", "--timeout-ms", 2000).json()
    expect(result["connections"] == 5, "after it, seed %s: %s", seed, result)
    server.signal(signal.SIGTERM)
    server.wait(status=None)
