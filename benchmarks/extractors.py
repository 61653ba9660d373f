"""Our summaries beside those of other libraries, on the bundled recordings: time, and LightGBM's scores on new people.

    python benchmarks/extractors.py [--tsfresh]

Libraries that are not installed are left out (none is needed by the package: `pip install pycatch22 tsfel tsfresh` into
an environment of its own). The six channels are the same for all, windows of 200 steps at 50 Hz; one thread each; folds
by subject as the data's README says; LightGBM's settings are the same for all and chosen on none. tsfresh is timed on a
sample unless `--tsfresh` asks for all of it.
"""
import argparse
import os
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.simplefilter("ignore")


def ours(x, table):
    from gesture_nb.features.compute import frame_features
    from gesture_nb.features.summary import summarise
    return summarise(frame_features(table, threads=1), duration=False)[0]


def plain(x, table):
    "What one would write first: moments and quantiles of each channel."
    moments = [f(x, axis=2) for f in (np.mean, np.std, np.min, np.max, np.median)]
    return np.concatenate(moments + [np.quantile(x, q, axis=2) for q in (.25, .75)], axis=1)


def catch22(x, table):
    import pycatch22
    of_channel = lambda channel: pycatch22.catch22_all(channel.tolist(), catch24=True)["values"]
    return np.array([np.concatenate([of_channel(channel) for channel in window]) for window in x])


def tsfel(x, table):
    import tsfel as library
    windows, features = [window.T for window in x], library.get_features_by_domain()
    return library.time_series_features_extractor(features, windows, fs=50, verbose=0, n_jobs=1).to_numpy()


def tsfresh(x, table):
    import pandas as pd
    from tsfresh import extract_features
    from tsfresh.feature_extraction import EfficientFCParameters
    n, c, t = x.shape
    long = pd.DataFrame(x.transpose(0, 2, 1).reshape(-1, c), columns=[f"c{i}" for i in range(c)])
    long = long.assign(id=np.repeat(np.arange(n), t), time=np.tile(np.arange(t), n))
    return extract_features(long, column_id="id", column_sort="time", default_fc_parameters=EfficientFCParameters(),
                            n_jobs=0, disable_progressbar=True).to_numpy()


EXTRACTORS = {
    "ours (gesture_nb)": ours,
    "moments and quantiles": plain,
    "pycatch22 (24 a channel)": catch22,
    "TSFEL (all domains)": tsfel,
    "tsfresh (efficient)": tsfresh,
}
LIGHTGBM = {"objective": "multiclass", "learning_rate": .1, "num_leaves": 15, "feature_fraction": .2,
            "bagging_fraction": .8, "bagging_freq": 1, "min_data_in_leaf": 10, "num_threads": 1, "seed": 0,
            "deterministic": True, "verbose": -1}


def scores_on_new_people(x, y, fold):
    "(accuracy, macro F1) on people that the trees were not fitted on."
    import lightgbm
    from sklearn.metrics import accuracy_score, f1_score
    p, settings = np.zeros(len(y), int), LIGHTGBM | {"num_class": y.max() + 1}
    for k in np.unique(fold):
        model = lightgbm.train(settings, lightgbm.Dataset(x[fold != k], y[fold != k]), 100)
        p[fold == k] = model.predict(x[fold == k]).argmax(axis=1)
    return accuracy_score(y, p), f1_score(y, p, average="macro")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--tsfresh", action="store_true", help="all windows with tsfresh too (many minutes)")
    whole = a.parse_args().tsfresh
    from gesture_nb.data.bundled import spar
    from gesture_nb.data.sequences import slice_sequences
    table = spar()
    x = table.values.reshape(6, len(table), 200).transpose(1, 0, 2).astype(float)
    y, fold = np.unique(table.meta["gesture"], return_inverse=True)[1], table.meta["fold"]
    print(f"{len(table):,} windows of 6 channels × 200 steps")
    print(f"{'':<34}{'columns':>8}{'s':>9}{'ms each':>9}{'accuracy':>10}{'macro F1':>10}")
    for name, extract in EXTRACTORS.items():
        n = 20 if extract is tsfresh and not whole else None    # windows to time; None: all
        start = sum(os.times()[:4])      # processor time, that of child processes included
        try: z = extract(x[:n], slice_sequences(table, 0, n or len(table))).astype(float)
        except ImportError:
            print(f"{name:<34} not installed")
            continue
        z[~np.isfinite(z)] = np.nan
        seconds = sum(os.times()[:4]) - start
        title = name + (f", {n} windows" if n else "")
        scores = ("", "") if n else (f"{v:.3f}" for v in scores_on_new_people(z, y, fold))
        columns = "".join(f"{score:>10}" for score in scores)
        print(f"{title:<34}{z.shape[1]:>8}{seconds:>9.2f}{1e3 * seconds / len(z):>9.2f}{columns}", flush=True)


if __name__ == "__main__": main()
