"""What a sweep ends in: one table (printed, CSV and Markdown), one figure, one report; from the runs' CSVs alone.

- A row is an experiment: all runs that differ by nothing but the seed. Its intervals resample seeds, then episodes.
- The columns on the left are the fields that vary between the rows, so the table needs no memory of the command.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppo_lib.files import write_error
from ppo_lib.runs import MEASURING_FIELDS, Run, load_runs
from ppo_lib.stats import Estimate
from ppo_lib.study import published
from ppo_lib.study.experiments import summarize_experiment
from ppo_lib.study.sweep_run import LOG

Row = dict[str, object]


def conclude(run_dirs: Sequence[Path]) -> None:
    """Print the table of complete runs, write table.csv and table.md above their folders, and the report with figures.

    Raises UserError if the folder can't be written.
    """
    from ppo_lib.study.report import write_report

    runs = load_runs(list(run_dirs))
    folder = run_dirs[0].parent
    rows = table(runs)
    text = f"{_markdown(_cells(rows))}\n\n{_method(rows)}\n"
    for theirs, note in published.tables(runs, folder.parent):
        text += f"\n{_markdown(theirs)}\n\n{note}\n"
    print(text)
    try:
        (folder / "table.csv").write_text(_csv(rows), encoding="utf-8")
        (folder / "table.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise write_error(error, folder) from None
    page = write_report(runs, folder / "report.html", results=folder.parent)
    figures = sorted(page.parent.glob("report_*.png")) if len(runs) > 1 else sorted(runs[0].path.glob("*.png"))
    main = [f for f in figures if "levels_curve" in f.name] or [f for f in figures if "train_vs_unseen" in f.name]
    print(f"Table:  {folder / 'table.md'}")
    if main:
        print(f"Figure: {main[0]}")
    print(f"Report: {page}")


def table(runs: Sequence[Run]) -> list[Row]:
    """A row an experiment, in the order of the runs.

    Columns: the varied fields (levels always), seeds, train, unseen and gap (Estimate or None), episodes of a split,
    steps of a run, seconds of training in a run (mean over seeds), steps_per_second, machine ("" if not known).
    """
    configs = [run.config.to_dict() for run in runs]
    fields = [name for name in configs[0] if name not in ("seed", *MEASURING_FIELDS)]
    varied = [name for name in fields if name == "num_levels" or len({c[name] for c in configs}) > 1]
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run, config in zip(runs, configs, strict=True):
        groups.setdefault(tuple(config[name] for name in varied), []).append(run)
    rows = []
    for key, group in groups.items():
        summary = summarize_experiment(group)
        seconds = [float(run.metrics["seconds"][-1]) for run in group if "seconds" in run.metrics]
        steps = [run.steps for run in group]
        rows.append({
            **dict(zip(varied, key, strict=True)),
            "seeds": [run.config.seed for run in group],
            "train": summary.train and summary.train.mean,
            "unseen": summary.unseen and summary.unseen.mean,
            "gap": summary.gap,
            "episodes": summary.unseen.episodes if summary.unseen else 0,
            "steps": min(steps),
            "seconds": float(np.mean(seconds)) if seconds else float("nan"),
            "steps_per_second": sum(steps) / sum(seconds) if sum(seconds) else float("nan"),
            "machine": " / ".join(sorted({machine for run in group if (machine := _machine(run))})),
        })  # fmt: skip
    return rows


def _machine(run: Run) -> str:
    """What the run's log says that it trained on."""
    try:
        lines = re.split(r"[\r\n]+", (run.path / LOG).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    said = [line.removeprefix(f"{run.name}: ") for line in lines if line.startswith(f"{run.name}: ")]
    return said[-1].partition(",")[0].strip() if said else ""


def _csv(rows: Sequence[Row]) -> str:
    """The table with a column for each bound of each interval."""
    flat = []
    for row in rows:
        cells: Row = {}
        for name, value in row.items():
            if name in ("train", "unseen", "gap"):
                numbers = (value.value, value.low, value.high) if isinstance(value, Estimate) else ("", "", "")
                cells.update(zip((name, f"{name}_low", f"{name}_high"), numbers, strict=True))
            else:
                cells[name] = " ".join(map(str, value)) if isinstance(value, list) else value
        flat.append({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in cells.items()})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, flat[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue()


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table in words, the columns' names first."""
    return [[name.replace("_", " ") for name in rows[0]], *([_cell(*item) for item in row.items()] for row in rows)]


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in words as Markdown, its columns aligned so that it reads well on a terminal too."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _cell(name: str, value: object) -> str:
    if value is None or value == "" or value != value:
        return "-"
    if name == "num_levels" and value == 0:
        return "unlimited"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if name in ("seconds", "steps_per_second"):
        return f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _method(rows: Sequence[Row]) -> str:
    """What the numbers and intervals are."""
    several = [row for row in rows if len(row["seeds"]) > 1]  # type: ignore[arg-type]
    how = "over seeds first and their episodes second" if several else "over episodes"
    if several and len(several) < len(rows):
        how += "; over episodes alone in rows with one seed"
    return (
        f"Mean return of complete episodes in the last evaluation, with 95% bootstrap intervals {how}. gap = train "
        "minus unseen. episodes: of each split, over all seeds. seconds: training time of one run, without evaluations."
    )
