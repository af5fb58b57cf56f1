# SPDX-License-Identifier: BSD-3-Clause
"""Clients that check what they get: `clients.py redis PORT`, `memcached PORT`, `http URL SHA256 SIZE`.

They run in the pool like any other program.  The last line is a JSON object with what was compared.
"""
import hashlib
import json
import random
import socket
import sys
import threading
import urllib.request


class Redis:
    """One connection, RESP2."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.file = self.socket.makefile("rb")

    @staticmethod
    def command(*words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)

    def answer(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            if rest == b"-1":
                return None
            return self.file.read(int(rest) + 2)[:-2]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest.decode()
        raise ValueError("redis said %r" % line)

    def do(self, *words):
        self.socket.sendall(self.command(*words))
        return self.answer()


def redis(port):
    client, compared = Redis(int(port)), 0
    chance = random.Random(7)
    for i in range(24):
        value = chance.randbytes(1 << 20)
        assert client.do("SET", "large:%d" % (i % 4), value) == "OK"
        assert client.do("GET", "large:%d" % (i % 4)) == value, "a value of 1 MiB came back otherwise"
        compared += len(value)

    # Many commands before the first answer is read; a thread writes, or both sides would wait for each other.
    values = [chance.randbytes(chance.randrange(1, 300)) for _ in range(20000)]
    wire = b"".join(client.command("SET", "p:%d" % i, value) + client.command("GET", "p:%d" % i)
                    for i, value in enumerate(values))
    writer = threading.Thread(target=client.socket.sendall, args=(wire,))
    writer.start()
    for value in values:
        assert client.answer() == "OK"
        assert client.answer() == value, "a pipelined answer is wrong"
        compared += len(value)
    writer.join()

    assert client.do("BGSAVE").startswith("Background saving"), "no BGSAVE"
    saving = 0
    while True:
        for i in range(200):
            assert client.do("SET", "s:%d" % i, "%d:%d" % (saving, i)) == "OK"
            assert client.do("GET", "s:%d" % i) == b"%d:%d" % (saving, i)
        saving += 1
        info = client.do("INFO", "persistence")
        if b"rdb_bgsave_in_progress:0" in info:
            break
    assert b"rdb_last_bgsave_status:ok" in info, "BGSAVE failed"
    print(json.dumps({"compared": compared, "keys": client.do("DBSIZE")}))


def memcached_thread(port, number, failures):
    try:
        chance = random.Random(number)
        with socket.create_connection(("127.0.0.1", port)) as link:
            file = link.makefile("rb")
            values = {}
            for i in range(2500):
                size = chance.randrange(1, 2000) if i % 50 else chance.randrange(100000, 500000)
                value = values["k:%d:%d" % (number, i)] = chance.randbytes(size)
                link.sendall(b"set k:%d:%d 0 0 %d\r\n%s\r\n" % (number, i, size, value))
                assert file.readline() == b"STORED\r\n"
            for name, value in values.items():
                link.sendall(b"get %s\r\n" % name.encode())
                assert file.readline() == b"VALUE %s 0 %d\r\n" % (name.encode(), len(value)), "not what was set"
                assert file.read(len(value) + 2) == value + b"\r\n", "a value came back otherwise"
                assert file.readline() == b"END\r\n"
    except Exception as error:
        failures.append(repr(error))


def memcached(port):
    failures = []
    threads = [threading.Thread(target=memcached_thread, args=(int(port), i, failures)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    print(json.dumps({"compared": 10000}))


def http(url, digest, size):
    for _ in range(20):
        with urllib.request.urlopen(url) as answer:
            content = answer.read()
        assert len(content) == int(size) and hashlib.sha256(content).hexdigest() == digest, "another file"
    print(json.dumps({"compared": 20}))


{"redis": redis, "memcached": memcached, "http": http}[sys.argv[1]](*sys.argv[2:])
