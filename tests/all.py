#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Builds UNCLOT, plain, with ASan and UBSan, and with TSan, and runs every test on the first two, unit tests on the third.

Called by ./test.  What it runs: the layout of the code (clang-format; with --lint clang-tidy as well), `meson test`,
and every driver tests/NAME/run.py.  A driver takes --build DIR, ends with a line "N passed, N failed" and a status
that is not 0 when something failed.  Invariant: the last line printed is "N passed, N failed", alone, and what could
not be run counts as failed.  What failed is printed once more before it, because a reader may have only the end.
"""
import argparse
import glob
import json
import os
import re
import signal
import subprocess
import sys
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TIME_FOR_ALL = 55 * 60
TIME_FOR_ONE = 25 * 60
COUNT = re.compile(r"^\s*(\d+) passed, (\d+) failed", re.M)

# Another library stands in front of the ASan runtime when a program runs under `unclot run`, which is meant.
SANITIZER_ENVIRONMENT = {
    "ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}
BUILDS = {
    "plain": ("build", [], {}),
    "sanitized": ("build-asan",
                  ["-Db_sanitize=address,undefined", "-Db_lundef=false", "-Doptimization=1", "-Ddebug=true"],
                  SANITIZER_ENVIRONMENT),
    # Data races: the parts with threads of their own under test; few places to stop at, because each step is slow.
    "threads": ("build-tsan",
                ["-Db_sanitize=thread", "-Db_lundef=false", "-Doptimization=1", "-Ddebug=true"],
                {"TSAN_OPTIONS": "halt_on_error=1", "UNCLOT_TEST_PLACES": "2"}),
}
ONLY_TESTS = {"threads": ["chunk", "ring", "waiter", "listener", "connection"]}


class Tally:
    def __init__(self):
        self.passed = self.failed = 0
        self.start = time.monotonic()
        self.failures = []

    def left(self):
        return max(0.0, TIME_FOR_ALL - (time.monotonic() - self.start))

    def add(self, what, passed, failed, took=None, out=""):
        self.passed += passed
        self.failed += failed
        if failed:
            self.failures.append((what, out))
        print("%-40s %4d passed, %d failed%s" % (what, passed, failed, "" if took is None else "  (%.0f s)" % took),
              flush=True)


def sanitizer_runtime():
    """What programs that are not ours must load first, under the sanitized library."""
    out = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    return os.path.realpath(out.stdout.strip())


def descendants(pid):
    """The process and all that came from it; some runners put their tests into sessions of their own."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name) as file:
                    parents.setdefault(int(file.read().rsplit(")", 1)[1].split()[1]), []).append(int(name))
            except (OSError, IndexError):
                pass
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def end_all(process):
    """Asks first, so that runners stop the agents that they started; then makes sure."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        pass
    for pid in descendants(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def run(argv, limit, env=None):
    """(status, output) of a command; status None when it took too long. What it started ends with it."""
    process = subprocess.Popen(argv, cwd=SOURCE, env=dict(os.environ, **env or {}), stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                               start_new_session=True)
    try:
        out, _ = process.communicate(timeout=max(1.0, limit))
        return process.returncode, out
    except subprocess.TimeoutExpired:
        end_all(process)
        out, _ = process.communicate()
        return None, out
    except BaseException:
        end_all(process)
        raise


def indent(text, lines=60):
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:])


def without_passed(text):
    """The output of a runner, less its lines that say "ok"."""
    return "\n".join(line for line in text.splitlines()
                     if line.strip() and not re.search(r"\b(ok|OK)(\s+[\d.]+\s?s)?\s*$", line))


def sources():
    found = []
    for part in ("src", "include", "tests", "bench", "guest"):
        for pattern in ("*.c", "*.h"):
            found += glob.glob(os.path.join(SOURCE, part, "**", pattern), recursive=True)
    return sorted(found)


def check_layout(tally):
    status, out = run(["clang-format", "--dry-run", "-Werror", "--style=file"] + sources(), 120)
    wrong = set(re.findall(r"^(.*?):\d+:\d+: error:", out, re.M))
    for name in sorted(wrong):
        print("    clang-format -i " + os.path.relpath(name, SOURCE))
    failed = len(wrong) or int(status != 0)
    tally.add("clang-format", len(sources()) - len(wrong) if not status or wrong else 0, failed)


def check_tidy(tally, build):
    """Every file that is compiled; two at a time."""
    with open(os.path.join(SOURCE, build, "compile_commands.json")) as file:
        files = sorted({os.path.normpath(os.path.join(entry["directory"], entry["file"])) for entry in json.load(file)})
    files = [name for name in files if name.startswith(SOURCE + os.sep) and name.endswith(".c")]
    waiting, running, failed = list(files), [], 0
    start = time.monotonic()
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            name = waiting.pop()
            running.append((name, subprocess.Popen(["clang-tidy", "--quiet", "-p", build, name], cwd=SOURCE,
                                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)))
        name, process = running.pop(0)
        out, _ = process.communicate()
        if process.returncode != 0:
            failed += 1
            print(indent(out))
    tally.add("clang-tidy", len(files) - failed, failed, time.monotonic() - start)


def build(tally, name):
    directory, options, _ = BUILDS[name]
    start = time.monotonic()
    again = ["--reconfigure"] if os.path.exists(os.path.join(SOURCE, directory, "build.ninja")) else []
    for argv in (["meson", "setup", *again, *options, directory], ["ninja", "-C", directory]):
        status, out = run(argv, min(TIME_FOR_ONE, tally.left()))
        if status != 0:
            print(indent(out))
            tally.add(name + ": build", 0, 1, time.monotonic() - start, out)
            return False
    tally.add(name + ": build", 1, 0, time.monotonic() - start)
    return True


def meson_counts(log):
    """(passed, failed, names of what failed): single tests where a runner counted them, else programs."""
    passed = failed = 0
    names = []
    with open(log) as file:
        for line in file:
            entry = json.loads(line)
            if entry["result"] == "SKIP":
                continue
            text = (entry.get("stdout") or "") + (entry.get("stderr") or "")
            good = sum(map(int, re.findall(r"\[  PASSED  \] (\d+) test", text)))
            bad = sum(map(int, re.findall(r"\[  FAILED  \] .*?(\d+) test", text)))
            counts = COUNT.findall(text)
            if counts:
                good, bad = map(int, counts[-1])
            ran = sum(map(int, re.findall(r"^Ran (\d+) tests? in", text, re.M)))
            if ran:
                bad += sum(map(int, re.findall(r"\b(?:failures|errors|unexpected successes)=(\d+)", text)))
                good += max(0, ran - bad - sum(map(int, re.findall(r"\bskipped=(\d+)", text))))
            if entry["result"] in ("OK", "EXPECTEDFAIL"):
                passed += good or 1
            else:
                passed += good
                failed += bad or 1
                names.append(entry["name"])
    return passed, failed, names


def meson_tests(tally, name):
    directory, _, env = BUILDS[name]
    log = os.path.join(SOURCE, directory, "meson-logs", "testlog.json")
    if os.path.exists(log):
        os.unlink(log)
    start = time.monotonic()
    # One after the other: some measure that nothing happens, or how soon something does.
    status, out = run(["meson", "test", "-C", directory, "--no-rebuild", "--print-errorlogs",
                       "--num-processes", "1", "--timeout-multiplier", "3" if env else "1",
                       *ONLY_TESTS.get(name, [])],
                      min(TIME_FOR_ONE, tally.left()), env)
    if not os.path.exists(log):
        if status == 0:
            return  # no test is defined
        print(indent(out))
        tally.add(name + ": meson test", 0, 1, out=out)
        return
    passed, failed, names = meson_counts(log)
    if status != 0:
        print(indent(out, 200))
        failed = failed or 1
    for one in names:
        print("    failed: " + one)
    tally.add(name + ": meson test", passed, failed, time.monotonic() - start, out)


def drivers(directory):
    """Those that `meson test` does not run already, as the test of that name."""
    _, out = run(["meson", "introspect", "--tests", directory], 60)
    known = {test["name"] for test in json.loads(out)}
    return [driver for driver in sorted(glob.glob(os.path.join(SOURCE, "tests", "*", "run.py")))
            if os.path.basename(os.path.dirname(driver)) not in known]


def driver_tests(tally, name, only):
    directory, _, env = BUILDS[name]
    if env:
        env = dict(env, UNCLOT_SANITIZER_RUNTIME=sanitizer_runtime())
    for driver in drivers(directory):
        part = os.path.basename(os.path.dirname(driver))
        if only and part not in only:
            continue
        start = time.monotonic()
        status, out = run([sys.executable, driver, "--build", os.path.join(SOURCE, directory)],
                          min(TIME_FOR_ONE, tally.left()), env)
        counts = COUNT.findall(out)
        passed, failed = map(int, counts[-1]) if counts else (int(status == 0), 0)
        if status != 0:
            failed = failed or 1
            print(indent(out, 200))
            if status is None:
                print("    stopped: it took too long")
        tally.add("%s: tests/%s" % (name, part), passed, failed, time.monotonic() - start, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lint", action="store_true", help="clang-format and clang-tidy only")
    parser.add_argument("--build", choices=list(BUILDS), action="append", help="only this build")
    parser.add_argument("--only", action="append", metavar="NAME", help="only `meson` or the driver tests/NAME/run.py")
    options = parser.parse_args()
    os.chdir(SOURCE)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    tally = Tally()
    if not options.only:
        check_layout(tally)
    if options.lint:
        if build(tally, "plain"):
            check_tidy(tally, BUILDS["plain"][0])
    else:
        for name in options.build or BUILDS:
            if build(tally, name):
                if not options.only or "meson" in options.only:
                    meson_tests(tally, name)
                if name not in ONLY_TESTS:
                    driver_tests(tally, name, options.only)
    for what, out in tally.failures:
        print("failed: %s" % what)
        print(indent(without_passed(out), 40))
    print("%d passed, %d failed" % (tally.passed, tally.failed))
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())
