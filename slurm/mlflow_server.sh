#!/usr/bin/env bash
# An MLflow server for a team: records in PostgreSQL, which supports concurrent writers, and artifacts in a folder.
#
#   .venv/bin/pip install 'psycopg[binary]'         # once, after `make setup`: PostgreSQL's driver
#   createdb mlflow                                 # once; MLflow creates its tables
#   MLFLOW_BACKEND_STORE_URI=postgresql+psycopg://USER@HOST/mlflow slurm/mlflow_server.sh
#
# Variables: MLFLOW_BACKEND_STORE_URI, ARTIFACTS (a folder, or s3://...), HOST, PORT, WORKERS. Arguments are passed to
# `mlflow server`. The database's password belongs into ~/.pgpass: `ps` shows the URI to everybody.
#
# The server has no password, so it listens only on this machine. Two ways to reach it:
#   - From a laptop, through ssh:   ssh -N -L 5000:127.0.0.1:5000 SERVER   and then open http://127.0.0.1:5000
#   - From compute nodes, inside a network that you trust:
#         HOST=0.0.0.0 slurm/mlflow_server.sh --allowed-hosts "$(hostname -f):5000,127.0.0.1:5000"
#     and then MLFLOW_TRACKING_URI=http://SERVER:5000. MLflow answers 403 to a request for a host that is not allowed:
#     by default it allows localhost and private addresses (10.*, 192.168.*) but no names; with the option, only its list.
set -euo pipefail

# No telemetry, and the server executes no jobs for its clients.
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

PATH=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH
exec mlflow server \
    --backend-store-uri "${MLFLOW_BACKEND_STORE_URI:-postgresql+psycopg:///mlflow}" \
    --artifacts-destination "${ARTIFACTS:-$PWD/mlartifacts}" \
    --host "${HOST:-127.0.0.1}" --port "${PORT:-5000}" --workers "${WORKERS:-4}" "$@"
