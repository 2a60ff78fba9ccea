"""The script that starts a team's MLflow server knows the options of the MLflow that is installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "slurm" / "mlflow_server.sh"


@pytest.mark.slow
def test_the_server_comes_up_and_answers_no_strange_host(tmp_path, free_ports):
    port = free_ports(1)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "ARTIFACTS": str(tmp_path / "artifacts"),
        "PORT": str(port),
        "WORKERS": "1",
    }
    # A session of its own, whose processes all end with it.
    server = subprocess.Popen([SCRIPT], env=os.environ | environment, cwd=tmp_path, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while True:
            assert server.poll() is None and time.monotonic() < deadline, "the server does not come up"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.read() == b"OK"
                break
            except OSError:
                time.sleep(0.2)
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(url, headers={"Host": "stranger.example"}), timeout=20)
        assert (tmp_path / "mlflow.db").exists()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(120)
