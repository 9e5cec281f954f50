"""Figures of runs. Every function returns a matplotlib Figure and draws nothing on its own.

- Figures are made with the object interface: no pyplot, no global state, safe in threads and notebooks.
- Every mean stands with its 95% bootstrap interval, and with the random agent's score where that is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ppo_lib.drawing import (
    GREY,
    RETURN,
    SPLIT_COLOR,
    SPLIT_NAME,
    STEPS,
    draw_random,
    draw_reference,
    label_axes,
    legend_above,
    new_figure,
    run_color,
    run_line,
    running_mean,
    whisker,
)
from ppo_lib.runs import SPLITS, Evaluation, Run, Runs, load_runs
from ppo_lib.stats import RANDOM_RETURN, Estimate, estimate
from ppo_lib.study.experiments import group_experiments, group_families, summarize_experiment


def learning_curve(runs: Runs, reference: str | Path | None = None) -> Figure:
    """Return against training steps: every update's training return, and each evaluation with its 95% interval.

    Of one experiment (its seeds count as one) colour tells the split. Several get a panel for each split, where colour
    tells the experiment.
    reference: a CSV of published runs (columns split, run, timesteps, mean_episode_return), drawn as the band from the
    lowest to the highest run on each split.
    """
    runs = load_runs(runs)
    groups = group_experiments(runs)
    several = len(groups) > 1
    figure, axes = new_figure(1, 1 + several, sharey=True)
    panels = {split: axes[several * i] for i, split in enumerate(SPLITS)}
    end = max([run.steps for run in runs], default=0) or 1
    for index, group in enumerate(groups.values()):
        color = dict.fromkeys(SPLITS, run_color(index)) if several else SPLIT_COLOR
        line = run_line(index)
        for run in group:
            _draw_training(
                panels["train"], run, color["train"], None if several or run is not group[0] else "while training", line
            )
        for split, axis in panels.items():
            # both splits are measured at the same steps: in one panel they stand apart, so that both intervals show
            shift = 0 if several else end * (0.005 if split == "unseen" else -0.005)
            name = None if several else f"evaluated on {SPLIT_NAME[split]}"
            _draw_evaluations(axis, group, split, color[split], name, shift, line)
    for split, axis in panels.items():
        if reference is not None:
            draw_reference(axis, reference, end, split)
        label_axes(axis, STEPS, RETURN if axis is axes[0] else "")
        axis.set_xlim(0, end * 1.03)
        if several:
            axis.set_title(SPLIT_NAME[split], fontsize=9, color=SPLIT_COLOR[split])
            axis.xaxis.set_major_locator(MaxNLocator(4))
    legend = {}  # label -> handle: both panels have the random agent's
    if several:
        style = [dict(color=run_color(i), ls=run_line(i), marker="o", ms=5) for i in range(len(groups))]
        legend = {name: Line2D([], [], label=name, **style[i]) for i, name in enumerate(groups)}
    for axis in axes:
        draw_random(axis, runs)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            legend.setdefault(label, handle)
    axes[0].set_ylim(bottom=min(0, axes[0].get_ylim()[0]))
    legend_above(figure, list(legend.values()))
    return figure


def train_vs_unseen(runs: Runs) -> Figure:
    """Mean return of the last evaluation on training and on unseen levels, 95% intervals, and the gap."""
    runs = load_runs(runs)
    measured = {k: g for k, g in group_experiments(runs).items() if any(len(r.final(s)) for r in g for s in SPLITS)}
    if len(measured) > 1:
        return _dumbbells(measured)
    figure, axes = new_figure(1, 1)
    axis = axes[0]
    summary = summarize_experiment(next(iter(measured.values()))) if measured else None
    tops = [0.0]
    for place, split in enumerate(SPLITS):
        found = getattr(summary, split, None)
        if found is None:
            continue
        top = found.mean.value if math.isnan(found.mean.high) else found.mean.high
        axis.bar(place, found.mean.value, width=0.5, color=SPLIT_COLOR[split], alpha=0.85)
        whisker(axis, place, found.mean, "#222222")
        tops.append(top)
        axis.annotate(f"{found.mean.value:.1f}", (place, top), (0, 4), textcoords="offset points",
                      ha="center", fontweight="bold")  # fmt: skip
    if summary is not None and summary.gap is not None:
        gap = summary.gap
        level = max(tops) * 1.17
        axis.plot([0, 0, 1, 1], [level * 0.98, level, level, level * 0.98], color=GREY, lw=1)
        interval = "" if math.isnan(gap.low) else f"  [{gap.low:+.1f}, {gap.high:+.1f}]"
        axis.annotate(f"gap {gap.value:+.1f}{interval}", (0.5, level), (0, 4), textcoords="offset points",
                      ha="center", fontsize=9)  # fmt: skip
        tops.append(level * 1.08)
    draw_random(axis, runs, inline=True)
    label_axes(axis, "levels that the agent plays", RETURN)
    axis.set_xticks([0, 1], [SPLIT_NAME[s] for s in SPLITS])
    axis.set_xlim(-0.5, 1.9)
    axis.set_ylim(min(0, axis.get_ylim()[0]), max(max(tops) * 1.04, 1))
    axis.grid(axis="x", visible=False)
    return figure


def return_by_level(run: Run | str | Path) -> Figure:
    """Every level's mean return in the last evaluation, sorted, beside its single episodes (small dots)."""
    [run] = load_runs(run)
    figure, axes = new_figure(1, 2, sharey=True)
    for axis, split in zip(axes, SPLITS, strict=True):
        episodes = run.final(split)
        levels, means, singles = _by_level(episodes)
        for place, values in enumerate(singles):
            if len(values) > 1:
                axis.plot([place] * len(values), values, ".", color=SPLIT_COLOR[split], alpha=0.35, ms=4, mew=0)
        axis.plot(means, "o", color=SPLIT_COLOR[split], ms=3 if len(levels) < 100 else 2)
        if len(means):
            mean = float(episodes.returns.mean())
            axis.axhline(mean, color="#222222", lw=1, ls=":")
            axis.annotate(f"mean {mean:.1f}", (0, mean), (2, 3), textcoords="offset points", fontsize=8)
        axis.set_title(f"{len(levels)} {SPLIT_NAME[split]}", fontsize=9, color=SPLIT_COLOR[split])
        label_axes(axis, "level, worst to best", RETURN if split == "train" else "")
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def diagnostics(run: Run | str | Path) -> Figure:
    """Small multiples of what PPO reports at each update: losses, entropy, KL, clip fraction, explained variance."""
    [run] = load_runs(run)
    panels = {
        "policy_loss": "policy loss",
        "value_loss": "value loss",
        "entropy": "entropy (nats)",
        "approx_kl": "KL to old policy (nats)",
        "clip_fraction": "clipped ratios (fraction)",
        "explained_variance": "explained variance",
    }
    figure, axes = new_figure(3, 2, height=5.2)
    for axis, (column, name) in zip(axes, panels.items(), strict=True):
        values = run.metrics.get(column)
        if values is not None:
            axis.plot(run.metrics["steps"], values, color=SPLIT_COLOR["train"], lw=1.2)
        if column == "entropy":
            axis.axhline(math.log(15), color=GREY, lw=1, ls="--")
            axis.annotate("log 15: uniform", (0.98, math.log(15)), (0, -10), xycoords=("axes fraction", "data"),
                          textcoords="offset points", ha="right", fontsize=7, color=GREY)  # fmt: skip
        if column == "explained_variance":
            axis.set_ylim(top=1)
        label_axes(axis, STEPS if axis in axes[-2:] else "", name, size=8.5)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.yaxis.set_major_locator(MaxNLocator(4))
    return figure


