"""The stand-in's gateway: hands out every sequence once, in a new random order, and writes the submission into the
working folder.

    python -m kaggle_evaluation.cmi_gateway test.csv test_demographics.csv
"""
import io
import json
import os
import random
import sys
import time
from pathlib import Path

import grpc
import polars as pl

PORT, METHOD = 50051, "/kaggle_evaluation.KaggleEvaluation/Send"
LABELS = 18


def packed(name, *frames):
    "A call as bytes: the lengths of its parts as JSON, then the parts as Arrow streams."
    parts = []
    for f in frames:
        b = io.BytesIO()
        f.write_ipc_stream(b)
        parts.append(b.getvalue())
    return json.dumps([name, [len(p) for p in parts]]).encode() + b"\n" + b"".join(parts)


def unpacked(request):
    head, _, rest = request.partition(b"\n")
    name, lengths = json.loads(head)
    frames = []
    for n in lengths:
        frames.append(pl.read_ipc_stream(io.BytesIO(rest[:n])))
        rest = rest[n:]
    return name, frames


class CMIGateway:
    def __init__(self, data_paths, patience=900):
        self.test, self.people, self.patience = pl.read_csv(data_paths[0]), pl.read_csv(data_paths[1]), patience

    def run(self, stop=False):
        names, rows, start = self.test["sequence_id"].unique(maintain_order=True).to_list(), [], time.monotonic()
        random.Random(os.environ.get("STAND_IN_ORDER")).shuffle(names)      # another one each time, unless it is set
        with grpc.insecure_channel(f"127.0.0.1:{PORT}", options=[("grpc.max_send_message_length", -1)]) as channel:
            grpc.channel_ready_future(channel).result(timeout=self.patience)
            call, times = channel.unary_unary(METHOD), [time.monotonic() - start]
            for i, n in enumerate(names):
                sequence = self.test.filter(pl.col("sequence_id") == n)
                person = self.people.filter(pl.col("subject") == sequence["subject"][0])
                began = time.monotonic()
                rows.append((n, call(packed("predict", sequence, person), timeout=None if i == 0 else 1800).decode()))
                times.append(time.monotonic() - began)
            if stop:
                call(packed("stop"))
        submission = pl.DataFrame(rows, schema=["sequence_id", "gesture"], orient="row")
        submission.write_parquet(Path("submission.parquet"))
        middle = sorted(times[2:])[len(times) // 2 - 1] if len(times) > 3 else times[-1]
        waits = f"waited {times[0]:.1f} s for the server, {times[1]:.1f} s for the first answer"
        print(f"gateway: {len(rows)} answers; {waits}, {1000 * middle:.0f} ms for a middling one", flush=True)


if __name__ == "__main__":
    CMIGateway(sys.argv[1:3]).run(stop=True)
