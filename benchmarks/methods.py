"""What do methods that should generalise better change? Each beside plain PPO, at equal steps and equal training time.

    python benchmarks/methods.py commands               # the sweep of each method
    python benchmarks/methods.py speed                  # steps per second of each, in turns, machine quiet
    python benchmarks/methods.py page                   # README.md and methods.png, from the files in results/methods

The runs of PPO are those in results/levels with the same seeds. A method's training time follows from its speed, which
is measured alone, since runs may share the machine: their own clocks don't count.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from paired import draw_difference
from quick_search import measure, speeds

from ppo_lib import plots, stats
from ppo_lib.accel.hardware import configure
from ppo_lib.config import UserError, as_flag, preset
from ppo_lib.plots import SPLIT_NAME
from ppo_lib.runs import SPLITS, Run, changed_settings, common_steps, load_runs, read_rows
from ppo_lib.stats import Array, Estimate
from ppo_lib.study import published
from ppo_lib.study.groups import paired_difference
from ppo_lib.study.table import markdown_table

FOLDER, BASE = Path("results/methods"), "levels200-seed*"  # in results/levels
METHODS: dict[str, dict[str, object]] = {
    "PPO": {},
    "average pooling": {"pooling": "average"},
    "DrAC": {"algorithm": "drac"},
    "mixreg": {"algorithm": "mixreg"},
    "weight decay": {"weight_decay": 1e-4},
    "PPG": {"algorithm": "ppg", "num_epochs": 1, "ppg_interval": 8},
}
SEEDS = dict.fromkeys(METHODS, (0, 1, 2)) | {"PPG": (0,)}  # that the page compares
SAME_TIME = 0.06  # evaluations count as equally late if their training times differ by less than this fraction

PAGE = """# Methods that should generalise better

`paper` on 200 levels, the same seeds as plain PPO's runs in [levels](../levels/README.md). {episodes} complete episodes
per run and split; raw scores with 95% bootstrap intervals over seeds (in pairs) and episodes (in pairs where both runs
played the same levels). With so few seeds an interval is too narrow: it says little about another seed.{precision}

{sentence}

![Return on unseen levels over the training time, and the differences from PPO](methods.png)

## At equal steps
{equal_steps}

The last evaluation that a method's runs share with PPO's of the same seeds. Steps/s: measured alone and in turns, all
in {timed} ([speed.csv](speed.csv)).

## At equal training time
{equal_time}

A method and PPO at the last evaluations whose training times, at these speeds, differ by less than {same_time:.0%}.

## Published results
{published}

