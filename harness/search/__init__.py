"""A search: trials that Optuna asks for one by one, each an ordinary run. The only file that imports optuna.

    load_search     a YAML file -> Search: its space, held against RunSpec at its corners before anything runs
    Coordinator     one process that asks, starts, reports, prunes and tells; workers never open Optuna's storage

Killing anything loses no finished trial, because everything can be found again:

    runs/<run_key>/                       a trial's runs, as any others: their study is the search, their arm the trial
    runs/.search/<name>/journal.log       Optuna's own record (or a database of the user's)
    runs/.search/<name>/trials/*.json     what each trial asked for, written before it is started, and how it ended
    runs/.search/<name>/search.json       the space and the objectives; a search that is taken up must be the same

A suggestion depends on the search's seed, the trial's number and the trials that had ended, and on nothing else: a
coordinator that died between asking and starting asks for the same point again, under the same number.
"""
