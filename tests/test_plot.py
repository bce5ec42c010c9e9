"""Plots: what is drawn is what was given, read back from the artists."""

import subprocess
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection

from fastmtl import (
    MultiTaskNetworkRegressor,
    MultiTaskSGDRegressor,
    MultiTaskSparseRegressor,
    TaskCoupling,
    datasets,
    plot,
    pooling_path,
    transfer_report,
)

X, Y, TASKS = datasets.make_multitask_regression(20, 5, 6, random_state=0)
BASE = MultiTaskSGDRegressor(alpha=0.1, random_state=0)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def blocks(seed=0, n=12):
    """A similarity of two groups, shuffled, and the group of each task."""
    group = np.random.default_rng(seed).permutation(np.repeat([0, 1], n // 2))
    return np.where(group[:, None] == group, 0.9, -0.4) + 0.1 * np.eye(n), group


def texts(ticks):
    return [tick.get_text() for tick in ticks]


def test_heatmap_puts_like_beside_like():
    matrix, group = blocks()
    ax = plot.similarity_heatmap(matrix, labels=[f"t{t}" for t in range(12)])
    names = texts(ax.get_xticklabels())
    assert names == texts(ax.get_yticklabels()) and sorted(names) == sorted(
        f"t{t}" for t in range(12)
    )
    order = [int(name[1:]) for name in names]
    assert np.sum(np.diff(group[order]) != 0) == 1
    np.testing.assert_array_equal(ax.images[0].get_array(), matrix[np.ix_(order, order)])
    assert ax.images[0].get_clim() == (-1.0, 1.0)
    assert len(ax.figure.axes) == 2  # with a bar of colours
    as_given = plot.similarity_heatmap(matrix, cluster=False)
    np.testing.assert_array_equal(as_given.images[0].get_array(), matrix)


def test_heatmap_takes_frames_and_models_and_many_tasks():
    frame = pd.DataFrame(np.eye(3), columns=list("abc"))
    assert sorted(texts(plot.similarity_heatmap(frame).get_xticklabels())) == list("abc")
    matrix, _ = blocks(n=80)
    ax = plot.similarity_heatmap(matrix)
    assert len(ax.get_xticks()) == 0 and ax.get_xlabel() == "80 tasks"
    model = BASE.fit(X, Y, tasks=TASKS)
    drawn = plot.similarity_heatmap(model, cluster=False).images[0].get_array()
    covariance = TaskCoupling.mean().covariance(6)
    np.testing.assert_allclose(drawn, covariance / 2.0)
    assert plot.similarity_heatmap(np.eye(1)).images[0].get_array().shape == (1, 1)


def test_graph_joins_tasks_above_the_threshold():
    matrix, group = blocks()
    ax = plot.similarity_graph(matrix, threshold=0.7)
    lines = {c.get_label(): c for c in ax.collections if isinstance(c, LineCollection)}
    assert len(lines["alike"].get_segments()) == 2 * 15  # pairs within groups of six
    assert len(lines["opposed"].get_segments()) == 0
    dots = next(c for c in ax.collections if isinstance(c, PathCollection)).get_offsets()
    assert len(dots) == 12 and len(ax.texts) == 12
    np.testing.assert_allclose(np.linalg.norm(dots, axis=1), 1.0)
    for line in lines["alike"].get_segments():
        ends = [int(np.argmin(np.linalg.norm(dots - end, axis=1))) for end in line]
        assert group[ends[0]] == group[ends[1]]
    every = plot.similarity_graph(matrix, threshold=0.0)
    lines = [c for c in every.collections if isinstance(c, LineCollection)]
    assert [len(c.get_segments()) for c in lines] == [30, 36]


def test_pooling_path_draws_means_and_marks_the_best():
    path = pooling_path(BASE, X, Y, TASKS, kappas=[0, 0.1, 1, np.inf], alphas=[0.02, 0.2], cv=3)
    ax = path.plot()
    assert len(ax.containers) == 2
    for a, container in enumerate(ax.containers):
        line, caps, bars = container.lines
        np.testing.assert_allclose(line.get_ydata(), path.mean_scores[a])
        half = path.fold_scores[a].std(axis=1) / np.sqrt(3)
        np.testing.assert_allclose(caps[1].get_ydata(), path.mean_scores[a] + half)
        assert len(bars[0].get_segments()) == 4
    star = next(line for line in ax.lines if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [[path.best_index[1], path.best_score]]
    assert texts(ax.get_xticklabels()) == ["∞\nindependent", "1", "0.1", "0\npooled"]
    assert ax.get_ylabel() == "mse (micro)"
    assert texts(ax.get_legend().get_texts()) == ["best", "0.02", "0.2"]


def test_transfer_report_draws_each_gain_and_its_interval():
    report = transfer_report(BASE, X, Y, TASKS, cv=3)
    ax = report.plot(over="pooled")
    order = np.argsort(report.gain["pooled"])
    dots = next(c for c in ax.collections if isinstance(c, PathCollection))
    np.testing.assert_allclose(dots.get_offsets()[:, 0], report.gain["pooled"][order])
    bars = next(c for c in ax.collections if isinstance(c, LineCollection))
    ends = np.array(bars.get_segments())[:, :, 0]
    np.testing.assert_allclose(ends, report.interval["pooled"][order])
    assert texts(ax.get_yticklabels()) == [str(t) for t in order]
    low, high = report.interval["pooled"][order].T
    want = np.where(low > 0, plot.HELPED, np.where(high < 0, plot.HURT, plot.UNSURE))
    got = dots.get_facecolors()[:, :3]
    np.testing.assert_allclose(got, [matplotlib.colors.to_rgb(color) for color in want])
    _, given = plt.subplots()
    assert report.plot(ax=given) is given


def test_history_draws_a_line_per_model():
    model = BASE.fit(X, Y, tasks=TASKS)
    slow = MultiTaskSGDRegressor(alpha=0.1, solver="sgd", random_state=0).fit(X, Y, tasks=TASKS)
    ax = plot.objective_history({"saga": model, "sgd": slow})
    assert texts(ax.get_legend().get_texts()) == ["saga", "sgd"]
    for line, fitted in zip(ax.lines, (model, slow)):
        assert line.get_ydata().tolist() == [e["objective"] for e in fitted.history_]
        assert line.get_xdata().tolist() == [e["epoch"] for e in fitted.history_]
    seconds = plot.objective_history(model, against="seconds").lines[0].get_xdata()
    assert seconds.tolist() == [e["seconds"] for e in model.history_]
    network = MultiTaskNetworkRegressor(max_iter=3, random_state=0).fit(X, Y, tasks=TASKS)
    sparse = MultiTaskSparseRegressor(alpha=0.1).fit(X, Y, tasks=TASKS)
    ax = plot.objective_history({"network": network, "sparse": sparse})
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert ax.lines[0].get_ydata().tolist() == [e["loss"] for e in network.history_]
    assert ax.lines[1].get_ydata().tolist() == [e["objective"] for e in sparse.history_]
    line = plot.objective_history(network, against="seconds").lines[0]
    np.testing.assert_allclose(line.get_xdata()[-1], sum(e["seconds"] for e in network.history_))
    with pytest.raises(ValueError, match="'sparse' has no seconds"):
        plot.objective_history({"sparse": sparse}, against="seconds")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plot.similarity_heatmap(np.ones((2, 3))), r"similarity has shape \(2, 3\)"),
        (lambda: plot.similarity_heatmap(np.full((2, 2), np.nan)), "contains NaN"),
        (lambda: plot.similarity_heatmap(np.eye(2), labels=["a"]), "labels has 1 entries for 2"),
        (lambda: plot.similarity_graph(np.eye(2), threshold=2), "threshold is 2"),
        (lambda: plot.objective_history(MultiTaskSGDRegressor()), "has no history_"),
        (lambda: plot.objective_history(BASE, against="time"), "against is 'time'"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_without_matplotlib_the_extra_is_named():
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['matplotlib.pyplot'] = None\n"
        "import numpy as np\nfrom fastmtl import plot\n"
        "try:\n    plot.similarity_heatmap(np.eye(2))\n"
        "except ImportError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'fastmtl[plot]'" in said.stdout
