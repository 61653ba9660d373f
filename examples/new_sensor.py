"""A sensor that the package does not know: heart rate.

Run it with `python examples/new_sensor.py`; it takes about a minute on a laptop's processor.
It writes a tidy file and a run into the folder `out/new_sensor`.
"""

from pathlib import Path

import numpy as np
import pandas as pd

import gesture_nb as gn
from gesture_nb.sensors import Sensor

FOLDER = Path("out/new_sensor")
RATE_HZ = 10.0
STEPS = 60  # six seconds a recording

# 1. One record makes the sensor known to files, features, models, export and plots.
gn.register_sensor(
    Sensor(
        name="hr",  # the prefix of its columns, features and masks
        title="heart rate",
        unit="beats/min",
        columns=("hr_bpm",),
        aliases=("heartrate", "pulse"),  # a column 'HeartRate-BPM' is refused with "Did you mean 'hr_bpm'?"
        valid=(20, 250),  # readings outside count as missing
        plausible=(40, 200),
        noise=(80, 20),  # mean and deviation of the readings with which exported models are tried out
        summary="level",  # summaries of its level and trend are enough
    )
)


# 2. A small data set: the wrist lifts a glass, either at rest or right after climbing stairs.
#    The movement is the same; only the heart tells the two apart.
def recording(rng: np.random.Generator, resting_bpm: float, exercised: bool) -> dict[str, np.ndarray]:
    "Acceleration in m/s² and heart rate of one recording, name → [STEPS]."
    progress = np.linspace(0, 1, STEPS)
    tilt = np.sin(np.pi * progress) * rng.normal(1.2, 0.1)  # rad: up to the mouth and down again
    columns = {
        "acc_x": 9.81 * np.sin(tilt) + rng.normal(0, 0.3, STEPS),
        "acc_y": rng.normal(0, 0.3, STEPS),
        "acc_z": 9.81 * np.cos(tilt) + rng.normal(0, 0.3, STEPS),
    }
    bpm = resting_bpm + rng.normal(0, 2, STEPS)
    if exercised:
        bpm += 45 - 6 * progress  # the heart slows down while one drinks
    return columns | {"hr_bpm": bpm.round()}


def tidy_frame(people: int = 9, recordings_each: int = 12) -> pd.DataFrame:
    "One row a time step, with the columns that any tidy file has."
    rng = np.random.default_rng(0)
    frames = []
    for person in range(people):
        resting_bpm = rng.uniform(55, 80)
        for repetition in range(recordings_each):
            exercised = repetition % 2 == 1
            frame = pd.DataFrame(recording(rng, resting_bpm, exercised))
            frame.insert(0, "sequence_id", f"person{person}_{repetition:02d}")
            frame.insert(1, "subject", f"person{person}")
            frame.insert(2, "gesture", "drink after stairs" if exercised else "drink at rest")
            frame.insert(3, "sequence_counter", range(STEPS))
            frame.insert(4, "sample_rate_hz", RATE_HZ)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def main() -> None:
    "Writes the file, trains on it, and predicts one recording."
    FOLDER.mkdir(parents=True, exist_ok=True)
    frame = tidy_frame()
    frame.to_csv(FOLDER / "drinking.csv", index=False)

    # 3. The new column is a channel like the others: no other file had to change.
    print(gn.read_recordings(FOLDER / "drinking.csv"))

    # 4. Train. Folds are disjoint by person.
    run = gn.train(FOLDER / "drinking.csv", out=FOLDER / "run", folds=3, members="lgbm,rocket")
    print(run.predictions().head(3))  # for people that the models had not seen

    # 5. Predict one recording, as an application would: a frame with the same sensors.
    predict = gn.load(FOLDER / "run")
    one = frame[frame.sequence_id == "person0_01"].drop(columns="gesture")
    print(f"person0_01: {predict(one)}")


if __name__ == "__main__":
    main()
