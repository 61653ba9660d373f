"The estimator in scikit-learn's hands."
import warnings

import numpy as np
import pytest

import gesture_nb as gn
from gesture_nb.data.sequences import table_from_arrays
from gesture_nb.errors import UserError
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


@pytest.fixture(scope="module")
def uneven(shakes):
    "The same shakes cut to different lengths, as a list of [channels, length] arrays."
    x, y, people = shakes
    return [a[:, : 30 + i % 20] for i, a in enumerate(x)], y, people


def forms(lists):
    "Each form in which aeon, sktime and NumPy keep sequences of unequal lengths."
    import pandas as pd

    names = list(ACC + GYR)
    padded = np.full((len(lists), 6, max(a.shape[1] for a in lists)), np.nan, np.float32)
    for i, a in enumerate(lists):
        padded[i, :, : a.shape[1]] = a
    objects = np.empty(len(lists), object)
    objects[:] = lists
    frames = [pd.DataFrame(a.T, columns=names) for a in lists]
    nested = pd.DataFrame({name: [pd.Series(a[k]) for a in lists] for k, name in enumerate(names)})
    keys = [f"r{len(lists) - i}" for i in range(len(lists))]  # in no alphabetic order
    return {
        "numpy3D": padded,
        "objects": objects,
        "df-list": frames,
        "nested_univ": nested,
        "pd-multiindex": pd.concat(frames, keys=keys),
    }


def test_every_form_of_sequences_is_the_same_sequences(uneven):
    lists, y, people = uneven
    classifier = GestureClassifier(boosting_rounds=5, rate_hz=25).fit(lists, y, people)
    want = classifier.predict_proba(lists)
    table = table_from_arrays(lists, ACC + GYR, y, people, rate_hz=25)
    assert np.array_equal(want, classifier.predict_proba(table)) and classifier.score(lists, y) > 0.9
    for name, x in forms(lists).items():
        assert np.array_equal(want, classifier.predict_proba(x)), name
    for name in ("nested_univ", "pd-multiindex"):
        x = forms(lists)[name]
        again = GestureClassifier(boosting_rounds=5, rate_hz=25).fit(x, y, people)
        assert np.array_equal(want, again.predict_proba(x)) and list(again.feature_names_in_) == list(ACC + GYR)
        assert again.n_features_in_ == 6
        with pytest.raises(ValueError, match="feature names"):
            again.predict(x[[*x.columns[1:], x.columns[0]]])


def test_a_tidy_frame_brings_labels_and_people(toy):
    import pandas as pd

    frame = pd.read_parquet(toy)
    classifier = GestureClassifier(boosting_rounds=5).fit(frame)
    assert classifier.score(frame) > 0.8 and len(classifier.predict(frame)) == 60


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(weights=[0]), "weights"),
        (dict(weights=[-1]), "weights"),
        (dict(weights=[np.nan]), "weights"),
        (dict(weights=[1, 2]), "1 members"),
        (dict(weights="much"), "weights"),
        (dict(rate_hz=0), "rate_hz"),
        (dict(rate_hz=-5), "rate_hz"),
        (dict(rate_hz=np.inf), "rate_hz"),
        (dict(rate_hz=True), "rate_hz"),
        (dict(members=()), "members"),
        (dict(members=("lgmb",)), "lgbm"),
        (dict(preset="huge"), "preset"),
        (dict(boosting_rounds=0), "boosting_rounds"),
        (dict(channels=("ax", "ay", "az", "gx", "gy", "gz")), "ax"),
        (dict(channels=ACC * 2), "twice"),
    ],
)
def test_parameters_are_kept_as_they_are_and_checked_in_fit(shakes, wrong, said):
    x, y, _ = shakes
    classifier = GestureClassifier(**wrong)
    assert classifier.get_params()[next(iter(wrong))] is next(iter(wrong.values()))
    with pytest.raises(ValueError, match=said):
        classifier.fit(x, y)


def test_sequences_that_lie_the_other_way_round_are_told_apart(shakes):
    x, y, _ = shakes
    for turned in (x.transpose(0, 2, 1), [a.T[: 30 + i] for i, a in enumerate(x[:3])]):
        with pytest.raises(ValueError, match="length, channels"):
            GestureClassifier().fit(turned, y[: len(turned)])


class Quick(GestureClassifier):
    "A subclass with parameters of its own, by keyword only."

    def __init__(self, *, members=("lgbm",), rounds=3):
        super().__init__(members=members, boosting_rounds=rounds)
        self.rounds = rounds


