"""A work directory goes on under its own config, and under no other."""

import pytest

from experiments import configuration
from experiments.configuration import ConfigError
from experiments.workdir import claim, differences


@pytest.fixture
def config():
    config = configuration.defaults()
    config.method = dict(name="plackett_luce", temperature=1.0)
    return config


def test_a_run_may_go_on_on_another_mesh(config):
    old = configuration.plain(config)
    config.mesh.model, config.sharding.teacher = 2, "fsdp"
    assert differences(old, configuration.plain(config)) == []


def test_a_workdir_belongs_to_one_config(config, tmp_path):
    workdir = tmp_path / "new" / "run"
    claim(workdir, config)
    claim(workdir, config)
    config.keep = 5  # does not change what is computed
    claim(workdir, config)
    config.method.temperature = 2.0
    with pytest.raises(ConfigError, match=r"method\.temperature: 1\.0 -> 2\.0"):
        claim(workdir, config)


def test_a_run_may_go_on_under_another_policy_but_goes_back_to_the_same_checkpoints(
    config, tmp_path
):
    claim(tmp_path / "run", config)
    config.nonfinite, config.nonfinite_limit = "skip", 3
    claim(tmp_path / "run", config)
    assert configuration.settings(config).nonfinite == "skip"
    config.nonfinite, config.checkpoint_every = "rollback", config.checkpoint_every + 1
    with pytest.raises(ConfigError, match="checkpoint_every: "):
        claim(tmp_path / "run", config)
    config.nonfinite = "ignore"
    with pytest.raises(ValueError, match=r"nonfinite must be one of .* got 'ignore'"):
        configuration.settings(config)


def test_a_workdir_that_cannot_be_written_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        claim(tmp_path / "file" / "run", config)


def test_differences_name_what_was_added_and_taken_away():
    old = {"a": {"b": 1, "c": (1, 2)}, "keep": 1}
    new = {"a": {"b": 1, "d": 2}, "keep": 2}
    assert differences(old, new) == ["a.c: [1, 2] -> 'absent'", "a.d: 'absent' -> 2"]
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == []
