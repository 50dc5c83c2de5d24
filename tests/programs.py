"""Scripts that tests import, and programs that they start in processes of their own."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras

TESTS = Path(__file__).parent
ROOT = TESTS.parent
BACKEND = keras.backend.backend()


def load(path):
    """Imports a script that is no module of the package; its path is from `ROOT`."""
    path = ROOT / path
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def start(script, *arguments, processes=1, devices=1, backend=BACKEND):
    """Starts a script in several processes; its path is from `ROOT`.

    Returns a list of `subprocess.Popen`, the chief first.
    """
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    if devices > 1:
        command.insert(1, str(TESTS / "distribution" / "on_virtual_devices.py"))
    ports = _free_ports(processes)
    flags = os.environ.get("XLA_FLAGS", "")
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)]),
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": backend,
        "KERAS_BRIDLE_DEVICES": str(devices),
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
    }
    return [
        subprocess.Popen(
            command,
            env={**shared, **_process_variables(index, ports, backend)},
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
    """Runs a script, which must succeed."""
    codes, printed = finish(start(script, *arguments, **settings))
    assert not any(codes), "\n\n".join(printed)[-3000:]


def _process_variables(index, ports, backend):
    """How each backend tells a process which one of how many it is."""
    if len(ports) == 1 or backend == "tensorflow":
        return {}
    if backend == "torch":
        return {
            "RANK": str(index),
            "LOCAL_RANK": str(index),
            "WORLD_SIZE": str(len(ports)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(ports[0]),
        }
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