def test_subclasses_arrays_and_pickles(shakes):
    import pickle

    from sklearn.base import clone

    x, y, _ = shakes
    assert clone(Quick(rounds=5)).rounds == 5 and set(Quick().get_params()) == {"members", "rounds"}
    weights = np.array([1.0, 0.0])
    classifier = clone(GestureClassifier(("lgbm", "rocket"), weights=weights, boosting_rounds=3))
    assert "weights=array" in repr(classifier) and np.array_equal(classifier.weights, weights)
    again = pickle.loads(pickle.dumps(classifier.fit(x, y)))
    assert list(again.fitted_) == ["lgbm"] and np.array_equal(again.predict_proba(x), classifier.predict_proba(x))


def test_metadata_reaches_fit_and_nothing_else(uneven, monkeypatch):
    import sklearn
    from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate
    from sklearn.pipeline import Pipeline

    lists, y, people = uneven
    seen, fit = [], Quick.fit

    def spy(self, X, y=None, groups=None):
        seen.append(groups)
        return fit(self, X, y, groups)

    monkeypatch.setattr(Quick, "fit", spy)
    with pytest.raises(RuntimeError, match="metadata routing"):
        Quick().set_fit_request(groups=True)
    with sklearn.config_context(enable_metadata_routing=True):
        with pytest.raises(TypeError, match="gruops"):
            Quick().set_fit_request(gruops=True)
        how = dict(params={"groups": people}, cv=GroupKFold(2), error_score="raise")
        cross_validate(Quick().set_fit_request(groups=True), lists, y, **how)
        assert [len(set(groups)) for groups in seen] == [3, 3]
        cross_validate(Pipeline([("c", Quick())]), lists, y, cv=2, error_score="raise")
        assert seen[2:] == [None, None]
        routed = Pipeline([("c", Quick().set_fit_request(groups=True))])
        cross_validate(routed, lists, y, **how)
        assert [len(set(groups)) for groups in seen[4:]] == [3, 3]
    search = GridSearchCV(GestureClassifier(("lgbm", "rocket"), boosting_rounds=3), {"weights": [(1, 0), (0, 1)]}, cv=2)
    assert search.fit(lists, y).best_params_["weights"] in ((1, 0), (0, 1))


def test_channels_that_a_table_lacks_are_said(shakes):
    x, y, _ = shakes
    model = GestureClassifier(boosting_rounds=3, rate_hz=50).fit(x, y)
    with pytest.raises(ValueError, match="none of those that GestureClassifier was fitted on"):
        model.predict(gn.from_arrays(x[:, :1], channels=["thm_1"], rate_hz=50))
    one = {"sequence_id": ["a"] * x.shape[2], "sequence_counter": range(x.shape[2]), **dict(zip(model.channels_, x[0]))}
    assert len(model.predict(one)) == 1   # no subject, no gesture
    with pytest.raises(ValueError, match="sample_weight must have"):
        model.score(x, y, sample_weight=np.zeros(len(y)))
    with pytest.raises(ValueError, match="no label for sequence 0"):
        GestureClassifier().fit(x, [None, *y[1:]])


def test_readings_in_g_are_warned_of():
    from gesture_nb.data.samples import swings
    motions = swings(people=("anna", "bob"), takes=2)
    x, y = np.stack([m.acc for m in motions]), [m.gesture for m in motions]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        GestureClassifier(boosting_rounds=2, rate_hz=50).fit(x, y)
    with pytest.warns(UserWarning, match="acceleration looks like g"):
        GestureClassifier(boosting_rounds=2, rate_hz=50).fit(x / 9.80665, y)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"gesture": [np.nan, "a"]}, "gesture is missing for sequence 0"),
        ({"gesture": ["a", None]}, "gesture is missing for sequence 1"),
        ({"subject": ["", "a"]}, "subject is missing for sequence 0"),
        ({"rate_hz": "fast"}, "rate_hz is 'fast'"),
        ({"gesture": [["a", "b"], ["a", "b"]]}, "gesture has the shape"),
    ],
)
def test_arrays_with_holes_in_what_they_say_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        gn.from_arrays(np.ones((2, 3, 20), np.float32), **given)


def test_masked_and_infinite_readings_are_missing_and_complex_ones_refused():
    x = np.ones((2, 3, 20))
    x[0, 1, 4] = np.inf
    for form in (x, np.ma.masked_greater(x, 1), list(x), x.astype(np.float64)):
        assert np.argwhere(np.isnan(gn.from_arrays(form).values)).tolist() == [[1, 4]]
    with pytest.raises(ValueError, match="something else than numbers"):
        gn.from_arrays(x.astype(complex))