def levels_curve(runs: Runs) -> Figure:
    """Return on training and unseen levels (above) and the gap (below) against the number of training levels.

    The axis is logarithmic, with unlimited levels at its right, where 1,000 levels would be or beyond. A line joins
    experiments that differ in the number of levels alone; where there are several such families, the legend says what
    sets them apart.
    """
    families = group_families(load_runs(runs))
    figure, (above, below) = new_figure(2, 1, height=5.2, sharex=True, height_ratios=(2, 1))
    finite = sorted({run.config.num_levels for family in families.values() for run in family} - {0})
    unlimited = max(1000, 4 * max(finite, default=1))
    for index, (name, family) in enumerate(families.items()):
        style = {"marker": "os^Dv"[index % 5], "ls": ("-", "--", ":")[index % 3], "lw": 1.5, "ms": 5}
        groups: dict[int, list[Run]] = {}
        for run in family:
            groups.setdefault(run.config.num_levels or unlimited, []).append(run)
        summaries = {x: summarize_experiment(group) for x, group in sorted(groups.items())}
        beside = 1.16**index  # so that no interval hides another
        for split, left in (("train", 1 / 1.02), ("unseen", 1.02)):
            label = ", ".join(filter(None, (SPLIT_NAME[split], name)))
            means = {x: found.mean for x, s in summaries.items() if (found := getattr(s, split)) is not None}
            _draw_estimates(above, means, left * beside, SPLIT_COLOR[split], label, style)
        gaps = {x: s.gap for x, s in summaries.items() if s.gap is not None}
        _draw_estimates(below, gaps, beside, "#222222", None, style)
    draw_random(above, [run for family in families.values() for run in family])
    below.axhline(0, color=GREY, lw=1)
    label_axes(above, "", RETURN)
    label_axes(below, "training levels", "gap (train - unseen)")
    below.set_xscale("log")
    ticks = {x: f"{x:,}" for x in finite}
    if any(run.config.num_levels == 0 for family in families.values() for run in family):
        ticks[unlimited] = "all"
    below.set_xticks(list(ticks), list(ticks.values()))
    below.minorticks_off()
    below.set_xlim(min(ticks, default=1) / 1.4, max(ticks, default=1) * 1.4)
    above.set_ylim(bottom=min(0, above.get_ylim()[0]))
    legend_above(figure, above.get_legend_handles_labels()[0])
    return figure


