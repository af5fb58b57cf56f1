# SPDX-License-Identifier: BSD-3-Clause
"""Many connections, idle ones, and everything that sends a connection over TCP: switch, no room, no agent, limits."""
import os
import resource
import signal
import sys
import time

from stage import SLOWER, SANITIZER_RUNTIME, Skipped, cpu_ns, expect, need, test, until

HERE = os.path.dirname(os.path.abspath(__file__))


def served(server, failed_ask=0):
    """Ends the server; what it counted, without one wrong byte."""
    result = server.term()
    expect(result["wrong"] == 0, "the server got wrong bytes: %s", result)
    expect(result["broken"] <= failed_ask, "connections broke: %s", result)
    return result


def asked(client, **options):
    result = client.json(**options)
    expect(result["wrong"] == 0 and result["failed"] == 0, "the client was not served: %s", result)
    return result


def rows(stage, **wanted):
    return [row for row in stage.ps() if all(row.get(name) == value for name, value in wanted.items())]


@test
def idle_connections_cost_nothing(stage):
    server = stage.talk("serve")
    client = stage.talk("ask", "--port", server.port(), "--connections", 200, "--warm", 1, "--hold")
    client.line("^ready$")
    time.sleep(0.5)
    stage.expect_direct(200)
    agent = stage.agent() if stage.shm else ()
    before, agent_before = cpu_ns([server.pid, client.pid]), cpu_ns(agent)
    time.sleep(3)
    used, agent_used = cpu_ns([server.pid, client.pid]) - before, cpu_ns(agent) - agent_before
    expect(used == 0, "%d us of CPU time in 3 s for 200 idle connections", used / 1000)
    # It still looks a few times whether there is memory to give back.
    expect(agent_used < 5e6, "%d us of the agent's CPU time in 3 s for 200 idle connections", agent_used / 1000)
    client.signal(signal.SIGTERM)
    expect(asked(client)["connections"] == 200, "not all were opened")
    served(server)
    stage.expect_free()


@test(timeout=60)
def two_thousand_connections_at_once(stage):
    server = stage.talk("serve")
    client = stage.talk("ask", "--port", server.port(), "--warm", 1, "--connections", 2000, "--rounds", 2, "--up",
                        20000, "--down", 30000)
    expect(asked(client, seconds=50)["connections"] == 2000, "not all were opened")
    # Those for whom the queue had no room went over TCP.
    stage.expect_direct(1000)
    expect(served(server)["requests"] == 4001, "requests were lost")
    stage.expect_free()


@test(timeout=60, pool=True)
def queue_as_long_as_the_backlog(stage):
    """listen(4096), and nobody accepts: 3000 clients wait in memory, none goes over TCP."""
    server = stage.talk("serve", "--deaf", "--connections", 1)
    client = stage.talk("ask", "--port", server.port(), "--warm", 1, "--connections", 3000, "--tolerate")
    until(lambda: len(rows(stage, pid=client.pid)) == 3000, 20 * SLOWER, stage.why)
    paths = {(row["path"], row["reason"]) for row in rows(stage, pid=client.pid)}
    expect(paths == {("shm", "direct")}, "3000 clients in the queue: %s", paths)
    server.kill()
    result = client.json()
    expect(result["failed"] == 3000 and result["wrong"] == 0, "the queued clients: %s", result)
    stage.expect_free()


@test(timeout=60)
def many_clients_of_many_processes(stage):
    server = stage.talk("serve")
    port = server.port()
    clients = [stage.talk("ask", "--port", port, "--connections", 50, "--seconds", 2) for _ in range(8)]
    total = sum(asked(client, seconds=50)["connections"] for client in clients)
    expect(served(server)["requests"] == total, "requests were lost")
    stage.expect_free()


