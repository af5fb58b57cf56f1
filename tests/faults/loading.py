# SPDX-License-Identifier: BSD-3-Clause
"""Connections inherited by programs that cannot use them, and loading while others die.

The program lives on; whoever is at the other end must hear of the end all the same, and no slot stays behind.
"""
import os
import shutil
import signal
import subprocess
import time

from deaths import SOON
from stage import Skipped, expect, test, until

LATE = 3 * SOON  # where the agent may not look into the process


def static(stage):
    path = os.path.join(stage.build, "tests", "faults", "loader-static")
    if not os.path.exists(path):
        raise Skipped("there is no static libc")
    return path


def hand_on(stage, how, program, words=("still",), bare=False, seconds=SOON):
    """The connection goes on to `program`, which says "still" and stays: (server, loader)."""
    server = stage.run([stage.program("loader"), "serve"])
    port = server.port()
    stdin = subprocess.PIPE if how == "spawn" else subprocess.DEVNULL
    loader = stage.run([stage.program("loader"), how, port, program, *words], env={"LOADER_BARE": "1"} if bare else {},
                       stdin=stdin)
    loader.line("^still$")
    start = time.monotonic()
    server.line("^2 hello$")
    server.line(r"^2 (end|ECONNRESET)$", seconds)
    took = time.monotonic() - start
    expect(took < seconds, "the other end heard of it after %.2f s", took)
    expect(loader.running(), "the program was to stay")
    stage.expect_direct(1)
    return server, loader


def members(stage, count):
    until(lambda: stage.stat()["members"] == count, SOON, lambda: "%d members, now %d" % (count, stage.stat()["members"]))


@test(pool=True)
def exec_without_environment(stage):
    hand_on(stage, "go", stage.program("loader"), bare=True)
    members(stage, stage.free_use["members"] + 1)


@test(pool=True)
def exec_static(stage):
    hand_on(stage, "go", static(stage))
    members(stage, stage.free_use["members"] + 1)


@test(pool=True)
def exec_static_without_environment(stage):
    hand_on(stage, "go", static(stage), bare=True)
    members(stage, stage.free_use["members"] + 1)


@test(pool=True)
def exec_static_uses_it(stage):
    """Its calls fail, they do not hang."""
    _, loader = hand_on(stage, "go", static(stage), words=("try",))
    loader.line("^send E[A-Z]+$")
    loader.line("^recv (E[A-Z]+|end)$")


@test(pool=True)
def exec_setuid(stage):
    if os.geteuid() != 0:
        raise Skipped("only root can make one")
    program = os.path.join(stage.directory, "setuid")
    shutil.copy(stage.program("loader"), program)
    os.chown(program, 65534, 65534)
    os.chmod(program, 0o4755)
    hand_on(stage, "go", program, seconds=LATE)
    members(stage, stage.free_use["members"] + 1)


@test(pool=True)
def spawn_static(stage):
    hand_on(stage, "spawn", static(stage))
    members(stage, stage.free_use["members"] + 2)  # the parent is one


@test(pool=True)
def spawn_without_environment(stage):
    hand_on(stage, "spawn", stage.program("loader"), bare=True)
    members(stage, stage.free_use["members"] + 2)


@test(pool=True)
def exec_takes_the_place(stage):
    """The program is one member, not two, and has the connection."""
    server = stage.run([stage.program("loader"), "serve"])
    loader = stage.run([stage.program("loader"), "go", server.port(), stage.program("loader"), "still"])
    loader.line("^still$")
    members(stage, stage.free_use["members"] + 2)
    ends = sorted((row["pid"], row["descriptor"]) for row in stage.ps())
    expect(len(ends) == 2 and (loader.pid, 9) in ends, "the connection is where it was: %s", ends)
    loader.kill()
    server.line("^2 end$", SOON)
    server.end()
    stage.expect_free()


