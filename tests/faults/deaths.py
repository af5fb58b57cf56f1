# SPDX-License-Identifier: BSD-3-Clause
"""Members that die or stop while others go on, and listeners that go away or change hands."""
import os
import random
import signal
import sys
import time

from stage import SLOWER, expect, test, until
from traffic import asked, rows, served

HERE = os.path.dirname(os.path.abspath(__file__))
SOON = 1.0 * SLOWER  # what others need at most to hear of a death


def ended(process, since, what):
    """Its JSON; it must have ended within SOON."""
    result = process.json(SOON + 1)
    took = time.monotonic() - since
    expect(took < SOON, "%s heard of it after %.2f s", what, took)
    return result


def stream(stage, sender, receiver, warm):
    """A sender and a receiver without end; `sender` is "client" or "server"."""
    first, second = ("receive", "send") if sender == "client" else ("send", "receive")
    serving = stage.talk(first, "--listen", "--warm", warm)
    going = stage.talk(second, "--port", serving.port(), "--warm", warm)
    sending, receiving = (going, serving) if sender == "client" else (serving, going)
    sending.line("^sending$")
    receiving.line("^receiving$")
    time.sleep(0.05 + random.random() / 10)
    return sending, receiving


def kill_one(stage, sender, victim, warm):
    sending, receiving = stream(stage, sender, victim, warm)
    dead, alive = (sending, receiving) if victim == "sender" else (receiving, sending)
    start = time.monotonic()
    dead.kill()
    result = ended(alive, start, "the other end")
    expect(result["end"] in ("end", "ECONNRESET", "EPIPE"), "the other end: %s", result)
    expect(not result.get("wrong"), "wrong bytes: %s", result)
    if stage.shm:
        stage.expect_shm(1)
    stage.expect_free()


@test
def kill_sending_client(stage):
    for warm in (1, 0):
        kill_one(stage, "client", "sender", warm)


@test
def kill_receiving_client(stage):
    for warm in (1, 0):
        kill_one(stage, "server", "receiver", warm)


@test
def kill_sending_server(stage):
    for warm in (1, 0):
        kill_one(stage, "server", "sender", warm)


@test
def kill_receiving_server(stage):
    for warm in (1, 0):
        kill_one(stage, "client", "receiver", warm)


@test
def kill_client_with_many_connections(stage):
    server = stage.talk("serve")
    port = server.port()
    for _ in range(3):
        client = stage.talk("ask", "--port", port, "--connections", 300, "--up", 50000, "--down", 50000, "--rounds", 1000)
        time.sleep(0.4)
        client.kill()
    asked(stage.talk("ask", "--port", port, "--connections", 20))
    expect(server.term()["wrong"] == 0, "the server got wrong bytes")
    stage.expect_free()


@test
def kill_server_with_many_clients(stage):
    server = stage.talk("serve")
    port = server.port()
    clients = [stage.talk("ask", "--port", port, "--connections", 50, "--rounds", 100000, "--tolerate") for _ in range(4)]
    time.sleep(0.7)
    start = time.monotonic()
    server.kill()
    for client in clients:
        result = ended(client, start, "a client")
        expect(result["wrong"] == 0 and result["failed"] == 50, "a client: %s", result)
        expect(result["error"] in ("ECONNRESET", "EPIPE", "ENODATA"), "a client: %s", result)
    late = stage.talk("ask", "--port", port, "--tolerate").json()
    expect(late["error"] == "ECONNREFUSED", "connecting to nobody: %s", late)
    stage.expect_free()


# ---- write and exit ----


