#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Programs for listeners that go to somebody who does not run UNCLOT while clients wait in the queue.

  left.py listen HOW     accepts one connection, then no more; at SIGUSR1 the listener goes to `left.py accept`:
                         HOW exec: this process becomes it, close: a child is it and we close ours, kill: a child is it
  left.py accept FD      accepts and answers: a request is eight digits and so many bytes (99999999: up to the end)
  left.py ask PORT       clients in threads, each waiting in another way; prints a JSON object of their answers

The answer to a request is the checksum of its bytes, so that one lost, repeated or swapped shows.
"""
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

TO_THE_END = 99999999
LARGE = 6000000
SMALL_BUFFER = 65536  # of TCP: what waits in memory does not fit into it
PATIENCE = 60


def read_exactly(sock, size):
    data = b""
    while len(data) < size:
        piece = sock.recv(min(65536, size - len(data)))
        if not piece:
            break
        data += piece
    return data


def answer(sock):
    size = int(read_exactly(sock, 8) or b"0")
    body = read_exactly(sock, size)
    print("got %d %s" % (len(body), hashlib.sha256(body).hexdigest()), flush=True)
    try:
        sock.sendall(hashlib.sha256(body).hexdigest().encode())
    except OSError:
        pass
    sock.close()


def accept(fd):
    listener = socket.socket(fileno=fd)
    listener.setblocking(True)
    time.sleep(0.3)
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def listen(how):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    print("port %d" % listener.getsockname()[1], flush=True)
    answer(listener.accept()[0])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    print("waits", flush=True)
    signal.sigwait([signal.SIGUSR1])
    os.set_inheritable(listener.fileno(), True)
    argv = [sys.executable, os.path.abspath(__file__), "accept", str(listener.fileno())]
    if how == "exec":
        os.execve(sys.executable, argv, {})
    child = subprocess.Popen(argv, env={}, pass_fds=[listener.fileno()])
    print("child %d" % child.pid, flush=True)
    if how == "close":
        listener.close()
    child.wait()


# ---- the clients ----


class Client:
    def __init__(self, way, port, body):
        self.way, self.body = way, body
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        self.written = threading.Event()
        self.result = "nothing"

    def head(self, size=None):
        return b"%08d" % (len(self.body) if size is None else size)

    def write(self):
        self.sock.sendall(self.head() + self.body)
        self.written.set()

    def flood(self, head):
        """What can be had without waiting; what is left."""
        rest = memoryview(head + self.body)
        self.sock.setblocking(False)
        try:
            while rest:
                rest = rest[self.sock.send(rest):]
        except BlockingIOError:
            pass
        self.written.set()
        return rest

    def read(self):
        self.sock.setblocking(True)
        return read_exactly(self.sock, 64)

    def blocked(self):
        self.write()
        return self.read()

    def blocked_writing(self):
        self.written.set()
        self.sock.sendall(self.head() + self.body)
        return self.read()

    def polled(self):
        self.write()
        self.sock.setblocking(False)
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        events = poll.poll(PATIENCE * 1000)
        return self.sock.recv(64) if events == [(self.sock.fileno(), select.POLLIN)] else str(events).encode()

    def selected(self):
        self.write()
        select.select([self.sock], [], [], PATIENCE)
        return self.sock.recv(64)

    def by_epoll(self, extra):
        self.write()
        self.sock.setblocking(False)
        with select.epoll() as epoll:
            epoll.register(self.sock, select.EPOLLIN | extra)
            while True:
                for _, events in epoll.poll(PATIENCE):
                    if events != select.EPOLLIN:
                        return b"events %d" % events
                    return self.sock.recv(64)

    def level(self):
        return self.by_epoll(0)

    def edge(self):
        return self.by_epoll(select.EPOLLET)

    def writes_by_epoll(self):
        """More than fits into memory; goes on at each edge."""
        rest = self.flood(self.head())
        with select.epoll() as epoll:
            epoll.register(self.sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
            while True:
                for _, events in epoll.poll(PATIENCE):
                    try:
                        while rest and events & select.EPOLLOUT:
                            rest = rest[self.sock.send(rest):]
                    except BlockingIOError:
                        pass
                    if events & select.EPOLLIN:
                        return self.sock.recv(64)

    def writes_by_poll(self):
        rest = self.flood(self.head())
        poll = select.poll()
        while rest:
            poll.register(self.sock, select.POLLOUT)
            poll.poll(PATIENCE * 1000)
            try:
                rest = rest[self.sock.send(rest):]
            except BlockingIOError:
                pass
        return self.read()

    def ended(self):
        self.sock.sendall(self.head(TO_THE_END) + self.body)
        self.sock.shutdown(socket.SHUT_WR)
        self.written.set()
        return self.read()

    def flood_and_end(self):
        rest = self.flood(self.head(TO_THE_END))
        self.body = self.body[:len(self.body) - len(rest)]
        self.sock.shutdown(socket.SHUT_WR)

    def ends_blocked(self):
        self.flood_and_end()
        return self.read()

    def ends_polled(self):
        """Nothing but the answer is waited for; the rest of what was written has to go all the same."""
        self.flood_and_end()
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        poll.poll(PATIENCE * 1000)
        return self.sock.recv(64)

    def ends_by_epoll(self):
        self.flood_and_end()
        with select.epoll() as epoll:
            epoll.register(self.sock, select.EPOLLIN)
            epoll.poll(PATIENCE)
        return self.sock.recv(64)

    def later(self):
        self.write()
        OTHERS_DONE.wait(PATIENCE)
        return self.read()

    def closes_later(self):
        """Has not looked at its connection since: what it wrote arrives all the same."""
        self.write()
        OTHERS_DONE.wait(PATIENCE)
        self.sock.close()
        return self.sum()

    def sum(self):
        return hashlib.sha256(self.body).hexdigest().encode()

    def run(self):
        try:
            got = getattr(self, self.way)()
            self.result = "ok" if got == self.sum() else "wrong: %r" % got
        except OSError as error:
            self.result = type(error).__name__


SMALL_WAYS = ("blocked", "polled", "selected", "level", "edge", "ended", "later", "closes_later")
LARGE_WAYS = ("blocked_writing", "writes_by_epoll", "writes_by_poll", "ends_blocked", "ends_polled", "ends_by_epoll")
OTHERS_DONE = threading.Event()


def ask(port):
    warm = Client("blocked", port, b"warm")
    warm.run()
    warm.sock.close()
    clients = [Client(way, port, os.urandom(1000)) for way in SMALL_WAYS]
    clients += [Client(way, port, os.urandom(LARGE)) for way in LARGE_WAYS]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for client in clients:
        client.written.wait(PATIENCE)
    print("ready", flush=True)
    for client, thread in zip(clients, threads):
        if client.way not in ("later", "closes_later"):
            thread.join()
    OTHERS_DONE.set()
    for thread in threads:
        thread.join()
    print("answered", flush=True)
    signal.sigwait([signal.SIGTERM])
    print(json.dumps({"warm": warm.result, "sum": [c.sum().decode() for c in clients if c.way == "closes_later"][0],
                      **{client.way: client.result for client in clients}}))


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM] if sys.argv[1] == "ask" else [])
    {"listen": listen, "accept": lambda fd: accept(int(fd)), "ask": lambda port: ask(int(port))}[sys.argv[1]](sys.argv[2])
