"""Does training in bf16 learn what training in float32 learns? Pairs of runs that differ in precision alone.

    python -m ppo_lib sweep --sweep precision --preset paper --total-steps 300000 --eval-interval 0 \\
        --seed 1 2 3 --precision bf16 float32                  # hours on two CPU cores; the same command goes on
    python benchmarks/same_learning.py                         # writes results/precision/README.md and its picture
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

from ppo_lib.config import UserError
from ppo_lib.drawing import (
    RETURN,
    RUN_COLORS,
    STEPS,
    label_axes,
    legend_above,
    new_figure,
    running_mean,
    whisker,
)
from ppo_lib.runs import SPLITS, Run, load_runs
from ppo_lib.stats import Estimate, estimate, generalization_gap

FOLDER = Path(__file__).resolve().parent.parent / "results" / "precision"
PRECISIONS = ("bf16", "float32")
Pairs = list[dict[str, Run]]  # for each seed: precision -> run


def main() -> int:
    """Run the command; 0, or 2 if there is nothing to compare."""
    try:
        pairs = load_pairs(FOLDER)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    draw(pairs).savefig(FOLDER / "same_learning.png", dpi=100)
    (FOLDER / "README.md").write_text(page(pairs))
    print(f"Written: {FOLDER / 'README.md'}")
    return 0


def load_pairs(folder: Path) -> Pairs:
    """The seeds of which both runs are complete. Raises UserError if there is none."""
    runs = load_runs([path.parent for path in sorted(folder.glob("*/evaluation.csv"))])
    complete = [run for run in runs if run.steps >= run.config.total_steps]
    found = {(run.config.seed, run.config.precision): run for run in complete}
    seeds = sorted({seed for seed, _ in found if all((seed, name) in found for name in PRECISIONS)})
    if not seeds:
        raise UserError(f"{folder} holds no seed that was trained in both precisions: run the sweep first.")
    return [{name: found[seed, name] for name in PRECISIONS} for seed in seeds]


def final(pairs: Pairs, precision: str, split: str) -> Estimate:
    """Mean return at the end, over seeds."""
    return estimate([pair[precision].final(split).returns for pair in pairs])


def difference(pairs: Pairs, split: str) -> Estimate:
    """bf16 minus float32 at the end; seeds are resampled in pairs, episodes within each run."""
    return generalization_gap(*([pair[name].final(split).returns for pair in pairs] for name in PRECISIONS))


def page(pairs: Pairs) -> str:
    """The table, in Markdown."""
    run = pairs[0][PRECISIONS[0]]
    seeds = [pair[PRECISIONS[0]].config.seed for pair in pairs]
    lines = [
        "# bf16 and float32 learn alike?",
        "",
        f"`paper` settings, {run.steps:,} steps, seeds {', '.join(map(str, seeds))}: pairs of runs that differ in the "
        f"encoder's precision alone. {len(run.final('unseen'))} complete episodes a run and split; raw scores with 95% "
        "bootstrap intervals over seeds (in pairs) and episodes. Of few seeds such an interval is too narrow.",
        "",
        "![return while training, and at the end](same_learning.png)",
        "",
        "| levels | bf16 | float32 | bf16 minus float32 | by seed |",
        "|---|---|---|---|---|",
    ]
    for split in SPLITS:
        by_seed = ", ".join(f"{difference([pair], split).value:+.2f}" for pair in pairs)
        figures = " | ".join(str(final(pairs, name, split)) for name in PRECISIONS)
        lines.append(f"| {split} | {figures} | {difference(pairs, split)} | {by_seed} |")
    lines += ["", f"The runs and this page: see the head of `benchmarks/{Path(__file__).name}`."]
    return "\n".join(lines) + "\n"


def draw(pairs: Pairs) -> Figure:
    """Return while training of every run (left), return at the end on both splits (right)."""
    figure, axes = new_figure(1, 2)
    for color, name in zip(RUN_COLORS, PRECISIONS, strict=False):
        for index, pair in enumerate(pairs):
            metrics = pair[name].metrics
            values = running_mean(metrics["return_mean"], 3)
            axes[0].plot(metrics["steps"], values, color=color, lw=1.2, label=None if index else name)
        for place, split in enumerate(SPLITS):
            x = place + (-0.1 if name == PRECISIONS[0] else 0.1)
            mean = final(pairs, name, split)
            axes[1].plot(x, mean.value, "o", color=color)
            whisker(axes[1], x, mean, color)
    label_axes(axes[0], STEPS, RETURN)
    label_axes(axes[1], "levels, at the end", "mean return, 95% interval")
    axes[1].set_xticks(range(len(SPLITS)), list(SPLITS))
    axes[1].set_xlim(-0.5, len(SPLITS) - 0.5)
    axes[1].set_ylim(bottom=0)
    legend_above(figure, axes[0].get_legend_handles_labels()[0])
    return figure


if __name__ == "__main__":
    sys.exit(main())