These are after 25 million steps. We know of no published result of average pooling on StarPilot alone. At first the
methods come in another order: in the figures of [IDAAC](https://arxiv.org/abs/2102.10330) UCB-DrAC leads at 2 million
steps, and PPG is behind PPO until about 5 million{ppg}.

Not trained yet: {missing}. `python benchmarks/methods.py commands` prints the commands.{untimed}

Made by `python benchmarks/methods.py page` from the CSV files in this folder and in [levels](../levels).
"""


@dataclass(frozen=True)
class Group:
    """The runs of a method that were evaluated, and PPO's with the same seeds."""

    name: str
    runs: list[Run]
    base: list[Run]
    speed: dict[str, float]  # steps per second, by method

    @property
    def count(self) -> str:
        """How many seeds there are, in words."""
        return f"{len(self.runs)} seed{'s' * (len(self.runs) > 1)}"

    @property
    def steps(self) -> list[int]:
        """The steps at which all of these runs were evaluated, ascending."""
        return common_steps([*self.runs, *self.base])

    @property
    def equal_time(self) -> tuple[int, int] | None:
        """The steps of the method and of PPO at the last evaluations that came equally late.

        None if there are none, or if the method's speed is unknown.
        """
        if self.name not in self.speed:
            return None
        cost = self.speed["PPO"] / self.speed[self.name]
        pairs = [(ours, theirs) for ours in self.steps for theirs in common_steps(self.base)]
        near = [pair for pair in pairs if abs(pair[0] * cost / pair[1] - 1) < SAME_TIME]
        return max(near, key=lambda pair: (pair[0], -abs(pair[0] * cost / pair[1] - 1)), default=None)

    def difference(self, split: str, steps: Sequence[int] = ()) -> Estimate:
        """Mean return minus PPO's, see groups.paired_difference."""
        return paired_difference(self.runs, self.base, split, steps)


def returns_at(runs: Sequence[Run], split: str, steps: int) -> list[Array]:
    """The returns on a split after a number of steps, an array for each run."""
    return [run.evaluation.select(split, steps).returns for run in runs]


def load_groups(folder: Path) -> list[Group]:
    """PPO, then each method of which a run was evaluated. Raises UserError without any."""
    base, speed = ppo_runs(folder), speeds(folder / "speed.csv")
    groups = [Group("PPO", base, base, speed)]
    for name, runs in methods_runs(folder).items():
        evaluated = [run for run in runs if len(run.evaluation)]
        same = [run for run in base if run.config.seed in {run.config.seed for run in evaluated}]
        groups += [Group(name, evaluated, same, speed)] if evaluated else []
    if len(groups) < 2:
        raise UserError(f"{folder} has no evaluated run of a method: train one first (`commands` says how).")
    return groups


def ppo_runs(folder: Path) -> list[Run]:
    """PPO's runs, which lie beside the folder."""
    return load_runs([path.parent for path in sorted((folder.parent / "levels").glob(f"{BASE}/evaluation.csv"))])


def methods_runs(folder: Path) -> dict[str, list[Run]]:
    """Method -> its runs, complete or not: they differ from PPO's in its settings, seed and precision alone."""
    config = ppo_runs(folder)[0].config
    found = load_runs([path.parent for path in sorted(folder.glob("*/config.json"))])
    wanted = {name: config.replace(**changes) for name, changes in METHODS.items() if changes}
    return {
        name: [run for run in found if changed_settings(theirs, run.config).keys() <= {"seed", "precision"}]
        for name, theirs in wanted.items()
    }


def commands() -> None:
    """Print the sweep of each method."""
    for name, changes in METHODS.items():
        if not changes:
            continue
        seeds = " ".join(map(str, SEEDS[name]))
        flags = " ".join(as_flag(*item) for item in changes.items())
        print(
            f"python -m ppo_lib sweep --sweep methods --preset paper --total-steps 1500000 "
            f"--eval-interval 250000 --eval-episodes 512 --seed {seeds} {flags}"
        )


def speed() -> None:
    """Measure PPO and the methods of which there are runs, all in the precision that is the faster one here."""
    there = ["PPO", *(name for name, runs in methods_runs(FOLDER).items() if runs)]
    precision = configure(preset("paper")).precision
    configs = {name: preset("paper", precision=precision, **METHODS[name]) for name in there}
    measure(configs, FOLDER / "speed.csv", rounds=2)  # an update takes more than a minute without bf16


def page(groups: list[Group]) -> str:
    """README.md."""
    base, done, rows, at_time = groups[0], {group.name for group in groups}, [], []
    for group in groups:
        last = group.steps[-1]
        means = [stats.estimate(returns_at(runs, "unseen", last)) for runs in (group.runs, group.base)]
        compared = [*means, *map(group.difference, SPLITS)] if group is not base else [means[0], None, None, None]
        seeds = " ".join(str(run.config.seed) for run in group.runs)
        speed = group.speed.get(group.name)
        rows.append([group.name, seeds, last, *compared, speed and f"{speed:.0f}"])
    for group in groups[1:]:
        steps = group.equal_time
        differences = [steps and group.difference(split, steps) for split in SPLITS]
        at_time.append([group.name, *(steps or (None, None)), *differences])
    changes = [f"difference on {SPLIT_NAME[split]}" for split in SPLITS]
    wanted = base.steps[-1]
    fewer = [f"{g.name} with seed{'s' * (len(left) > 1)} {' and '.join(left)}" for g in groups if (left := _left(g))]
    fewer += [f"{g.name} beyond {g.steps[-1]:,} of {wanted:,} steps" for g in groups[1:] if g.steps[-1] < wanted]
    results = published.table(base.runs, FOLDER.parent)
    return PAGE.format(
        episodes=len(base.runs[0].final("unseen")), same_time=SAME_TIME, sentence=sentence(groups),
        precision=_precision(groups), timed=read_rows(FOLDER / "speed.csv", ("precision",))[0]["precision"],
        equal_steps=markdown_table(
            ["method", "seeds", "steps", "unseen levels", "PPO, same seeds", *changes, "steps/s"], rows
        ),
        equal_time=markdown_table(["method", "its steps", "PPO's steps", *changes], at_time),
        published=markdown_table(results[0], results[1:]),
        missing="; ".join([*(name for name in METHODS if name not in done), *fewer]) or "nothing",
        ppg="".join(f" ({g.difference('unseen')} in ours)" for g in groups if g.name == "PPG"),
        untimed=_untimed(groups),
    )  # fmt: skip


def _precision(groups: list[Group]) -> str:
    """What to say if not all runs were computed in the same precision."""
    used = {group.name: " and ".join(sorted({run.config.precision for run in group.runs})) for group in groups}
    if len({*used.values()}) == 1:
        return ""
    told = ", ".join(f"{name} in {precision}" for name, precision in used.items())
    return f"\nComputed in different precisions: {told}; [defaults](../defaults/README.md) compares PPO in both."


def _left(group: Group) -> list[str]:
    """The seeds with which the method is not trained yet."""
    return [str(seed) for seed in SEEDS[group.name] if seed not in {run.config.seed for run in group.runs}]


def _untimed(groups: list[Group]) -> str:
    """What to say if a speed was not measured."""
    names = ", ".join(group.name for group in groups if group.name not in group.speed)
    return f"\nSpeed not measured yet: {names}; `python benchmarks/methods.py speed` measures all." if names else ""


def sentence(groups: list[Group]) -> str:
    """What the differences on unseen levels support, in one sentence for each method."""
    found = []
    for group in groups[1:]:
        told = _verdict(group.difference("unseen"), "steps")
        if group.equal_time and len({*group.equal_time}) > 1:
            told += f" and {_verdict(group.difference('unseen', group.equal_time), 'training time')}"
        found.append(
            f"With {group.name} ({group.count}, {group.steps[-1]:,} steps) the return on unseen levels is {told}."
        )
    return " ".join(found)


def _verdict(difference: Estimate, what: str) -> str:
    side = "higher than" if difference.low > 0 else "lower than" if difference.high < 0 else "not distinguishable from"
    return f"{side} PPO's at equal {what} ({difference})"


def draw(groups: list[Group]) -> Figure:
    """Return on unseen levels over the training time (left); differences from PPO on unseen levels (right)."""
    figure, (left, right) = plots.new_figure(1, 2, height=3.2)
    figure.set_figwidth(9)
    for index, group in enumerate(groups):
        if group.name not in group.speed:
            continue
        style = dict(label=f"{group.name} ({group.count})", marker="o", lw=1.3)
        points = [
            (steps / group.speed[group.name] / 60, stats.estimate(returns_at(group.runs, "unseen", steps)))
            for steps in group.steps
        ]
        plots.draw_estimates(left, points, plots.run_color(index), **style)
    for place, group in enumerate(groups[1:]):
        for when, (steps, shift) in {"equal steps": ((), -0.12), "equal time": (group.equal_time, 0.12)}.items():
            if steps is None:
                continue
            found, style = group.difference("unseen", steps), dict(mfc="white") if steps else {}
            draw_difference(right, found, place + shift, color=plots.run_color(place + 1), ms=5, **style)
            plots.note(right, when, found.high, place + shift, right=5, va="center", color=plots.GREY)
    right.axvline(0, color=plots.GREY, lw=1, ls="--")
    plots.label_axes(left, "training time on two CPU cores (minutes)", "return on unseen levels")
    plots.label_axes(right, "difference of the return on unseen levels from PPO", "")
    right.set_yticks(range(len(groups) - 1), [group.name for group in groups[1:]])
    right.set_ylim(len(groups) - 1.5, -0.5)
    right.margins(x=0.25)
    plots.legend_above(figure, left.get_legend_handles_labels()[0])
    return figure


def main() -> None:
    """Write the page and the figure."""
    groups = load_groups(FOLDER)
    (FOLDER / "methods.png").write_bytes(plots.figure_png(draw(groups), dpi=110))
    (FOLDER / "README.md").write_text(page(groups))
    print(f"Written: {FOLDER / 'README.md'}")


if __name__ == "__main__":
    {"commands": commands, "speed": speed, "page": main}[sys.argv[1]]()
