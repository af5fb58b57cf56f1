# SPDX-License-Identifier: BSD-3-Clause
"""The three figures of the original evaluation, by gnuplot: bandwidth and latency over message size, requests a second
over connections.

Used by bench/run.py after the table.  A figure whose row was not measured is left out.
"""
import os
import re
import shutil
import subprocess

from .rows_mpi import SIZES, label
from .sides import IDEAL, TCP, UNCLOT

NAMES = {TCP: "TCP", UNCLOT: "UNCLOT", IDEAL: "Open MPI shared memory"}

SCRIPT = """
set terminal pngcairo size 900,600 font 'sans,12'
set output '{output}'
set title '{title}'
set xlabel '{x}'
set ylabel '{y}'
set logscale x 2
set logscale y 10
set format x "{format}"
set grid
set key left top
plot {curves}
"""


def series(result, to_x):
    """{side: [(x, median)]} of the points that to_x() gives an x."""
    found = {}
    for cell in result.cells:
        x = to_x(cell.name)
        for side in cell.figures if x is not None else ():
            if side in NAMES and cell.median(side):
                found.setdefault(side, []).append((x, cell.median(side)))
    return found


def draw(output, title, x, y, format_x, curves):
    blocks, parts = "", []
    for side in NAMES:
        if side in curves:
            blocks += "$%s << EOD\n%s\nEOD\n" % (side, "\n".join("%g %g" % point for point in sorted(curves[side])))
            parts.append("$%s using 1:2 with linespoints lw 2 title '%s'" % (side, NAMES[side]))
    script = blocks + SCRIPT.format(output=output, title=title, x=x, y=y, format=format_x, curves=", ".join(parts))
    subprocess.run(["gnuplot"], input=script, text=True, check=True, timeout=30)


def plot(results, directory):
    """Writes the PNG files; their paths."""
    if shutil.which("gnuplot") is None:
        return []
    sizes = {label(size): size for size in SIZES}

    def connections(name):
        found = re.match(r"return 200, (\d+) conn", name)
        return int(found.group(1)) if found else None

    plans = {
        "mpi-bandwidth": ("bandwidth.png", "MPI bandwidth", "message size (bytes)", "GB/s", "%.0b %BB", sizes.get),
        "mpi-latency": ("latency.png", "MPI latency", "message size (bytes)", "microseconds", "%.0b %BB", sizes.get),
        "nginx": ("requests.png", "nginx and wrk, keep-alive", "connections", "thousand requests/s", "%g", connections),
    }
    written = []
    os.makedirs(directory, exist_ok=True)
    for result in results:
        if result.row.name in plans:
            name, title, x, y, format_x, to_x = plans[result.row.name]
            curves = series(result, to_x)
            if curves:
                written.append(os.path.join(directory, name))
                draw(written[-1], title, x, y, format_x, curves)
    return written
