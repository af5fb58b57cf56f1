# SPDX-License-Identifier: BSD-3-Clause
"""Rows, their figures and targets, and how they are printed.

A row measures named points on several sides, several times; a cell is one point's figures on all sides.  Invariant:
what is compared is medians of runs that alternated between the sides; a ratio above 1 always means that UNCLOT is the
better one, whatever the unit.
"""
import statistics

from .machine import Failure
from .sides import IDEAL, TCP, UNCLOT, UNIX

LOWER, HIGHER = "lower", "higher"


class Target:
    """A goal in words, and whether a cell meets it: None when the cell lacks the figures to tell."""

    def __init__(self, text, met):
        self.text = text
        self._met = met

    def met(self, cell):
        try:
            return bool(self._met(cell))
        except TypeError:  # a side is missing: arithmetic with None
            return None


def times(factor):
    """So many times better than TCP."""
    return Target(">= %gx" % factor, lambda cell: cell.ratio() >= factor)


def at_most(value):
    return Target("<= %g" % value, lambda cell: cell.median(UNCLOT) <= value)


def at_least(value):
    return Target(">= %g" % value, lambda cell: cell.median(UNCLOT) >= value)


def of_limit(share):
    return Target(">= %g of limit" % share, lambda cell: cell.median(UNCLOT) >= share * cell.limit)


class Cell:
    """One point: its unit, which way is better, targets, and the figures of every side."""

    def __init__(self, name, unit, better, first=None, real=None, shown=True):
        self.name = name
        self.unit = unit
        self.better = better
        self.first = first
        self.real = real
        self.shown = shown  # in the table
        self.figures = {}
        self.limit = None

    def add(self, side, value):
        self.figures.setdefault(side, []).append(value)

    def median(self, side):
        values = self.figures.get(side)
        return statistics.median(values) if values else None

    def ratio(self):
        tcp, unclot = self.median(TCP), self.median(UNCLOT)
        if tcp is None or unclot is None:
            return None
        above, below = (unclot, tcp) if self.better == HIGHER else (tcp, unclot)
        return above / below if below else float("inf") if above else 1.0

    def as_json(self):
        return {
            "point": self.name, "unit": self.unit, "better": self.better, "limit": self.limit, "ratio": self.ratio(),
            "sides": {side: {"median": statistics.median(v), "min": min(v), "max": max(v), "runs": v}
                      for side, v in self.figures.items() if v},
            "targets": {name: {"text": target.text, "met": target.met(self)}
                        for name, target in (("first", self.first), ("real", self.real)) if target},
        }


class Row:
    """What a file of rows defines: override points() and measure(), and limits() where there is one."""

    name = ""
    number = 0  # in the table of figures to reach
    title = ""
    sides = (TCP, UNCLOT)
    needs_proof = True  # false: no connections are made
    note = ""  # for the reader of the table; may be set while measuring

    def points(self, bench):
        """The cells, in the order of the table."""
        raise NotImplementedError

    def measure(self, bench, side):
        """One run on one side. Yields {point name: value} after each client: what is yielded together stands or
        falls by the same evidence. A point that does not apply to the side is left out."""
        raise NotImplementedError

    def limits(self, bench):
        """{point name: bare limit}, once."""
        return {}

    def finish(self, cells):
        """After all runs: figures that need several sides."""


class Result:
    """A measured row."""

    def __init__(self, row, cells):
        self.row = row
        self.cells = cells
        self.evidence = []  # one entry per UNCLOT run
        self.failures = []  # sentences

    def as_json(self):
        return {"row": self.row.name, "number": self.row.number, "title": self.row.title, "note": self.row.note,
                "points": [cell.as_json() for cell in self.cells], "evidence": self.evidence,
                "failures": self.failures}


def short(value):
    if value is None:
        return ""
    size = abs(value)
    if size >= 1e6:
        return "%.3gM" % (value / 1e6)
    if size >= 1e4:
        return "%.3gk" % (value / 1e3)
    return "%.3g" % value if size < 100 else "%.0f" % value


def with_spread(cell, side):
    values = cell.figures.get(side)
    if not values:
        return ""
    text = short(statistics.median(values))
    return text + " [%s-%s]" % (short(min(values)), short(max(values))) if len(values) > 1 else text


def verdict(target, cell):
    if target is None:
        return ""
    return target.text + {True: " yes", False: " NO", None: " ?"}[target.met(cell)]


def table(results, all_points=False):
    """Text: one line per point; columns that are empty everywhere are left out."""
    heads = ["#", "measure", "unit", "TCP", "UNIX socket", "UNCLOT", "MPI shm", "limit", "ratio",
             "first goal", "real goal"]
    lines = []
    for result in results:
        for cell in result.cells:
            if not cell.shown and not all_points:
                continue
            ratio = cell.ratio()
            lines.append([
                str(result.row.number), result.row.name + " " + cell.name, cell.unit, with_spread(cell, TCP),
                with_spread(cell, UNIX), with_spread(cell, UNCLOT), with_spread(cell, IDEAL), short(cell.limit),
                "" if ratio is None else "%.2fx" % ratio, verdict(cell.first, cell), verdict(cell.real, cell)])
    keep = [i for i in range(len(heads)) if i < 3 or any(line[i] for line in lines)]
    widths = {i: max([len(heads[i])] + [len(line[i]) for line in lines]) for i in keep}
    left = {1, 2, 9, 10}

    def fit(line):
        return "  ".join(line[i].ljust(widths[i]) if i in left else line[i].rjust(widths[i]) for i in keep).rstrip()

    text = [fit(heads), "  ".join("-" * widths[i] for i in keep)] + [fit(line) for line in lines]
    for result in results:
        if result.row.note:
            text.append("%s: %s" % (result.row.name, result.row.note))
        for entry in result.evidence:
            if not entry["valid"]:
                text.append("%s: run %d on UNCLOT was not counted for %s: %s" % (
                    result.row.name, entry["run"], ", ".join(entry["points"]), entry["why"]))
        for failure in result.failures:
            text.append("%s: %s" % (result.row.name, failure))
    return "\n".join(text)


def examine(proof, result, run, values):
    """Notes the evidence for these points of a run on UNCLOT; whether they count."""
    valid = proof.holds()
    result.evidence.append({"run": run + 1, "points": list(values), "seen": proof.seen, "counted": proof.counted,
                            "share": proof.share(), "reasons": dict(proof.reasons), "valid": valid,
                            "why": None if valid else proof.why()})
    return valid


def measure(bench, row, runs, sides=None, progress=lambda text: None):
    """All runs of a row, alternating between its sides; the order turns round every time."""
    cells = row.points(bench)
    by_name = {cell.name: cell for cell in cells}
    result = Result(row, cells)
    wanted = [side for side in row.sides if sides is None or side in sides]
    broken = set()
    try:
        for name, value in row.limits(bench).items():
            by_name[name].limit = value
    except (OSError, ValueError, KeyError, Failure) as failure:
        result.failures.append("no limit: %s" % failure)
    for run in range(runs):
        for side in wanted if run % 2 == 0 else reversed(wanted):
            if side in broken:
                continue
            progress("%s, run %d of %d, %s" % (row.name, run + 1, runs, side))
            bench.proof.reset()
            try:
                for values in row.measure(bench, side):
                    if side != UNCLOT or not row.needs_proof or examine(bench.proof, result, run, values):
                        for name, value in values.items():
                            by_name[name].add(side, value)
                    bench.proof.reset()
            except (OSError, ValueError, KeyError, Failure) as failure:
                result.failures.append("%s: %s" % (side, failure))
                broken.add(side)
    row.finish(by_name)
    return result
