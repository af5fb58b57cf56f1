# SPDX-License-Identifier: BSD-3-Clause
"""Evidence that what was measured as UNCLOT went through memory: `unclot ps --json`, looked at while it ran.

Used by Bench around every client.  Few looks, because they take CPU time from what is being measured.  Invariant: a
run without evidence, or with most connections on TCP, is marked invalid, and its figure is not used.
"""
import contextlib
import json
import subprocess
import threading

FIRST_LOOK = 0.25  # seconds after the client was started
NEXT_LOOK = 1.0
EXCERPT_LINES = 12
ENOUGH = 0.9  # share of connections that must be in memory


class Proof:
    def __init__(self, bench):
        self._bench = bench
        self.reset()
        self.excerpt = ""

    def reset(self):
        self.shm = self.tcp = 0
        self.reasons = {}

    def share(self):
        """Of the connections seen, those in memory; None when none was seen."""
        return self.shm / (self.shm + self.tcp) if self.shm + self.tcp else None

    def holds(self):
        share = self.share()
        return share is not None and share >= ENOUGH

    def why(self):
        if self.share() is None:
            return "no connection was seen by `unclot ps`"
        worst = sorted(self.reasons, key=self.reasons.get, reverse=True)[:3]
        return "%d of %d connections were on TCP (%s)" % (self.tcp, self.tcp + self.shm, ", ".join(worst) or "?")

    @contextlib.contextmanager
    def watching(self, side):
        if side != "unclot":
            yield
            return
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), daemon=True)
        before = self._counters()
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self._count(before, self._counters())

    def _watch(self, done):
        pause = FIRST_LOOK
        while not done.wait(pause):
            self.look()
            if pause == FIRST_LOOK and self.excerpt.count("\n") < EXCERPT_LINES - 1:
                self._keep_excerpt()
            pause = NEXT_LOOK

    def _ask(self, *words):
        command = [self._bench.command, *words, "--socket", self._bench.socket]
        try:
            out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except subprocess.TimeoutExpired:
            return ""
        return out.stdout if out.returncode == 0 else ""

    def look(self):
        """One look at every socket of the pool."""
        try:
            answer = json.loads(self._ask("ps", "--json") or "[]")
        except ValueError:
            return
        for entry in answer.get("sockets", []) if isinstance(answer, dict) else answer:
            if entry.get("state") in ("listen", "listening"):
                continue
            path = entry.get("path")
            if path == "shm":
                self.shm += 1
            elif path == "tcp":
                self.tcp += 1
                reason = entry.get("reason", "?")
                self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def _keep_excerpt(self):
        """What a person sees of `unclot ps` right now, unless less than before."""
        seen = "\n".join(self._ask("ps").splitlines()[:EXCERPT_LINES])
        if seen.count("\n") > self.excerpt.count("\n"):
            self.excerpt = seen

    def _counters(self):
        """Connections by path since the pool began: the only trace of those too short to be seen by `ps`."""
        try:
            return json.loads(self._ask("stat", "--json") or "{}").get("counters", {})
        except ValueError:
            return {}

    def _count(self, before, after):
        def grown(name):
            return max(0, after.get(name, 0) - before.get(name, 0))

        self.shm += grown("connections_direct") + grown("connections_upgraded")
        self.tcp += grown("connections_tcp")
