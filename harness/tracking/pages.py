"""Serve MLflow's pages on this machine, and open them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser

_WAIT_SECONDS = 120.0
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def serve(uri: str, port: int) -> int:
    """Serve the pages of a store on loopback until Ctrl-C; return the exit status."""
    arguments = ["ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    try:
        return subprocess.call([sys.executable, "-m", "mlflow", *arguments], env=os.environ | _ENVIRONMENT)
    except KeyboardInterrupt:
        return 0


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
