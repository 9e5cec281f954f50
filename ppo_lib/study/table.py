"""The table of a sweep, printed, as CSV and as Markdown, and what follows it: published results, report, figures.

- A row is an experiment: the runs that differ in the seed alone. Its intervals resample seeds, then episodes.
- The columns on the left are the settings that vary between the rows, so the table needs no record of the command.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from ppo_lib.checkpoint import write_error
from ppo_lib.runs import Run, changed_settings, load_runs
from ppo_lib.study import published
from ppo_lib.study.groups import experiments, seconds_at, summarize_experiment

LOG = "log.txt"  # in a run's folder: what its process in a sweep printed
NOTE = (
    "Mean return of complete episodes in the last evaluation that all seeds of a row have, with 95% bootstrap "
    "intervals over seeds first, where there are several, and over their episodes second. gap = train minus unseen. "
    "episodes: of each split, over all seeds. seconds: training time of one run, without evaluations."
)
WHOLE = ("seconds", "steps_per_second")  # shown without decimals
Row = dict[str, Any]


def conclude(run_dirs: Sequence[Path]) -> None:
    """Print the table of complete runs, write table.csv and table.md above their folders, and the report with figures.

    Raises UserError if the folder can't be written, and as `experiments`.
    """
    from ppo_lib.study.report import write_report

    runs, folder = load_runs(list(run_dirs)), run_dirs[0].parent
    rows = table(runs)
    shown = [{**row, "num_levels": row["num_levels"] or "unlimited"} for row in rows]
    cells = [[round(v) if name in WHOLE and v == v else v for name, v in row.items()] for row in shown]
    text = f"{markdown_table([name.replace('_', ' ') for name in rows[0]], cells)}\n\n{NOTE}\n"
    for (header, *theirs), note in published.tables(runs, folder.parent):
        text += f"\n{markdown_table(header, theirs)}\n\n{note}\n"
    print(text)
    try:
        with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([_flat(rows[0]), *(_flat(row).values() for row in rows)])
        (folder / "table.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise write_error(error, folder) from None
    page = write_report(runs, folder / "report.html", results=folder.parent)
    print(f"Table:  {folder / 'table.md'}")
    start = folder / "report_" if len(runs) > 1 else f"{runs[0].path}/"
    figures = [f"{start}{name}.png" for name in ("levels_curve", "train_vs_unseen")]
    if main := next((path for path in figures if Path(path).is_file()), None):
        print(f"Figure: {main}")
    print(f"Report: {page}")


def table(runs: Sequence[Run]) -> list[Row]:
    """One row per experiment, in the order of the runs.

    Columns: the varied settings (num_levels always), seeds ("1 2"), train, unseen and gap (Estimate or None), episodes
    of each split over all seeds, steps of each seed, seconds of training until then (mean over seeds),
    steps_per_second, machine ("" if not known).
    """
    groups = experiments(runs)
    changes = (changed_settings(one[0].config, other[0].config) for one in groups for other in groups)
    varied = {"num_levels"}.union(*changes) - {"seed"}
    fields = dict.fromkeys(name for group in groups for name in group[0].config.to_dict() if name in varied)
    rows = []
    for group in groups:
        summary = summarize_experiment(group)
        steps = summary.steps or min(run.steps for run in group)
        known = [seconds for run in group if not np.isnan(seconds := seconds_at(run, steps))]
        seconds = float(np.mean(known)) if known else float("nan")
        rows.append({
            **{name: getattr(group[0].config, name, None) for name in fields},
            "seeds": " ".join(str(run.config.seed) for run in group),
            "train": summary.train and summary.train.mean,
            "unseen": summary.unseen and summary.unseen.mean,
            "gap": summary.gap,
            "episodes": summary.unseen.episodes if summary.unseen else 0,
            "steps": steps,
            "seconds": seconds,
            "steps_per_second": steps / seconds if seconds else float("nan"),
            "machine": " / ".join(sorted({*map(_machine, group)} - {""})),
        })  # fmt: skip
    return rows


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, padded so that it reads well on a terminal too.

    Floats get four digits, whole numbers thousands separators; None, nan and "" become "-". Columns with numbers are
    aligned to the right.
    """
    right = [any(_is_number(row[column]) for row in rows) for column in range(len(header))]
    lines = [list(header), *([_text(value) for value in row] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)])
    padded = ([c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _text(value: object) -> str:
    if value is None or value == "" or value != value:
        return "-"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    return f"{value:,}" if _is_number(value) else str(value)


def _machine(run: Run) -> str:
    """What the run's log says that it trained on."""
    path = run.path / LOG
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return (["", *re.findall(rf"(?:^|[\r\n]){re.escape(run.name)}: ([^,\r\n]*)", text)])[-1].strip()


def _flat(row: Row) -> Row:
    """A row of table.csv: a column for each bound of each interval."""
    flat: Row = {}
    for name, value in row.items():
        if name in ("train", "unseen", "gap"):
            flat |= zip((name, f"{name}_low", f"{name}_high"), astuple(value) if value else ("",) * 3, strict=True)
        else:
            flat[name] = value
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in flat.items()}
