"""What a notebook has changed in its libraries changes no result, and is there again afterwards."""

import locale
import random
import sys
import threading
import types
import warnings
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from test_gru import SMALL
from test_minirocket import batch_of

import gesture_nb as gn
from gesture_nb.errors import UserError
from gesture_nb.isolation import OF_PROCESS, OF_RUN, OF_THREAD, isolated, isolated_run, own_state, set_aside_new
from gesture_nb.models.gru import KerasMember
from gesture_nb.serving.classifier import GestureClassifier

@contextmanager
def kept(read, write, value):
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


@contextmanager
def raising_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def keras_config(name, value):
    import keras

    return kept(getattr(keras.config, name), getattr(keras.config, f"set_{name}"), value)


@contextmanager
def policy(name):
    import keras
    from keras.src.backend.common import global_state

    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        global_state.set_global_attribute("dtype_policy", None)


def eager():
    import tensorflow as tf

    return kept(tf.config.functions_run_eagerly, tf.config.run_functions_eagerly, True)


def deterministic_operations():
    from tensorflow.python.util import _pywrap_determinism as determinism

    return kept(determinism.is_enabled, determinism.enable, True)


@contextmanager
def numerics():
    import tensorflow as tf

    tf.debugging.enable_check_numerics()
    try:
        yield
    finally:
        tf.debugging.disable_check_numerics()


def deterministic():
    return kept(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True)


def anomaly():
    return torch.autograd.set_detect_anomaly(True)


