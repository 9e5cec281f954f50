"""A run on one page: figures as PNG in its folder, and a self-contained report.html with the film.

- Every number on the page comes from the run's own CSV files through `runs` and `stats`; nothing is typed in.
- Figures and film are embedded: the page can be mailed, opened offline and read on a phone.
- What a run doesn't have yet (an evaluation, a film) is left out and the page says how to make it.
"""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from ppo_lib import plots
from ppo_lib.config import PRESETS, PPOConfig, UserError, as_flag, preset
from ppo_lib.drawing import figure_png, format_steps
from ppo_lib.encode import video_tag
from ppo_lib.files import replacing
from ppo_lib.runs import SPLITS, Run, Runs, film_path, load_runs, name_in, results_flag
from ppo_lib.stats import RANDOM_RETURN, SCORE_RANGE, Estimate, normalized_score
from ppo_lib.study import published
from ppo_lib.study.experiments import RunSummary, first_reached, group_experiments, summarize_experiment
from ppo_lib.study.page import PAGE

_CAPTIONS = {
    "learning_curve": "Return while training (thin: each update, thick: running mean) and in evaluations.",
    "train_vs_unseen": "Mean return in the last evaluation, and the gap: what the agent loses on unseen levels.",
    "return_by_level": "The last evaluation level by level: large dots are a level's mean, small dots its episodes.",
    "diagnostics": "What PPO reports at each update, averaged over its minibatches.",
    "levels_curve": "Return against the number of training levels.",
}


def write_report(run_dirs: Runs, output: str | Path | None = None, results: str | Path | None = None) -> Path:
    """Draw the figures of one or several runs and write the page that shows them; returns the page's path.

    One run: figures and report.html go into its folder. Several: into the folder above them, the figures under the
    page's name. output: another path for the page; results: the folder of all runs (default: the one above), in which
    published curves lie and beside which films do.
    Raises UserError for a folder that is no run or can't be written.
    """
    runs = load_runs(run_dirs)
    if not runs:
        raise UserError("A report needs a run: give the folder of at least one, such as results/quick.")
    single = len(runs) == 1
    folder = runs[0].path if single else runs[0].path.parent
    page = Path(output) if output is not None else folder / "report.html"
    results = Path(results if results is not None else runs[0].path.parent).resolve()
    figures = {name: figure_png(figure) for name, figure in _figures(runs, results).items()}
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            (folder / (f"{name}.png" if single else f"{page.stem}_{name}.png")).write_bytes(figure)
        with replacing(page) as file:
            file.write(_page(runs, figures, results))
    except OSError as error:
        raise UserError(f"The report {page} can't be written ({error.strerror}): choose another folder.") from None
    return page


def command_of(config: PPOConfig, name: str) -> str:
    """The command line that repeats a run: the nearest preset and a flag for each field that differs from it."""

    def differences(base: PPOConfig) -> dict[str, object]:
        return {key: value for key, value in config.to_dict().items() if value != base.to_dict()[key]}

    nearest = min(PRESETS, key=lambda candidate: len(differences(preset(candidate))))
    flags = [as_flag(key, value) for key, value in differences(preset(nearest)).items()]
    return " ".join(["python -m ppo_lib train", f"--preset {nearest}", f"--run {name}", *flags])


def _figures(runs: list[Run], results: Path) -> dict[str, Figure]:
    """Name -> figure, only those for which there is something to draw."""
    evaluated = any(len(run.evaluation) for run in runs)
    figures = {}
    if evaluated or any(run.metrics for run in runs):
        figures["learning_curve"] = plots.learning_curve(runs, published.curves(runs, results))
    if evaluated:
        figures["train_vs_unseen"] = plots.train_vs_unseen(runs)
    if len(runs) == 1:
        if evaluated:
            figures["return_by_level"] = plots.return_by_level(runs[0])
        if runs[0].metrics:
            figures["diagnostics"] = plots.diagnostics(runs[0])
    elif evaluated and len({run.config.num_levels for run in runs}) > 1:
        figures["levels_curve"] = plots.levels_curve(runs)
    return figures