def write_and_exit(stage, agent, warm):
    """1 MiB written, then _exit at once; the reader is slower.  Without agent more, so that it is gone before the exit."""
    size = 1 << 20 if agent else 16 << 20
    receiving = stage.talk("receive", "--listen", "--warm", warm, "--pause-ms", 2, "--bytes", size)
    sending = stage.talk("send", "--port", receiving.port(), "--warm", warm, "--bytes", size, "--exit-at-once")
    if not agent:
        receiving.line("^receiving$")
        stage.kill_agent()
    sending.wait()
    receiving.line("^received all$")
    result = receiving.json(SOON + 2)
    expect(result == {"bytes": size, "wrong": 0, "end": "end"}, "the reader: %s", result)


@test
def write_and_exit_at_once(stage):
    for warm in (1, 0):
        for _ in range(3):
            write_and_exit(stage, True, warm)
    stage.expect_free()


@test(pool=True)
def write_and_exit_at_once_without_agent(stage):
    write_and_exit(stage, False, 1)


@test
def exit_at_once_with_little_written(stage):
    """What fits into the ring is there after the writer is gone, reader asleep or not yet there."""
    for size in (1, 4000, 5000, 200000):
        receiving = stage.talk("receive", "--listen", "--warm", 1, "--pause-ms", 5)
        sending = stage.talk("send", "--port", receiving.port(), "--warm", 1, "--bytes", size, "--exit-at-once")
        sending.wait()
        result = receiving.json()
        expect(result == {"bytes": size, "wrong": 0, "end": "end"}, "the reader of %d: %s", size, result)
    stage.expect_free()


@test(pool=True)
def bytes_are_counted_once_however_it_ends(stage):
    count, up, down = 20, 3000, 5000
    each = 32 + up + 8 + down  # a request's head, and the secret that its answer begins with

    def counted():
        counters = stage.stat()["counters"]
        return counters["bytes_sent_shm"], counters["bytes_received_shm"]

    def expect_more(before, what):
        """Those of the connection that proves the way may have gone over TCP."""
        now = counted()
        expect(now[0] == now[1] and count * each <= now[0] - before <= (count + 1) * each,
               "%s: %s, %d before, %d a connection", what, now, before, each)
        return now

    server = stage.talk("serve")
    words = ("ask", "--port", server.port(), "--warm", 1, "--connections", count, "--up", up, "--down", down)
    asked(stage.talk(*words))
    until(lambda: stage.stat()["connections"] == 0, SOON + 1, "all connections have ended")
    ordered = expect_more(0, "after ordered ends")
    client = stage.talk(*words, "--hold")
    client.line("^ready$")
    opened = expect_more(ordered[0], "while they are open")
    client.kill()
    until(lambda: stage.stat()["connections"] == 0, SOON + 1, "the connections of the dead have gone")
    expect(counted() == opened, "after the client was killed: %s, %s before", counted(), opened)
    client = stage.talk(*words, "--hold")
    client.line("^ready$")
    opened = expect_more(opened[0], "while they are open, again")
    server.kill()
    client.kill()
    stage.expect_free()
    expect(counted() == opened, "after both were killed: %s, %s before", counted(), opened)


# ---- listeners ----


def wait_in_queue(stage, close):
    server = stage.talk("serve", "--deaf", "--connections", 1)
    port = server.port()
    client = stage.talk("ask", "--port", port, "--warm", 1, "--connections", 5, "--tolerate")
    if stage.shm:
        until(lambda: stage.stat()["counters"]["connections_direct"] >= 5, 5, "five clients wait in the queue")
    else:
        time.sleep(0.3)
    time.sleep(0.1)
    expect(client.running(), "a queued client ended early: %s", client.output())
    start = time.monotonic()
    close(server)
    return server, port, client, start


@test
def listener_closed_with_queued_clients(stage):
    server, port, client, start = wait_in_queue(stage, lambda server: server.signal(signal.SIGUSR1))
    result = ended(client, start, "the queued clients")
    expect(result["failed"] == 5 and result["wrong"] == 0, "the queued clients: %s", result)
    expect(result["error"] == "ECONNRESET", "the queued clients: %s", result)
    late = stage.talk("ask", "--port", port, "--tolerate").json()
    expect(late["error"] == "ECONNREFUSED", "connecting to a closed listener: %s", late)
    server.term()
    stage.expect_free()


