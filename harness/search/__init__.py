"""A search: trials that Optuna suggests one by one, each an ordinary run.

    loading          a YAML file -> Search: its space, checked against RunSpec at its corners before anything runs
    space            the space, the metrics and the settings
    coordinator      one process that suggests, starts, reports and prunes; workers never open Optuna's storage
    workers          where the runs of a trial run: processes of this machine, or SLURM
    rungs            which trials go on from a rung, in a bracket or among all
    trials           the trials' records, and results derived from them
    upload           what MLflow is told
    importances      which parameters a metric depends on
    optuna_backend   the only file that imports optuna

A kill of any process loses no finished trial, because all state is on disk:

    runs/<run_key>/                       a trial's runs, ordinary runs: their study is the search, their arm the trial
    runs/.search/<name>/journal.log       Optuna's own record (or a database of the user's)
    runs/.search/<name>/trials/*.json     the point of each trial, written before it is started, and its result
    runs/.search/<name>/search.json       the space and the metrics, which must be the same when a search is resumed

A suggestion depends only on the search's seed, the trial's number and the trials that had ended: a coordinator that was
killed between a suggestion and its start gets the same point again, under the same number. With rungs a sampler that
learns suggests a whole bracket before any trial of it begins, so that not even who ended first can change a suggestion.
"""
