# SPDX-License-Identifier: BSD-3-Clause
"""What a test driver needs: processes that are ended whatever happens, a private pool, and a list of tests.

Used by tests/faults/run.py and tests/programs/run.py.  Invariant: a test has its own directory and its own pool, and
when it is over nothing that it started is left: each process is ended by its own number, the agent included.
"""
import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SANITIZER_RUNTIME = os.environ.get("UNCLOT_SANITIZER_RUNTIME")
SLOWER = 4 if SANITIZER_RUNTIME else 1  # what takes how much longer with sanitizers
PATIENCE = 20 * SLOWER
SYSTEM_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin"


class Failure(Exception):
    pass


class Skipped(Exception):
    pass


def expect(condition, sentence, *values):
    if not condition:
        raise Failure(sentence % values if values else sentence)


def until(condition, seconds, sentence):
    """Waits for a condition; the last look is after the time is over."""
    end = time.monotonic() + seconds
    while True:
        late = time.monotonic() > end
        value = condition()
        if value:
            return value
        if late:
            raise Failure("not within %.1f s: %s" % (seconds, sentence() if callable(sentence) else sentence))
        time.sleep(0.005)


def need(program):
    path = shutil.which(program, path=SYSTEM_PATH)
    if path is None:
        raise Skipped("%s is not installed" % program)
    return path