STATES = {   # the name of the setting in the table of the package → a block in which a notebook has changed it
    "default dtype": lambda: kept(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "default device": lambda: torch.device("meta"),
    "gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast on cpu": lambda: torch.autocast("cpu"),
    "deterministic algorithms": deterministic,
    "anomaly detection": anomaly,
    "matrix precision": lambda: kept(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"),
    "denormal numbers": lambda: kept(lambda: False, torch.set_flush_denormal, True),
    "floating-point errors": lambda: np.errstate(all="raise"),
    "buffer size": lambda: kept(np.getbufsize, np.setbufsize, 16),
    "warnings as errors": raising_warnings,
    "recursion limit": lambda: kept(sys.getrecursionlimit, sys.setrecursionlimit, 400),
    "float type": lambda: keras_config("floatx", "float64"),
    "image data format": lambda: keras_config("image_data_format", "channels_first"),
    "epsilon": lambda: keras_config("epsilon", 0.1),
    "dtype policy": lambda: policy("mixed_float16"),
    "functions run eagerly": eager,
    "deterministic operations": deterministic_operations,
    "operation callbacks": numerics,
    "stack size": lambda: kept(lambda: 0, threading.stack_size, 65536),
}
CANNOT_BE_TRIED = {"autocast on cuda", "decimal point", "umask"}   # for want of a GPU or a locale; below
SETTINGS = {setting.name: setting for setting in OF_PROCESS + OF_RUN + OF_THREAD}


@contextmanager
def everything_changed():
    from contextlib import ExitStack

    with ExitStack() as stack:
        for state in STATES.values():
            stack.enter_context(state())
        yield


def test_every_setting_of_the_package_is_tried_here():
    from gesture_nb.isolation import _ANY

    assert {name for name, setting in SETTINGS.items() if setting.ours is not _ANY} == {*STATES} | CANNOT_BE_TRIED


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("end", [None, RuntimeError, KeyboardInterrupt])
def test_a_setting_is_set_aside_and_put_back(name, end):
    setting = SETTINGS[name]
    assert not setting.is_other()
    with STATES[name]():
        value = setting.read(sys.modules[setting.module])
        assert setting.is_other()
        with pytest.raises(end) if end else nullcontext(), own_state():
            assert not setting.is_other()
            if end:
                raise end
        assert setting.read(sys.modules[setting.module]) == value
    assert not setting.is_other()


def test_a_prediction_sets_the_same_aside():
    with everything_changed():
        assert isolated(lambda: [s.name for s in OF_PROCESS + OF_THREAD if s.is_other()])() == []
        assert SETTINGS["default dtype"].is_other()


def test_the_decimal_point():
    def set_point(value):
        return locale.setlocale(locale.LC_NUMERIC, value)

    other = next((name for name in ("C.utf8", "C.UTF-8", "en_US.UTF-8") if _has_locale(name)), None)
    if other is None:
        pytest.skip("no other locale is installed")
    with kept(lambda: set_point(None), set_point, other):
        with own_state():
            assert set_point(None) == "C"
        assert set_point(None) == other


def _has_locale(name):
    try:
        with kept(lambda: locale.setlocale(locale.LC_NUMERIC), lambda v: locale.setlocale(locale.LC_NUMERIC, v), name):
            return True
    except locale.Error:
        return False


def test_files_can_be_read_by_their_owner_and_by_nobody_else(tmp_path):
    import os

    before = os.umask(0o777)
    try:
        with own_state():
            (tmp_path / "a").write_text("a")
        assert os.umask(0o777) == 0o777
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_random_states_and_threads_are_as_before():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    threads = torch.get_num_threads()
    with own_state():
        random.random()
        np.random.rand(3)
        torch.rand(3)
        torch.set_num_threads(threads + 1)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == expected
    assert torch.get_num_threads() == threads


def test_filters_that_raise_nothing_stay():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "quiet")
        warnings.filterwarnings("always", category=ImportWarning)
        before = list(warnings.filters)
        with own_state():
            assert warnings.filters[:2] == before[:2] and warnings.filters[2][0] == "default"
        assert warnings.filters == before


def test_threads_share_what_is_set_aside():
    """The one that leaves first does not give a notebook's dtype back to the other."""
    first, second, seen = threading.Event(), threading.Event(), []

    @isolated
    def slow():
        first.set()
        second.wait(10)
        seen.append(torch.get_default_dtype())

    with STATES["default dtype"]():
        thread = threading.Thread(target=slow)
        thread.start()
        first.wait(10)
        isolated(lambda: seen.append(torch.get_default_dtype()))()
        second.set()
        thread.join()
        assert seen == [torch.float32, torch.float32] and torch.get_default_dtype() == torch.float64


def test_a_policy_that_follows_the_float_type_goes_on_to_do_so():
    import keras

    with keras_config("floatx", "float64"):
        with own_state():
            assert keras.config.dtype_policy().name == "float32"
        assert keras.config.dtype_policy().name == "float64"
    from keras.src.backend.common import global_state

    global_state.set_global_attribute("dtype_policy", None)


def test_blocks_inside_add_nothing():
    with STATES["default dtype"]():
        with own_state():
            with own_state():
                pass
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float64


def test_libraries_that_are_loaded_later_are_set_aside_too():
    """As Keras with a `keras.json` that asks for float64."""
    import keras

    with own_state():
        keras.config.set_floatx("float64")
        set_aside_new()
        assert keras.config.floatx() == "float32"
    assert keras.config.floatx() == "float64"
    keras.config.set_floatx("float32")


Y, WHO = np.arange(24) % 2, np.arange(24) // 6
X = np.random.default_rng(0).normal(size=(24, 3, 30)).astype("f4") * (1 + Y)[:, None, None]


def fitted_classifier():
    names = {"members": ("lgbm", "torch", "rocket"), "channels": ("acc_x", "acc_y", "acc_z")}
    return GestureClassifier(**names, epochs=1, boosting_rounds=3, rate_hz=20).fit(X, Y, groups=WHO)


@isolated_run
def keras_probs():
    from gesture_nb.models.recurrent_layers import engine

    engine.cache_clear()
    batch = batch_of([20] * 16, np.arange(16) % 4)
    member = KerasMember(gn.Settings(epochs=1), 1, 0, SMALL)
    member.fit(batch)
    return member.predict_proba(batch)


def test_results_do_not_depend_on_it():
    """All members, fitted and asked while everything is changed at once: the same bytes."""
    expected, expected_keras = fitted_classifier(), keras_probs()
    with everything_changed():
        model, found = fitted_classifier(), keras_probs()
        probs = expected.predict_proba(X)
    assert (found == expected_keras).all()
    for name, member in expected.fitted_.items():
        batch = expected._batch(expected._sequences(X, False))
        assert (member.predict_proba(batch) == model.fitted_[name].predict_proba(batch)).all(), name
    assert (probs == expected.predict_proba(X)).all()


@pytest.mark.soak
@pytest.mark.parametrize("name", STATES)
def test_no_single_change_matters(name):
    expected, expected_keras = fitted_classifier().predict_proba(X), keras_probs()
    with STATES[name]():
        assert (fitted_classifier().predict_proba(X) == expected).all()
        assert (keras_probs() == expected_keras).all()


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_keras_on_another_library_is_named_before_work_starts(backend, tmp_path, monkeypatch):
    fake = types.ModuleType("keras")
    fake.backend = types.SimpleNamespace(backend=lambda: backend)
    monkeypatch.setitem(sys.modules, "keras", fake)
    with pytest.raises(UserError, match=f"Keras runs on {backend} .*KERAS_BACKEND=tensorflow"):
        gn.train("sim:20", out=tmp_path / "o", members="keras", folds=2)
    assert not (tmp_path / "o" / "members").exists()


@pytest.mark.soak
@pytest.mark.parametrize("loaded", [False, True])
def test_keras_backend_in_the_environment(toy, tmp_path, program, loaded):
    code = f"""
import sys, warnings
warnings.simplefilter("error")
if {loaded}: import keras
import gesture_nb as gn
try: gn.train({str(toy)!r}, out={str(tmp_path / "o")!r}, members="keras", folds=2, epochs=1)
except gn.errors.UserError as e: sys.exit(str(e))
"""
    done = program("-c", code, module=False, KERAS_BACKEND="torch")
    if loaded:
        assert done.returncode == 1 and "Keras runs on torch in this process" in done.stderr
    else:
        assert done.returncode == 0 and "Keras now runs on TensorFlow" in done.stderr
