#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Differential conformance: every case over kernel TCP and under `unclot run`; the transcripts must be the same.

Who calls it: `meson test`, and people.  The programs are those that the build calls conformance-*; each lists its own cases.
A case runs in flavours (direct, upgraded, first: see sockets.c) and modes (one, fork, exec: see common.h).

Each worker of --jobs has a pool of its own, because a listener that appears anywhere in a pool makes everybody prove
their ways again.  In flavours direct and upgraded the pool's counters must show that the connection was on that path.
"""

import argparse
import collections
import concurrent.futures
import difflib
import json
import os
import pathlib
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import results

HERE = pathlib.Path(__file__).resolve().parent
EXPECTED = HERE / "expected-differences"
REFERENCES = 4  # runs over TCP, at most, that one run under UNCLOT is compared with
COUNTER = {"direct": "connections_direct", "upgraded": "connections_upgraded"}

Run = collections.namedtuple("Run", "program case flavour mode asserted")
Transcript = collections.namedtuple("Transcript", "lines status hung stderr")


def fail(sentence):
    print(f"run.py: {sentence}", file=sys.stderr)
    sys.exit(2)


class Build:
    """What a build directory has: programs, the command line, whether it is a sanitizer build."""

    def __init__(self, path):
        self.path = pathlib.Path(path).resolve()
        try:
            targets = json.loads(self.introspect("--targets"))
            options = json.loads(self.introspect("--buildoptions"))
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            fail(f"{self.path} is not a meson build directory: {error}")
        files = {t["name"]: t["filename"][0] for t in targets if t["type"] == "executable"}
        self.programs = sorted(f for name, f in files.items() if name.startswith("conformance-"))
        self.unclot = files.get("unclot")
        self.sanitizers = next((o["value"] for o in options if o["name"] == "b_sanitize"), "none")

    def introspect(self, what):
        return subprocess.run(["meson", "introspect", what, str(self.path)], check=True, capture_output=True,
                              text=True).stdout

    def environment(self, plain):
        """Sanitizer builds: `unclot run` puts its library before libasan in the list of libraries.  That is the right
        order for the calls (ours, the sanitizer's, libc's), but libasan refuses it unless told otherwise."""
        env = dict(os.environ)
        for name in ("UNCLOT_SOCKET", "UNCLOT_OFF", "LD_PRELOAD"):
            env.pop(name, None)
        env["LC_ALL"] = "C"
        if "address" in str(self.sanitizers):
            # Over plain TCP the programs are what is checked; bad pointers are given to the kernel on purpose.
            env["ASAN_OPTIONS"] = "verify_asan_link_order=0:detect_leaks=0:abort_on_error=0:exitcode=66"
            env["UBSAN_OPTIONS"] = "halt_on_error=1:print_stacktrace=1"
        if plain:
            env.pop("UNCLOT_VERBOSE", None)
        return env


class Pool:
    """A private pool: made by the first `unclot run`, destroyed at the end."""

    def __init__(self, build):
        self.build = build
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="unclot-conformance-"))
        self.socket = self.directory / "pool.sock"

    def command(self, command):
        return [self.build.unclot, "run", "--socket", str(self.socket), "--", *command]

    def stat(self):
        done = subprocess.run([self.build.unclot, "stat", "--json", "--socket", str(self.socket)], capture_output=True,
                              text=True, timeout=10, env=self.build.environment(True))
        return json.loads(done.stdout) if done.returncode == 0 else None

    def counters(self):
        seen = self.stat()
        return (seen or {}).get("counters", {})

    def close(self):
        try:
            subprocess.run([self.build.unclot, "pool", "destroy", "--socket", str(self.socket)], capture_output=True,
                           timeout=20, env=self.build.environment(True))
        except subprocess.TimeoutExpired:
            pass
        shutil.rmtree(self.directory, ignore_errors=True)


def has_six():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


def execute(command, env, patience):
    """Runs it in a session of its own; a hang ends with the transcript so far."""
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as out:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=env,
                                 start_new_session=True)
        hung = False
        try:
            status = child.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            hung, status = True, None
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
        out.seek(0)
        errors.seek(0)
        lines = out.read().decode(errors="replace").splitlines()
        return Transcript(lines, status, hung, errors.read().decode(errors="replace"))


def problems_of(run, tcp, shm, counted, expected):
    """Category and lines for each way in which the two differ; [] when they agree."""
    found = []
    if tcp.hung or tcp.status != 0:
        found.append(("test", [f"over TCP: {'hung' if tcp.hung else f'exit status {tcp.status}'}", *tcp.lines[-5:]]))
    elif any(line.startswith("SET-UP FAILED") for line in tcp.lines):
        found.append(("test", tcp.lines[-5:]))
    if shm is None:
        return found
    excused = (run.case, "transcript") in expected
    if excused and (shm.hung or shm.status != tcp.status):
        return found
    if shm.hung:
        found.append(("hang", ["stuck after:", *shm.lines[-4:]]))
    elif shm.status != tcp.status:
        found.append(("died", [f"exit status {shm.status} instead of {tcp.status}"]))
    if "Sanitizer" in shm.stderr or "runtime error" in shm.stderr:
        found.append(("sanitizer", shm.stderr.splitlines()[:25]))
    elif shm.stderr.strip():
        found.append(("stderr", shm.stderr.splitlines()[:5]))
    if tcp.lines != shm.lines and (run.case, "transcript") not in expected and not (shm.hung and
                                                                                  tcp.lines[:len(shm.lines)] == shm.lines):
        diff = list(difflib.unified_diff(tcp.lines, shm.lines, "tcp", "unclot", n=2, lineterm=""))[2:]
        found.append(("transcript", diff[:24]))
    wanted = COUNTER.get(run.flavour)
    if run.asserted and wanted and not shm.hung and counted.get(wanted, 0) < 1:
        found.append(("path", [f"{wanted} did not move: the connection was not on that path"]))
    return found


class Driver:
    def __init__(self, build, arguments):
        self.build = build
        self.arguments = arguments
        self.expected = results.read_expected(EXPECTED)
        self.pools = queue.Queue()
        self.stopping = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)

    def stop(self, *_):
        """Asked to end: what runs now is the last, and no pool stays behind."""
        self.stopping = True

    def discover(self):
        runs = []
        six, without = has_six(), 0
        for program in self.build.programs:
            if not os.path.exists(program):
                fail(f"{program} is not built")
            listed = subprocess.run([program, "--list"], check=True, capture_output=True, text=True,
                                    env=self.build.environment(True)).stdout
            for line in listed.splitlines():
                case, modes, flavours, path, ip = line.split()
                if self.arguments.only and not any(part in case for part in self.arguments.only):
                    continue
                if ip == "six" and not six:
                    without += 1
                    continue
                for mode in modes.split(","):
                    for flavour in flavours.split(","):
                        if mode in self.arguments.modes and flavour in self.arguments.flavours:
                            runs.append(Run(program, case, flavour, mode, path == "path"))
        if without:
            print(f"{without} cases are not run: this machine has no ::1")
        return runs

    def one(self, run):
        if self.stopping:
            return [("not run", [])], None, None
        command = [run.program, run.case, run.flavour, run.mode]
        patience = self.arguments.timeout * (4 if self.build.sanitizers not in ("none", []) else 1)
        tcp = execute(command, self.build.environment(True), patience)
        if self.arguments.stability:
            for _ in range(self.arguments.stability - 1):
                again = execute(command, self.build.environment(True), patience)
                if again.lines != tcp.lines:
                    diff = list(difflib.unified_diff(tcp.lines, again.lines, "first", "again", n=2, lineterm=""))[2:]
                    return [("unstable", diff[:20])], tcp, again
            return problems_of(run, tcp, None, {}, self.expected), tcp, None
        pool = self.pools.get()
        try:
            before = pool.counters()
            shm = execute(pool.command(command), self.build.environment(False), patience)
            after = pool.counters()
        finally:
            self.pools.put(pool)
        counted = {name: value - before.get(name, 0) for name, value in after.items()}
        problems = problems_of(run, tcp, shm, counted, self.expected)
        # The reference itself may vary (a signal that came before the sleep, on a busy machine): UNCLOT has to do what
        # TCP does at least sometimes.  What UNCLOT printed stays as it is.
        for _ in range(REFERENCES - 1):
            if not problems or not {category for category, _ in problems} <= {"transcript", "test"}:
                break
            tcp = execute(command, self.build.environment(True), patience)
            problems = problems_of(run, tcp, shm, counted, self.expected)
        return problems, tcp, shm

    def all(self):
        runs = self.discover()
        outcomes = []
        jobs = self.arguments.jobs
        if not self.arguments.stability:
            for _ in range(jobs):
                self.pools.put(Pool(self.build))
        try:
            with concurrent.futures.ThreadPoolExecutor(jobs) as workers:
                for run, (problems, tcp, shm) in zip(runs, workers.map(self.one, runs)):
                    outcomes.append((run, problems))
                    if problems and not self.stopping:
                        self.show(run, problems)
                    if self.arguments.transcript and tcp:
                        print(f"--- {run.case} {run.flavour} {run.mode}", *(shm or tcp).lines, sep="\n")
        finally:
            while not self.pools.empty():
                self.pools.get().close()
        return outcomes

    @staticmethod
    def show(run, problems):
        print(f"FAIL {run.case} {run.flavour} {run.mode} ({os.path.basename(run.program)})")
        for category, lines in problems:
            print(f"  {category}:")
            for line in lines:
                print(f"    {line}")
        sys.stdout.flush()


def self_test():
    """The comparison notices what it is there to notice."""
    run = Run("p", "case", "direct", "one", True)
    good = Transcript(["send = 1", 'recv = 1 "x"'], 0, False, "")
    path = {"connections_direct": 1}

    def categories(shm, counted=path, expected=frozenset(), tcp=good):
        return [category for category, _ in problems_of(run, tcp, shm, counted, expected)]

    checks = [
        ("equal", categories(good), []),
        ("a different errno", categories(good._replace(lines=["send = -1 EPIPE", 'recv = 1 "x"'])), ["transcript"]),
        ("a line less", categories(good._replace(lines=good.lines[:1])), ["transcript"]),
        ("a line more", categories(good._replace(lines=good.lines + ["x"])), ["transcript"]),
        ("another order", categories(good._replace(lines=good.lines[::-1])), ["transcript"]),
        ("a hang", categories(good._replace(hung=True, status=None, lines=good.lines[:1])), ["hang"]),
        ("a crash", categories(good._replace(status=-11)), ["died"]),
        ("a complaint", categories(good._replace(stderr="unclot: what?")), ["stderr"]),
        ("a sanitizer report", categories(good._replace(stderr="ERROR: AddressSanitizer: x")), ["sanitizer"]),
        ("the wrong path", categories(good, counted={"connections_tcp": 1}), ["path"]),
        ("an expected difference", categories(good._replace(lines=[]), expected={("case", "transcript")}), []),
        ("a broken set-up", categories(good._replace(lines=["SET-UP FAILED: x"]),
                                       tcp=good._replace(lines=["SET-UP FAILED: x"])), ["test"]),
        ("a broken test", categories(good, tcp=good._replace(status=2)), ["test", "died"]),
    ]
    with tempfile.TemporaryDirectory() as directory:
        script = pathlib.Path(directory) / "sleeper"
        script.write_text("#!/bin/sh\necho begun\nsleep 30\n")
        script.chmod(0o755)
        begin = time.monotonic()
        hung = execute([str(script)], dict(os.environ), 0.5)
        checks.append(("the time limit", (hung.hung, hung.lines, time.monotonic() - begin < 5), (True, ["begun"], True)))
    wrong = [(what, got, wanted) for what, got, wanted in checks if got != wanted]
    for what, got, wanted in wrong:
        print(f"FAIL self-test: {what}: {got} instead of {wanted}")
    print(f"{len(checks) - len(wrong)} passed, {len(wrong)} failed")
    return 1 if wrong else 0


def parse():
    parser = argparse.ArgumentParser(description="Differential conformance of the socket calls: TCP against UNCLOT.")
    parser.add_argument("--build", default="build", help="meson build directory; a sanitizer build works too")
    parser.add_argument("--only", action="append", help="cases whose name has this in it (again for more)")
    parser.add_argument("--flavours", default="direct,upgraded,first", type=lambda text: text.split(","))
    parser.add_argument("--modes", default="one,fork,exec", type=lambda text: text.split(","))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=25, help="seconds that a case may take (default 25)")
    parser.add_argument("--json", metavar="FILE", help="write the outcomes there")
    parser.add_argument("--document", metavar="FILE", help="write docs/compatibility.md from the outcomes")
    parser.add_argument("--stability", type=int, metavar="N", help="run N times over TCP only: always the same?")
    parser.add_argument("--transcript", action="store_true", help="print what each run printed")
    parser.add_argument("--self-test", action="store_true", help="check the comparison itself")
    return parser.parse_args()


def main():
    arguments = parse()
    if arguments.self_test:
        return self_test()
    build = Build(arguments.build)
    if not build.programs:
        fail(f"no conformance programs in {build.path}")
    if not arguments.stability and not (build.unclot and os.path.exists(build.unclot)):
        fail(f"no `unclot` in {build.path}: build it first")
    outcomes = Driver(build, arguments).all()
    records = [{"program": os.path.basename(run.program).removeprefix("conformance-"), "case": run.case,
                "flavour": run.flavour, "mode": run.mode, "problems": [category for category, _ in problems],
                "details": {category: lines for category, lines in problems}} for run, problems in outcomes]
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(records, indent=1) + "\n")
    if arguments.document:
        pathlib.Path(arguments.document).write_text(results.document(records, EXPECTED))
    failed = sum(1 for _, problems in outcomes if problems)
    categories = collections.Counter(category for _, problems in outcomes for category, _ in problems)
    if categories:
        print("differences: " + ", ".join(f"{name} {count}" for name, count in categories.most_common()))
    print(f"{len(outcomes) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