def _draw_estimates(
    axis: Axes, estimates: dict[int, Estimate], shift: float, color: str, label: str | None, style: dict[str, object]
) -> None:
    """x -> estimate, as a line with intervals; all x are multiplied by `shift`."""
    axis.plot([x * shift for x in estimates], [e.value for e in estimates.values()], color=color, label=label, **style)
    for x, found in estimates.items():
        whisker(axis, x * shift, found, color)


def _draw_training(axis: Axes, run: Run, color: str, label: str | None, line: str) -> None:
    """The return of the episodes that ended in each update: raw and faint, and its running mean."""
    if "return_mean" not in run.metrics:
        return
    steps, values = run.metrics["steps"], run.metrics["return_mean"]
    axis.plot(steps, values, color=color, lw=0.8, alpha=0.3)
    axis.plot(steps, running_mean(values, max(1, len(values) // 15)), color=color, ls=line, lw=1.5, label=label)


def _draw_evaluations(
    axis: Axes, group: Sequence[Run], split: str, color: str, label: str | None, shift: float, line: str
) -> None:
    """Mean return with interval at each step at which runs of the group were evaluated, drawn `shift` steps aside."""
    steps = sorted({s for run in group for s in run.evaluation.select(split).checkpoints})
    points = []
    for step in steps:
        found = [e.returns for run in group if len(e := run.evaluation.select(split, step))]
        points.append((step + shift, estimate(found, resamples=2000)))
    if points:
        axis.plot(*zip(*((x, mean.value) for x, mean in points), strict=True), color=color, ls=line, lw=1.2,
                  marker="o" if len(points) < 12 else None, ms=5, label=label, zorder=3)  # fmt: skip
        for x, mean in points:
            whisker(axis, x, mean, color)


def _by_level(episodes: Evaluation) -> tuple[list[int], list[float], list[NDArray[np.float64]]]:
    """Level seeds, mean returns and single returns, sorted by mean return."""
    rows = [(level, episodes.returns[episodes.level_seed == level]) for level in np.unique(episodes.level_seed)]
    rows.sort(key=lambda row: row[1].mean())
    return [int(level) for level, _ in rows], [float(v.mean()) for _, v in rows], [v for _, v in rows]


def _dumbbells(groups: dict[str, list[Run]]) -> Figure:
    """Train and unseen return of several experiments, a row each."""
    figure, axes = new_figure(1, 1, height=1.3 + 0.5 * len(groups))
    axis = axes[0]
    for place, group in enumerate(groups.values()):
        summary = summarize_experiment(group)
        found = {split: mean.mean for split in SPLITS if (mean := getattr(summary, split))}
        axis.plot([mean.value for mean in found.values()], [place] * len(found), color="#bbbbbb", lw=3, zorder=1)
        for offset, (split, mean) in zip((-0.09, 0.09), found.items(), strict=False):
            color = SPLIT_COLOR[split]
            axis.plot([mean.low, mean.high], [place + offset] * 2, color=color, lw=1.6)
            axis.plot(
                mean.value, place + offset, "o", color=color, ms=6, label=SPLIT_NAME[split] if not place else None
            )
    runs = [run for group in groups.values() for run in group]
    game = (runs[0].config.env_name, runs[0].config.distribution_mode)
    if game in RANDOM_RETURN:
        axis.axvline(RANDOM_RETURN[game], color=GREY, lw=1, ls="--", label=f"random agent {RANDOM_RETURN[game]:g}")
    label_axes(axis, RETURN, "run")
    axis.set_yticks(range(len(groups)), list(groups))
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.set_xlim(left=min(0, axis.get_xlim()[0]))
    legend_above(figure, axis.get_legend_handles_labels()[0])
    return figure
