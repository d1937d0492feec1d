"""Every golden file agrees with the kernel it was recorded for.

A file holds cases, told by the prefix of its keys (`case0_`, `case1_`, ...): inputs, and what the
reference implementation gave in float32 and in float64. The folder is that of the environment
variable KDJAX_GOLDENS, by default tests/goldens. How a file calls its kernel stands in
tests/kernels/goldens.
"""

import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.goldens import ADAPTERS
from kernels.goldens.support import Case

OWN_FOLDER = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ.get("KDJAX_GOLDENS", OWN_FOLDER))
FILES = sorted(FOLDER.glob("*.npz"))
RTOL = 1e-5
# Sums of a few thousand terms in float64, in another order than the reference's.
RTOL_FLOAT64 = 1e-10


# Chaotic enough that float32 needs the compiler's own order of operations to stay within RTOL.
SENSITIVE = ("00e-karras_distillation", "40-sinkhorn_kd")


@pytest.fixture(autouse=True)
def quick_compilation(request):
    """What is compiled here runs once, on a handful of numbers: without the compiler's effort."""
    case = getattr(request.node, "callspec", None)
    quick = case is None or case.params.get("stem") not in SENSITIVE
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def read_cases(path):
    """{number: {key: array}} of the keys of a file that have a case prefix."""
    cases = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            if match := re.fullmatch(r"case(\d+)_(.+)", key):
                cases.setdefault(int(match[1]), {})[match[2]] = arrays[key]
    return cases


def twin(key):
    """(the key without its mark of precision, that precision or None)."""
    if match := re.fullmatch(r"(.+)_f(32|64)", key):
        return match[1], int(match[2])
    if match := re.fullmatch(r"(out|grad)64_(.+)", key):
        return f"{match[1]}_{match[2]}", 64
    return key, None


def by_precision(arrays):
    """(inputs and unmarked results, float32 results, float64 results), by unmarked key."""
    plain, single, double = {}, {}, {}
    for key, array in arrays.items():
        name, bits = twin(key)
        if bits is None:
            plain[name] = array
        bits = bits or 8 * array.dtype.itemsize
        if array.dtype == np.float64 and bits == 64:
            double[name] = array
        else:
            # A "float64" run that was recorded in float32 says no more than the float32 one.
            single.setdefault(name, array)
    return plain, single, double


def recorded_cases(in_float64=False):
    return [
        pytest.param(
            path.stem,
            arrays,
            id=f"{path.stem}-case{number}",
            # Each case and each precision compiles its kernel anew: one of them every day.
            marks=[pytest.mark.slow] if in_float64 or number else [],
        )
        for path in FILES
        for number, arrays in read_cases(path).items()
        if path.stem in ADAPTERS
        if not in_float64 or by_precision(arrays)[2]
    ]


def inputs(plain, dtype):
    """Arrays as JAX arrays of this precision, hyperparameters as Python values."""
    given = {}
    for key, array in plain.items():
        if array.ndim == 0:
            given[key] = array.item()
        else:
            floats = np.issubdtype(array.dtype, np.floating)
            given[key] = jnp.asarray(array, dtype if floats else None)
    return Case(given)


def test_the_folder_holds_goldens():
    assert FILES, f"no *.npz in {FOLDER}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_known_and_has_cases(path):
    assert read_cases(path), f"{path} has no key with a case prefix"
    if path.stem not in ADAPTERS and FOLDER.resolve() != OWN_FOLDER.resolve():
        pytest.skip(f"no kernel is registered for {path.stem}")
    assert path.stem in ADAPTERS, f"{path.name} has no adapter in tests/kernels/goldens"


@pytest.mark.parametrize(("stem", "arrays"), recorded_cases())
def test_float32_agrees(stem, arrays):
    plain, single, double = by_precision(arrays)
    given = inputs(plain, jnp.float32)
    results = ADAPTERS[stem](given)
    left = set(plain) - given.read - set(results)
    assert not left, f"neither read nor compared: {sorted(left)}"
    for key, value in results.items():
        assert key in single or key in double, f"{key} is not recorded"
        # What the reference itself lost to rounding, as its float64 twin tells; without a twin,
        # two roundings of the largest element.
        expected = single.get(key, double.get(key))
        rounding = 2 * np.finfo(np.float32).eps * np.max(np.abs(expected))
        if key in single and key in double:
            rounding = np.max(np.abs(single[key].astype(np.float64) - double[key]))
        np.testing.assert_allclose(value, expected, rtol=RTOL, atol=2 * rounding, err_msg=key)
        if np.issubdtype(expected.dtype, np.floating):
            assert value.dtype == jnp.float32, key


@pytest.mark.parametrize(("stem", "arrays"), recorded_cases(in_float64=True))
def test_float64_agrees(stem, arrays):
    plain, _, double = by_precision(arrays)
    with jax.enable_x64(True):
        results = ADAPTERS[stem](inputs(plain, jnp.float64))
        for key in results.keys() & double.keys():
            assert results[key].dtype == jnp.float64, key
            expected = double[key]
            scale = np.max(np.abs(expected))
            np.testing.assert_allclose(
                results[key], expected, rtol=RTOL_FLOAT64, atol=RTOL_FLOAT64 * scale, err_msg=key
            )
