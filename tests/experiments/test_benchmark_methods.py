"""The benchmark of the methods: none is missing, and its lines of code are whose it says."""

import itertools

import jax
import pytest

from experiments.benchmark import code_lines, method_tasks, methods
from experiments.benchmark.method_tasks import TINY
from kdjax.methods import NAMES
from kdjax.training import Stage

ARMS = [(group, name) for group in methods.GROUPS for name in methods.GROUPS[group].arms]


def test_every_method_has_a_row_or_a_reason():
    rows = {name for _, name in ARMS}
    assert rows | set(methods.WITHOUT) == set(NAMES)
    assert not rows & set(methods.WITHOUT)
    assert all(group.baseline in group.arms for group in methods.GROUPS.values())


def test_a_baseline_reads_the_networks_and_the_batch_of_its_group():
    group = methods.GROUPS["noises"]
    task = group.task(TINY)
    both = [methods.stages_of(name, arm, task, TINY)[0] for name, arm in group.arms.items()]
    stages = [stage for found in both for stage in found.values()]
    assert [methods.examples(stage) for stage in stages] == [TINY.noise_batch] * 2
    one, other = (
        {r: jax.tree.map(lambda x: x.shape, dict(s.variables[r])) for r in s.variables}
        for s in stages
    )
    assert one == other


def test_a_stage_that_a_method_does_not_have_is_refused():
    arm = methods.Arm(stages=("distil",))
    with pytest.raises(ValueError, match=r"boot has the stages \[\], not \['distil'\]"):
        methods.stages_of("boot", arm, method_tasks.noises(TINY), TINY)


def test_what_is_computed_between_stages_is_timed_and_no_stage_is_run():
    group = methods.GROUPS["images"]
    task = group.task(TINY)
    found, host = methods.stages_of("active_kd", group.arms["active_kd"], task, TINY)
    assert list(found) == ["round/00"]
    assert list(host) == ["round/00/query"]
    assert host["round/00/query"] > 0


def test_blocks_have_whole_periods():
    group = methods.GROUPS["noises"]
    stages, _ = methods.stages_of("boot", group.arms["boot"], group.task(TINY), TINY)
    seen = []
    timed = methods.Timed(stages["distill"], 3, 1e-3)
    timed._steps.seconds = lambda steps: seen.append(steps) or 1.0
    assert timed.block() == 1.0
    assert seen[0] % 3 == 0
    held = sum(x.nbytes for x in jax.tree.leaves(timed._steps._state.variables))
    teacher = sum(x.nbytes for x in jax.tree.leaves(dict(stages["distill"].variables["teacher"])))
    assert timed.bytes >= held + teacher


def test_a_kernel_of_one_method_is_its_own():
    assert code_lines.target("kdjax.methods.plackett_luce", ("losses", "plackett_luce"), {}) == (
        "kdjax.losses.ranking",
        "plackett_luce",
    )
    kernel = len(code_lines.lines_of([("kdjax.losses.ranking", "plackett_luce")]))
    found = code_lines.count()["plackett_luce"]
    module = len(code_lines.parsed("kdjax.methods.plackett_luce").lines)
    assert found["own_by"]["methods"] == module
    assert found["own_by"]["losses"] >= kernel > 5
    assert found["own"] == sum(found["own_by"].values())


def test_lines_are_shared_as_soon_as_another_method_reaches_them():
    alone, among = code_lines.count(("kd",))["kd"], code_lines.count()["kd"]
    assert alone["shared"] == 0 < among["shared"]
    assert alone["own"] == among["own"] + among["shared"]


def test_what_is_bound_in_a_function_is_not_what_the_module_binds(monkeypatch):
    (code_lines.parsed.cache_clear(), code_lines.reached_by.cache_clear())
    source = (
        "from kdjax.training import mean, divide\n"
        "def recipe(mean):\n"
        "    from kdjax.losses import kd\n"
        "    return mean(kd), divide\n"
        "def typed(task: Stage) -> None: ...\n"
        "from kdjax.training import Stage\n"
    )
    real = code_lines.path_of

    class File:
        def read_text(self):
            return source

    monkeypatch.setattr(
        code_lines, "path_of", lambda module: File() if module == "kdjax.mine" else real(module)
    )
    reached = code_lines.reached_by("kdjax.mine", "recipe")
    assert {name for _, name in reached} == {"kd", "divide"}
    assert code_lines.reached_by("kdjax.mine", "typed") == {(Stage.__module__, "Stage")}
    (code_lines.parsed.cache_clear(), code_lines.reached_by.cache_clear())


@pytest.mark.slow
def test_every_row_is_measured():
    found = methods.compare(TINY, rounds=1, least=0.0)
    rows = {name: row for rows in found["rows"].values() for name, row in rows.items()}
    assert {row["method"] for row in rows.values()} | set(methods.WITHOUT) == set(NAMES)
    assert rows["diswot"]["host_seconds"]["search"] > 0
    for name in set(rows) - {"diswot"}:  # whose steps are those of kd
        row = rows[name]
        assert row["steps_per_second"]["median"] > 0, name
        assert row["peak_bytes"] > 0, name
        assert ("speed_ratio" in row) == (row["method"] != row["baseline"]), name
    text = methods.table(found)
    for name in itertools.chain(rows, NAMES):
        assert f"| `{name}` |" in text