def gives_back(stage, how, pause=0):
    """2000 connections are closed and the client only waits: the pool shrinks to near its start."""
    count = 2000
    server = stage.talk("serve")
    client = stage.run([sys.executable, os.path.join(HERE, "idle.py"), server.port(), count, how])
    client.line("^open$")
    stage.expect_direct(count)
    full = stage.stat()
    expect(full["owned"] > stage.free_use["owned"] + count * 8192, "too little to see: %s", full)
    time.sleep(pause)
    client.signal(signal.SIGUSR1)
    client.line("^idle$")
    # One chunk in use keeps its whole extent of 2 MiB: how many such there are is chance; 160 MiB were reserved.
    limit = {name: stage.free_use[name] + most for name, most in (("owned", 3 << 20), ("reserved", 32 << 20))}
    now = {}

    def has_shrunk():
        now.update({name: stage.stat()[name] for name in limit})
        return all(now[name] <= limit[name] for name in limit)
    # Two turns of the idle process, and two looks of the agent.
    until(has_shrunk, 10 * SLOWER, lambda: "%s, full %s, wanted at most %s" % (
        now, {name: full[name] for name in limit}, limit))
    expect(client.running(), "the client has ended")
    client.kill()
    served(server, failed_ask=1)
    stage.expect_free()


@test(timeout=60, pool=True)
def idle_in_poll_gives_memory_back(stage):
    gives_back(stage, "poll")


@test(timeout=60, pool=True)
def idle_in_select_gives_memory_back(stage):
    gives_back(stage, "select")


@test(timeout=60, pool=True)
def idle_in_epoll_gives_memory_back(stage):
    gives_back(stage, "epoll")


@test(timeout=60, pool=True)
def idle_in_recv_gives_memory_back(stage):
    gives_back(stage, "recv")


@test(timeout=60, pool=True)
def idle_in_epoll_with_a_connection_gives_memory_back(stage):
    # The agent looks ever more seldom while nothing happens (at 15 s, then at 31 s); it has to be told.
    gives_back(stage, "held", pause=16)


@test(timeout=60)
def large_answers_over_few_connections(stage):
    server = stage.talk("serve")
    client = stage.talk("ask", "--port", server.port(), "--connections", 3, "--rounds", 3, "--up", 5000001, "--down",
                        30000003)
    asked(client, seconds=50)
    stage.expect_shm(3)
    served(server)
    stage.expect_free()


# ---- over TCP, with a reason ----


@test(pool=True)
def switched_off_and_on_in_traffic(stage):
    server = stage.talk("serve")
    port = server.port()
    held = stage.talk("ask", "--port", port, "--connections", 20, "--hold")
    held.line("^ready$")
    busy = stage.talk("ask", "--port", port, "--seconds", 4, "--pause-ms", 1)
    time.sleep(0.7)
    stage.unclot("off")
    time.sleep(0.1)
    direct = stage.counted("connections_direct")
    late = stage.talk("ask", "--port", port, "--connections", 5, "--hold")
    late.line("^ready$")
    own = rows(stage, pid=late.pid)
    expect(len(own) == 5 and all((row["path"], row["reason"]) == ("tcp", "off") for row in own), "while off: %s", own)
    expect(len(rows(stage, pid=held.pid, path="shm")) == 20, "existing connections did not stay in memory")
    held.signal(signal.SIGTERM)
    asked(held)
    expect(stage.counted("connections_direct") == direct, "a connection was made in memory while off")
    stage.unclot("on")
    time.sleep(0.3)
    expect(stage.counted("connections_direct") > direct, "no connection in memory after `unclot on`")
    late.signal(signal.SIGTERM)
    asked(late)
    asked(busy)
    served(server)
    stage.expect_free()


@test(pool=True)
def plain_client_of_a_server_in_the_pool(stage):
    server = stage.talk("serve")
    client = stage.talk("ask", "--port", server.port(), "--connections", 5, "--hold", plain=True)
    client.line("^ready$")
    seen = rows(stage, pid=server.pid)
    expect(len(seen) == 5 and all((row["path"], row["reason"]) == ("tcp", "peer-outside") for row in seen),
           "the server's sockets: %s", seen)
    client.signal(signal.SIGTERM)
    asked(client)
    served(server)
    stage.expect_free()


