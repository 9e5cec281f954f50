"""Figures: labelled axes, the numbers they show, and what they do with runs that are not complete."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from fake_runs import make_run
from matplotlib.figure import Figure

from ppo_lib import drawing, plots
from ppo_lib.config import UserError
from ppo_lib.runs import load_run
from ppo_lib.study.experiments import summarize_run

REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "starpilot_easy200_openai_ppo.csv"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "one")


def check(figure: Figure) -> None:
    """It can be drawn, every axis says what it shows, nothing is empty by mistake."""
    figure.canvas.draw()
    for axis in figure.axes:
        shared = not axis.get_subplotspec().is_first_col() or not axis.get_subplotspec().is_last_row()
        assert axis.get_ylabel() or shared
        assert axis.get_xlabel() or shared


def test_every_figure_has_labelled_axes(run_dir: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", num_levels=200, seed=3)
    for figure in (
        plots.learning_curve(run_dir),
        plots.learning_curve([run_dir, other], reference=REFERENCE),
        plots.train_vs_unseen(run_dir),
        plots.train_vs_unseen([run_dir, other]),
        plots.return_by_level(run_dir),
        plots.diagnostics(run_dir),
        plots.levels_curve([run_dir, other]),
    ):
        assert isinstance(figure, Figure)
        check(figure)


def test_bars_show_the_means(run_dir: Path) -> None:
    run = load_run(run_dir)
    heights = [bar.get_height() for bar in plots.train_vs_unseen(run).axes[0].patches]
    assert heights == pytest.approx([run.final(split).returns.mean() for split in ("train", "unseen")])


def test_unfinished_runs_can_be_drawn(run_dir: Path) -> None:
    (run_dir / "evaluation.csv").unlink()
    for figure in (plots.learning_curve(run_dir), plots.train_vs_unseen(run_dir), plots.return_by_level(run_dir)):
        check(figure)
    (run_dir / "metrics.csv").unlink()
    for figure in (plots.learning_curve(run_dir), plots.diagnostics(run_dir), plots.levels_curve(run_dir)):
        check(figure)


def test_learning_curve_lays_published_runs_under_ours(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "long", updates=40)
    axis = plots.learning_curve(run_dir, reference=REFERENCE).axes[0]
    labels = axis.get_legend_handles_labels()[1]
    assert "published, training levels" in labels and "published, unseen levels" in labels
    assert axis.get_xlim()[1] < 1.1 * load_run(run_dir).steps  # 50M published steps don't squeeze ours
    with pytest.raises(UserError, match="published"):
        plots.learning_curve(run_dir, reference=run_dir / "config.json")


def test_several_experiments_get_a_panel_for_each_split(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, num_levels=n) for name, n in (("few", 10), ("many", 200))]
    (tmp_path / "many" / "evaluation.csv").unlink()
    figure = plots.learning_curve(folders, REFERENCE)
    assert [axis.get_title() for axis in figure.axes] == ["training levels", "unseen levels"]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["few", "many"]  # also the one without evaluation
    for axis, split in zip(figure.axes, ("train", "unseen"), strict=True):
        shown = [line for line in axis.get_lines() if line.get_marker() == "o"]
        assert [line.get_ydata()[-1] for line in shown] == [load_run(folders[0]).final(split).returns.mean()]


def test_many_experiments_can_be_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(n), updates=2, num_levels=n) for n in (10, 25, 50, 100, 200, 500, 1000, 0)]
    figure = plots.learning_curve(runs)
    legend = [(handle.get_color(), handle.get_linestyle()) for handle in figure.legends[0].legend_handles[:8]]
    drawn = {
        (line.get_color(), line.get_linestyle()) for line in figure.axes[1].get_lines() if line.get_marker() == "o"
    }
    assert len(set(legend)) == 8 and set(legend) == drawn


@pytest.mark.parametrize("name", ["levels200-seed1", "levels200-recurrent-sequence_length64 (2 seeds)"])
def test_a_legend_fits_its_figure(tmp_path: Path, name: str) -> None:
    figure = plots.learning_curve([make_run(tmp_path / f"{n}{name}", updates=2, num_levels=n) for n in (1, 2, 3, 4)])
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1
    assert all(axis.get_window_extent().height > figure.dpi for axis in figure.axes)


def test_unlimited_levels_stand_at_the_right(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(n), num_levels=n) for n in (50, 200, 0)]
    axis = plots.levels_curve(folders).axes[1]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["50", "200", "all"]
    assert list(plots.levels_curve([folders[0], folders[2]]).axes[1].get_xticks()) == [50, 1000]  # beyond others' 200


def test_a_line_joins_only_what_differs_in_levels_alone(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(n), num_levels=n) for n in (10, 200)]
    folders.append(make_run(tmp_path / "other", num_levels=200, recurrent=False))
    above, below = plots.levels_curve(folders).axes
    lines = dict(zip(above.get_legend_handles_labels()[1], above.get_legend_handles_labels()[0], strict=True))
    assert [len(lines[f"{split} levels"].get_xdata()) for split in ("training", "unseen")] == [2, 2]
    alone = lines["training levels, recurrent False"]
    assert list(alone.get_ydata()) == [load_run(folders[2]).final("train").returns.mean()]
    gaps = [line.get_ydata() for line in below.lines if line.get_marker() in ("o", "s")]
    assert [len(values) for values in gaps] == [2, 1]
    assert gaps[1][0] == summarize_run(folders[2]).gap.value


def test_running_mean_leaves_out_gaps() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan, np.nan, np.nan, 5.0])
    assert drawing.running_mean(values, 3)[[0, 1, 2]].tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(drawing.running_mean(values, 3)[4])
    assert drawing.running_mean(np.arange(5.0), 1).tolist() == [0, 1, 2, 3, 4]


def test_figures_can_be_drawn_in_threads(run_dir: Path) -> None:
    errors: list[BaseException] = []

    def draw() -> None:
        try:
            check(plots.learning_curve(run_dir))
        except BaseException as error:  # handed to the main thread
            errors.append(error)

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize(("steps", "text"), [(0, "0"), (500, "500"), (20_000, "20k"), (1_500_000, "1.5M")])
def test_format_steps(steps: int, text: str) -> None:
    assert drawing.format_steps(steps) == text
