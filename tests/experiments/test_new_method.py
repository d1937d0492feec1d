"""The skeleton of a method: it passes its own tests, and never overwrites anything."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from experiments import new_method

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    """The package, and the folders that are written to."""
    shutil.copytree(ROOT / "kdjax", tmp_path / "kdjax", ignore=shutil.ignore_patterns("*.pyc"))
    for folder in ("configs/digits", "tests/methods"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "configs/__init__.py").touch()
    return tmp_path


def files(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["kx", "gentle_kd2_of_thirty_characters"[:30]])
def test_what_is_written_is_formatted_and_registered(checkout, name):
    written = new_method.write(name, checkout)
    assert [p.relative_to(checkout).as_posix() for p in written] == [
        f"kdjax/methods/{name}.py",
        f"configs/digits/{name}.py",
        f"tests/methods/test_{name}.py",
        "kdjax/methods/__init__.py",
    ]
    shutil.copy(ROOT / "pyproject.toml", checkout)
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", *written],
            cwd=checkout,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout
    held = {}
    exec((checkout / new_method.REGISTRY).read_text().split("def nearest")[0], held)
    assert held["NAMES"][-1] == name


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", ValueError, "lower case words joined by underscores"),
        ("KD", ValueError, "got 'KD'"),
        ("2kd", ValueError, "got '2kd'"),
        ("../kd", ValueError, r"got '\.\./kd'"),
        ("my-kd", ValueError, "got 'my-kd'"),
        ("a" * 31, ValueError, "of at most 30 characters"),
        ("lambda", ValueError, "got 'lambda'"),
        ("kd", ValueError, "'kd' is taken"),
        ("task", ValueError, "'task' is taken"),
        ("there", FileExistsError, "nothing was written"),
    ],
)
def test_a_bad_name_or_a_file_that_is_there_changes_nothing(checkout, name, error, message):
    (checkout / "tests/methods/test_there.py").write_text("mine")
    before = files(checkout)
    with pytest.raises(error, match=message):
        new_method.write(name, checkout)
    assert files(checkout) == before


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no checkout of kdjax"):
        new_method.write("gentle", tmp_path)


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--help"], ["KD"]])
def test_the_command_answers_in_one_line(arguments, capsys):
    assert new_method.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow  # a process that compiles
def test_the_skeleton_passes_its_own_tests_and_runs(tmp_path):
    for folder in ("kdjax", "configs", "experiments", "tests/methods"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    for file in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    written = new_method.write("gentle_kd", tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    small = ["--config.teacher.training.steps=20", "--config.student.training.steps=20"]
    for command in (
        ["pytest", "-q", written[2]],
        ["experiments.run", f"--config={written[1]}", f"--workdir={tmp_path}/run", *small],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "distilled student" in done.stdout