@test
def server_killed_with_queued_clients(stage):
    _, port, client, start = wait_in_queue(stage, lambda server: server.kill())
    result = ended(client, start, "the queued clients")
    expect(result["failed"] == 5 and result["wrong"] == 0, "the clients: %s", result)
    late = stage.talk("ask", "--port", port, "--tolerate").json()
    expect(late["error"] == "ECONNREFUSED", "connecting to nobody: %s", late)
    stage.expect_free()


def command_line(pid):
    with open("/proc/%d/cmdline" % pid, "rb") as file:
        return file.read().decode().split("\0")


def queue_goes_to_a_plain_program(stage, how):
    """Clients that were queued in memory are served over TCP, by a program that does not run UNCLOT."""
    program = [sys.executable, os.path.join(HERE, "left.py")]
    server = stage.run([*program, "listen", how])
    client = stage.run([*program, "ask", server.port()])
    client.line("^ready$")
    time.sleep(0.3 * SLOWER)  # they wait
    if stage.shm:
        own = rows(stage, pid=client.pid)
        expect(own and all(row["path"] == "shm" for row in own), "not all are queued in memory: %s", own)
    queued = len(rows(stage, pid=client.pid)) if stage.shm else 0
    server.signal(signal.SIGUSR1)
    if how == "kill":
        child = int(server.line(r"^child (\d+)$").group(1))
        until(lambda: "accept" in command_line(child), 5, "the plain program has begun")
        os.kill(server.pid, signal.SIGKILL)
    client.line("^answered$", 40 * SLOWER)
    if stage.shm:
        own = rows(stage, pid=client.pid)
        expect(len(own) == queued - 1 and all((row["path"], row["reason"]) == ("tcp", "listener-left") for row in own),
               "after the listener left: %s", own)
    client.signal(signal.SIGTERM)
    result = client.json()
    late = result.pop("sum")
    expect(set(result.values()) == {"ok"}, "the queued clients: %s", result)
    server.line("^got 1000 %s$" % late)
    server.end()
    stage.expect_free()


@test(timeout=60)
def listener_goes_to_an_exec_without_unclot(stage):
    queue_goes_to_a_plain_program(stage, "exec")


@test(timeout=60)
def listener_closed_while_a_plain_child_has_it(stage):
    queue_goes_to_a_plain_program(stage, "close")


@test(timeout=60)
def server_killed_while_a_plain_child_has_the_listener(stage):
    queue_goes_to_a_plain_program(stage, "kill")


@test
def listener_given_to_an_exec(stage):
    talk = stage.program("talk")
    server = stage.talk("hand", talk, "serve", "--fd", 3)
    asked(stage.talk("ask", "--port", server.port(), "--warm", 1, "--connections", 20))
    stage.expect_direct(20)
    served(server)
    stage.expect_free()


@test
def listener_of_a_service_manager(stage):
    """The one who listens is not in the pool; the one who accepts is, and finds descriptor 3 at its start."""
    stage.start_pool()
    server = stage.talk("hand", "--environment", *stage.wrap([stage.program("talk"), "serve", "--fd", 3]), plain=True)
    port = server.port()
    time.sleep(0.3 * SLOWER)
    asked(stage.talk("ask", "--port", port, "--warm", 1, "--connections", 20))
    stage.expect_direct(20)
    served(server)
    stage.expect_free()


