"""The launch files start the command that they say, whatever is in their settings."""

import os
import pathlib
import re
import subprocess

import pytest
import yaml
from absl import flags

from experiments import run  # noqa: F401  (defines the flags)

LAUNCH = pathlib.Path(__file__).parents[2] / "experiments/launch"
ODD = "a b'c$(false)"  # one word, if all is quoted


def shell(command, folder, **environment):
    """Runs a command whose programs are stand-ins that print their words, one a line."""
    programs = folder / "bin"
    programs.mkdir()
    for name in ("gcloud", "srun", "python"):
        (programs / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={"PATH": path, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check_command(words, workdir):
    """The words of the command, of flags that it has."""
    at = words.index("-m")
    assert words[at + 1] == "experiments.run"
    given = dict(word.removeprefix("--").split("=", 1) for word in words[at + 2 :])
    assert given["workdir"] == workdir
    assert (LAUNCH.parents[1] / given["config"]).is_file()
    for name in given:
        assert name in flags.FLAGS or name.startswith("config."), name
    return given


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_a_script_is_valid_bash_that_stops_at_an_error(script):
    path = LAUNCH / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "\nset -euo pipefail\n" in path.read_text()


def test_the_tpu_script_runs_the_command_on_all_workers(tmp_path):
    words = shell(
        [LAUNCH / "tpu_vm.sh", "--config.seed=1"],
        tmp_path,
        NAME="slice",
        WORKDIR=ODD,
        DIRECTORY="the checkout",
        PROJECT="p",
    )
    assert words[:5] == ["compute", "tpus", "tpu-vm", "ssh", "slice"]
    assert "--worker=all" in words
    command = next(word for word in words if word.startswith("--command="))
    python = tmp_path / "the checkout/.venv/bin/python"
    python.parent.mkdir(parents=True)
    (tmp_path / "bin/python").rename(python)
    done = subprocess.run(
        ["bash", "-c", command.removeprefix("--command=")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    given = check_command(done.stdout.splitlines(), ODD)
    assert given["coordinator"] == "auto"
    assert given["config.seed"] == "1"


def test_the_slurm_script_runs_the_command_as_a_step_and_is_signalled_before_the_end(tmp_path):
    words = shell(
        ["bash", LAUNCH / "slurm.sh", "--config.seed=1"],
        tmp_path,
        SLURM_SUBMIT_DIR=str(tmp_path),
        WORKDIR=ODD,
    )
    given = check_command(words, ODD)
    assert words[0] == "--kill-on-bad-exit=1"
    assert given["coordinator"] == "auto"
    options = re.findall(
        r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", (LAUNCH / "slurm.sh").read_text(), re.M
    )
    assert dict(options)["signal"] == "TERM@120"
    assert int(dict(options)["nodes"]) > 1


def test_the_jobset_gives_every_pod_its_number_and_the_first_ones_name(tmp_path):
    found = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["spec"]["network"]["enableDNSHostnames"] is True
    (replicated,) = found["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 60
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert int(environment["PROCESSES"]) == job["parallelism"] == job["completions"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(environment["WORKDIR"].startswith(f"{mount}/") for mount in mounts)
    (text,) = container["args"]
    environment |= {"JOB_COMPLETION_INDEX": "1", "WORKDIR": ODD}
    words = shell([*container["command"], text], tmp_path, **environment)
    given = check_command(words, ODD)
    assert (given["processes"], given["process"]) == ("2", "1")
    jobset, name = found["metadata"]["name"], replicated["name"]
    host, _, port = given["coordinator"].partition(":")
    assert host == f"{jobset}-{name}-0-0.{jobset}"
    assert int(port) in [entry["containerPort"] for entry in container["ports"]]
