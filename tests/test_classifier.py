"The estimator in scikit-learn's hands."
import numpy as np
import pytest

from gesture_nb.data.sequences import table_from_arrays
from gesture_nb.schema import ACC, GYR
from gesture_nb.serving.classifier import GestureClassifier

@pytest.mark.filterwarnings("ignore")
def test_all_of_scikit_learns_checks():
    from sklearn.utils.estimator_checks import check_estimator
    results = check_estimator(GestureClassifier(boosting_rounds=6), on_fail=None, on_skip=None)
    failed = {r["check_name"]: repr(r["exception"]) for r in results if r["status"] == "failed"}
    assert len(results) > 45 and failed == {}


@pytest.fixture(scope="module")
def shakes():
    rng = np.random.default_rng(1)
    y = np.array(["slow", "quick", "still"])[np.arange(36) % 3]
    speed = np.array([0.3, 0.9, 0])[np.arange(36) % 3][:, None] * np.arange(50)
    acc = 4 * np.sin(speed + rng.uniform(0, 6, (36, 1))), 0 * speed, 9.8 + 0 * speed
    gyr = speed * 0, speed * 0, np.cos(speed)
    x = np.stack([*acc, *gyr], 1) + rng.normal(size=(36, 6, 50)) / 2
    return x.astype(np.float32), y, np.arange(36) // 6


def test_an_array_and_a_table_are_the_same_sequences(shakes):
    x, y, people = shakes
    a = GestureClassifier(boosting_rounds=10, rate_hz=25).fit(x, y, people)
    table = table_from_arrays(x, ACC + GYR, y, people, rate_hz=25)
    b = GestureClassifier(boosting_rounds=10).fit(table)
    assert np.array_equal(a.predict_proba(x), b.predict_proba(table)) and a.score(x, y) == b.score(table) > 0.9
    assert np.allclose(a.predict_proba(x).sum(1), 1) and list(a.classes_) == ["quick", "slow", "still"]


def test_several_members_are_averaged_and_cloned(shakes):
    from sklearn.base import clone
    x, y, _ = shakes
    both = GestureClassifier(("lgbm", "rocket"), weights=(3, 1), boosting_rounds=5)
    again = clone(both)
    p, q = both.fit(x, y).predict_proba(x), again.fit(x, y).predict_proba(x)
    single = [GestureClassifier((m,), boosting_rounds=5).fit(x, y).predict_proba(x) for m in ("lgbm", "rocket")]
    assert np.array_equal(p, q) and np.allclose(p, (3 * single[0] + single[1]) / 4, atol=1e-6)


def test_what_cannot_be_learned_is_said(shakes):
    x, y, _ = shakes
    with pytest.raises(ValueError, match="name them"):
        GestureClassifier().fit(x[:, :5], y)
    with pytest.raises(ValueError, match="names 2"):
        GestureClassifier(channels=("acc_x", "acc_y")).fit(x, y)
    with pytest.raises(ValueError, match="tree"):
        GestureClassifier(members=("trees",)).fit(x, y)
    with pytest.raises(ValueError, match="6 features"):
        GestureClassifier(boosting_rounds=3).fit(x, y).predict(x[:, :3])
