"""A search: trials that Optuna suggests one by one, each an ordinary run.

    loading          a YAML file -> Search: its space, checked against RunSpec at its corners before anything runs
    space            the space, the metrics and the settings
    coordinator      one process that suggests, starts, reports and prunes; workers never open Optuna's storage
    workers          where the runs of a trial are worked on: processes of this machine, or SLURM
    trials           the trials' own records, and what follows from them
    importances      which parameters a metric depends on
    optuna_backend   the only file that imports optuna

Killing anything loses no finished trial, because everything can be found again:

    runs/<run_key>/                       a trial's runs, as any others: their study is the search, their arm the trial
    runs/.search/<name>/journal.log       Optuna's own record (or a database of the user's)
    runs/.search/<name>/trials/*.json     the point of each trial, written before it is started, and how it ended
    runs/.search/<name>/search.json       the space and the metrics; a search that is continued must have the same

A suggestion depends on the search's seed, the trial's number and the trials that had ended, and on nothing else: a
coordinator that died between a suggestion and its start gets the same point again, under the same number.
"""
