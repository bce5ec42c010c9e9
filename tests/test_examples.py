"""Every example runs, shows what it says, and is listed."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def quick_start(found):
    errors = found["errors"]
    return Path("quick_start.png").stat().st_size > 10_000 and all(
        joint < min(pooled, own) + 0.01
        for pooled, own, joint in zip(errors["pooled"], errors["independent"], errors["mean"])
    )


def shared_is_best(found):
    *others, joint = found["scores"].values()
    return joint > max(others)


CHECKS = {
    "quick_start": quick_start,
    "several_classes": shared_is_best,
    "sparse_text": shared_is_best,
    "relational_kernel_svm": shared_is_best,
    "two_input_cnn": lambda found: found["right"].min() > 0.8,
    "big_data_on_disk": lambda found: found["explained"] > 0.99,
}


@pytest.mark.parametrize("name", CHECKS)
def test_example_runs_and_shows_what_it_says(name, tmp_path, monkeypatch):
    if name == "quick_start":
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    assert CHECKS[name](runpy.run_path(str(EXAMPLES / f"{name}.py")))


def test_every_example_is_tested_and_listed():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == set(CHECKS)
    index = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}.py`" in index for name in names)
