"""A result that changes needs a version that changes: parts are compared with kept digests, byte for byte."""

import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import golden  # noqa: E402

@pytest.fixture(scope="module")
def parts():
    return golden.parts()


def test_parts_are_what_their_versions_say(parts):
    assert golden.part_differences(parts) == []


def test_the_record_is_of_these_versions():
    """Whoever raises a version records anew: `python tools/golden.py record`."""
    assert golden.read_record("parts")["versions"] == golden.versions()


@pytest.mark.parametrize("name", ["reader", "simulator", "frames", "summaries"])
def test_a_changed_result_without_a_changed_version_is_seen(parts, name):
    changed = [np.array(a) for a in parts[name]]
    numbers = next(a for a in changed if a.dtype == np.float32)
    numbers.flat[np.flatnonzero(np.isfinite(numbers))[0]] += np.float32(1e-3) + np.spacing(np.float32(1e3))
    found = golden.part_differences(parts | {name: changed})
    exact = golden.environment_key(golden.environment()) in golden.read_record("parts")["environments"]
    assert found == (
        [f"{name}: the result changed, but its version is still {golden.versions()[name]}"] if exact else []
    )


def test_every_member_and_part_carries_a_version():
    assert all(isinstance(v, int) and v >= 1 for v in golden.versions().values())


def test_no_source_text_is_hashed():
    """Identity is made of versions and values: renaming a local variable changes nothing."""
    for path in (ROOT / "gesture_nb").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "getsource" not in text and "__file__).read" not in text and "code_version" not in text, path.name
