# SPDX-License-Identifier: BSD-3-Clause
"""Network namespaces and redirect rules: where TCP does not lead to the listener of the same name.

Each test makes its own namespaces; where that is not permitted it is skipped.
"""
import os
import signal
import subprocess
import sys
import time

from stage import Skipped, expect, need, test, until
from traffic import asked, rows, served

HERE = os.path.dirname(os.path.abspath(__file__))


def ip(*words, check=True):
    done = subprocess.run([need("ip"), *words], capture_output=True, text=True, timeout=20, check=False)
    if check and done.returncode != 0:
        raise Skipped("ip %s: %s" % (" ".join(words), done.stderr.strip()))


def make_namespace(stage, word):
    name = "unclot-%d-%s" % (os.getpid(), word)
    ip("netns", "add", name)
    stage.cleanups.append(lambda: ip("netns", "del", name, check=False))
    ip("-n", name, "link", "set", "lo", "up")
    return name


def inside(name):
    return ["ip", "netns", "exec", name]


def make_pair(stage):
    """Two namespaces joined by a veth pair, 10.99.0.1 and 10.99.0.2."""
    left, right = make_namespace(stage, "left"), make_namespace(stage, "right")
    ip("-n", left, "link", "add", "v", "type", "veth", "peer", "name", "v", "netns", right)
    for name, address in ((left, "10.99.0.1/24"), (right, "10.99.0.2/24")):
        ip("-n", name, "address", "add", address, "dev", "v")
        ip("-n", name, "link", "set", "v", "up")
    time.sleep(0.1)
    return left, right


def across(stage, server_plain, client_plain):
    left, right = make_pair(stage)
    stage.start_pool()
    server = stage.talk("serve", "--address", "10.99.0.1", plain=server_plain, before=inside(left)) \
        if not server_plain else stage.start([*inside(left), stage.program("talk"), "serve", "--address", "10.99.0.1"])
    words = ["ask", "--address", "10.99.0.1", "--port", server.port(), "--connections", 10, "--up", 100000, "--hold"]
    client = stage.start([*inside(right), stage.program("talk"), *words]) if client_plain else \
        stage.talk(*words, before=inside(right))
    client.line("^ready$")
    reasons = {(row["path"], row["reason"]) for row in rows(stage)} if stage.shm else set()
    count = len(rows(stage)) if stage.shm else 0
    client.signal(signal.SIGTERM)
    asked(client)
    served(server)
    stage.expect_free()
    return count, reasons


@test
def client_in_a_namespace_outside_the_pool(stage):
    count, reasons = across(stage, False, True)
    expect(not stage.shm or (count == 10 and reasons == {("tcp", "peer-outside")}), "%d: %s", count, reasons)


@test
def server_in_a_namespace_outside_the_pool(stage):
    count, reasons = across(stage, True, False)
    expect(not stage.shm or (count == 10 and reasons == {("tcp", "no-listener")}), "%d: %s", count, reasons)


@test
def both_in_the_pool_in_two_namespaces(stage):
    count, reasons = across(stage, False, False)
    expect(not stage.shm or (count == 20 and reasons <= {("tcp", word) for word in (
        "no-listener", "namespace", "peer-outside")}), "%d: %s", count, reasons)


@test
def same_address_in_two_namespaces(stage):
    """127.0.0.1 and the same port twice: each client must reach its own server."""
    names = [make_namespace(stage, word) for word in ("one", "two")]
    servers = [stage.talk("serve", "--port", 8000, before=inside(name)) for name in names]
    for server in servers:
        server.port()
    clients = [stage.talk("ask", "--port", 8000, "--warm", 1, "--connections", count, before=inside(name))
               for name, count in zip(names, (10, 30))]
    for client in clients:
        asked(client)
    stage.expect_direct(40)
    for server, count in zip(servers, (10, 30)):
        result = served(server)
        expect(result["connections"] == count + 1, "%d clients expected: %s", count, result)
    stage.expect_free()


@test
def an_address_of_an_interface(stage):
    """Not only 127.0.0.1: any address of the namespace is in memory."""
    name = make_namespace(stage, "own")
    ip("-n", name, "address", "add", "10.98.0.1/32", "dev", "lo")
    server = stage.talk("serve", "--address", "0.0.0.0", before=inside(name))
    port = server.port()
    asked(stage.talk("ask", "--address", "10.98.0.1", "--port", port, "--warm", 1, "--connections", 10, before=inside(name)))
    stage.expect_direct(10)
    served(server)
    stage.expect_free()


# ---- a proxy that a rule puts in front ----


def redirect(name):
    done = subprocess.run([*inside(name), need("iptables"), "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", "127.0.0.1",
                           "--dport", "8000", "-j", "REDIRECT", "--to-ports", "9000"], capture_output=True, text=True,
                          timeout=20, check=False)
    if done.returncode != 0:
        raise Skipped("iptables: %s" % done.stderr.strip().splitlines()[-1])


def start_proxy(stage, name):
    """Its own way to the server is 127.0.0.2, which the rule leaves alone."""
    proxy = stage.start([*inside(name), sys.executable, os.path.join(HERE, "proxy.py"), 9000, "127.0.0.2", 8000])
    proxy.line("^ready$")
    return proxy


def proxied(proxy):
    return proxy.output().count("connection ")


@test
def redirect_rule_before_the_first_connection(stage):
    name = make_namespace(stage, "rule")
    redirect(name)
    proxy = start_proxy(stage, name)
    server = stage.talk("serve", "--address", "0.0.0.0", "--port", 8000, before=inside(name))
    server.port()
    for _ in range(2):
        before = proxied(proxy)
        asked(stage.talk("ask", "--port", 8000, "--connections", 20, "--up", 50000, before=inside(name)))
        until(lambda: proxied(proxy) - before == 20, 2, lambda: "the proxy saw %d of 20" % (proxied(proxy) - before))
    served(server)
    stage.expect_free()


@test(timeout=40)
def redirect_rule_added_later(stage):
    """Direct connections go past a rule for as long as a proof lives, ten seconds, and no longer."""
    name = make_namespace(stage, "later")
    server = stage.talk("serve", "--address", "0.0.0.0", "--port", 8000, before=inside(name))
    server.port()
    client = stage.talk("ask", "--port", 8000, "--seconds", 60, "--pause-ms", 50, "--log", before=inside(name))
    client.line("^turn", count=5)
    stage.expect_direct(3)
    proxy = start_proxy(stage, name)
    redirect(name)
    time.sleep(11)
    turns, seen = client.output().count("turn "), proxied(proxy)
    time.sleep(1)
    turns, seen = client.output().count("turn ") - turns, proxied(proxy) - seen
    expect(turns > 5 and abs(turns - seen) <= 1, "of %d connections the proxy saw %d", turns, seen)
    client.signal(signal.SIGTERM)
    asked(client)
    served(server)
    stage.expect_free()
