"""How processes of one run share its batch, and how each learns which one it is."""

import threading

import pytest

from harness.errors import LaunchError, TrainingError
from harness.slurm import commands
from harness.training.distributed import ProcessGroup, RankInfo, detect_rank


def test_rows_are_shared_out_whole_and_in_order():
    shares = [ProcessGroup(rank, 3).share(13) for rank in range(3)]
    assert [row for share in shares for row in range(13)[share]] == list(range(13))
    assert {share.stop - share.start for share in shares} == {4, 5}
    with pytest.raises(TrainingError, match="3 processes cannot share a batch of 2"):
        ProcessGroup(0, 3).share(2)


def test_processes_act_in_turn_each_after_all_of_the_turns_before():
    met, acted = threading.Barrier(3), []

    class Meeting(ProcessGroup):
        def all_reduce_max(self, number: int) -> int:
            met.wait(60)
            return number

    def act(rank: int, turn: int) -> None:
        Meeting(rank, 3).in_turn(turn, 3, lambda: acted.append(turn))

    threads = [threading.Thread(target=act, args=place) for place in [(2, 2), (1, 2), (0, 0)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert acted == [0, 2, 2]
    assert ProcessGroup().in_turn(0, 3, lambda: "alone") == "alone"


def test_a_run_for_one_process_is_alone_whatever_started_it():
    assert detect_rank(1, {"RANK": "1", "WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "4"}) == RankInfo()


def test_a_batch_script_that_runs_once_starts_the_processes_itself():
    place = detect_rank(2, {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"})
    assert place == RankInfo(size=2) and place.starts_others


def test_torchrun_says_where_a_process_stands():
    names = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
    place = detect_rank(8, names)
    assert place == RankInfo(3, 4, 1, "node0", 29500) and not place.starts_others


@pytest.mark.process
def test_a_slurm_that_does_not_answer_is_said_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    names = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "n[1-2]"}
    names["SLURM_JOB_ID"] = "7"
    with pytest.raises(LaunchError, match=r"processes of this run on n\[1-2\] cannot meet: scontrol not found"):
        detect_rank(2, names)


def test_srun_says_which_process_this_is_and_the_first_one_says_where_it_listens():
    place = detect_rank(2, SRUN | {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "3"})
    assert place == RankInfo(1, 2, 0, "", meeting="meeting-7.0-3") and not place.starts_others


TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("names", "changes", "words"),
    [
        *(
            (TORCHRUN, {name: None}, f"{name} is not set")
            for name in TORCHRUN
            if name not in ("WORLD_SIZE", "MASTER_ADDR")
        ),
        (TORCHRUN, {"MASTER_ADDR": ""}, "MASTER_ADDR is not"),
        (TORCHRUN, {"LOCAL_RANK": ""}, "LOCAL_RANK is '', not a number"),
        (TORCHRUN, {"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number"),
        (TORCHRUN, {"RANK": "-1"}, "RANK is '-1', not a number"),
        (TORCHRUN, {"RANK": "2"}, "RANK 2 is not one of WORLD_SIZE 2"),
        *((SRUN, {name: None}, f"{name} is not set") for name in SRUN if name != "SLURM_STEP_NUM_TASKS"),
        (SRUN, {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS is 'many', not a number"),
        (SRUN, {}, "SLURM knows no node in ''"),
    ],
)
def test_variables_that_do_not_say_which_process_this_is_are_refused_in_words(names, changes, words, monkeypatch):
    monkeypatch.setattr(commands, "PAUSES_SECONDS", ())  # no SLURM answers here
    environment = {name: value for name, value in (names | changes).items() if value is not None}
    with pytest.raises(LaunchError, match=words):
        detect_rank(2, environment)