def _page(runs: list[Run], figures: dict[str, bytes], results: Path) -> str:
    """The whole page."""
    groups = group_experiments(runs)
    summaries = {label: summarize_experiment(group) for label, group in groups.items()}
    title = runs[0].name if len(runs) == 1 else "Runs compared"
    parts = [_headline(group[0].config, summaries[label], label, len(groups) > 1) for label, group in groups.items()]
    for run in runs:
        film = film_path(run.path, results)
        if film.is_file():
            heading = "Film" if len(runs) == 1 else f"Film of {run.name}"
            parts.append(
                f"<h2>{escape(heading)}</h2><figure>{video_tag(film)}<figcaption>Left training levels, right levels "
                "never trained on. Beside each game: return so far, the critic's value estimate and the probability "
                "of every action; the one taken is lit.</figcaption></figure>"
            )
        elif len(runs) == 1:
            command = f"python -m ppo_lib video {name_in(run.path, results)}"
            parts.append(f"<p class=note>No film yet: <code>{escape(command)}</code></p>")
    parts.append('<div class="figures">')
    for name, figure in figures.items():
        caption, data = escape(_CAPTIONS[name]), base64.b64encode(figure).decode()
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    parts.append("</div>")
    if any(summary.train or summary.unseen for summary in summaries.values()):
        parts += ["<h2>Numbers</h2>", _numbers(groups, summaries), _method(runs)]
        parts += _milestones(runs)
        for theirs, note in published.tables(runs, results):
            parts += [_table(theirs), f"<p class=note>{escape(note)}</p>"]
    names = [name_in(run.path, results) for run in runs]
    commands = "\n".join(
        f"{command_of(run.config, run.name)}{results_flag(run.path.parent)}\n"
        + "\n".join(f"python -m ppo_lib {what} {name}{results_flag(results)}" for what in ("evaluate", "video"))
        for run, name in zip(runs, names, strict=True)
    )
    parts.append(f"<h2>Do it again</h2><pre>{escape(commands)}</pre><h2>Settings</h2>{_settings(runs)}")
    return PAGE.replace("@TITLE@", escape(title)).replace("@BODY@", "\n".join(parts))


def _headline(config: PPOConfig, summary: RunSummary, label: str, several: bool) -> str:
    """A sentence and the main numbers of one experiment."""
    heading = f"<h2>{escape(label)}</h2>" if several else ""
    levels = f"{config.num_levels} levels" if config.num_levels else "unlimited levels"
    game = f"{config.distribution_mode} {config.env_name}"
    steps = f" for {format_steps(summary.steps)} steps" if summary.steps else ""
    text = f"<p class=lead>A PPO agent trained on {levels} of {game}{steps}"
    if summary.train is None or summary.unseen is None:
        return heading + text + ".</p><p class=note>Not evaluated yet: <code>python -m ppo_lib evaluate RUN</code></p>"
    text += (f" scores <b>{summary.train.mean.value:.1f}</b> on those levels and "
             f"<b>{summary.unseen.mean.value:.1f}</b> on levels that it has never seen.</p>")  # fmt: skip
    tiles = [
        _tile("train", "training levels", summary.train.mean, "mean return"),
        _tile("unseen", "unseen levels", summary.unseen.mean, "mean return"),
    ]
    if summary.gap is not None:
        tiles.append(_tile("", "generalisation gap", summary.gap, "train minus unseen"))
    tiles.append(_tile("", "unseen, middle half", summary.unseen.iqm, "interquartile mean"))
    if config.distribution_mode in SCORE_RANGE[config.env_name]:
        tiles.append(_tile("", "unseen, normalised", _normalized(summary.unseen.mean, config), "0 to 1, Procgen paper"))
    random = RANDOM_RETURN.get((config.env_name, config.distribution_mode))
    if random is not None:
        tiles.append(_tile("", "random agent", Estimate(random, float("nan"), float("nan")), "mean return", digits=1))
    return f'{heading}{text}<div class="tiles">{"".join(tiles)}</div>'


