#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# check.sh MODEL.pml: the model has no error as it is, and has one with each of its switches.
model=$(realpath "$1") || exit 2
command -v spin >/dev/null && command -v cc >/dev/null || exit 77
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 2

errors() # of the model with these switches: prints the number
{
	spin "$@" -a "$model" >spin.log 2>&1 && cc -O2 -w -DSAFETY -DCOLLAPSE -DVECTORSZ=2048 -DMEMLIM=1500 -o pan pan.c || return 1
	./pan -m200000 >pan.log 2>&1
	grep -q 'max search depth too small\|out of memory' pan.log && return 1
	sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.log
}

found=$(errors) && [ "$found" = 0 ] || { cat spin.log pan.log; echo "$model: errors as it is"; exit 1; }
grep 'states, stored' pan.log
for switch in $(sed -n 's/^ \*   \([A-Z][A-Z_]*\)  .*/\1/p' "$model"); do
	found=$(errors "-D$switch") || { cat spin.log pan.log; exit 1; }
	[ "$found" != 0 ] || { echo "$model: no error with $switch"; exit 1; }
	echo "$switch: found"
done
