"""The benchmark on a busy machine: what it starts, and what its page says."""

import json
import os
import re
import sys

import busy
import compare
import pytest

CHILD = """import os, sys, time
shown = [os.environ.get(name, "-") for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")]
with open(os.environ["SEEN"], "a") as file:
    print(os.getpid(), sys.argv[4].rsplit("/")[-1], *shown, file=file)
print(100.0 + int(sys.argv[4][-1]), flush=True)
time.sleep(60)
"""


def test_trainings_get_the_policy_and_end_with_the_measurement(monkeypatch, tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(busy, "__file__", str(tmp_path / "child.py"))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("KMP_BLOCKTIME", "0")  # a user's own
    assert busy.measure({"GOMP_SPINCOUNT": "7"}, trainings=2, busy=0, seconds=1) == 100.5
    assert busy.measure({}, trainings=1, busy=1, seconds=1) == 100
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert sorted(words[1:] for words in seen[:2]) == [["0", "-", "7", "-"], ["1", "-", "7", "-"]]
    assert seen[2][1:] == ["0", "-", "-", "-"]
    for pid, *_ in seen:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_the_section_says_what_was_measured_and_stays(monkeypatch, tmp_path, capsys):
    names = list(busy.POLICIES)
    rounds = [
        {name: dict(zip(busy.SITUATIONS, (100 * i + turn, 50, 30), strict=True)) for i, name in enumerate(names, 1)}
        for turn in (0, 20, 1)
    ]
    (tmp_path / "busy.json").write_text(json.dumps({"machine": compare.machine(), "rounds": rounds}))
    (tmp_path / "README.md").write_text("# Speed\n\nThe comparison.\n")
    monkeypatch.setattr(busy, "OUTPUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["busy.py", "--draw"])
    pages = []
    for _ in range(2):
        busy.main()
        pages.append((tmp_path / "README.md").read_text())
    assert pages[0] == pages[1] and pages[0].startswith("# Speed\n\nThe comparison.\n\n## On a busy machine\n")
    assert re.search(r"\| ppo_lib.* \| +301 \(300, 320, 301\) \| 50 \(50, 50, 50\) ", pages[0])
    # compare.py writes its own part anew and keeps this one
    for name in ("compare.json", "bench_paper.json", "bench_course.json"):
        (tmp_path / name).write_text("{}")
    for name, made in (("page", "# Speed\n\nAgain.\n"), ("draw", None), ("figure_png", b"")):
        monkeypatch.setattr(compare, name, lambda *_, made=made: made)
    compare.show(tmp_path)
    assert (tmp_path / "README.md").read_text() == pages[0].replace("The comparison.", "Again.")