@test(pool=True)
def plain_server_of_a_client_in_the_pool(stage):
    stage.start_pool()
    server = stage.talk("serve", plain=True)
    client = stage.talk("ask", "--port", server.port(), "--connections", 5, "--hold")
    client.line("^ready$")
    seen = rows(stage, pid=client.pid)
    expect(len(seen) == 5 and all((row["path"], row["reason"]) == ("tcp", "no-listener") for row in seen),
           "the client's sockets: %s", seen)
    client.signal(signal.SIGTERM)
    asked(client)
    served(server)
    stage.expect_free()


@test(timeout=90, pool=True)
def full_pool(stage):
    stage.start_pool("32M")
    server = stage.talk("serve")
    port = server.port()
    client = stage.talk("ask", "--port", port, "--connections", 4000, "--up", 3000, "--down", 3000, "--hold")
    client.line("^ready$", 60)
    expect(stage.stat()["reasons"]["pool-full"] > 0, "4000 connections fit into 32 MiB: %s", stage.why())
    expect(rows(stage, pid=client.pid, path="shm"), "none was made in memory: %s", stage.why())
    other = stage.talk("ask", "--port", port, "--connections", 50, "--up", 100000, "--down", 100000)
    asked(other)
    client.signal(signal.SIGTERM)
    expect(asked(client, seconds=60)["connections"] == 4000, "not all were opened")
    direct = stage.counted("connections_direct")
    asked(stage.talk("ask", "--port", port, "--warm", 1, "--connections", 50))
    expect(stage.counted("connections_direct") > direct, "no memory came back: %s", stage.why())
    served(server)
    stage.expect_free()


@test(timeout=60, pool=True)
def full_pool_of_grown_rings(stage):
    stage.start_pool("32M")
    server = stage.talk("serve")
    client = stage.talk("ask", "--port", server.port(), "--connections", 200, "--up", 400000, "--down", 400000,
                        "--rounds", 2)
    asked(client, seconds=50)
    stage.expect_shm(10)
    served(server)
    stage.expect_free()


# ---- no agent ----


@test(pool=True)
def agent_gone(stage):
    server = stage.talk("serve")
    port = server.port()
    held = stage.talk("ask", "--port", port, "--connections", 20, "--up", 100000, "--down", 100000, "--hold")
    held.line("^ready$")
    before = stage.counted("connections_direct")
    busy = stage.talk("ask", "--port", port, "--seconds", 4, "--pause-ms", 1)
    until(lambda: stage.counted("connections_direct") > before + 3, 10, "direct connections are made")
    stage.kill_agent()
    held.signal(signal.SIGTERM)
    asked(held)
    asked(busy)
    # As a service gets it: no `unclot run` that would start another agent.
    library = os.path.join(stage.build, "src", "preload", "libunclot-preload.so")
    preload = ":".join(filter(None, [library, SANITIZER_RUNTIME]))
    late = stage.start([stage.program("talk"), "ask", "--port", port, "--connections", 5],
                       {"LD_PRELOAD": preload, "UNCLOT_SOCKET": stage.socket})
    asked(late)
    said = late.errors().splitlines()
    expect(len(said) == 1 and "TCP" in said[0], "a program without an agent said %r", said)
    # With it: a new pool, in which the old server is not.
    other = stage.talk("ask", "--port", port, "--connections", 5, "--hold")
    other.line("^ready$")
    seen = rows(stage, pid=other.pid)
    expect(len(seen) == 5 and all(row["path"] == "tcp" for row in seen), "through the new pool: %s", seen)
    other.signal(signal.SIGTERM)
    asked(other)
    stage.agent_pid = stage.agent()[0]
    served(server)


