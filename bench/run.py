#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measures UNCLOT against kernel TCP, and prints one table.

usage: bench/run.py [options] ROW... | all | demo | list

Each row is one line (or several) of the figures to reach, and alternates between its sides: TCP, a UNIX socket where
the program can use one, UNCLOT, and Open MPI's shared memory.  docs/performance.md says what each row does.
"""
import argparse
import json
import os
import platform
import signal
import sys
import time

from harness import demo, machine, plots, report, rows_http, rows_mpi, rows_socket
from harness.sides import SOURCE, Bench

ROWS = {row.name: row for row in rows_mpi.ROWS + rows_socket.ROWS + rows_http.ROWS}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", metavar="ROW", help="a row's name; `all`, `demo`, or `list`")
    parser.add_argument("--build", help="build directory (default: $UNCLOT_BUILD, then build/)")
    parser.add_argument("--runs", type=int, help="runs per side (default: 5; quick: 1; demo: %d)" % demo.RUNS)
    parser.add_argument("--seconds", type=float, help="length of one measurement (default: 2; quick, demo: 1)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs: does it work at all")
    parser.add_argument("--full", action="store_true", help="row memory: 100 000 connections instead of 10 000")
    parser.add_argument("--sides", help="only these, by commas: tcp,unix,unclot,ideal")
    parser.add_argument("--address", default="127.0.0.1", help="local address that servers listen on")
    parser.add_argument("--interface", help="interface for Open MPI (default: the one of --address)")
    parser.add_argument("--omb", metavar="DIR", help="use the OSU micro-benchmarks built in DIR for the MPI rows")
    parser.add_argument("--all-points", action="store_true", help="every message size in the table")
    parser.add_argument("--json", metavar="FILE", help="write every figure there")
    parser.add_argument("--plots", metavar="DIR", help="write PNG figures there")
    options = parser.parse_args()
    if options.runs is not None and options.runs < 1 or options.seconds is not None and not 0 < options.seconds <= 30:
        parser.error("--runs must be at least 1, --seconds above 0 and at most 30")
    is_demo = options.rows == ["demo"]
    options.runs = options.runs or (demo.RUNS if is_demo else 1 if options.quick else 5)
    options.seconds = options.seconds or (1.0 if options.quick or is_demo else 2.0)
    options.quick = options.quick or is_demo
    if options.interface is None:
        options.interface = "lo" if options.address.startswith("127.") else options.address + "/32"
    if is_demo:
        options.json = options.json or os.path.join(SOURCE, "results", "demo.json")
        options.plots = options.plots or os.path.join(SOURCE, "results")
        return options, [row() for row in demo.ROWS]
    names = list(ROWS) if options.rows == ["all"] else options.rows
    for name in names:
        if name not in ROWS and name != "list":
            parser.error("no row %r; there are: %s" % (name, ", ".join(ROWS)))
    return options, [ROWS[name]() for name in names if name != "list"]


def describe_machine():
    with open("/proc/cpuinfo") as file:
        model = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return {"kernel": platform.release(), "machine": platform.machine(), "cpu": model[0] if model else "?",
            "cpus": len(machine.cpus()), "server_cpu": machine.SERVER_CPU, "client_cpu": machine.CLIENT_CPU}


def interrupted(*_):
    raise KeyboardInterrupt


def main():
    options, rows = parse()
    if "list" in options.rows:
        for row in ROWS.values():
            print("%-14s row %-4s %s" % (row.name, row.number, row.title))
        return 0
    signal.signal(signal.SIGTERM, interrupted)
    about = describe_machine()
    print("%(cpu)s, %(cpus)d CPUs, Linux %(kernel)s; servers on CPU %(server_cpu)d, clients on CPU %(client_cpu)d"
          % about)
    start = time.monotonic()
    results = []
    bench = Bench(options)
    try:
        for row in rows:
            results.append(report.measure(bench, row, options.runs,
                                          options.sides.split(",") if options.sides else None, machine.say))
    except KeyboardInterrupt:
        machine.say("interrupted")
    finally:
        bench.close()
    print(report.table(results, options.all_points))
    if bench.proof.excerpt:
        print("\n`unclot ps` while it ran:\n" + bench.proof.excerpt)
    if options.json:
        os.makedirs(os.path.dirname(os.path.abspath(options.json)), exist_ok=True)
        with open(options.json, "w") as file:
            json.dump({"machine": about, "runs": options.runs, "seconds": options.seconds, "address": options.address,
                       "took_seconds": round(time.monotonic() - start, 1), "rows": [r.as_json() for r in results]},
                      file, indent=1)
        print("figures: " + options.json)
    for path in plots.plot(results, options.plots) if options.plots else []:
        print("plot: " + path)
    complete = len(results) == len(rows) and all(
        not result.failures and all(entry["valid"] for entry in result.evidence) for result in results)
    return 0 if complete else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except machine.Failure as failure:
        sys.exit("bench: %s" % failure)
