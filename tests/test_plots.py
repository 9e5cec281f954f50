"""Figures of one experiment: labelled axes, the numbers they show, a style of their own, and incomplete runs."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from fake_runs import make_run
from figure_audit import unnamed
from matplotlib.figure import Figure

from ppo_lib import plots
from ppo_lib.config import UserError
from ppo_lib.runs import load_run
from ppo_lib.stats import generalization_gap
from ppo_lib.study import published

REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "starpilot_easy200_openai_ppo.csv"
FIGURES = [plots.learning_curve, plots.train_vs_unseen, plots.return_by_level, plots.diagnostics]
HOSTILE = {
    "axes.prop_cycle": matplotlib.cycler(color=["lime"]), "savefig.facecolor": "black", "text.usetex": True,
    "font.size": 40, "axes.grid": False, "lines.linewidth": 9, "savefig.bbox": "tight", "xtick.labelsize": 30,
    "axes.facecolor": "yellow", "figure.constrained_layout.use": False,
}  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "one")


def points(figure: Figure, label: str) -> list[tuple[float, float]]:
    """What the line with this label joins."""
    [line] = [line for line in figure.axes[0].get_lines() if line.get_label() == label]
    return [(float(x), float(y)) for x, y in line.get_xydata()]


@pytest.mark.parametrize("draw", FIGURES)
def test_axes_are_named(run_dir: Path, draw: Callable[..., Figure]) -> None:
    figure = draw(run_dir)
    figure.canvas.draw()
    assert isinstance(figure, Figure) and repr(figure).startswith("<Figure size ")  # as a notebook prints it
    assert unnamed(figure) == []


@pytest.mark.parametrize("draw", FIGURES)
def test_the_users_settings_change_no_figure(run_dir: Path, draw: Callable[..., Figure]) -> None:
    """Neither while it is made nor while it is saved, whichever way."""

    def images(figure: Figure) -> tuple[bytes, ...]:
        shown = io.BytesIO()
        figure.canvas.print_figure(
            shown, dpi=40, facecolor="white", bbox_inches="tight", pad_inches=0.1
        )  # in notebooks
        return plots.figure_png(figure, dpi=40), shown.getvalue()

    expected = images(draw(run_dir))
    with matplotlib.style.context(["dark_background", HOSTILE]):
        users = dict(matplotlib.rcParams)
        assert images(draw(run_dir)) == expected
        assert dict(matplotlib.rcParams) == users


def test_helpers_keep_the_style(run_dir: Path) -> None:
    """Texts and legends that a notebook adds to a figure of ours, too."""

    def image() -> bytes:
        figure, [axis] = plots.new_figure(1, 1)
        [line] = axis.plot([0, 1], [0, 1], lw=1, label="line")
        plots.label_axes(axis, plots.STEPS, plots.RETURN)
        plots.note(axis, "here", 0.5, 0.5, up=5)
        plots.legend_above(figure, [line])
        return plots.figure_png(figure, dpi=40)

    expected = image()
    with matplotlib.style.context(HOSTILE):
        assert image() == expected


def test_threads_draw_and_leave_the_users_settings(run_dir: Path) -> None:
    run, results = load_run(run_dir), []
    threads = [
        threading.Thread(target=lambda: results.append(plots.figure_png(plots.train_vs_unseen(run), dpi=40)))
        for _ in range(3)
    ]
    with matplotlib.style.context("dark_background"):
        users = dict(matplotlib.rcParams)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert dict(matplotlib.rcParams) == users
    assert len(results) == 3 and len(set(results)) == 1


def test_bars_show_means_and_gap(run_dir: Path) -> None:
    run = load_run(run_dir)
    axis = plots.train_vs_unseen(run).axes[0]
    returns = [run.final(split).returns for split in ("train", "unseen")]
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([values.mean() for values in returns])
    assert axis.get_title() == f"gap {generalization_gap(*returns)}"


def test_seeds_are_averaged_at_common_steps(tmp_path: Path) -> None:
    """Of seeds with other evaluation steps, only those that all have: no zigzag, and no mean over unequal training."""
    runs = [load_run(make_run(tmp_path / str(seed), updates=n, seed=seed)) for seed, n in ((0, 12), (1, 6))]
    every = [run.evaluation.select("train").checkpoints for run in runs]
    common = every[0][0]
    assert common == every[1][1] and len({*every[0], *every[1]}) == 3
    means = {s: np.mean([run.evaluation.select(s, common).returns.mean() for run in runs]) for s in plots.SPLIT_NAME}
    figure = plots.learning_curve(runs)
    for split, name in plots.SPLIT_NAME.items():
        [(steps, value)] = points(figure, f"evaluated on {name}")
        assert steps == pytest.approx(common, rel=0.02) and value == pytest.approx(means[split])
    heights = [bar.get_height() for bar in plots.train_vs_unseen(runs).axes[0].patches]
    assert heights == pytest.approx(list(means.values()))


def test_a_seed_without_evaluation_hides_nothing(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    (folders[1] / "evaluation.csv").unlink()
    assert len(points(plots.learning_curve(folders), "evaluated on unseen levels")) == 2
    assert len(plots.train_vs_unseen(folders).axes[0].patches) == 2


@pytest.mark.parametrize("draw", FIGURES[:2])
def test_different_experiments_are_refused(run_dir: Path, tmp_path: Path, draw: Callable[..., Figure]) -> None:
    with pytest.raises(UserError, match="num_levels"):
        draw([run_dir, make_run(tmp_path / "other", num_levels=200)])


def test_unfinished_runs_can_be_drawn(run_dir: Path) -> None:
    (run_dir / "evaluation.csv").unlink()
    for draw in FIGURES:
        draw(run_dir).canvas.draw()
    (run_dir / "metrics.csv").unlink()
    for draw in FIGURES:
        draw(run_dir).canvas.draw()


def test_published_runs_lie_under_ours(tmp_path: Path) -> None:
    run_dir, reference = make_run(tmp_path / "long", updates=40), published.read_curves(REFERENCE)
    axis = plots.learning_curve(run_dir, reference).axes[0]
    labels = axis.get_legend_handles_labels()[1]
    assert "published, training levels" in labels and "published, unseen levels" in labels
    steps = load_run(run_dir).steps
    assert axis.get_xlim()[1] < 1.1 * steps  # 50M published steps don't squeeze ours
    band = axis.collections[[c.get_label() for c in axis.collections].index("published, unseen levels")]
    low, high = (pick([np.interp(steps, *curve) for curve in reference["unseen"]]) for pick in (min, max))
    edge = [y for x, y in band.get_paths()[0].vertices if x == steps]
    assert (min(edge), max(edge)) == pytest.approx((low, high))


def test_running_mean_leaves_out_gaps() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan, np.nan, np.nan, 5.0])
    assert plots.running_mean(values, 3)[[0, 1, 2]].tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(plots.running_mean(values, 3)[4])
    assert plots.running_mean(np.arange(5.0), 1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("steps", "text"), [(0, "0"), (500, "500"), (20_000, "20k"), (1_500_000, "1.5M")])
def test_format_steps(steps: int, text: str) -> None:
    assert plots.format_steps(steps) == text
