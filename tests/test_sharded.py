"""The sharded kernel, on simulated devices in processes of their own: this one was started with one device."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

WORKER = pathlib.Path(__file__).with_name("multiprocess_worker.py")
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}
TIMEOUT = 55.0


def run(commands, folder):
    """Run workers at the same time until all passed, one failed or time is up; show what they printed."""
    logs = [folder / f"worker{i}.log" for i in range(len(commands))]
    started = time.monotonic()
    workers = []
    try:
        for arguments, log in zip(commands, logs, strict=True):
            with log.open("w") as file:
                command = [sys.executable, "-W", "error", WORKER, *arguments]
                workers.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT))
        codes = [None]
        while None in codes and not any(codes) and time.monotonic() - started < TIMEOUT:
            time.sleep(0.1)
            codes = [worker.poll() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    if any(code != 0 for code in codes):
        shown = "\n".join(
            f"--- worker {i}, exit code {code}\n{log.read_text()}"
            for i, (code, log) in enumerate(zip(codes, logs, strict=True))
        )
        pytest.fail(f"after {time.monotonic() - started:.0f} s:\n{shown}", pytrace=False)
    assert all("passed" in log.read_text() for log in logs)


def test_eight_devices(tmp_path):
    run([["devices"]], tmp_path)


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    run([["process", "0", port], ["process", "1", port]], tmp_path)
