import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# settings of the person who runs the tests must not steer them, nor may an unbuffered Python hide a missing flush
for name in list(os.environ):
    if name.startswith(("W_", "DL_", "GESTURE_NB_")) or name in (
        "OUTPUT_PATH",
        "FEATURE_STORE",
        "RUN_ANY_TRAINING",
        "RESUME",
        "PROGRESS",
        "USE_TQDM",
        "PYTHONUNBUFFERED",
    ):
        del os.environ[name]


@pytest.fixture(scope="session")
def shared_data():
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED / "data"


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A tidy Parquet file that any member learns in seconds: six people, three rhythms."""
    import pandas as pd

    rng, steps = np.random.default_rng(0), 40
    frames = []
    for i in range(60):
        k, person = i % 3, "abcdef"[i // 10]
        phase = rng.uniform(0, 6)
        wave = 3 * np.sin(np.arange(steps) * (0.3 + 0.4 * k) + phase)
        acc = rng.normal(size=(steps, 3)) * 0.5 + np.c_[wave, 0 * wave, 9.8 + 0 * wave]
        frames.append(
            pd.DataFrame(
                {
                    "sequence_id": f"q{i:03d}",
                    "subject": person,
                    "gesture": ["hold", "wave", "shake"][k],
                    "sequence_counter": np.arange(steps),
                    "acc_x": acc[:, 0],
                    "acc_y": acc[:, 1],
                    "acc_z": acc[:, 2],
                    "sample_rate_hz": 20.0,
                }
            )
        )
    path = tmp_path_factory.mktemp("toy") / "toy.parquet"
    pd.concat(frames).to_parquet(path, index=False)
    return path


@pytest.fixture
def program():
    """Runs `python -m gesture_nb …` (or other arguments of python) and returns the finished process."""

    def run(*arguments, module=True, cwd=ROOT, timeout=400, **environ):
        command = [sys.executable, *(["-m", "gesture_nb"] if module else []), *map(str, arguments)]
        return subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | {k: str(v) for k, v in environ.items()},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
