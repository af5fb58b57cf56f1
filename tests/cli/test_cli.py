#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The command line from outside: exit statuses, what is said, bad input of every kind.

Usage: test_cli.py UNCLOT INTERPOSED [-v] [CASE...]; UNCLOT is the program in the build tree, with the agent and the
preload library beside it; INTERPOSED the program made of interposed.c.  Whatever is wrong with UNCLOT, the program that it runs must still run: most cases check that.
"""
import array
import ctypes
import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

UNCLOT = ""
INTERPOSED = ""
WIRE = struct.Struct("<IIiIIIQII32s")
POOL_SIZE = 32 << 20


class Case(unittest.TestCase):
    def setUp(self):
        self.place = tempfile.mkdtemp(prefix="unclot-cli-")
        os.chmod(self.place, 0o700)
        keep = {name: value for name, value in os.environ.items()
                if not name.startswith("UNCLOT_") and name != "LD_PRELOAD"}
        self.environment = dict(keep, XDG_RUNTIME_DIR=self.place)

    def tearDown(self):
        for pool in json.loads(self.unclot("pool", "list", "--json").stdout):
            if pool["socket"].startswith(self.place):
                self.unclot("stop", "--socket", pool["socket"])
        shutil.rmtree(self.place)

    def unclot(self, *arguments, **environment):
        return subprocess.run([UNCLOT, *arguments], env=dict(self.environment, **environment), text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30)

    def fails(self, status, words, *arguments, **environment):
        """Ends with that status, nothing on stdout, one sentence with these words on stderr."""
        done = self.unclot(*arguments, **environment)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertEqual(done.stdout, "")
        self.one_sentence(done.stderr, words)

    def one_sentence(self, text, words):
        lines = text.splitlines()
        self.assertEqual(len(lines), 1, text)
        self.assertTrue(lines[0].startswith("unclot: "), text)
        self.assertIn(words, lines[0])

    def runs_over_tcp(self, words, *options, **environment):
        """The program runs, without the library, and somebody says why."""
        done = self.unclot("run", *options, "--", "sh", "-c", "echo \"ran ${LD_PRELOAD:-plain}\"; exit 7", **environment)
        self.assertEqual((done.returncode, done.stdout), (7, "ran plain\n"), done.stderr)
        self.assertIn("runs over TCP", done.stderr)
        self.one_sentence(done.stderr, words)

    def file(self, name, content=b"", mode=0o644):
        path = pathlib.Path(self.place, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return str(path)


class Usage(Case):
    COMMANDS = [["run"], ["ps"], ["stat"], ["off"], ["on"], ["stop"], ["version"], ["agent", "stop"],
                ["pool", "create"], ["pool", "list"], ["pool", "destroy"], ["service", "enable"], ["service", "disable"]]

    def test_help_is_everywhere(self):
        for command in [[], ["pool"], ["agent"], ["service"]] + self.COMMANDS:
            done = self.unclot(*command, "--help")
            self.assertEqual(done.returncode, 0, command)
            self.assertTrue(done.stdout.startswith("Usage: unclot"), command)
            self.assertEqual(done.stderr, "")

    def test_unknown_option(self):
        for command in self.COMMANDS:
            status = 125 if command == ["run"] else 2
            self.fails(status, "--frobnicate", *command, "--frobnicate")
            self.fails(status, "'-x'", *command, "-x")

    def test_missing_value(self):
        self.fails(2, "needs a value", "ps", "--pool")
        self.fails(125, "needs a value", "run", "--socket")

    def test_one_argument_too_many(self):
        for command in (["ps"], ["stat"], ["off"], ["version"], ["pool", "list"], ["pool", "create", "a"]):
            self.fails(2, "too many", *command, "surplus")

    def test_unknown_command(self):
        self.fails(2, "which command", )
        self.fails(2, "'frobnicate'", "frobnicate")
        self.fails(2, "'frobnicate'", "pool", "frobnicate")
        self.fails(2, "which command", "service")

    def test_version(self):
        self.assertTrue(self.unclot("version").stdout.startswith("unclot "))
        self.assertEqual(self.unclot("--version").stdout, self.unclot("version").stdout)
        self.assertIn("pool_format", json.loads(self.unclot("version", "--json").stdout))

    def test_output_that_cannot_be_written(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([UNCLOT, "version"], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 1)
        self.one_sentence(done.stderr, "cannot write")

    def test_names_and_sizes(self):
        for name in ("", ".hidden", "a/b", "x" * 33, "ä"):
            self.fails(2, "not a pool's name", "pool", "create", "--pool", name)
            self.fails(1, "not a pool's name", "ps", "--pool", name)
        for size in ("", "0", "-1", "1", "33554433", "31M", "33M", "12Q", "2048G", "99999999999999999999", "64MM", "0x100000000"):
            self.fails(2, "not a pool's size", "pool", "create", "--size", size)
        self.fails(1, "too long", "ps", "--socket", "/" + "x" * 200)

    def test_no_agent(self):
        for command in (["ps"], ["stat"], ["off"], ["on"], ["stop"], ["pool", "destroy"]):
            self.fails(1, "no agent runs there", *command)


class Run(Case):
    def test_exit_status_is_the_programs(self):
        for status in (0, 1, 3, 125, 255):
            self.assertEqual(self.unclot("run", "--", "sh", "-c", f"exit {status}").returncode, status)

    def test_signal_is_the_programs(self):
        self.assertEqual(self.unclot("run", "--", "sh", "-c", "kill -TERM $$").returncode, -signal.SIGTERM)

    def test_program_is_missing(self):
        self.fails(125, "which program", "run")
        self.fails(125, "which program", "run", "--off", "--")
        self.fails(127, "no program", "run", "--", "there-is-no-such-program")
        self.fails(127, "no program", "run", "--", "/nowhere/at/all")
        self.fails(127, "no program", "run", "--", "")

    def test_program_cannot_be_executed(self):
        plain = self.file("plain", b"text")
        for program in (plain, self.place):
            done = self.unclot("run", "--", program)
            self.assertEqual(done.returncode, 126)
            self.assertIn("cannot execute", done.stderr)

    def test_options_after_the_program_are_its_own(self):
        self.assertEqual(self.unclot("run", "echo", "--help", "-v").stdout, "--help -v\n")

    def test_environment(self):
        script = "echo $UNCLOT_SOCKET $UNCLOT_OFF $LD_PRELOAD"
        first = self.unclot("run", "--", "sh", "-c", script)
        self.assertEqual(first.stderr, "")
        path, off, preload = first.stdout.split()
        self.assertEqual((path, off), (f"{self.place}/unclot/default.sock", "0"))
        self.assertTrue(preload.endswith("/libunclot-preload.so"))
        self.assertEqual(self.unclot("run", "--off", "--", "sh", "-c", script).stdout.split()[1], "1")
        other = self.unclot("run", "--pool", "other", "--", "sh", "-c", script).stdout.split()[0]
        self.assertEqual(other, f"{self.place}/unclot/other.sock")

    def test_preload_keeps_what_was_there(self):
        other = next(iter(pathlib.Path("/lib").glob("*/libm.so.6")), None)
        if not other:
            self.skipTest("no other library at hand")
        done = self.unclot("run", "--", "sh", "-c", "echo $LD_PRELOAD", LD_PRELOAD=str(other))
        self.assertRegex(done.stdout, rf"^\S+/libunclot-preload.so:{other}\n$")

    def test_run_inside_run(self):
        done = self.unclot("run", "--", UNCLOT, "run", "--", "sh", "-c", "echo $LD_PRELOAD")
        self.assertEqual(done.stdout.count("libunclot-preload.so"), 1, done.stdout)

    def test_relative_socket(self):
        done = subprocess.run([UNCLOT, "run", "--socket", "here.sock", "--", "sh", "-c", "echo $UNCLOT_SOCKET"],
                              env=self.environment, cwd=self.place, capture_output=True, text=True)
        self.assertEqual(done.stdout, f"{self.place}/here.sock\n", done.stderr)
        self.unclot("stop", "--socket", f"{self.place}/here.sock")

    def test_verbose_says_which_pool(self):
        done = self.unclot("run", "-v", "--", "true")
        self.assertIn("default.sock", done.stderr)
        self.assertEqual(done.returncode, 0)


class Obstacles(Case):
    """Programs into which no library can be loaded: said with -v, and run as they are."""

    def program(self, change):
        """/bin/true with its program headers changed: never executed usefully, only looked at."""
        content = bytearray(pathlib.Path("/bin/true").read_bytes())
        offset, = struct.unpack_from("<Q", content, 32)
        size, count = struct.unpack_from("<HH", content, 54)
        for i in range(count):
            change(content, offset + i * size)
        return self.file("program", bytes(content), 0o755)

    def said(self, path):
        return self.unclot("run", "-v", "--", path).stderr

    def test_static(self):
        def change(content, at):
            if struct.unpack_from("<I", content, at)[0] == 3:
                struct.pack_into("<I", content, at, 0)
        self.assertIn("statically linked", self.said(self.program(change)))

    def test_go(self):
        def change(content, at):
            if struct.unpack_from("<I", content, at)[0] == 4:
                where, = struct.unpack_from("<Q", content, at + 8)
                content[where:where + 16] = struct.pack("<III4s", 4, 4, 4, b"Go\0\0")
        self.assertIn("Go program", self.said(self.program(change)))

    def test_another_word_size(self):
        content = bytearray(pathlib.Path("/bin/true").read_bytes())
        content[4] = 1
        self.assertIn("word size", self.said(self.file("program", bytes(content), 0o755)))

    def test_script_of_a_static_program(self):
        def change(content, at):
            if struct.unpack_from("<I", content, at)[0] == 3:
                struct.pack_into("<I", content, at, 0)
        script = self.file("script", f"#!{self.program(change)}\n", 0o755)
        self.assertIn("statically linked", self.said(script))

    def test_ordinary(self):
        self.assertNotIn("runs over TCP", self.said("true"))


class FakeAgent:
    """Answers every request with `status`, and with a descriptor if there is one; or never."""

    def __init__(self, path, status=0, pool=None, value=POOL_SIZE, silent=False, raw=None):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen()
        self.answer = (status, pool, value, silent, raw)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        status, pool, value, silent, raw = self.answer
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            while True:
                try:
                    request = link.recv(4096)
                    if not request:
                        break
                    if silent:
                        continue
                    fields = list(WIRE.unpack(request))
                    fields[2], fields[6] = status, value
                    rights = array.array("i", [pool] if pool is not None else [])
                    link.sendmsg([raw if raw is not None else WIRE.pack(*fields)],
                                 [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else [])
                except ConnectionError:
                    break
            link.close()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class BadAgents(Case):
    def agent(self, **answer):
        path = f"{self.place}/bad.sock"
        agent = FakeAgent(path, **answer)

        def end():
            agent.close()
            os.unlink(path)
        self.addCleanup(end)
        return path

    def tearDown(self):
        self.doCleanups()
        super().tearDown()

    def memory(self, size, content=b""):
        fd = os.memfd_create("pool")
        os.ftruncate(fd, size)
        os.pwrite(fd, content, 0)
        self.addCleanup(os.close, fd)
        return fd

    def both(self, words, path):
        self.runs_over_tcp(words, "--socket", path)
        for command in ("ps", "stat"):
            self.fails(1, words, command, "--socket", path)

    def test_another_version(self):
        self.both("another version", self.agent(status=-errno.EPROTO))

    def test_not_allowed(self):
        self.both("may not enter", self.agent(status=-errno.EACCES))

    def test_full(self):
        self.both("slots", self.agent(status=-errno.ENOSPC))

    def test_no_pool_came(self):
        self.both("no descriptor", self.agent())

    def test_garbage(self):
        self.runs_over_tcp("does not answer", "--socket", self.agent(raw=b"garbage"))

    def test_silence(self):
        self.runs_over_tcp("does not answer", "--socket", self.agent(silent=True))

    def test_empty_pool(self):
        self.both("", self.agent(pool=self.memory(0)))

    def test_small_pool(self):
        self.both("", self.agent(pool=self.memory(4096)))

    def test_pool_without_magic(self):
        self.both("", self.agent(pool=self.memory(POOL_SIZE)))

    def test_pool_of_another_format(self):
        header = struct.pack("<QIIQQ", 0x01544f4c434e55, 999, 999, 0, POOL_SIZE)
        self.both("version", self.agent(pool=self.memory(POOL_SIZE, header)))

    def test_header_with_another_size(self):
        header = struct.pack("<QIIQQ", 0x01544f4c434e55, 1, 1, 0, 2 * POOL_SIZE)
        self.both("", self.agent(pool=self.memory(POOL_SIZE, header)))

    def test_tables_elsewhere(self):
        header = struct.pack("<QIIQQ", 0x01544f4c434e55, 1, 1, 0, POOL_SIZE) + b"\xff" * 500
        self.both("", self.agent(pool=self.memory(POOL_SIZE, header)))

    def test_pool_is_no_memory(self):
        self.both("", self.agent(pool=sys.stdin.fileno() if sys.stdin else 0))


class NoAgent(Case):
    def test_library_is_missing(self):
        self.runs_over_tcp("/nowhere/libunclot-preload.so", UNCLOT_LIBDIR="/nowhere")

    def test_library_with_a_space(self):
        library = self.file("a b/libunclot-preload.so", b"x")
        self.runs_over_tcp("space", UNCLOT_LIBDIR=os.path.dirname(library))

    def test_agent_is_missing(self):
        self.runs_over_tcp("/nowhere/unclotd", UNCLOT_AGENT="/nowhere/unclotd")

    def test_agent_fails(self):
        self.runs_over_tcp("unclotd failed", UNCLOT_AGENT="/bin/false")

    def test_agent_is_no_agent(self):
        self.runs_over_tcp("no agent could be started", UNCLOT_AGENT="/bin/true")

    def test_socket_path_is_a_file(self):
        self.runs_over_tcp("", "--socket", self.file("file"), UNCLOT_AGENT="/bin/false")

    def test_directory_is_missing(self):
        self.runs_over_tcp("", "--socket", "/nowhere/at/all.sock")

    def test_bad_pool_name(self):
        self.runs_over_tcp("not a pool's name", "--pool", "a/b")

    def test_runtime_directory_of_someone_else(self):
        if os.getuid() == 0:
            self.skipTest("root's may be anywhere")
        done = self.unclot("run", "--", "true", XDG_RUNTIME_DIR="/")
        self.assertEqual(done.returncode, 0)

    def test_system_pool_is_not_started(self):
        if os.path.exists("/run/unclot/system.sock"):
            self.skipTest("there is one")
        self.runs_over_tcp("no agent runs there", "--system")


class Pools(Case):
    def test_life_of_a_pool(self):
        self.assertEqual(self.unclot("pool", "create", "--size", "64M", "one").returncode, 0)
        self.fails(1, "exists already", "pool", "create", "one")
        listed = [pool for pool in json.loads(self.unclot("pool", "list", "--json").stdout) if not pool["system"]]
        self.assertEqual([(pool["name"], pool["size"], pool["alive"], pool["members"]) for pool in listed],
                         [("one", 64 << 20, True, 0)])
        self.assertIn("one", self.unclot("pool", "list").stdout)
        self.assertEqual(json.loads(self.unclot("ps", "--json", "--pool", "one").stdout), [])
        self.assertEqual(self.unclot("pool", "destroy", "one").returncode, 0)
        self.fails(1, "no agent runs there", "pool", "destroy", "one")

    def test_stat(self):
        self.unclot("pool", "create", "--size", "64M")
        figures = json.loads(self.unclot("stat", "--json").stdout)
        self.assertEqual((figures["size"], figures["members"], figures["connections"], figures["off"]),
                         (64 << 20, 0, 0, False))
        self.assertIn("connections_direct", figures["counters"])
        self.assertIn("no-listener", figures["reasons"])
        self.assertIn("64.0M", self.unclot("stat").stdout)

    def test_off_and_on(self):
        self.unclot("pool", "create")
        for command, state in (("off", True), ("off", True), ("on", False)):
            self.assertEqual(self.unclot(command).returncode, 0)
            self.assertEqual(json.loads(self.unclot("stat", "--json").stdout)["off"], state)

    def test_stop(self):
        for command in (["stop"], ["agent", "stop"]):
            self.assertEqual(self.unclot("run", "--", "true").returncode, 0)
            self.assertEqual(self.unclot(*command).returncode, 0)
            self.fails(1, "no agent runs there", *command)
            self.assertEqual(os.listdir(f"{self.place}/unclot"), [])

    def test_two_start_at_once(self):
        runs = [subprocess.Popen([UNCLOT, "run", "--", "true"], env=self.environment, stderr=subprocess.PIPE, text=True)
                for _ in range(4)]
        for run in runs:
            self.assertEqual((run.communicate()[1], run.returncode), ("", 0))
        self.assertEqual(len([pool for pool in json.loads(self.unclot("pool", "list", "--json").stdout)
                              if pool["socket"].startswith(self.place)]), 1)

    def test_agent_keeps_nothing_of_its_starter(self):
        """A pipe that the starter wrote to comes to its end although the agent lives."""
        done = subprocess.run(["sh", "-c", f"{UNCLOT} run -- echo out 2>&1 | cat"], env=self.environment, text=True,
                              stdout=subprocess.PIPE, timeout=10)
        self.assertEqual(done.stdout, "out\n")


class Sockets(Case):
    """What `ps` and `stat` say of sockets while they are open."""

    SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
links = []
while True:
    links.append(listener.accept()[0])
    for _ in range(3):
        links[-1].sendall(b"x" * len(links[-1].recv(100)) * 2)
"""
    CLIENT = """
import socket, sys
links = []
for _ in range(2):
    links.append(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
    for _ in range(3): # an upgraded one answers the first over TCP
        links[-1].sendall(b"12345")
        assert links[-1].recv(10, socket.MSG_WAITALL) == b"x" * 10
print("done", flush=True)
sys.stdin.read()
"""

    def start(self, program, *arguments, before=()):
        started = subprocess.Popen([*before, sys.executable, "-c", program, *arguments], env=self.environment, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        def end():
            started.kill()
            started.communicate()
        self.addCleanup(end)
        return started, started.stdout.readline().strip()

    def tearDown(self):
        self.doCleanups()
        super().tearDown()

    def rows(self, pid):
        return [row for row in json.loads(self.unclot("ps", "--json").stdout) if row["pid"] == pid]

    def test_in_memory(self):
        under = [UNCLOT, "run", "--"]
        server, port = self.start(self.SERVER, before=under)
        client, _ = self.start(self.CLIENT, port, before=under)
        rows = self.rows(client.pid)
        self.assertEqual([(row["path"], row["state"], row["sent"], row["received"]) for row in rows],
                         [("shm", "established", 15, 30)] * 2)
        self.assertEqual([row["reason"] for row in rows], ["upgraded", "direct"])
        self.assertTrue(all(row["peer"] == f"127.0.0.1:{port}" for row in rows))
        rows = self.rows(server.pid)
        self.assertEqual((rows[0]["state"], rows[0]["local"], rows[0]["accepted_shm"], rows[0]["accepted_tcp"]),
                         ("listen", f"127.0.0.1:{port}", 1, 1))
        self.assertEqual([(row["path"], row["sent"], row["received"]) for row in rows[1:]], [("shm", 30, 15)] * 2)
        table = self.unclot("ps").stdout.splitlines()
        self.assertEqual((len(table), table[0].split()[0]), (6, "PROCESS"))
        figures = json.loads(self.unclot("stat", "--json").stdout)
        self.assertEqual((figures["members"], figures["listeners"], figures["connections"]), (2, 1, 2))
        self.assertEqual(figures["reasons"]["direct"] > 0, True)
        self.fails(1, "2 programs use that pool", "pool", "destroy")

    def over_tcp(self, server, client, port):
        for pid, sent, received in ((client, 15, 30), (server, 30, 15)):
            for row in self.rows(pid):
                if row["state"] != "listen":
                    self.assertEqual((row["path"], row["sent"], row["received"]), ("tcp", sent, received))
                    self.assertNotIn(row["reason"], ("none", "direct", "upgraded"))

    def test_client_outside(self):
        server, port = self.start(self.SERVER, before=[UNCLOT, "run", "--"])
        client, _ = self.start(self.CLIENT, port)
        self.over_tcp(server.pid, client.pid, port)

    def test_server_outside(self):
        server, port = self.start(self.SERVER)
        client, _ = self.start(self.CLIENT, port, before=[UNCLOT, "run", "--"])
        self.assertEqual(len(self.rows(client.pid)), 2)
        self.over_tcp(server.pid, client.pid, port)

    def test_off(self):
        server, port = self.start(self.SERVER, before=[UNCLOT, "run", "--"])
        self.unclot("off")
        client, _ = self.start(self.CLIENT, port, before=[UNCLOT, "run", "--"])
        self.over_tcp(server.pid, client.pid, port)
        self.unclot("on")
        client, _ = self.start(self.CLIENT, port, before=[UNCLOT, "run", "--"])
        self.assertEqual({row["path"] for row in self.rows(client.pid)}, {"shm"})


class Interposed(Case):
    LIBRARY = property(lambda self: pathlib.Path(UNCLOT).parent.parent / "preload" / "libunclot-preload.so")

    def test_same_as_without(self):
        alone = subprocess.run([INTERPOSED], capture_output=True, text=True, timeout=30)
        self.assertEqual((alone.returncode, alone.stderr), (0, ""))
        for options in ([], ["--off"]):
            under = self.unclot("run", *options, "--", INTERPOSED)
            self.assertEqual((under.stdout.splitlines(), under.stderr, under.returncode),
                             (alone.stdout.splitlines(), "", 0))

    def test_only_names_of_libc(self):
        """Each exported name is one that libc has, so that there is a next one to call."""
        libc = ctypes.CDLL(None)
        listed = subprocess.run(["nm", "-D", "--defined-only", str(self.LIBRARY)], capture_output=True, text=True)
        names = [line.split()[2] for line in listed.stdout.splitlines()]
        self.assertIn("connect", names)
        for name in names:
            self.assertTrue(hasattr(libc, name), name)

    def test_needs_only_libc(self):
        needed = subprocess.run(["readelf", "-d", str(self.LIBRARY)], capture_output=True, text=True).stdout
        libraries = [line.split("[")[1].rstrip("]") for line in needed.splitlines() if "(NEEDED)" in line]
        libraries = [name for name in libraries if not name.startswith(("libasan", "libubsan", "libtsan"))]
        self.assertLessEqual(set(libraries), {"libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"})


class OtherUser(Case):
    def test_someone_elses_pool(self):
        if os.getuid() != 0 or not shutil.which("setpriv"):
            self.skipTest("needs root and setpriv")
        self.unclot("pool", "create", "--socket", f"{self.place}/mine.sock")
        os.chmod(self.place, 0o755)
        # The build tree may be below a home that lets nobody in, so the other user has copies.
        command = shutil.copy(UNCLOT, self.place)
        shutil.copy(pathlib.Path(UNCLOT).parent.parent / "preload" / "libunclot-preload.so", self.place)
        environment = dict(self.environment, UNCLOT_LIBDIR=self.place)
        other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", command]
        try:
            for (name, *words), status, out in ((["run", "--", "echo", "ran"], 0, "ran\n"), (["ps"], 1, "")):
                done = subprocess.run([*other, name, "--socket", f"{self.place}/mine.sock", *words],
                                      env=environment, capture_output=True, text=True)
                self.assertEqual((done.returncode, done.stdout), (status, out), done.stderr)
                self.one_sentence(done.stderr, "may not enter")
        finally:
            self.unclot("stop", "--socket", f"{self.place}/mine.sock")


class Service(Case):
    """Drop-ins, below another root."""

    REDIS = """[Service]
ExecStart=/usr/bin/redis-server /etc/redis/redis.conf --supervised systemd --daemonize no
User=redis
PrivateTmp=true
ProtectSystem=strict
ReadWritePaths=-/var/lib/redis
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
"""

    def enable(self, unit, content):
        self.file(f"lib/systemd/system/{unit}", content)
        done = self.unclot("service", "enable", "--root", self.place, unit)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return pathlib.Path(self.place, f"etc/systemd/system/{unit}.d/unclot.conf").read_text().splitlines()

    def test_enable_and_disable(self):
        lines = self.enable("redis-server.service", self.REDIS)
        for line in ("[Unit]", "Wants=unclotd.service", "After=unclotd.service", "[Service]",
                     "Environment=UNCLOT_SOCKET=/run/unclot/system.sock", "SupplementaryGroups=unclot",
                     "BindPaths=-/run/unclot", "ReadWritePaths=-/run/unclot"):
            self.assertIn(line, lines)
        self.assertTrue(any(line.startswith("Environment=LD_PRELOAD=/") for line in lines))
        self.assertNotIn("RestrictAddressFamilies=AF_UNIX", lines)
        if shutil.which("systemd-analyze"):
            verified = subprocess.run(["systemd-analyze", "verify", "--root", self.place, "redis-server.service"],
                                      capture_output=True, text=True)
            self.assertNotIn("unclot.conf", verified.stderr)
        again = self.unclot("service", "enable", "--root", self.place, "redis-server")
        self.assertEqual(again.returncode, 0)
        self.assertEqual(self.unclot("service", "disable", "--root", self.place, "redis-server").returncode, 0)
        self.assertFalse(os.path.exists(f"{self.place}/etc/systemd/system/redis-server.service.d"))
        self.fails(1, "not in the system's pool", "service", "disable", "--root", self.place, "redis-server")

    def test_families_without_unix(self):
        self.assertIn("RestrictAddressFamilies=AF_UNIX",
                      self.enable("a.service", "[Service]\nRestrictAddressFamilies=AF_INET AF_INET6\n"))
        self.assertNotIn("RestrictAddressFamilies=AF_UNIX", self.enable("b.service", "[Service]\n"))
        self.assertNotIn("RestrictAddressFamilies=AF_UNIX",
                         self.enable("c.service", "[Service]\nRestrictAddressFamilies=~AF_PACKET\n"))
        self.assertNotIn("RestrictAddressFamilies=AF_UNIX",
                         self.enable("d.service", "[Service]\nRestrictAddressFamilies=AF_INET\nRestrictAddressFamilies=\n"))

    def test_other_drop_ins_stay(self):
        other = self.file("etc/systemd/system/x.service.d/other.conf", "[Service]\n")
        self.enable("x.service", "[Service]\n")
        self.assertEqual(self.unclot("service", "disable", "--root", self.place, "x").returncode, 0)
        self.assertTrue(os.path.exists(other))

    def test_template(self):
        self.file("usr/lib/systemd/system/t@.service", "[Service]\n")
        self.assertEqual(self.unclot("service", "enable", "--root", self.place, "t@1").returncode, 0)
        self.assertTrue(os.path.exists(f"{self.place}/etc/systemd/system/t@1.service.d/unclot.conf"))

    def test_bad_units(self):
        self.fails(1, "no unit", "service", "enable", "--root", self.place, "nothing-like-that")
        self.fails(2, "which unit", "service", "enable")
        for name in ("", "../x", "a/b", "a b", "a\nb", "x" * 300):
            self.fails(2, "not the name of a service", "service", "enable", "--root", self.place, name)

    def test_directory_cannot_be_written(self):
        self.file("lib/systemd/system/x.service", "[Service]\n")
        self.file("etc", "in the way")
        self.fails(1, "cannot make", "service", "enable", "--root", self.place, "x")


if __name__ == "__main__":
    UNCLOT = os.path.abspath(sys.argv.pop(1))
    INTERPOSED = os.path.abspath(sys.argv.pop(1))
    unittest.main()
