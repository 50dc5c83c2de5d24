"""One process at a time: also after one was killed, and without a system's locks."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from keras_bridle.training import run as run_lock
from keras_bridle.training.run import RunLock

# The file alone: the whole package takes seconds to import.
HOLD = """
import runpy, sys, time
lock = runpy.run_path(sys.argv[1])["RunLock"](sys.argv[2])
print("locked", flush=True)
time.sleep(600)
"""


def write_owner(path, pid, host=None):
    owner = {"pid": pid, "host": host or socket.gethostname()}
    (path / "run.lock").write_text(json.dumps(owner))


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_one_is_refused(tmp_path):
    with RunLock(tmp_path / "run") as lock:
        assert lock.left_by is None
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on .*run'"):
            RunLock(tmp_path / "run")
    with RunLock(tmp_path / "run") as lock:
        assert lock.left_by is None


def test_a_killed_process_leaves_no_lock(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, run_lock.__file__, str(tmp_path)],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError, match=f"process {process.pid} on"):
            RunLock(tmp_path)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    with RunLock(tmp_path) as lock:
        assert lock.left_by["pid"] == process.pid


def test_file_systems_without_locks(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", fail)
    with RunLock(tmp_path), pytest.raises(BlockingIOError):
        RunLock(tmp_path)
    write_owner(tmp_path, dead_process())
    RunLock(tmp_path).close()
    # Of another machine's processes nothing can be known.
    write_owner(tmp_path, dead_process(), "elsewhere")
    with pytest.raises(BlockingIOError, match="on elsewhere"):
        RunLock(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": 1}'])
def test_what_the_file_holds_does_not_matter(tmp_path, content):
    (tmp_path / "run.lock").write_text(content)
    with RunLock(tmp_path) as lock:
        assert lock.left_by is None