@test(pool=True)
def exec_leaves_no_slot(stage):
    """Many programs, each of which takes over twice and closes."""
    server = stage.run([stage.program("loader"), "serve"])
    port = server.port()
    before = stage.stat()["members"]
    for number in range(10):
        loader = stage.run([stage.program("loader"), "go", port, "/bin/sh", "-c", "exec sh -c 'echo done >&9'"])
        loader.wait()
        server.line("^%d done$" % (2 * number + 2))
        server.line("^%d end$" % (2 * number + 2))
    members(stage, before)
    server.end()
    stage.expect_free()


@test(pool=True, timeout=60)
def exec_while_the_worker_dies(stage):
    """Whatever the worker was about: the next one goes on."""
    server = stage.run([stage.program("loader"), "serve"])
    port = server.port()
    for number in range(8):
        loader = stage.run([stage.program("loader"), "go", port, "/bin/sh", "-c",
                            "exec sh -c \"exec sh -c 'echo done >&9'\""])
        loader.line("^loading$")
        time.sleep(0.001 * number)
        os.kill(stage.agent()[1], signal.SIGKILL)
        loader.wait()
        server.line("^%d done$" % (2 * number + 2))
        server.line("^%d end$" % (2 * number + 2))
    server.end()
    stage.expect_free()


@test(pool=True)
def killed_while_loading(stage):
    server = stage.run([stage.program("loader"), "serve"])
    port = server.port()
    for number in range(6):
        loader = stage.run([stage.program("loader"), "go", port, stage.program("loader"), "still"])
        loader.line("^loading$")
        time.sleep(0.0005 * number)
        loader.kill()
        server.line(r"^%d (end|ECONNRESET)$" % (2 * number + 2), SOON)
    server.end()
    stage.expect_free()


def pass_on(stage, plain=False):
    """A connection on its way to a receiver that has not taken it yet: (server, sender, receiver)."""
    server = stage.run([stage.program("loader"), "serve"])
    path = os.path.join(stage.directory, "passing")
    words = [stage.program("loader"), "receive", path]
    receiver = (stage.start if plain else stage.run)(words, stdin=subprocess.PIPE)
    receiver.line("^listening$")
    sender = stage.run([stage.program("loader"), "pass", server.port(), path], stdin=subprocess.PIPE)
    sender.line("^passed$")
    server.line("^2 hello$")
    stage.expect_direct(1)
    return server, sender, receiver


def take(receiver):
    receiver.popen.stdin.write(b"\n")
    receiver.popen.stdin.flush()


@test(pool=True)
def passed_while_the_worker_dies(stage):
    """The next worker knows what was on its way."""
    server, sender, receiver = pass_on(stage)
    os.kill(stage.agent()[1], signal.SIGKILL)
    sender.kill()
    stage.agent()
    take(receiver)
    receiver.line("^send done$")
    server.line("^2 x$")
    receiver.kill()
    server.line("^2 end$", SOON)
    server.end()
    stage.expect_free()


@test(pool=True)
def passed_and_lost_while_the_worker_dies(stage):
    server, sender, receiver = pass_on(stage)
    os.kill(stage.agent()[1], signal.SIGKILL)
    receiver.kill()
    server.line("^2 end$", SOON)
    sender.kill()
    server.end()
    stage.expect_free()


@test(pool=True)
def passed_and_lost(stage):
    """It was on its way for a while."""
    server, sender, receiver = pass_on(stage)
    time.sleep(0.7)
    expect("2 end" not in server.output(), "it is still on its way")
    receiver.kill()
    server.line("^2 end$", SOON)
    sender.kill()
    server.end()
    stage.expect_free()


@test(pool=True)
def passed_to_an_outsider(stage):
    """Its calls fail; when it closes, the other end hears of it."""
    server, sender, receiver = pass_on(stage, plain=True)
    take(receiver)
    receiver.line("^send E[A-Z]+$")
    receiver.line("^recv E[A-Z]+$")
    receiver.kill()
    server.line("^2 end$", SOON)
    sender.kill()
    server.end()
    stage.expect_free()
