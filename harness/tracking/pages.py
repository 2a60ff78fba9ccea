"""Serve MLflow's pages on this machine, and open them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser

_WAIT_SECONDS = 120.0
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def serve(uri: str, port: int) -> int:
    """Serve the pages of a store on loopback until Ctrl-C or SIGTERM; return the exit status.

    MLflow's server starts processes of its own, which would outlive it: all of them end with this one.
    """
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    server = subprocess.Popen(command, env=os.environ | _ENVIRONMENT, start_new_session=True)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        signal.signal(signal.SIGTERM, before)


def open_when_served(address: str, server: str) -> None:
    """Open an address in the user's browser as soon as its server answers, in a thread; nothing without a display."""
    if has_display():
        threading.Thread(target=_open, args=(address, server), daemon=True).start()


def has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open(address: str, server: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{server}/health", timeout=5):
                webbrowser.open(address)
                return
        except OSError:
            time.sleep(0.5)
