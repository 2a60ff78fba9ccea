"""Launching is convergence: `plan` holds what a study asks for against the records, `commit` closes the gap.

    plan     pure reading: absent, failed and interrupted runs are to be worked on, done and running ones are left alone
    commit   what can fail is tried first (data, MLflow store, run directories), then submitit gets the work

The only file that imports submitit, and it does so late: `plan` answers at once. All that a job needs stands in its
run directory, and all that it finds out is written there, so little but paths is pickled. A submission has a folder:

    runs/.jobs/<study>/<time>-<pid>/    submitit's pickles and logs
        submission.json                 who submitted what, where and with which options
        claims/<run_key>                the jobs that took the run, submitit's names, the newest last
        cancelled/<run_key>             who wants it stopped; whoever works on it looks here
    runs/.code/<id>/                    the code as it was at a submission, which its jobs import

SLURM is asked once for all runs of a question, and a run's standing is what its directory and SLURM say together.
"""