@test
def several_processes_accept(stage):
    server = stage.talk("serve", "--children", 4)
    port = server.port()
    workers = [int(server.line(r"^child (\d+)$", count=i).group(1)) for i in range(1, 5)]
    clients = [stage.talk("ask", "--port", port, "--connections", 20, "--seconds", 1.5) for _ in range(3)]
    for client in clients:
        asked(client)
    # The kernel's queue of a dead process goes with it only if nobody else holds it; ours must not either.
    clients = [stage.talk("ask", "--port", port, "--connections", 20, "--seconds", 2, "--tolerate") for _ in range(3)]
    time.sleep(0.7)
    os.kill(workers[0], signal.SIGKILL)
    for client in clients:
        result = client.json()
        expect(result["wrong"] == 0 and result["failed"] <= 20, "a client when a worker was killed: %s", result)
    for client in [stage.talk("ask", "--port", port, "--connections", 20, "--seconds", 1) for _ in range(3)]:
        asked(client)
    stage.expect_direct(50)
    server.signal(signal.SIGTERM)
    output = server.wait()
    expect('"wrong": 0' in output and output.count('"wrong"') == output.count('"wrong": 0'), "the workers: %s", output)
    stage.expect_free()


# ---- the agent's worker ----


@test(pool=True)
def worker_of_the_agent_killed(stage):
    """Then a member dies, a new one joins, and a sleeper is woken."""
    server = stage.talk("serve")
    port = server.port()
    victim = stage.talk("ask", "--port", port, "--connections", 10, "--hold")
    sleeper = stage.talk("ask", "--port", port, "--connections", 10, "--hold")
    victim.line("^ready$")
    sleeper.line("^ready$")
    for _ in range(3):
        keeper, worker = stage.agent()
        os.kill(worker, signal.SIGKILL)
        until(lambda: is_another(stage, worker), 5, "there is another worker")
        expect(stage.agent()[0] == keeper, "the keeper died with its worker")
    victim.kill()
    until(lambda: stage.stat()["members"] == 2, SOON, "the dead member is settled")
    asked(stage.talk("ask", "--port", port, "--connections", 10))
    time.sleep(0.5)
    start = time.monotonic()
    sleeper.signal(signal.SIGTERM)
    asked(sleeper)
    expect(time.monotonic() - start < SOON, "the sleeping server was woken late")
    expect(server.term()["wrong"] == 0, "the server got wrong bytes")
    stage.expect_free()


def is_another(stage, worker):
    return stage.agent()[1] != worker


@test(pool=True)
def member_dies_while_no_worker_is_there(stage):
    server = stage.talk("serve")
    port = server.port()
    clients = [stage.talk("ask", "--port", port, "--connections", 20, "--hold") for _ in range(3)]
    for client in clients:
        client.line("^ready$")
    for client in clients:
        os.kill(stage.agent()[1], signal.SIGKILL)
        client.kill()
    until(lambda: stage.stat()["members"] == 1, SOON + 1, "the dead are settled")
    asked(stage.talk("ask", "--port", port, "--connections", 20))
    expect(server.term()["wrong"] == 0, "the server got wrong bytes")
    stage.expect_free()


# ---- stopped ones ----


@test(timeout=60)
def stopped_members_delay_nobody(stage):
    """Busy clients and servers are stopped at random; the pair that is not must not notice."""
    busy_server, quiet_server = stage.talk("serve"), stage.talk("serve")
    port = busy_server.port()
    victims = [busy_server] + [stage.talk("ask", "--port", port, "--connections", 3, "--up", 30000, "--down", 30000,
                                          "--seconds", 14 * SLOWER) for _ in range(2)]
    quiet = stage.talk("ask", "--port", quiet_server.port(), "--connections", 2, "--seconds", 9 * SLOWER)
    time.sleep(0.3)
    for i in range(20):
        victim = victims[i % 3]
        time.sleep(random.random() / 20)
        victim.signal(signal.SIGSTOP)
        time.sleep(0.35)
        victim.signal(signal.SIGCONT)
    result = asked(quiet)
    expect(result["slowest_ms"] < 300 * SLOWER, "a pair waited for one that was stopped: %s", result)
    for victim in victims[1:]:
        asked(victim)
    served(quiet_server)
    served(busy_server)
    stage.expect_free()
