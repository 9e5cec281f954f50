"""A run, or several, on one page: figures as PNG in its folder, and a self-contained report.html with the video.

- Every number on the page comes from the runs' own CSV files; nothing is typed in.
- Figures and video are embedded: the page can be mailed, opened offline and read on a phone.
- What a run doesn't have yet (an evaluation, a video) is left out, and the page says how to make it.
"""

from __future__ import annotations

import base64
import math
from dataclasses import astuple
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from ppo_lib import plots
from ppo_lib.checkpoint import atomic_write, write_error
from ppo_lib.config import PRESETS, PPOConfig, UserError, as_flag, preset
from ppo_lib.plots import figure_png, format_steps
from ppo_lib.runs import Run, Runs, load_runs, name_in, results_flag, video_path
from ppo_lib.stats import RANDOM_RETURN, SCORE_RANGE, Estimate, normalized_score
from ppo_lib.study import figures, published
from ppo_lib.study.groups import group_experiments, seconds_at, summarize_experiment
from ppo_lib.video import video_tag


def write_report(run_dirs: Runs, output: str | Path | None = None, results: str | Path | None = None) -> Path:
    """Draw the figures of one or several runs and write the page that shows them; returns the page's path.

    One run: figures and report.html go into its folder. Several: into the folder above them, the figures under the
    page's name. output: another path for the page; results: the folder of all runs (default: the one above), which
    holds the published curves; runs.video_path says where the videos are.
    Raises UserError for a folder that is no run or can't be written, and as group_experiments.
    """
    runs = load_runs(run_dirs)
    if not runs:
        raise UserError("A report needs a run: give the folder of at least one, such as results/quick.")
    single = len(runs) == 1
    folder = runs[0].path if single else runs[0].path.parent
    page, results = Path(output or folder / "report.html"), Path(results or runs[0].path.parent).resolve()
    groups = group_experiments(runs)
    drawn = {name: figure_png(figure) for name, figure in _figures(runs, groups, results).items()}
    fields = dict.fromkeys(name for run in runs for name in run.config.to_dict())
    settings = [[name, *(run.config.to_dict().get(name) for run in runs)] for name in fields]
    tools = (command_of, format_steps, name_in, normalized, results_flag, time_to, video_path, video_tag)
    template = jinja2.Template(Path(__file__).with_name("report.html.j2").read_text("utf-8"), autoescape=True)
    text = template.render(
        {tool.__name__: tool for tool in tools},
        random_returns=RANDOM_RETURN,
        runs=runs,
        results=results,
        experiments=[(label, group, summarize_experiment(group)) for label, group in groups.items()],
        figures={name: base64.b64encode(figure).decode() for name, figure in drawn.items()},
        published=published.tables(runs, results),
        settings=sorted(settings, key=lambda row: len(set(map(str, row[1:]))) == 1),
    )
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            (folder / (f"{name}.png" if single else f"{page.stem}_{name}.png")).write_bytes(figure)
        with atomic_write(page) as file:
            file.write(text)
    except OSError as error:
        raise write_error(error, page) from None
    return page


def command_of(config: PPOConfig, name: str) -> str:
    """The command line that repeats a run: the nearest preset and a flag for each field that differs from it."""
    settings = config.to_dict()
    changes = {base: settings.items() - preset(base).to_dict().items() for base in PRESETS}
    nearest = min(changes, key=lambda base: len(changes[base]))
    flags = [as_flag(key, value) for key, value in settings.items() if (key, value) in changes[nearest]]
    return " ".join([f"python -m ppo_lib train --preset {nearest} --run {name}", *flags])


def _figures(runs: list[Run], groups: dict[str, list[Run]], results: Path) -> dict[str, Figure]:
    """Name -> figure, only those for which there is something to draw."""
    evaluated, one, found = any(len(run.evaluation) for run in runs), len(groups) == 1, {}
    if evaluated or any(run.metrics for run in runs):
        band = published.curves(runs, results)
        compare = figures.compare_learning_curves
        found["learning_curve"] = plots.learning_curve(runs, band) if one else compare(groups, band)
    if evaluated:
        found["train_vs_unseen"] = plots.train_vs_unseen(runs) if one else figures.compare_train_unseen(groups)
    if evaluated and len(runs) == 1:
        found["return_by_level"] = plots.return_by_level(runs[0])
    if runs[0].metrics and len(runs) == 1:
        found["diagnostics"] = plots.diagnostics(runs[0])
    if evaluated and len({run.config.num_levels for run in runs}) > 1:
        found["levels_curve"] = figures.levels_curve(runs)
    return found


def normalized(mean: Estimate, config: PPOConfig) -> Estimate | None:
    """The normalised score, where its constants are published. Scaling is linear: mean and interval scale alike."""
    if config.distribution_mode not in SCORE_RANGE[config.env_name]:
        return None
    return Estimate(*normalized_score(astuple(mean), config.env_name, config.distribution_mode).tolist())


def time_to(run: Run, target: float) -> str:
    """When a run was first evaluated at this mean return or more on unseen levels: "98.3k steps, 4 min"; "-": never."""
    played = run.evaluation.select("unseen")
    reached = [step for step in played.checkpoints if played.select("unseen", step).returns.mean() >= target]
    if not reached:
        return "-"
    seconds = seconds_at(run, reached[0])
    return f"{format_steps(reached[0])} steps" + ("" if math.isnan(seconds) else f", {seconds / 60:.0f} min")
