"""Launching is convergence: `plan` compares a study with the records, `submit` runs what is missing.

    plan     read-only: absent, failed and interrupted runs are left to do, done and running ones are skipped
    submit   what can fail is tried first (data, MLflow store, run directories), then jobs go to submitit

A job reads its input from the run directory and writes its results there, so little but paths is pickled; what it
prints while it works on a run goes to the run's own log. A submission has a folder:

    runs/.jobs/<study>/<time>-<pid>/    submitit's pickles, and what jobs print outside of runs
        submission.json                 who submitted what, where and with which options
        claims/<run_key>                the jobs that took the run, by submitit's names, the newest last
        cancelled/<run_key>             who cancelled the run and when; the process that works on it checks this
        begun/<run_key>                 number of attempts of the run at each start of its job on SLURM
    runs/.code/<id>/                    the code at the time of a submission, which its jobs import

SLURM is queried once for all runs; the state of a run combines its directory and SLURM's answer (states.py).
When a job is requeued, and when a run is given up: harness/launch/requeue.py.
"""
