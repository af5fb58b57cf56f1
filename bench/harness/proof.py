# SPDX-License-Identifier: BSD-3-Clause
"""Evidence that what was measured as UNCLOT went through memory: `unclot ps --json`, looked at while it ran.

Used by Bench around every client.  Few looks, because they take CPU time from what is being measured.  Connections
that no look saw, because none lived long enough, are told from the pool's counters.  (Counters alone would not do:
wrk, for one, makes a connection first that it closes at once and that carries nothing.)  Invariant: figures without
evidence, or with more than a few connections on TCP, are marked invalid and not used.  The last look that saw any
counts: a connection starts on TCP, and is upgraded when both ends have come to use it.
"""
import contextlib
import json
import subprocess
import threading

FIRST_LOOK = 0.25  # seconds after the client was started
NEXT_LOOK = 0.5
NO_CONNECTION = {"listen", "queued", "refused"}  # states of entries that carry nothing
EXCERPT_LINES = 12
ENOUGH = 0.9  # share of connections that must be in memory


class Proof:
    def __init__(self, bench):
        self._bench = bench
        self.reset()
        self.excerpt = ""

    def reset(self):
        self.seen = {"shm": 0, "tcp": 0}
        self.counted = {"shm": 0, "tcp": 0}
        self.reasons = {}

    def evidence(self):
        """Connections by path: those seen, else those counted."""
        return self.seen if any(self.seen.values()) else self.counted

    def share(self):
        """Of the connections seen, those in memory; None when none was seen."""
        by_path = self.evidence()
        return by_path["shm"] / sum(by_path.values()) if any(by_path.values()) else None

    def holds(self):
        share = self.share()
        return share is not None and share >= ENOUGH

    def why(self):
        if self.share() is None:
            return "no connection was seen by `unclot ps`"
        worst = sorted(self.reasons, key=self.reasons.get, reverse=True)[:3]
        by_path = self.evidence()
        return "%d of %d connections were on TCP (%s)" % (by_path["tcp"], sum(by_path.values()),
                                                          ", ".join(worst) or "too short to be seen")

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
        """One look at every socket of the pool; replaces the one before unless nothing is there any more."""
        seen, reasons = {"shm": 0, "tcp": 0}, {}
        try:
            answer = json.loads(self._ask("ps", "--json") or "[]")
        except ValueError:
            return
        for entry in answer.get("sockets", []) if isinstance(answer, dict) else answer:
            path = entry.get("path")
            if entry.get("state") in NO_CONNECTION or path not in seen:
                continue
            seen[path] += 1
            if path == "tcp":
                reason = entry.get("reason", "?")
                reasons[reason] = reasons.get(reason, 0) + 1
        if any(seen.values()):
            self.seen, self.reasons = seen, reasons

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

        self.counted["shm"] += grown("connections_direct") + grown("connections_upgraded")
        self.counted["tcp"] += grown("connections_tcp")
