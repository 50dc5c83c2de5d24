"""Starts the processes of a run on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import keras

ROOT = Path(__file__).parents[2]


def start(script, *arguments, processes=1, devices=1, environment=None):
    """Starts a script, of this folder or by its whole path, in several processes.

    Returns a list of `subprocess.Popen`, the chief first.
    """
    ports = _free_ports(processes)
    flags = os.environ.get("XLA_FLAGS", "")
    shared = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": keras.backend.backend(),
        "KERAS_BRIDLE_DEVICES": str(devices),
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        **(environment or {}),
    }
    return [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / script), *arguments],
            env={**shared, **_place(index, ports)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]


def finish(processes, timeout=900):
    """Waits for processes; returns their exit codes and what they printed."""
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], printed


def run(script, *arguments, **settings):
    """Runs a script to its good end."""
    codes, printed = finish(start(script, *arguments, **settings))
    assert not any(codes), "\n\n".join(printed)


def _place(index, ports):
    """How each backend tells a process which one of how many it is."""
    backend = keras.backend.backend()
    if backend == "torch":
        return {
            "RANK": str(index),
            "LOCAL_RANK": str(index),
            "WORLD_SIZE": str(len(ports)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(ports[0]),
        }
    if backend == "tensorflow" or len(ports) == 1:
        return {}
    return {
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{ports[0]}",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": str(len(ports)),
        "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
    }


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
