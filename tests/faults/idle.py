#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A client of `talk serve` that opens many connections, closes them, and then only waits.

  idle.py PORT CONNECTIONS HOW     HOW it waits: poll, select, epoll (nothing of ours in it), recv, held (by epoll, for a
                                   connection that is still open)
Prints "open", goes on at SIGUSR1, prints "idle".
"""
import os
import resource
import select
import signal
import socket
import struct
import sys

MAGIC = 0x7461736B  # talk.h
DOWN = 20000


def connect(port):
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(struct.pack("<IIQQQ", MAGIC, sock.getsockname()[1], 1, 0, DOWN))
    left = 8 + DOWN
    while left:
        left -= len(sock.recv(left))
    return sock


def main():
    port, count, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    connect(port).close()
    socks = [connect(port) for _ in range(count)]
    print("open", flush=True)
    signal.sigwait([signal.SIGUSR1])
    kept = socks.pop()
    if how in ("poll", "select", "epoll"):
        kept.close()
    for sock in socks:
        sock.close()
    print("idle", flush=True)
    silent = os.pipe()[0]
    if how == "poll":
        poll = select.poll()
        poll.register(silent, select.POLLIN)
        poll.poll()
    elif how == "select":
        select.select([silent], [], [])
    elif how == "recv":
        kept.recv(1)
    else:
        with select.epoll() as epoll:
            epoll.register(kept if how == "held" else silent, select.EPOLLIN)
            epoll.poll()


main()
