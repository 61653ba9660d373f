"""Our ensemble beside other people's classifiers and nets, in one run, on the same folds, by people never seen.

    python benchmarks/rivals.py --sets uhh_gestures --models cnn_har,tinierhar --out DIR
    python benchmarks/rivals.py --sets spar,uhh_gestures --models minirocket,quant --python VENV/bin/python --out DIR
    python benchmarks/rivals.py --sets uhh_gestures --run uhh_gestures=runs/uhh --out DIR   # ours, trained before
    python benchmarks/rivals.py --sets uhh_gestures --ours --out DIR                        # ours, trained here
    python benchmarks/rivals.py --sets wisdm_arena --export wisdm_arena=FILE.parquet        # a set with its folds

A result is one line of DIR/results.jsonl: a set, a model, a fold. A benchmark that was killed goes on with what is
missing; `--models none` only prints the table. The protocol, the papers and the rule of training are described in
`rivals/data.py` and `rivals/nets.py`. Extra packages: `seglearn` for `spar`; aeon and torch, in an environment of their
own, for `minirocket`, `multirocket_hydra` and `quant` (`python -m venv VENV`, `VENV/bin/pip install aeon torch`).
"""
from rivals.main import main  # the folder beside this file: a package comes before a module of the same name

if __name__ == "__main__":
    main()
