#!/usr/bin/env bash
# An MLflow server for a team: its records in PostgreSQL, where many can write at once, and its artifacts in a folder.
#
#   .venv/bin/pip install 'psycopg[binary]'         # once, after `make setup`: PostgreSQL's driver
#   createdb mlflow                                 # once; MLflow makes its own tables
#   MLFLOW_BACKEND_STORE_URI=postgresql+psycopg://USER@HOST/mlflow slurm/mlflow_server.sh
#
# Variables: MLFLOW_BACKEND_STORE_URI, ARTIFACTS (a folder, or s3://...), HOST, PORT, WORKERS. What follows on the command
# line goes to `mlflow server`. The database's password belongs into ~/.pgpass: `ps` shows the URI to everybody.
#
# The server asks for no password, so it listens to this machine only. Two ways to reach it:
#   - From a laptop, through ssh:   ssh -N -L 5000:127.0.0.1:5000 SERVER   and then open http://127.0.0.1:5000
#   - From compute nodes, inside a network that you trust:
#         HOST=0.0.0.0 slurm/mlflow_server.sh --allowed-hosts "$(hostname -f):5000,127.0.0.1:5000"
#     and then MLFLOW_TRACKING_URI=http://SERVER:5000. MLflow answers 403 to a request for a host that it does not know:
#     by default it knows localhost and private addresses (10.*, 192.168.*) but no names; with the option, only its list.
set -euo pipefail

# Nothing is told to MLflow's makers, and no notebook-style jobs are run on behalf of whoever reaches the server.
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

PATH=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH
exec mlflow server \
    --backend-store-uri "${MLFLOW_BACKEND_STORE_URI:-postgresql+psycopg:///mlflow}" \
    --artifacts-destination "${ARTIFACTS:-$PWD/mlartifacts}" \
    --host "${HOST:-127.0.0.1}" --port "${PORT:-5000}" --workers "${WORKERS:-4}" "$@"