class Process:
    """A program of a test; its output goes to files, so that nobody has to read for it to go on."""

    def __init__(self, argv, directory, number, env=None, **options):
        self.argv = argv
        self.base = os.path.join(directory, "%03d" % number)
        with open(self.base + ".out", "w") as out, open(self.base + ".err", "w") as err:
            self.popen = subprocess.Popen(argv, stdin=options.pop("stdin", subprocess.DEVNULL), stdout=out, stderr=err,
                                          env=env, start_new_session=True, **options)
        self.pid = self.popen.pid

    def output(self):
        with open(self.base + ".out", errors="replace") as file:
            return file.read()

    def errors(self):
        with open(self.base + ".err", errors="replace") as file:
            return file.read()

    def fail(self, what):
        said = (self.errors().strip() or self.output().strip()).splitlines()[-3:]
        raise Failure("%s: %s%s" % (" ".join(self.argv[-8:]), what, ": " + " / ".join(said) if said else ""))

    def running(self):
        return self.popen.poll() is None

    def wait(self, seconds=PATIENCE, status=0):
        """Its output; status None: any that is not a crash."""
        try:
            ended = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.fail("not done after %.1f s" % seconds)
        if status is None:
            if -ended in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGFPE):
                self.fail("crashed: %s" % signal.Signals(-ended).name)
        elif ended != status:
            self.fail("ended with status %d" % ended)
        return self.output()

    def json(self, seconds=PATIENCE, status=0):
        """Waits, and gives the last line that is a JSON object."""
        for line in reversed(self.wait(seconds, status).splitlines()):
            if line.startswith("{"):
                return json.loads(line)
        self.fail("printed no result")

    def line(self, pattern, seconds=PATIENCE, count=1):
        """The count-th match in what it prints."""
        def look():
            found = list(re.finditer(pattern, self.output(), re.M))
            if len(found) >= count:
                return found[count - 1]
            if not self.running():
                self.fail("ended with status %d" % self.popen.returncode)
            return None
        return until(look, seconds, lambda: "%s said %r" % (" ".join(self.argv[-6:]), pattern))

    def port(self):
        return int(self.line(r"^port (\d+)$").group(1))

    def signal(self, number):
        self.popen.send_signal(number)

    def term(self, seconds=PATIENCE):
        self.signal(signal.SIGTERM)
        return self.json(seconds)

    def kill(self):
        self.popen.kill()
        self.popen.wait()

    def end(self):
        """Whatever state it is in; what it left of its own session's group as well."""
        for number in (signal.SIGKILL, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(5)


def children_of(pid):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                with open("/proc/%s/stat" % name) as file:
                    if int(file.read().rsplit(")", 1)[1].split()[1]) == pid:
                        found.append(int(name))
    return found


def cpu_ns(pids):
    """CPU time of these processes' threads."""
    total = 0
    for pid in pids:
        for thread in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/schedstat" % (pid, thread)) as file:
                total += int(file.read().split()[0])
    return total


def is_gone(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Stage:
    """One test's directory, pool and processes."""

    def __init__(self, options):
        self.build = options.build
        self.shm = not options.plain  # False: everything over plain TCP, to try the tests themselves
        self.directory = tempfile.mkdtemp(prefix="unclot-test-")
        os.chmod(self.directory, 0o755)
        self.socket = os.path.join(self.directory, "pool.sock")
        self.command = os.path.join(self.build, "src", "cli", "unclot")
        self.processes = []
        self.cleanups = []
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith("UNCLOT_") and name != "LD_PRELOAD"}
        self.environment.update(XDG_RUNTIME_DIR=self.directory, PATH=SYSTEM_PATH)
        self.pool_started = False
        self.free_use = None

    # ---- programs ----

    def start(self, argv, env=None, **options):
        process = Process([str(word) for word in argv], self.directory, len(self.processes),
                          dict(self.environment, **env or {}), **options)
        self.processes.append(process)
        return process

    def wrap(self, argv):
        return [self.command, "run", "--socket", self.socket, "--", *argv] if self.shm else list(argv)

    def run(self, argv, env=None, before=(), **options):
        """Starts a program in the pool; `before`: words in front of `unclot run`."""
        if self.shm and not self.pool_started:
            self.start_pool()
        if SANITIZER_RUNTIME and self.shm:
            env = dict(env or {}, LD_PRELOAD=SANITIZER_RUNTIME)
        return self.start([*before, *self.wrap(argv)], env, **options)

    def program(self, name):
        path = os.path.join(self.build, "tests", "faults", name)
        if not os.path.exists(path):
            raise Failure("%s is not built" % path)
        return path

    def talk(self, *words, plain=False, **options):
        argv = [self.program("talk"), *words]
        return self.start(argv, **options) if plain else self.run(argv, **options)

    # ---- the pool ----

    def start_pool(self, size=None):
        """With an agent that we start ourselves, so that the first figures are those of an empty pool."""
        if not self.shm:
            return
        self.pool_started = True
        words = [os.path.join(self.build, "src", "agent", "unclotd"), "--socket", self.socket]
        done = subprocess.run(words + (["--size", size] if size else []), env=self.environment, timeout=PATIENCE,
                              capture_output=True, text=True, check=False)
        expect(done.returncode == 0, "unclotd: %s", done.stderr.strip())
        self.agent_pid = self.agent()[0]
        self.free_use = self.stat()

    def another_pool(self, word, size="64M"):
        """The socket of one more pool, stopped with the test."""
        path = os.path.join(self.directory, word + ".sock")
        subprocess.run([os.path.join(self.build, "src", "agent", "unclotd"), "--socket", path, "--size", size],
                       env=self.environment, timeout=PATIENCE, check=True)
        self.cleanups.append(lambda: subprocess.run([self.command, "stop", "--socket", path], env=self.environment,
                                                    timeout=PATIENCE, check=False))
        return path

    def unclot(self, *words, seconds=PATIENCE, status=0):
        done = subprocess.run([self.command, words[0], "--socket", self.socket, *words[1:]], env=self.environment,
                              timeout=seconds, capture_output=True, text=True, check=False)
        if status is None:
            expect(done.returncode >= 0, "unclot %s: crashed, status %d", " ".join(words), done.returncode)
        else:
            expect(done.returncode == status, "unclot %s: status %d: %s", " ".join(words), done.returncode,
                   done.stderr.strip())
        return done.stdout

    def stat(self):
        return json.loads(self.unclot("stat", "--json"))

    def ps(self):
        """Connections, by `unclot ps`; listeners are left out."""
        return [row for row in json.loads(self.unclot("ps", "--json")) if row["state"] != "listen"]

    def counted(self, name):
        stat = self.stat()
        return stat["counters"].get(name, stat["reasons"].get(name, 0))

    def agent(self):
        """(keeper, worker) of the pool."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.connect(self.socket)
            keeper = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return keeper, until(lambda: children_of(keeper), 5, "a worker is there")[0]

    def kill_agent(self):
        keeper, worker = self.agent()
        os.kill(keeper, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        until(lambda: is_gone(keeper) and is_gone(worker), 5, "the agent is gone")

    def expect_direct(self, least):
        if self.shm:
            count = self.counted("connections_direct")
            expect(count >= least, "%d direct connections, at least %d expected; %s", count, least, self.why())

    def expect_shm(self, least=1):
        if self.shm:
            counters = self.stat()["counters"]
            count = counters["connections_direct"] + counters["connections_upgraded"]
            expect(count >= least, "%d connections in memory, at least %d expected; %s", count, least, self.why())

    def why(self):
        stat = self.stat()
        return "%s; %s" % ({name: value for name, value in stat["counters"].items() if value},
                           {name: value for name, value in stat["reasons"].items() if value})

    def expect_free(self, seconds=2 * SLOWER):
        """Nobody is left, and the pool is as free as it was at the start."""
        if not self.shm:
            return
        last = {}

        def is_free():
            last.update(self.stat())
            return all(last[name] == self.free_use[name] for name in ("used", "members", "connections", "listeners"))
        until(is_free, seconds, lambda: "the pool is as free as at the start: %s, now %s" % tuple(
            {name: stat[name] for name in ("used", "owned", "members", "connections", "listeners")}
            for stat in (self.free_use, last)))

    # ---- the end ----

    def close(self):
        for process in reversed(self.processes):
            process.end()
        for cleanup in reversed(self.cleanups):
            cleanup()
        if self.pool_started:
            subprocess.run([self.command, "stop", "--socket", self.socket], env=self.environment, timeout=PATIENCE,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            with contextlib.suppress(Failure):
                until(lambda: is_gone(self.agent_pid), 5, "the agent has ended")
            if not is_gone(self.agent_pid):
                os.kill(self.agent_pid, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)


TESTS = []


def test(function=None, timeout=30, pool=False):
    """Registers a test; pool=True: it makes no sense over plain TCP."""
    if function is None:
        return lambda inner: test(inner, timeout, pool)
    TESTS.append((function.__name__.replace("_", "-"), function, timeout * SLOWER, pool))
    return function


def out_of_time(*_):
    raise Failure("out of time")


def run_one(function, timeout, options):
    stage = Stage(options)
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(timeout)
    try:
        function(stage)
        return None
    finally:
        signal.alarm(0)
        if options.keep:
            print("    kept: " + stage.directory)
            stage.directory = os.path.join(stage.directory, "none")
        stage.close()


def find_build(given):
    path = given or os.environ.get("UNCLOT_BUILD") or os.path.join(SOURCE, "build")
    if not os.path.exists(os.path.join(path, "build.ninja")):
        sys.exit("no build directory: run `meson setup build && ninja -C build`, or name it with --build")
    return os.path.abspath(path)


def main(description):
    # A shell starts background jobs with SIGINT ignored, and programs inherit that; with a handler here they do not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--build", metavar="DIR", help="the meson build directory")
    parser.add_argument("--only", action="append", metavar="WORD", help="only tests with this in their name")
    parser.add_argument("--plain", action="store_true", help="over plain TCP, to try the tests themselves")
    parser.add_argument("--repeat", type=int, default=1, help="each test so often")
    parser.add_argument("--keep", action="store_true", help="keep what the programs printed")
    parser.add_argument("--list", action="store_true", help="print the names")
    options = parser.parse_args()
    if options.list:
        print("\n".join(name for name, *_ in TESTS))
        return 0
    options.build = find_build(options.build)
    passed = failed = skipped = 0
    for name, function, timeout, pool in TESTS:
        if options.only and not any(word in name for word in options.only) or pool and options.plain:
            continue
        for _ in range(options.repeat):
            start = time.monotonic()
            try:
                run_one(function, timeout, options)
                passed += 1
                result = "ok"
            except Skipped as reason:
                skipped += 1
                result = "skipped: %s" % reason
            except Failure as reason:
                failed += 1
                result = "FAILED: %s" % reason
            except Exception:
                failed += 1
                result = "FAILED\n" + traceback.format_exc()
            print("%-52s %5.1f s  %s" % (name, time.monotonic() - start, result), flush=True)
    if skipped:
        print("%d skipped" % skipped)
    print("%d passed, %d failed" % (passed, failed))
    return 1 if failed or not passed else 0