def _tile(kind: str, name: str, number: Estimate, unit: str, digits: int = 2) -> str:
    interval = "" if number.low != number.low else f"<small>95%: {number.low:.2f} to {number.high:.2f}</small>"
    figure = f"<b>{number.value:.{digits}f}</b>"
    return f'<div class="tile {kind}"><span>{name}</span>{figure}{interval}<small>{unit}</small></div>'


def _normalized(mean: Estimate, config: PPOConfig) -> Estimate:
    """Scaling is linear: a mean and its interval scale alike."""
    values = (mean.value, mean.low, mean.high)
    return Estimate(*map(float, normalized_score(values, config.env_name, config.distribution_mode)))


def _numbers(groups: dict[str, list[Run]], summaries: dict[str, RunSummary]) -> str:
    """A table with a row for each experiment and split."""
    rows = ["<tr><th>run<th>levels<th>mean [95%]<th>IQM [95%]<th>normalised<th>std<th>steps an episode<th>episodes"]
    for label, group in groups.items():
        config = group[0].config
        for split in SPLITS:
            found = getattr(summaries[label], split)
            if found is None:
                continue
            known = config.distribution_mode in SCORE_RANGE[config.env_name]
            score = str(_normalized(found.mean, config)) if known else "-"
            rows.append(f"<tr><td>{escape(label)}<td>{split}<td>{found.mean}<td>{found.iqm}<td>{score}"
                        f"<td>{found.std:.2f}<td>{found.length:.0f}<td>{found.episodes}")  # fmt: skip
        if summaries[label].gap is not None:
            rows.append(f"<tr><td>{escape(label)}<td>gap<td>{summaries[label].gap}<td><td><td><td><td>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _method(runs: list[Run]) -> str:
    """How the numbers were made."""
    firsts = {run.config.unseen_levels[0] for run in runs}
    from_where = f"{firsts.pop():,} on" if len(firsts) == 1 else "a run's last training level on"
    several = "; of several seeds, runs are resampled first and their episodes second" if len(runs) > 1 else ""
    return (
        "<p>How it was measured: complete episodes in fresh environments, the same number in each; raw game score; "
        "actions sampled from the policy, as in training; the GRU's state carried through each episode. Unseen levels "
        f"are drawn from all seeds from {from_where}, which training never plays. Intervals are 95% percentile "
        f"bootstraps over episodes (10,000 resamples{several}). The interquartile mean (IQM) leaves out the best and "
        "the worst quarter of the episodes. Normalised: (return − R<sub>min</sub>) / (R<sub>max</sub> − "
        "R<sub>min</sub>) with the constants of the Procgen paper, arXiv 1912.01588.</p>"
    )


def _milestones(runs: list[Run], targets: tuple[float, ...] = (5, 8)) -> list[str]:
    """A table of when runs of StarPilot were first evaluated at these returns on unseen levels; [] if none was."""
    rows = []
    for run in runs:
        found = [first_reached(run, "unseen", target) for target in targets if run.config.env_name == "starpilot"]
        if any(found):
            cells = (f"{format_steps(at[0])} steps, {at[1] / 60:.0f} minutes" if at else "-" for at in found)
            rows.append([run.name, *cells])
    header = ["training until unseen levels give", *(f"{target:g} or more" for target in targets)]
    return [_table([header, *rows])] if rows else []


def _table(rows: list[list[str]]) -> str:
    """Rows of words, the first of which are the columns' names."""
    head, *body = ([escape(cell) for cell in row] for row in rows)
    lines = "".join("<tr><td>" + "<td>".join(row) for row in body)
    return f'<div class="wide"><table><tr><th>{"<th>".join(head)}{lines}</table></div>'


def _settings(runs: list[Run]) -> str:
    """All settings, those that differ between the runs first."""
    values = {key: [run.config.to_dict()[key] for run in runs] for key in runs[0].config.to_dict()}
    keys = sorted(values, key=lambda key: len(set(map(str, values[key]))) == 1)
    head = "<tr><th>setting" + "".join(f"<th>{escape(run.name)}" for run in runs) if len(runs) > 1 else ""
    rows = [f"<tr><td>{key}" + "".join(f"<td>{escape(str(value))}" for value in values[key]) for key in keys]
    table = f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'
    return f"<details><summary>{len(keys)} settings</summary>{table}</details>"
