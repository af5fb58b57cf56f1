#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What must hold when members are killed or stopped, memory or the agent is missing, or the way is not what it seems.

Each test has a private pool; the programs are those of this directory (talk, step, hostile), every byte is checked.
The tests are in traffic.py, deaths.py, steps.py, places.py and loading.py; --help tells the rest.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import stage  # noqa: E402
import traffic  # noqa: E402,F401
import deaths  # noqa: E402,F401
import steps  # noqa: E402,F401
import places  # noqa: E402,F401
import loading  # noqa: E402,F401

if __name__ == "__main__":
    sys.exit(stage.main(__doc__.splitlines()[0]))
