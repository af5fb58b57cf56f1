#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The real unclotd against small members: coming, going, dying, and an agent that dies itself.

Usage: test_agent.py UNCLOTD MEMBER [unittest arguments]
"""
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

UNCLOTD = MEMBER = ""
STOP, OFF, ON, SWEEP = 1, 2, 3, 4


class Refused(Exception):
    def __init__(self, number):
        super().__init__(errno.errorcode.get(number, number))
        self.number = number


class Member:
    """One process in the pool."""

    def __init__(self, prefix=()):
        self.process = subprocess.Popen(
            [*prefix, MEMBER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def send(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")

    def answer(self):
        words = self.process.stdout.readline().split()
        if not words:
            raise EOFError("the member ended")
        if words[0] == "error":
            raise Refused(int(words[1]))
        return words[1:]

    def do(self, *words):
        self.send(*words)
        return self.answer()

    def kill(self):
        self.process.kill()
        self.close()

    def close(self):
        if self.process.poll() is None:
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        if not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def cpu_ticks(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


class AgentTest(unittest.TestCase):
    size = "64M"

    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        os.chmod(self.directory.name, 0o755)
        self.path = os.path.join(self.directory.name, "a.sock")
        self.members = []
        self.agent = self.start()

    def tearDown(self):
        for member in self.members:
            member.kill() if member.process.poll() is None else member.close()
        if self.agent.poll() is None:
            self.agent.terminate()
        self.agent.wait(10)
        self.agent.stderr.close()
        self.assertEqual(os.listdir(self.directory.name), [], "something was left behind")
        self.directory.cleanup()

    def start(self, *arguments):
        agent = subprocess.Popen(
            [UNCLOTD, "--foreground", "--socket", self.path, "--size", self.size, *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.eventually(lambda: self.answers() or agent.poll() is not None)
        return agent

    def answers(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            return link.connect_ex(self.path) == 0

    def member(self, join=True, prefix=()):
        member = Member(prefix)
        self.members.append(member)
        if join:
            member.do("join", self.path)
        return member

    def eventually(self, condition, seconds=3.0):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                self.fail("it did not happen in time")
            time.sleep(0.005)

    def kill_worker(self):
        (worker,) = children_of(self.agent.pid)
        os.kill(worker, signal.SIGKILL)
        self.eventually(lambda: children_of(self.agent.pid) not in ([], [worker]))

    def observer(self):
        watcher = self.member(join=False)
        watcher.do("observe", self.path)
        return watcher

    @staticmethod
    def states(watcher):
        """reserved, live, dead"""
        return [int(word) for word in watcher.do("usage")[3:6]]

    @staticmethod
    def owned(watcher):
        return [int(word) for word in watcher.do("usage")[1:3]]


class Coming(AgentTest):
    def test_join_leave_and_exit(self):
        watcher = self.observer()
        one, two = self.member(), self.member()
        self.assertEqual(self.states(watcher), [0, 2, 0])
        one.do("leave")
        self.eventually(lambda: self.states(watcher) == [0, 1, 0])
        two.close()
        self.eventually(lambda: self.states(watcher) == [0, 0, 0])

    def test_slots_are_not_shared(self):
        slots = {self.member().do("waiter") and member for member in range(5)}
        self.assertEqual(len(slots), 5)

    def test_exec_joins_anew(self):
        watcher = self.observer()
        member = self.member()
        (old,) = member.do("join", self.path)  # twice in the pool is two members
        self.assertEqual(self.states(watcher), [0, 2, 0])
        member.send("exec")
        (new,) = member.do("join", self.path)
        self.assertNotEqual(old, new)
        self.eventually(lambda: self.states(watcher) == [0, 1, 0])

    def test_wrong_user_is_refused(self):
        os.chmod(self.path, 0o666)
        member = self.member(join=False, prefix=["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
        with self.assertRaises(Refused) as caught:
            member.do("join", self.path)
        self.assertEqual(caught.exception.number, errno.EACCES)

    def test_another_version_is_refused(self):
        def ask(version, form, length=72):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
                link.connect(self.path)
                message = struct.pack("<IIiIIIQII32s", version, 2, 0, 0, 0, 0, 0, form, 7, b"old")
                link.send(message[:length])
                return struct.unpack("<IIiIIIQII32s", link.recv(200))[2]

        self.assertEqual(ask(99, 1), -errno.EPROTO)
        self.assertEqual(ask(1, 99), -errno.EPROTO)
        self.assertEqual(ask(1, 1, 20), -errno.EPROTO)
        self.assertEqual(ask(1, 1), 0)

    def test_nonsense_is_answered_and_harmless(self):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
                link.connect(self.path)
                link.send(os.urandom(72))
                link.send(os.urandom(300))
        self.member()

    def test_full_of_members(self):
        # Links only, no processes: a socket cannot join without its own pidfd.
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.connect(self.path)
            link.send(struct.pack("<IIiIIIQII32s", 1, 1, 0, 0, 0, 0, 0, 1, 7, b"x"))
            self.assertEqual(struct.unpack("<IIiIIIQII32s", link.recv(200))[2], -errno.EINVAL)


@unittest.skipIf(os.geteuid() != 0, "only root makes a system pool")
class SystemPool(AgentTest):
    def start(self, *arguments):
        return super().start("--system", "--group", "nogroup")

    def join_as(self, *who):
        return self.member(prefix=["setpriv", "--reuid=1", *who])

    def test_the_group_gets_in(self):
        self.join_as("--regid=65534", "--clear-groups")
        self.join_as("--regid=1", "--groups=65534")
        self.member()

    def test_others_do_not(self):
        for mode in (0o660, 0o666):  # by the file's mode, and by the agent itself
            os.chmod(self.path, mode)
            with self.assertRaises(Refused) as caught:
                self.join_as("--regid=1", "--clear-groups")
            self.assertEqual(caught.exception.number, errno.EACCES)

    def test_commands_are_not_for_members(self):
        member = self.join_as("--regid=65534", "--clear-groups")
        with self.assertRaises(Refused) as caught:
            member.do("command", STOP)
        self.assertEqual(caught.exception.number, errno.EPERM)


class Dying(AgentTest):
    def two_connected(self):
        server, client = self.member(), self.member()
        (listener,) = server.do("listen")
        (connection,) = client.do("connect", listener)
        self.assertEqual(server.do("accept", listener), [connection])
        return server, client, listener, connection

    def test_killed_client_leaves_what_it_wrote(self):
        watcher = self.observer()
        before = self.owned(watcher)
        server, client, _, connection = self.two_connected()
        server.do("waiter")
        server.do("arm", connection, 1)
        client.do("write", connection, "hello")
        client.kill()
        self.assertNotEqual(server.do("rung"), ["0"])
        self.assertEqual(server.do("look", connection)[0], "-S")
        self.assertEqual(server.do("read", connection), ["hello", "end"])
        server.kill()
        self.eventually(lambda: self.states(watcher) == [0, 0, 0])
        watcher.do("command", SWEEP)
        self.assertEqual(self.owned(watcher), before)

    def test_client_killed_in_the_queue_is_still_accepted(self):
        server, client = self.member(), self.member()
        (listener,) = server.do("listen")
        (connection,) = client.do("connect", listener)
        client.do("write", connection, "bye")
        client.kill()
        self.eventually(lambda: server.do("look", connection)[0] == "-S")
        self.assertEqual(server.do("accept", listener), [connection])
        self.assertEqual(server.do("read", connection), ["bye", "end"])

    def test_client_killed_before_it_was_queued(self):
        server, client = self.member(), self.member()
        (listener,) = server.do("listen")
        (connection,) = client.do("connect-half", listener)
        client.kill()
        self.eventually(lambda: server.do("look", connection) == ["gone"])

    def test_killed_server(self):
        watcher = self.observer()
        before = self.owned(watcher)
        server, client, listener, connection = self.two_connected()
        (queued,) = client.do("connect", listener)
        client.do("waiter")
        client.do("arm", queued, 0)
        server.kill()
        self.assertNotEqual(client.do("rung"), ["0"])
        self.eventually(lambda: client.do("look", connection)[0] == "C-")
        self.assertEqual(client.do("look", queued)[:2], ["C-", "3"])
        client.kill()
        self.eventually(lambda: self.states(watcher) == [0, 0, 0])
        watcher.do("command", SWEEP)
        self.assertEqual(self.owned(watcher), before)

    def test_server_killed_between_taking_and_holding(self):
        server, client = self.member(), self.member()
        (listener,) = server.do("listen")
        (connection,) = client.do("connect", listener)
        server.do("accept-half", listener)
        server.kill()
        self.eventually(lambda: client.do("look", connection)[0] == "C-")

    def test_ten_thousand_connections_within_a_second(self):
        watcher = self.observer()
        server, client = self.member(), self.member()
        (listener,) = server.do("listen")
        for _ in range(10):
            client.send("many", listener, 1000)
            client.answer()
            server.do("accept-many", listener, 1000)
        client.process.kill()
        start = time.monotonic()
        self.eventually(lambda: self.states(watcher) == [0, 1, 0])
        self.assertLess(time.monotonic() - start, 1.0)
        server.kill()
        self.eventually(lambda: self.states(watcher) == [0, 0, 0])
        watcher.do("command", SWEEP)
        self.assertEqual(self.owned(watcher), [0, 0])

    size = "256M"


class Forking(AgentTest):
    def test_child_is_a_member_and_its_death_is_its_own(self):
        watcher = self.observer()
        parent, server = self.member(), self.member()
        (listener,) = server.do("listen")
        (connection,) = parent.do("connect", listener)
        server.do("accept", listener)
        _, pid = parent.do("fork", connection)
        self.assertEqual(self.states(watcher), [0, 3, 0])
        parent.kill()
        self.eventually(lambda: self.states(watcher) == [0, 2, 0])
        self.assertEqual(server.do("look", connection)[0], "CS")
        os.kill(int(pid), signal.SIGKILL)
        self.eventually(lambda: self.states(watcher) == [0, 1, 0])
        self.assertEqual(server.do("look", connection)[0], "-S")

    def test_child_that_never_came(self):
        watcher = self.observer()
        parent, server = self.member(), self.member()
        (listener,) = server.do("listen")
        (connection,) = parent.do("connect", listener)
        server.do("accept", listener)
        parent.do("fork-dies", connection)
        self.eventually(lambda: self.states(watcher) == [0, 2, 0])
        self.assertEqual(server.do("look", connection)[0], "CS")
        parent.kill()
        self.eventually(lambda: server.do("look", connection)[0] == "-S")


class WorkerDies(AgentTest):
    def test_everything_goes_on(self):
        watcher = self.observer()
        one, two = self.member(), self.member()
        index, generation = one.do("waiter")
        for _ in range(3):
            self.kill_worker()
            two.do("ring", index, generation)
            self.assertNotEqual(one.do("rung"), ["0"])
        three = self.member()
        three.do("ring", index, generation)
        self.assertNotEqual(one.do("rung"), ["0"])
        (listener,) = one.do("listen")
        (connection,) = two.do("connect", listener)
        one.do("accept", listener)
        one.do("arm", connection, 1)
        self.kill_worker()
        two.kill()
        self.assertNotEqual(one.do("rung"), ["0"])
        self.eventually(lambda: self.states(watcher) == [0, 2, 0])
        _, pid = three.do("fork")
        self.kill_worker()
        os.kill(int(pid), signal.SIGKILL)
        self.eventually(lambda: self.states(watcher) == [0, 2, 0])

    def test_death_while_there_is_no_worker(self):
        watcher = self.observer()
        one, two = self.member(), self.member()
        (worker,) = children_of(self.agent.pid)
        os.kill(worker, signal.SIGSTOP)
        one.process.kill()
        os.kill(worker, signal.SIGKILL)
        self.eventually(lambda: self.states(watcher) == [0, 1, 0])
        two.do("leave")

    def test_request_in_flight(self):
        one = self.member()
        (worker,) = children_of(self.agent.pid)
        os.kill(worker, signal.SIGSTOP)
        one.send("waiter")
        time.sleep(0.05)
        os.kill(worker, signal.SIGKILL)
        start = time.monotonic()
        one.answer()
        self.assertLess(time.monotonic() - start, 0.4)

    def test_joining_while_workers_die(self):
        for _ in range(8):
            (worker,) = children_of(self.agent.pid) or (0,)
            member = self.member(join=False)
            member.send("join", self.path)
            if worker:
                try:
                    os.kill(worker, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            member.answer()
            member.do("waiter")
            time.sleep(0.02)
        watcher = self.observer()
        self.eventually(lambda: self.states(watcher) == [0, 8, 0])

    def test_killed_while_it_settles(self):
        watcher = self.observer()
        server, client = self.member(), self.member()
        (listener,) = server.do("listen")
        for _ in range(3):
            client.send("many", listener, 1000)
            client.answer()
            server.do("accept-many", listener, 1000)
        client.process.kill()
        for delay in range(8):
            time.sleep(0.0003 * delay)
            for worker in children_of(self.agent.pid):
                try:
                    os.kill(worker, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.eventually(lambda: self.states(watcher) == [0, 1, 0])
        server.kill()
        self.eventually(lambda: self.states(watcher) == [0, 0, 0])
        watcher.do("command", SWEEP)
        self.assertEqual(self.owned(watcher), [0, 0])

    def test_reserved_child_survives_a_worker(self):
        watcher = self.observer()
        parent = self.member()
        self.kill_worker()
        parent.do("fork-dies")
        self.eventually(lambda: self.states(watcher) == [0, 1, 0])


class Memory(AgentTest):
    size = "32M"

    def test_until_it_is_full_and_back(self):
        watcher = self.observer()
        reserved = int(watcher.do("usage")[0])
        member = self.member()
        (count,) = member.do("allocate", 60000, 100000)
        self.assertGreater(int(count) * 65536, 4 << 20)
        with self.assertRaises(Refused):
            member.do("connect", 0)
        member.kill()
        self.eventually(lambda: self.states(watcher) == [0, 0, 0])
        self.assertEqual(self.owned(watcher), [0, 0])
        watcher.do("command", SWEEP)
        self.assertEqual(int(watcher.do("usage")[0]), reserved)

    def test_scribbling_over_the_tables_crashes_nobody(self):
        self.scribble("tables")

    def test_scribbling_over_the_data_crashes_nobody(self):
        self.scribble("data")

    def test_scribbling_over_a_word_in_eight_crashes_nobody(self):
        self.scribble("some")

    def scribble(self, part):
        server, client = self.member(), self.member()
        (listener,) = server.do("listen")
        client.do("many", listener, 100)
        server.do("accept-many", listener, 50)
        client.do("scribble", part)
        client.kill()
        server.kill()
        other = self.member(join=False)
        try:
            other.do("join", self.path)
        except EOFError:  # a member's own library may give up on such a pool
            pass
        except Refused as refused:
            self.assertNotEqual(refused.number, errno.ETIMEDOUT)
        self.kill_worker()
        self.observer().do("command", SWEEP)
        # The one killed above, and no other.
        self.agent.terminate()
        self.assertEqual(self.agent.wait(10), 0)
        self.assertEqual(self.agent.stderr.read().count("starting another"), 1)


class Operating(AgentTest):
    def test_off_and_on(self):
        watcher = self.observer()
        watcher.do("command", OFF)
        self.assertEqual(watcher.do("off"), ["1"])
        watcher.do("command", ON)
        self.assertEqual(watcher.do("off"), ["0"])

    def test_stop_leaves_nothing(self):
        member, watcher = self.member(), self.observer()
        watcher.do("command", STOP)
        self.assertEqual(os.listdir(self.directory.name), [])
        self.assertEqual(self.agent.wait(5), 0)
        self.assertEqual(member.do("gone"), ["1"])
        member.do("usage")

    def test_killed_keeper_leaves_a_place_that_the_next_one_takes(self):
        member = self.member()
        self.agent.kill()
        self.agent.wait()
        self.agent.stderr.close()
        self.eventually(lambda: member.do("gone") == ["1"])
        os.stat(self.path)
        self.agent = self.start()
        self.eventually(lambda: self.can_join())

    def can_join(self):
        try:
            self.member()
        except Refused:
            return False
        return True

    def test_one_of_many_starters_wins(self):
        self.agent.terminate()
        self.agent.wait()
        self.agent.stderr.close()
        pid_file = os.path.join(self.directory.name, "pid")
        starters = [
            subprocess.Popen([UNCLOTD, "--socket", self.path, "--size", self.size, "--pid-file", pid_file])
            for _ in range(8)
        ]
        statuses = sorted(starter.wait(20) for starter in starters)
        self.assertEqual(statuses, [0] + [3] * 7)
        self.member()
        watcher = self.observer()
        watcher.do("command", STOP)
        self.assertEqual(os.listdir(self.directory.name), [])
        self.agent = subprocess.Popen(["true"], stderr=subprocess.PIPE)

    def test_default_place(self):
        with tempfile.TemporaryDirectory() as runtime:
            environment = {"XDG_RUNTIME_DIR": runtime}
            # Nobody of ours may keep the pipe open: run() reads it to its end.
            done = subprocess.run([UNCLOTD, "--name", "x", "--size", "32M"], env=environment, stderr=subprocess.PIPE,
                                  timeout=10)
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            directory = os.path.join(runtime, "unclot")
            self.assertEqual(os.stat(directory).st_mode & 0o777, 0o700)
            self.assertEqual(os.stat(os.path.join(directory, "x.sock")).st_mode & 0o777, 0o600)
            again = subprocess.run([UNCLOTD, "--name", "x"], env=environment)
            self.assertEqual(again.returncode, 3)
            watcher = self.member(join=False)
            watcher.do("observe", os.path.join(directory, "x.sock"))
            watcher.do("command", STOP)
            self.assertEqual(os.listdir(directory), [])

    def test_directory_of_others_is_refused(self):
        def start(runtime):
            return subprocess.run([UNCLOTD, "--size", "32M"], env={"XDG_RUNTIME_DIR": runtime}, stderr=subprocess.PIPE,
                                  text=True)

        with tempfile.TemporaryDirectory() as runtime:
            directory = os.path.join(runtime, "unclot")
            os.symlink(self.directory.name, directory)
            done = start(runtime)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1))
            os.unlink(directory)
            os.mkdir(directory)
            os.chmod(directory, 0o755)
            self.assertEqual(start(runtime).returncode, 1)
            if os.geteuid() == 0:
                os.chmod(directory, 0o700)
                os.chown(directory, 1, 1)
                self.assertEqual(start(runtime).returncode, 1)

    def test_stopped_while_starting(self):
        for delay in range(20):
            path = os.path.join(self.directory.name, "b.sock")
            agent = subprocess.Popen([UNCLOTD, "--foreground", "--socket", path, "--size", "32M"])
            time.sleep(delay / 2000)
            agent.terminate()
            agent.wait(5)
            # Killed before it did anything, or stopped in order.
            self.assertIn(agent.returncode, (0, -signal.SIGTERM))
            self.assertFalse(os.path.exists(path) or os.path.exists(path + ".lock"))

    def test_idle_costs_nothing(self):
        member = self.member()
        member.do("waiter")
        (worker,) = children_of(self.agent.pid)
        time.sleep(0.2)
        before = cpu_ticks(worker) + cpu_ticks(self.agent.pid)
        time.sleep(1.5)
        self.assertLessEqual(cpu_ticks(worker) + cpu_ticks(self.agent.pid) - before, 1)

    def test_bad_usage(self):
        for arguments in (["--size", "12"], ["--size", "x"], ["extra"], ["--nonsense"], ["--group", "x"],
                          ["--name", "../x"], ["--socket", "/" + "x" * 200]):
            done = subprocess.run([UNCLOTD, *arguments], stderr=subprocess.PIPE, text=True)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        done = subprocess.run([UNCLOTD, "--socket", "/nonexistent/x"], stderr=subprocess.PIPE, text=True)
        self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1))


if __name__ == "__main__":
    UNCLOTD, MEMBER = map(os.path.abspath, sys.argv[1:3])
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
