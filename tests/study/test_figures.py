"""Figures that compare experiments: who is drawn, in which colour, and that legends fit."""

from __future__ import annotations

from pathlib import Path

import matplotlib.style
import pytest
from fake_runs import make_run
from figure_audit import unnamed

from ppo_lib.plots import figure_png
from ppo_lib.runs import Run, load_run, load_runs
from ppo_lib.study import figures, published
from ppo_lib.study.groups import group_experiments, summarize_experiment

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "starpilot_easy200_openai_ppo.csv"


def groups(folders: list[Path]) -> dict[str, list[Run]]:
    return group_experiments(load_runs(folders))


def test_axes_are_named_and_the_users_style_changes_nothing(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"{n}-{seed}", num_levels=n, seed=seed) for n, seed in ((10, 0), (50, 0), (50, 1))]
    for draw, shown in (
        (figures.compare_learning_curves, groups(folders)),
        (figures.compare_train_unseen, groups(folders)),
        (figures.levels_curve, folders),
    ):
        figure = draw(shown)
        expected = figure_png(figure, dpi=40)
        assert unnamed(figure) == []
        with matplotlib.style.context("dark_background"):
            assert figure_png(draw(shown), dpi=40) == expected


def test_learning_curves_have_a_panel_for_each_split(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, num_levels=n, updates=40) for name, n in (("few", 10), ("many", 200))]
    (tmp_path / "many" / "evaluation.csv").unlink()
    figure = figures.compare_learning_curves(groups(folders), published.read_curves(REFERENCE))
    assert [axis.get_title() for axis in figure.axes] == ["training levels", "unseen levels"]
    [legend] = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:2] == ["few", "many"]  # also the one without evaluation
    assert texts[2:] == ["published, training levels", "random agent 1.5", "published, unseen levels"]
    for axis, split in zip(figure.axes, ("train", "unseen"), strict=True):
        shown = [line for line in axis.get_lines() if line.get_marker() == "o" and len(line.get_ydata())]
        assert [line.get_ydata()[-1] for line in shown] == [load_run(folders[0]).final(split).returns.mean()]


def test_many_experiments_can_be_distinguished(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(n), updates=2, num_levels=n) for n in (10, 25, 50, 100, 200, 500, 1000, 0)]
    figure = figures.compare_learning_curves(groups(runs))
    legend = [(handle.get_color(), handle.get_linestyle()) for handle in figure.legends[0].legend_handles[:8]]
    drawn = {
        (line.get_color(), line.get_linestyle()) for line in figure.axes[1].get_lines() if line.get_marker() == "o"
    }
    assert len(set(legend)) == 8 and set(legend) == drawn


@pytest.mark.parametrize("name", ["levels200-seed1", "levels200-recurrent-sequence_length64 (2 seeds)"])
def test_a_legend_fits_its_figure(tmp_path: Path, name: str) -> None:
    folders = [make_run(tmp_path / f"{n}{name}", updates=2, num_levels=n) for n in (1, 2, 3, 4)]
    figure = figures.compare_learning_curves(groups(folders))
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1
    assert all(axis.get_window_extent().height > figure.dpi for axis in figure.axes)


def test_rows_of_evaluated_experiments(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, num_levels=n) for name, n in (("few", 10), ("many", 200), ("none", 500))]
    (folders[2] / "evaluation.csv").unlink()
    axis = figures.compare_train_unseen(groups(folders)).axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["few", "many"]
    drawn = {line.get_xdata()[0] for line in axis.get_lines() if line.get_marker() == "o"}
    assert drawn == {load_run(f).final(split).returns.mean() for f in folders[:2] for split in ("train", "unseen")}


def test_long_names_leave_room_for_the_rows(tmp_path: Path) -> None:
    name = "envs4-steps16-epochs1-minibatches2-no_recurrent-envpool-seed1"
    figure = figures.compare_train_unseen(groups(make_run(tmp_path / f"{n}-{name}", num_levels=n) for n in (10, 200)))
    figure.canvas.draw()
    assert figure.axes[0].get_window_extent().width > figure.bbox.width / 2


def test_unlimited_levels_stand_at_the_right(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(n), num_levels=n) for n in (50, 200, 0)]
    axis = figures.levels_curve(folders).axes[1]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["50", "200", "all"]
    assert list(figures.levels_curve([folders[0], folders[2]]).axes[1].get_xticks()) == [50, 1000]  # beyond others' 200


def test_a_line_joins_only_what_differs_in_levels_alone(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(n), num_levels=n) for n in (10, 200)]
    folders.append(make_run(tmp_path / "shifted", num_levels=200, start_level=1000))  # a point of its own
    folders.append(make_run(tmp_path / "other", num_levels=200, recurrent=False))
    above, below = figures.levels_curve(folders).axes
    lines = dict(zip(above.get_legend_handles_labels()[1], above.get_legend_handles_labels()[0], strict=True))
    assert [len(lines[f"{split} levels"].get_xdata()) for split in ("training", "unseen")] == [3, 3]
    alone = lines["training levels, recurrent False"]
    assert list(alone.get_ydata()) == [load_run(folders[3]).final("train").returns.mean()]
    gaps = [line.get_ydata() for line in below.lines if line.get_marker() in ("o", "s")]
    assert [len(values) for values in gaps] == [3, 1]
    assert gaps[1][0] == summarize_experiment([load_run(folders[3])]).gap.value


def test_runs_without_evaluation_can_be_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    (folder / "evaluation.csv").unlink()
    (folder / "metrics.csv").unlink()
    for figure in (figures.levels_curve(folder), figures.compare_learning_curves(groups([folder]))):
        figure.canvas.draw()
