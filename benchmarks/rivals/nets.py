"""Three nets of WHAR Arena (Burzer et al. 2026, arXiv:2606.13194), written anew in PyTorch, and one rule of training.

Rule, that of WHAR Arena's section 5.1: channels standardised with the training people's mean and deviation; AdamW,
learning rate 1e-3 falling along a cosine over at most 100 epochs, weight decay 1e-4, batches of 64; cross-entropy
weighted by the inverse frequency of the classes (mean weight 1); stop after 10 epochs without a better macro F1 of the
inner check, take the best epoch's weights. One thing is stricter here: their check is a random fifth of the training
windows, ours a fifth by subject (`gesture_nb.evaluation.folds.inner_split`), so that the check is a stranger too.
With `refit` the net is then trained anew on all training people for the best number of epochs, the same cosine.

What the papers leave open and was decided here stands at each net; the benchmark's own implementations (GitHub,
teco-kit/whar-models) were read for it, and nothing of them is copied. All take float32 `[n, channels, length]` and give
logits `[n, classes]`.
"""
import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gesture_nb.evaluation.folds import inner_split
from gesture_nb.evaluation.metric import confusion_counts, macro_f1_of

class Rule(NamedTuple):
    "The training budget, the same for every net."
    epochs: int = 100
    patience: int = 10
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch: int = 64
    refit: bool = False
    seed: int = 0


class CnnHar(nn.Module):
    """CNN-HAR: Yang, Nguyen, San, Li, Krishnaswamy, "Deep convolutional neural networks on multichannel time series for
    human activity recognition", IJCAI 2015, figure 1.

    Each channel by itself: 50 maps of 5 steps, maximum of 2, 40 maps of 5, maximum of 3, 20 maps of 3, each with
    rectifier and normalisation across maps; then 400 units over all channels, then the classes.
    Decided here: constants of the normalisation (size 5, PyTorch's defaults else). The paper's windows end as one step;
    longer ones are brought to one by a maximum over time, as WHAR Arena does; shorter ones than 30 are filled with 0.
    """

    def __init__(self, channels: int, length: int, classes: int):
        super().__init__()
        stages = []
        for maps_in, maps, steps, pool in ((1, 50, 5, 2), (50, 40, 5, 3), (40, 20, 3, 1)):
            stages += [nn.Conv2d(maps_in, maps, (1, steps)), nn.ReLU()]
            stages += [nn.MaxPool2d((1, pool))] if pool > 1 else []
            stages += [nn.LocalResponseNorm(5)]
        self.maps = nn.Sequential(*stages)
        self.unify = nn.Sequential(nn.Conv2d(20, 400, (channels, 1)), nn.ReLU(), nn.LocalResponseNorm(5))
        self.output = nn.Linear(400, classes)
        self.fill = max(30 - length, 0)

    def forward(self, x):
        x = F.pad(x, (0, self.fill)).unsqueeze(1)
        return self.output(self.unify(self.maps(x)).amax(dim=(2, 3)))


