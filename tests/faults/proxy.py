# SPDX-License-Identifier: BSD-3-Clause
"""proxy.py PORT TO-ADDRESS TO-PORT: forwards each connection, and prints "connection N" for it.

A proxy as an operator puts it in front of a server by a redirect rule; it runs without UNCLOT.
"""
import socket
import sys
import threading


def forward(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def serve(port, target):
    with socket.create_server(("0.0.0.0", port), backlog=1000) as listener:
        print("ready", flush=True)
        count = 0
        while True:
            client, _ = listener.accept()
            count += 1
            print("connection %d" % count, flush=True)
            server = socket.create_connection(target)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=forward, args=(source, sink), daemon=True).start()


serve(int(sys.argv[1]), (sys.argv[2], int(sys.argv[3])))