@test(pool=True)
def agent_gone_new_connections_of_old_members(stage):
    server = stage.talk("serve")
    port = server.port()
    client = stage.talk("ask", "--port", port, "--seconds", 60, "--pause-ms", 20)
    until(lambda: stage.counted("connections_direct") > 3, 5, "direct connections are made")
    stage.kill_agent()
    time.sleep(0.5)
    before = established_ever(port)
    time.sleep(0.5)
    expect(established_ever(port) > before, "no new connection went over TCP")
    client.signal(signal.SIGTERM)
    asked(client)
    served(server)


@test(pool=True)
def agent_gone_before_the_first_ring(stage):
    """A sleeper's doorbell is fetched from the agent when it is first rung: without one it must wake all the same."""
    server = stage.talk("serve")
    client = stage.talk("ask", "--port", server.port(), "--connections", 5, "--rounds", 0, "--hold")
    client.line("^ready$")
    time.sleep(0.3)
    stage.kill_agent()
    time.sleep(0.3)
    client.signal(signal.SIGTERM)
    asked(client, seconds=2 * SLOWER)
    served(server)


def established_ever(port):
    """TCP connections of that port that closed a moment ago, or are open."""
    with open("/proc/net/tcp") as file:
        lines = [line.split() for line in file.readlines()[1:]]
    return sum(1 for fields in lines if fields[3] in ("01", "06") and
               port in (int(fields[1].rsplit(":", 1)[1], 16), int(fields[2].rsplit(":", 1)[1], 16)))


# ---- limits of the program ----


@test
def few_descriptors(stage):
    server = stage.talk("serve")
    port = server.port()
    for limit in (12, 16, 24, 64):
        client = stage.talk("ask", "--port", port, "--connections", 4, "--rounds", 3,
                            before=["prlimit", "--nofile=%d:%d" % (limit, limit)])
        asked(client)
    served(server)
    small = stage.talk("serve", before=["prlimit", "--nofile=40:40"])
    asked(stage.talk("ask", "--port", small.port(), "--connections", 20, "--rounds", 3))
    served(small)
    stage.expect_free()


@test
def little_address_space(stage):
    if SANITIZER_RUNTIME:
        raise Skipped("sanitizers need address space")
    server = stage.talk("serve")
    for limit in (20, 60, 300, 2000):
        client = stage.talk("ask", "--port", server.port(), "--connections", 10, "--up", 100000, "--down", 100000,
                            before=["prlimit", "--as=%d" % (limit << 20)])
        asked(client)
    served(server)
    stage.expect_free()


@test
def locked_memory(stage):
    if SANITIZER_RUNTIME:
        raise Skipped("sanitizers do not lock memory")
    server = stage.talk("serve", "--lock-memory")
    client = stage.talk("ask", "--lock-memory", "--port", server.port(), "--connections", 20, "--up", 100000, "--hold")
    client.line("^ready$")
    for process in (server, client):
        with open("/proc/%d/status" % process.pid) as file:
            resident = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
        expect(resident < 200 << 10, "mlockall made %d MiB resident", resident >> 10)
    client.signal(signal.SIGTERM)
    asked(client)
    served(server)
    stage.expect_free()


@test
def little_memory_to_lock(stage):
    """Not privileged, and less to lock than the pool is large: mlockall() must do what it does without UNCLOT."""
    if SANITIZER_RUNTIME:
        raise Skipped("sanitizers do not lock memory")
    need("setpriv")
    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    soft = 64 << 20 if most == resource.RLIM_INFINITY else min(most, 64 << 20)
    before = ["prlimit", "--memlock=%d:" % soft, "setpriv", "--bounding-set=-ipc_lock"]
    server = stage.talk("serve", "--lock-memory", before=before)
    client = stage.talk("ask", "--lock-memory", "--port", server.port(), "--connections", 20, before=before)
    asked(client)
    served(server)
    stage.expect_free()
