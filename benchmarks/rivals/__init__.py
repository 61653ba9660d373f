"""The parts of `benchmarks/rivals.py`: sets and folds, nets, classifiers of aeon, kept results, the command line."""