class SeparableBlock(nn.Module):
    "Depthwise then pointwise convolution over time, normalised, rectified, halved if `pool`, and a shortcut around it."

    def __init__(self, maps_in: int, maps: int, steps: int, pool: bool):
        super().__init__()
        self.depthwise = nn.Conv2d(maps_in, maps_in, (1, steps), padding=(0, steps // 2), groups=maps_in)
        self.pointwise = nn.Conv2d(maps_in, maps, 1)
        self.norm = nn.BatchNorm2d(maps)
        same = maps_in == maps
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(maps_in, maps, 1), nn.BatchNorm2d(maps))
        self.pool = nn.MaxPool2d((1, 2)) if pool else nn.Identity()

    def forward(self, x):
        inner = F.relu(self.norm(self.pointwise(self.depthwise(x))))
        return self.pool(inner) + self.pool(self.shortcut(x))


class TinierHar(nn.Module):
    """TinierHAR: Bian, Liu, Fortes Rey, Geissler, Lukowicz, "TinierHAR: towards ultra-lightweight deep learning models
    for efficient human activity recognition on edge devices", ISWC 2025, arXiv:2507.07949.

    Residual depthwise separable convolutions, a bidirectional GRU, aggregation over time by attention.
    The text of the paper was not in reach beyond its abstract. Sizes as the authors' repository and WHAR Arena state
    them: 4 maps, then 8, both halving time, then four blocks of 8; 5 steps; 16 GRU units each way; dropout 0.3 before
    the GRU.
    """

    def __init__(self, channels: int, length: int, classes: int):
        super().__init__()
        sizes = [(1, 4, True), (4, 8, True), (8, 8, False), (8, 8, False), (8, 8, False), (8, 8, False)]
        self.blocks = nn.Sequential(*[SeparableBlock(a, b, 5, pool) for a, b, pool in sizes])
        self.dropout = nn.Dropout(0.3)
        self.gru = nn.GRU(8 * channels, 16, bidirectional=True, batch_first=True)
        self.score = nn.Linear(32, 1)
        self.output = nn.Linear(32, classes)

    def forward(self, x):
        maps = self.blocks(x.unsqueeze(1)).flatten(1, 2).transpose(1, 2)   # [n, steps, 8 · channels]
        steps = self.gru(self.dropout(maps))[0]
        weights = self.score(steps).softmax(dim=1)
        return self.output((weights * steps).sum(dim=1))


class Dana(nn.Module):
    """DANA: Malekzadeh, Clegg, Cavallaro, Haddadi, "DANA: dimension-adaptive neural architecture for multivariate
    sensor data", IMWUT 2021, arXiv:2008.02397, around the net of Ordóñez and Roggen (2016), as in the authors' example.

    Four layers of 64 maps of 5 steps on each channel by itself, a maximum over 8 stretches of time (dimension-adaptive
    pooling where the channels are always the same), two LSTM layers of 128, dropout 0.5 after each.
    Decided here: no dimension-adaptive training, since sensors and rate never change in these sets; WHAR Arena trains
    it with its common rule too.
    """

    def __init__(self, channels: int, length: int, classes: int):
        super().__init__()
        layers = []
        for maps_in in (1, 64, 64, 64):
            layers += [nn.Conv1d(maps_in, 64, 5, padding="same"), nn.ReLU()]
        self.maps = nn.Sequential(*layers, nn.AdaptiveMaxPool1d(8))
        self.lstm = nn.LSTM(64 * channels, 128, num_layers=2, dropout=0.5, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(128, classes)

    def forward(self, x):
        n, channels, length = x.shape
        maps = self.maps(x.reshape(n * channels, 1, length)).reshape(n, channels * 64, 8)
        return self.output(self.dropout(self.lstm(maps.transpose(1, 2))[0][:, -1]))


NETS = {"cnn_har": CnnHar, "tinierhar": TinierHar, "dana": Dana}


class Scaling(NamedTuple):
    "Mean and deviation of each channel, float32 `[1, channels, 1]`."
    mean: np.ndarray
    deviation: np.ndarray

    def __call__(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(((x - self.mean) / self.deviation).astype(np.float32))


class Trained(NamedTuple):
    "A net that has learned, and how."
    net: nn.Module
    best_epoch: int
    epochs: int
    check_macro_f1: float


def scaling_of(x: np.ndarray) -> Scaling:
    "The scaling that standardises the channels of `x` `[n, channels, length]`."
    mean = x.mean((0, 2), keepdims=True, dtype=np.float64)
    deviation = x.std((0, 2), keepdims=True, dtype=np.float64)
    return Scaling(mean.astype(np.float32), np.maximum(deviation, 1e-6).astype(np.float32))


def class_weights(y: np.ndarray, classes: int) -> torch.Tensor:
    "float32 `[classes]`: inverse frequencies with mean 1 over the classes that occur; 0 for the others."
    counts = np.bincount(y, minlength=classes)
    weights = np.divide(len(y), counts, out=np.zeros(classes), where=counts > 0)
    return torch.tensor(weights / weights[counts > 0].mean(), dtype=torch.float32)


def predict(net: nn.Module, x: torch.Tensor, batch: int = 512) -> np.ndarray:
    "int64 `[n]`: the likeliest class of each sequence."
    net.eval()
    with torch.no_grad():
        parts = [net(x[i:i + batch]).argmax(1) for i in range(0, len(x), batch)]
    return torch.cat(parts).numpy()


def _train_epoch(net, x, y, loss, optimizer, batch: int) -> None:
    "One pass over `x`, in random order; a last batch of a single sequence is left out (batch normalisation)."
    net.train()
    for index in torch.randperm(len(x)).split(batch):
        if len(index) < 2:
            continue
        optimizer.zero_grad(set_to_none=True)
        loss(net(x[index]), y[index]).backward()
        optimizer.step()


def _epochs(net, x, y, classes: int, rule: Rule):
    "Trains on and yields the number of epochs done, up to `rule.epochs`."
    loss = nn.CrossEntropyLoss(class_weights(y, classes))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rule.learning_rate, weight_decay=rule.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=rule.epochs)
    labels = torch.from_numpy(y)
    for epoch in range(1, rule.epochs + 1):
        _train_epoch(net, x, labels, loss, optimizer, rule.batch)
        schedule.step()
        yield epoch


def _new_net(kind: str, x: torch.Tensor, classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return NETS[kind](x.shape[1], x.shape[2], classes)


def train_with_check(kind: str, x, y, check_x, check_y, classes: int, rule: Rule, report=print) -> Trained:
    "Early stopping: the weights of the epoch with the best macro F1 on the check."
    net = _new_net(kind, x, classes, rule.seed)
    best = Trained(net, 0, 0, -1.0)
    state = None
    for epoch in _epochs(net, x, y, classes, rule):
        counts = confusion_counts(check_y, predict(net, check_x), range(classes))
        score = float(macro_f1_of(counts))
        if score > best.check_macro_f1:
            best, state = Trained(net, epoch, epoch, score), copy.deepcopy(net.state_dict())
        if epoch % 10 == 0:
            report(f"epoch {epoch}/{rule.epochs}: check {score:.3f}, best {best.check_macro_f1:.3f}")
        if epoch - best.best_epoch >= rule.patience:
            break
    net.load_state_dict(state)
    return best._replace(epochs=epoch)


def train_for(kind: str, x, y, classes: int, rule: Rule, epochs: int) -> nn.Module:
    "Trained for a given number of epochs of the rule's schedule."
    net = _new_net(kind, x, classes, rule.seed)
    for epoch in _epochs(net, x, y, classes, rule):
        if epoch >= epochs:
            break
    return net


class NetResult(NamedTuple):
    "Predictions and what is known of the training."
    labels: np.ndarray   # int64, one for each sequence that was not trained on
    about: dict          # plain values


def fit_predict(kind: str, arrays, y, subjects, classes: int, rule: Rule, report=print) -> NetResult:
    "Trains the net `kind` on `arrays.train` (`data.FoldArrays`), predicts the others."
    train = np.flatnonzero(arrays.train)
    split = inner_split(subjects[train], y[train], seed=rule.seed)
    fit, check = train[split.fit], train[split.check]
    scale = scaling_of(arrays.x[train])
    trained = train_with_check(kind, scale(arrays.x[fit]), y[fit], scale(arrays.x[check]), y[check], classes, rule,
                               report)
    net = trained.net
    if rule.refit:
        net = train_for(kind, scale(arrays.x[train]), y[train], classes, rule, trained.best_epoch)
    about = {"best_epoch": trained.best_epoch, "epochs": trained.epochs, "length": arrays.x.shape[2],
             "check_macro_f1": round(trained.check_macro_f1, 4),
             "parameters": sum(p.numel() for p in net.parameters())}
    return NetResult(predict(net, scale(arrays.x[~arrays.train])), about)
