"""The project's prose is plain, current English: phrases that no one would say stay out, and README stays short.

What is read: README, results/**/*.md, Makefile, the notebooks (text and code), and the comments, docstrings and
strings of `ppo_lib`, `tools` and `benchmarks`. Names in code are not prose.
"""

from __future__ import annotations

import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README_WORDS = 1400
STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
PER = "game|image|picture|update|step|run|frame|split|episode|rollout|call|seed|minibatch"
MANY = r"(?:ten|fifty|\d+|(?:two )?hundred|unlimited|few|many)"
ON = r"on(?! (?:the|a|an|top|each|its|this|that|disk|GPUs?)(?!\w))"

# (regular expression, not, but). A space stands for any white space, so that a phrase may cross lines.
PHRASES = (
    (
        rf"(?:goes|gone|went) {ON}|(?:go|going) on (?:with|from)|(?:to|can|will|may|must|and|for) go(?:ing)? {ON}",
        "the same run, gone on with",
        "the same run, continued to 1M steps; the badge goes on the first cell",
    ),
    (
        r"(?:can't|cannot|can not) tell|(?:can't|cannot|can not|can) be told|told apart",
        "these episodes can't tell it from none",
        "not distinguishable from zero",
    ),
    (r"(?:is|are|was|were|be) worth", "the more the agent is worth on others", "the better it generalises"),
    (r"films?|filmed", "A film of the agent", "a video of the agent; film_path"),
    (
        r"(?:update|loss|run|epoch|minibatch)(?:'s|s') figures|the figures (?:of|from) (?:an|each|the last) update",
        "each update's figures",
        "each update's metrics; the figures of a report",
    ),
    (
        rf"(?:agents?|runs?|polic(?:y|ies)) of {MANY} levels",
        "the agent of ten levels",
        "the agent trained on ten levels",
    ),
    (
        r"pictures? of (?:the|a) (?:game|crash|ship|moment)|(?:the last|single|StarPilot) pictures?",
        "a picture of the game",
        "an image of the game; picture backgrounds",
    ),
    (
        rf"(?:seconds?|steps|bytes|kB|MB|multiplications|rows?|episodes?|points?|one) an? (?:{PER})",
        "seconds an update",
        "seconds per update; what a command calls a run",
    ),
    (r"learn(?:s|ed|ing|t)? (?:\w+ ){0,3}by heart|by heart", "learn levels by heart", "memorise levels"),
    (r"no other chance|chance in it", "has no other chance in it", "has no further randomness"),
    (r"another story", "is another story from the first enemy on", "diverges at the first enemy"),
    (
        r"(?:place|it) belongs to the level",
        "its first place belongs to the level",
        "the reward belongs to the old episode",
    ),
    (r"fallen elsewhere", "how far it could have fallen elsewhere", "how much it varies between samples"),
    (r"fix(?:es|ed)? the mean", "fix the mean only to 0.2", "pin the mean down only to 0.2"),
    (r"lost on the way", "is lost on the way past the block", "is zeroed on the skip connection"),
    (r"in opposite places", "They are in opposite places.", "Parameters and compute sit in different layers."),
    (
        r"were (?:they|it|there) not|halv(?:e|ing) the (?:picture|image)",
        "were they not to halve the picture",
        "without downsampling",
    ),
    (r"opinions?", "a policy without opinions", "a near-uniform initial policy"),
    (r"rare, and anywhere", "Rewards are rare, and anywhere", "sparse, at any time step"),
    (r"less the (?:value|entropy|return|reward|mean)", "the return less the value", "return minus value"),
    (r"number plates?", "a number plate for each step", "a unique ID per step"),
    (r"salt and pepper", "is salt and pepper", "mixes single steps at random"),
    (
        r"the (?:objective's )?promise(?= of the objective| grows| rises| falls| is)",
        "the promise of the objective",
        "the surrogate objective; a test for each promise",
    ),
    (r"gradient is (?:alive|dead)", "the gradient is alive", "the gradient is non-zero"),
    (r"luck is added|real games have it", "luck is added as real games have it", "we add reward noise"),
    (
        r"an hour later of",
        "dies an hour later of a number that doesn't divide",
        "fails an hour in because the sizes don't divide",
    ),
    (r"thousand million", "two thousand million", "two billion"),
    (r"in (?:the )?place of", "in the place of the mean", "instead of the mean; an in-place ReLU"),
    (r"whoever", "Whoever wants speed", "If you want speed"),
    (r"what stands between", "What stands between the game and the agent", "Vector wrappers"),
    (r"polite ways?|told to stop", "Polite ways to be told to stop", "Treat SIGTERM as KeyboardInterrupt"),
    (
        r"whole or (?:as they were|not there)|there whole",
        "files that are there whole or as they were before",
        "Atomic writes",
    ),
    (r"reckon(?:s|ed|ing)?", "reckoned with", "counted"),
    (r"by torch(?!\.\w)", "by torch", "with torch's layers; by torch.compile"),
    (r"which one that is", "which one that is", "which one it is"),
    (r"times as fast", "1.67 times as fast as", "1.67x faster than"),
)


def compiled(phrase: str) -> re.Pattern[str]:
    """The pattern on word boundaries, for any case and white space."""
    return re.compile(rf"(?<!\w)(?:{phrase})(?!\w)".replace(" ", r"\s+"), re.IGNORECASE)


PATTERNS = tuple((compiled(phrase), better.split(";")[0]) for phrase, _, better in PHRASES)


def found_in(text: str, name: str) -> list[str]:
    """What stands there and shouldn't: name:line, the words, and what to write."""
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: '{' '.join(match.group().split())}' (better: {better})"
        for pattern, better in PATTERNS
        for match in pattern.finditer(text)
    ]


def prose_of(source: str) -> str:
    """Comments and strings of Python code, each on its own line; quotes, # and code are left out."""
    lines = [""] * (source.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or token.type in STRINGS:
            text = token.string
            if re.match("[rR]?[fF]", text):  # before Python 3.12 an f-string is one token, with the code in it
                text = re.sub(r"\{[^{}]*\}", " ", text)
            for offset, part in enumerate(text.split("\n")):
                lines[token.start[0] - 1 + offset] += re.sub(r"^\w{0,2}['\"]+|['\"]+$|^#+:?", " ", part.strip()) + " "
    return "\n".join(lines)


def texts() -> Iterator[tuple[str, str]]:
    """(name, prose) of all that is read."""
    for path in [ROOT / "README.md", *sorted((ROOT / "results").rglob("*.md"))]:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            yield f"{path.name}[{cell['id']}]", "".join(cell["source"])
    yield "Makefile", (ROOT / "Makefile").read_text(encoding="utf-8")
    for folder in ("ppo_lib", "tools", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), prose_of(path.read_text(encoding="utf-8"))
        for path in sorted([*(ROOT / folder).rglob("*.c"), *(ROOT / folder).rglob("*.j2")]):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def test_no_odd_phrases():
    found = [line for name, text in texts() for line in found_in(text, name)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(("phrase", "bad", "good"), PHRASES, ids=[bad for _, bad, _ in PHRASES])
def test_each_phrase_is_caught_and_its_better_wording_is_not(phrase, bad, good):
    assert compiled(phrase).search(bad) and compiled(phrase).search(bad.replace(" ", "\n"))
    assert not found_in(good, "")


def test_prose_of_code_is_what_people_read():
    source = 'film = 1  # a film\n\n"""A run\ngone on with."""\nshow(f"in the place of {film}")\n'
    assert [line.split("'")[0] for line in found_in(prose_of(source), "x")] == ["x:4: ", "x:1: ", "x:5: "]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS
