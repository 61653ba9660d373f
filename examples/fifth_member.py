"""A fifth member: scikit-learn's histogram gradient boosting on summary statistics, saved without any pickle."""
import numpy as np

import gesture_nb as gn
from gesture_nb.artifacts import read_arrays, read_json, write_arrays, write_json
from gesture_nb.models.base import Batch, Member, Outputs, derive_seed
from gesture_nb.models.gbdt import align_columns
from gesture_nb.models.ridge import softmax

def tree_arrays(model) -> dict[str, np.ndarray]:
    "The nodes of all trees, padded to one length, `[trees, nodes]`; a leaf is its own child."
    trees = [tree.nodes for trees_of_round in model._predictors for tree in trees_of_round]
    nodes = np.zeros((len(trees), max(map(len, trees))), trees[0].dtype)
    for row, tree in zip(nodes, trees): row[:len(tree)] = tree
    leaf, itself = nodes["is_leaf"] == 1, np.arange(nodes.shape[1])
    return {"feature": nodes["feature_idx"].astype(np.int64), "threshold": nodes["num_threshold"],
            "missing_left": nodes["missing_go_to_left"] == 1, "left": np.where(leaf, itself, nodes["left"]),
            "right": np.where(leaf, itself, nodes["right"]), "value": nodes["value"], "present": model.classes_,
            "depth": nodes["depth"].max(), "baseline": model._baseline_prediction.ravel()}

def raw_scores(trees: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    "`[m, C]` (two classes: `[m, 1]`): all sequences go down all trees at once."
    rows, tree, classes = np.arange(len(x))[:, None], np.arange(len(trees["value"])), len(trees["baseline"])
    node = np.zeros((len(x), len(tree)), np.int64)
    for _ in range(int(trees["depth"])):
        reading = x[rows, trees["feature"][tree, node]]
        left = np.where(np.isnan(reading), trees["missing_left"][tree, node], reading <= trees["threshold"][tree, node])
        node = np.where(left, trees["left"][tree, node], trees["right"][tree, node])
    return trees["baseline"] + trees["value"][tree, node].reshape(len(x), len(tree) // classes, classes).sum(1)

@gn.register_member
class HistMember(Member):
    name, title, version, libraries = "hist", "Histogram boosting", 1, ("scikit-learn",)
    def hyperparameters(self, train: Batch) -> dict:
        return {"max_iter": self.settings.boosting_rounds or 60, "max_leaf_nodes": 15, "min_samples_leaf": 5}
    def fit(self, train: Batch, *, inner_split, reporter=None, checkpoint=None, stop=None) -> dict:
        from sklearn.ensemble import HistGradientBoostingClassifier as Boosting
        x, self.names = train.summary()
        x = np.where(np.isnan(x).all(0), 0, x)   # scikit-learn 1.9 refuses columns without any reading
        model = Boosting(random_state=derive_seed(self.seed, self.fold), **self.hyperparameters(train)).fit(x, train.y)
        self.classes, self.trees = len(train.classes), tree_arrays(model)
        return {"rounds": model.n_iter_}
    def predict_outputs(self, batch: Batch) -> Outputs:
        scores = raw_scores(self.trees, align_columns(*batch.summary(), self.names))
        if scores.shape[1] == 1: scores = np.concatenate([np.zeros_like(scores), scores], 1)   # two classes
        probs = np.zeros((len(batch), self.classes), np.float32)
        probs[:, self.trees["present"]] = softmax(scores)
        return Outputs(probs)
    def save(self, folder) -> None:
        write_arrays(folder / "trees.safetensors", self.trees)
        write_json(folder / "member.json", {"names": self.names, "classes": self.classes})
    @classmethod
    def load(cls, folder) -> "HistMember":
        member, metadata = cls(), read_json(folder / "member.json")
        member.names, member.classes = tuple(metadata["names"]), metadata["classes"]
        member.trees = read_arrays(folder / "trees.safetensors")
        return member
if __name__ == "__main__":
    run = gn.train("sim:120", out="out_fifth_member", members=("lgbm", "hist"), folds=2, boosting_rounds=20)
    print(run, run.predictor().table_proba(gn.read_recordings("sim:5:1")).argmax(1))
