"""Launching is convergence: `plan` holds what a study asks for against the records, `submit` closes the gap.

    plan     pure reading: absent, failed and interrupted runs are to be worked on, done and running ones are skipped
    submit   what can fail is tried first (data, MLflow store, run directories), then submitit gets the work

All that a job needs stands in its run directory, and all that it finds out is written there, so little but paths is
pickled; what it prints while it works on a run goes to the run's own log. A submission has a folder:

    runs/.jobs/<study>/<time>-<pid>/    submitit's pickles, and what jobs print outside of runs
        submission.json                 who submitted what, where and with which options
        claims/<run_key>                the jobs that took the run, submitit's names, the newest last
        cancelled/<run_key>             who wants it stopped, since when; whoever works on it looks here
        begun/<run_key>                 how many attempts the run had at each start of its job on SLURM
    runs/.code/<id>/                    the code as it was at a submission, which its jobs import

SLURM is asked once for all runs of a question, and where a run stands is what its directory and SLURM say together.
When a job comes back by itself, and when a run is given up: harness/launch/requeue.py.
"""
