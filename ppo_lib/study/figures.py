"""Figures that compare experiments, in the style of ppo_lib.plots.

- An experiment is a list of runs that differ in the seed alone; groups.group_experiments makes them, with labels.
- Averages over seeds use the steps that all seeds of an experiment have in common.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.lines import Line2D

from ppo_lib import plots
from ppo_lib.plots import DARK, GREY, RETURN, SPLIT_COLOR, SPLIT_NAME, Curves, Figure, house_style, label_axes
from ppo_lib.runs import SPLITS, Run, Runs, load_runs
from ppo_lib.study.groups import experiments, group_families, summarize_experiment

Groups = Mapping[str, Sequence[Run]]  # label -> the runs of one experiment


@house_style()
def compare_learning_curves(groups: Groups, reference: Curves | None = None) -> Figure:
    """Return against training steps, with a panel for each split and a colour for each experiment.

    reference: the curves of published runs, drawn as the band from the lowest to the highest on each split.
    """
    runs = [run for group in groups.values() for run in group]
    figure, axes = plots.new_figure(1, 2, sharey=True)
    panels = dict(zip(SPLITS, axes, strict=True))
    handles = []
    for index, (label, group) in enumerate(groups.items()):
        color = plots.run_color(index)
        line = ("-", "--", ":", "-.")[index // len(plots.RUN_COLORS) % 4]  # distinguishes those of the same colour
        plots.draw_experiment(panels, group, dict.fromkeys(SPLITS, color), ls=line)
        handles.append(Line2D([], [], label=label, color=color, ls=line, marker="o", ms=5))
    for split, axis in panels.items():
        before = len(axis.get_legend_handles_labels()[0])  # the experiments have handles of their own
        plots.draw_published(axis, runs, {split: reference[split]} if reference and split in reference else {})
        plots.draw_random(axis.axhline, runs)
        handles += axis.get_legend_handles_labels()[0][before:]
        label_axes(axis, plots.STEPS, RETURN if split == "train" else "")
        axis.set_xlim(0, 1.03 * max(1, *(run.steps for run in runs)))
        axis.set_title(SPLIT_NAME[split], fontsize=9)  # in black: here colours are experiments
        axis.locator_params(axis="x", nbins=4)
    axes[0].set_ylim(bottom=min(0, axes[0].get_ylim()[0]))
    plots.legend_above(figure, handles)
    return figure


@house_style()
def compare_train_unseen(groups: Groups) -> Figure:
    """Mean return on training and on unseen levels, joined by a bar, one row per experiment; those that were not
    evaluated are left out."""
    summaries = {label: s for label, g in groups.items() if (s := summarize_experiment(g)).train and s.unseen}
    figure, [axis] = plots.new_figure(1, 1, height=1.3 + 0.5 * max(1, len(summaries)))
    for place, summary in enumerate(summaries.values()):
        means = {split: getattr(summary, split).mean for split in SPLITS}
        axis.plot([mean.value for mean in means.values()], [place] * len(means), color="#bbbbbb", lw=3, zorder=1)
        for height, (split, mean) in zip((place - 0.09, place + 0.09), means.items(), strict=True):
            color, name = SPLIT_COLOR[split], SPLIT_NAME[split]
            axis.plot([mean.low, mean.high], [height] * 2, color=color, lw=1.6)
            axis.plot(mean.value, height, "o", color=color, ms=6, label=name)
    plots.draw_random(axis.axvline, [run for group in groups.values() for run in group])
    label_axes(axis, RETURN, "run")
    axis.set_yticks(range(len(summaries)), [textwrap.fill(label, 30) for label in summaries])
    axis.set(ylim=(max(1, len(summaries)) - 0.5, -0.5), xlim=(min(0, axis.get_xlim()[0]), None))
    plots.legend_above(figure, axis.get_legend_handles_labels()[0])
    return figure


@house_style()
def levels_curve(runs: Runs) -> Figure:
    """Return on training and unseen levels (above) and the gap (below) against the number of training levels.

    The axis is logarithmic, with unlimited levels at its right, where 1,000 levels would be or beyond. A line joins
    experiments that differ in the number of levels alone; where there are several such families, the legend gives
    the settings in which they differ.
    """
    families = group_families(load_runs(runs))
    figure, (above, below) = plots.new_figure(2, 1, height=5.2, sharex=True, height_ratios=(2, 1))
    counts = {run.config.num_levels for family in families.values() for run in family}
    finite = sorted(counts - {0})
    unlimited = max(1000, 4 * max(finite, default=1))
    for index, (name, family) in enumerate(families.items()):
        style = {"marker": "os^Dv"[index % 5], "ls": ("-", "--", ":")[index % 3], "lw": 1.5}
        points = [
            (group[0].config.num_levels or unlimited, summarize_experiment(group)) for group in experiments(family)
        ]
        points.sort(key=lambda point: point[0])
        beside = 1.16**index  # so that no interval hides another
        for split, left in (("train", 1 / 1.02), ("unseen", 1.02)):
            means = [(x * left * beside, found.mean) for x, summary in points if (found := getattr(summary, split))]
            label = ", ".join(filter(None, (SPLIT_NAME[split], name)))
            plots.draw_estimates(above, means, SPLIT_COLOR[split], label=label, **style)
        gaps = [(x * beside, summary.gap) for x, summary in points if summary.gap]
        plots.draw_estimates(below, gaps, DARK, **style)
    plots.draw_random(above.axhline, [run for family in families.values() for run in family])
    below.axhline(0, color=GREY, lw=1)
    label_axes(above, "", RETURN)
    label_axes(below, "training levels", "gap (train - unseen)")
    ticks = {x: f"{x:,}" for x in finite} | ({unlimited: "all"} if 0 in counts else {})
    below.set_xscale("log")
    below.set_xticks(list(ticks), list(ticks.values()))
    below.minorticks_off()
    below.set_xlim(min(ticks, default=1) / 1.4, max(ticks, default=1) * 1.4)
    above.set_ylim(bottom=min(0, above.get_ylim()[0]))
    plots.legend_above(figure, above.get_legend_handles_labels()[0])
    return figure
