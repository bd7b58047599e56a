import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.environment import ClusterHints
from keras_deepseek.training.cluster.slurm import is_slurm_task, read_slurm

TASK = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[09-10],big1",
    "SLURM_JOB_NODELIST": "node[01-10],big1",
}


def test_a_task_of_srun_is_read():
    hints = read_slurm(TASK)
    values = (hints.world_size.value, hints.rank.value, hints.local_rank.value)
    assert values == (8, 5, 1)
    assert hints.coordinator.value == f"node09:{12_000 + (42421 % 20_000)}"
    assert hints.coordinator.is_derived


def test_the_nodes_of_the_job_serve_where_the_step_s_are_not_known():
    hints = read_slurm({**TASK, "SLURM_STEP_NODELIST": ""})
    assert hints.coordinator.value.startswith("node01:")
    old = {"SLURM_JOBID": "1", "SLURM_STEPID": "0", "SLURM_NODELIST": "n1", "SLURM_NTASKS": "2"}
    assert read_slurm(old).coordinator.value == "n1:12010"


@pytest.mark.parametrize("job", ["1", "99999999", "2147483647"])
def test_the_port_is_below_those_that_linux_gives_away(job):
    port = int(read_slurm({**TASK, "SLURM_JOB_ID": job}).coordinator.value.split(":")[1])
    assert 12_000 <= port < 32_000


def test_each_task_of_a_step_derives_the_same_address_and_another_step_another():
    addresses = {
        read_slurm({**TASK, "SLURM_PROCID": rank, "SLURM_STEP_ID": step}).coordinator.value
        for rank in "0123"
        for step in "12"
    }
    assert len(addresses) == 2


def test_without_a_job_or_its_nodes_there_is_no_address():
    assert read_slurm({**TASK, "SLURM_JOB_ID": ""}).coordinator is None
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    assert read_slurm({**TASK, **dict.fromkeys(names, "")}).coordinator is None


def test_outside_of_slurm_and_in_a_batch_script_of_one_task_nothing_is_said():
    assert read_slurm({}) == ClusterHints()
    script = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    assert not is_slurm_task(script)
    assert read_slurm(script) == ClusterHints()


def test_a_batch_script_of_several_tasks_is_refused():
    with pytest.raises(InvalidInputError, match="SLURM_NTASKS=8, and this process is none of"):
        read_slurm({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"})


def test_a_later_task_is_one_whatever_else_is_missing():
    assert read_slurm({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}).rank.value == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SLURM_NTASKS", "two"),
        ("SLURM_PROCID", "-1"),
        ("SLURM_LOCALID", "x"),
        ("SLURM_JOB_ID", "x"),
        ("SLURM_STEP_NODELIST", "node[1-"),
    ],
)
def test_a_malformed_variable_is_named(name, text):
    with pytest.raises(InvalidInputError, match=f"{name} must"):
        read_slurm({**TASK, name: text})
