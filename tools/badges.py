"""Write the repository's address into the badges and bootstrap cells. `make badges REPO=owner/name` runs this.

- The address has one place, [tool.ppo_lib] repository in pyproject.toml; everything else is written from it.
- Without REPO it is the one in pyproject.toml, or else that of the origin remote on GitHub. `make setup` in a clone and
  the workflow on GitHub write it where none is known yet.
- A notebook's bootstrap cell has the tag "bootstrap"; a line in its first cell has the badge and says how to open it.
- Without an address there is no badge, since it would lead nowhere.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLAB = "https://colab.research.google.com"
BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)")
README_LINK = re.compile(r"^(\| \[[^]]*\]\(notebooks/(\d\w*\.ipynb)\))(?: " + BADGE.pattern + ")?", re.MULTILINE)
WITH = "{} Or open this file in VS Code, Jupyter or Kaggle: its first code cell finds or fetches the project."
WITHOUT = (
    "Open this file in VS Code or Jupyter, or upload it to Colab or Kaggle; its first cell says where to put the rest."
)
OPENING = re.compile(f"^({re.escape(WITHOUT)}|{BADGE.pattern}.*)$", re.MULTILINE)
SETTING = re.compile(r'^repository = "([^"]*)"', re.MULTILINE)
ADDRESS = re.compile(r"[\w-][\w.-]*/[\w.-]+")
BOOTSTRAP = """\
import importlib, pathlib, sys  # this cell finds the project, or fetches it, and shows what this machine has

REPOSITORY, NAME, here = "@", "DeepLearningPPO", pathlib.Path.cwd()
folders = [p / n for p in (here, *here.parents, pathlib.Path("/content/drive/MyDrive")) for n in ("", NAME)]
root = next((f for f in folders if (f / "ppo_lib").is_dir()), here / NAME)
if REPOSITORY and not root.exists():
    !git clone -q --depth=1 https://github.com/{REPOSITORY} "{root}"
assert root.exists(), f"Copy the project to {root}, or mount a Drive that has it, and run this cell again."
sys.path.insert(0, str(root))
project = importlib.import_module("ppo_lib.course.colab").setup()"""


def main(arguments: list[str]) -> int:
    """Run the command; 0, or 2 with one sentence if the address is not owner/name."""
    address = (arguments[0] if arguments else "") or repository() or origin()
    if address and not ADDRESS.fullmatch(address):
        print(f"REPO must be owner/name as on GitHub, not {address!r}.", file=sys.stderr)
        return 2
    changed = []
    for path in (ROOT / "pyproject.toml", *notebooks(), ROOT / "README.md"):
        old = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            new = SETTING.sub(f'repository = "{address}"', old)
        elif path.suffix == ".ipynb":
            new = rewrite_notebook(json.loads(old), path.name, address)
        else:
            new = README_LINK.sub(lambda link: f"{link[1]} {badge(link[2], address)}".rstrip(), old)
        if new != old:
            path.write_text(new, encoding="utf-8", newline="\n")
            changed.append(path.name)
    print(f"Repository: {address or 'not set; give REPO=owner/name'}. Rewritten: {', '.join(changed) or 'nothing'}.")
    return 0


def notebooks(root: Path | None = None) -> list[Path]:
    """The notebooks of a copy of the project (default: this one), in order."""
    return sorted(((root or ROOT) / "notebooks").glob("[0-9]*.ipynb"))


def repository() -> str:
    """owner/name from pyproject.toml, or ""."""
    found = SETTING.search((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found.group(1) if found else ""


def origin() -> str:
    """owner/name of the origin remote if it is on GitHub, else ""."""
    command = ["git", "-C", str(ROOT), "config", "remote.origin.url"]
    try:
        url = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # a copy on a machine without git
        return ""
    found = re.search(r"github\.com[:/](" + ADDRESS.pattern + ")$", url.removesuffix(".git"))
    return found.group(1) if found else ""


def badge(notebook: str, address: str) -> str:
    """The badge of a notebook (file name); "" without an address."""
    page = f"{COLAB}/github/{address}/blob/main/notebooks/{notebook}"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({page})" if address else ""


def opening(notebook: str, address: str) -> str:
    """The line that says how to open a notebook (file name)."""
    return WITH.format(badge(notebook, address)) if address else WITHOUT


def bootstrap(address: str) -> str:
    """The source of the bootstrap cell."""
    return BOOTSTRAP.replace("@", address)


def rewrite_notebook(content: dict, name: str, address: str) -> str:
    """The notebook's text with its badge and bootstrap cell rewritten."""
    first = content["cells"][0]
    first["source"] = OPENING.sub(opening(name, address), "".join(first["source"])).splitlines(keepends=True)
    for cell in content["cells"]:
        if "bootstrap" in cell["metadata"].get("tags", ()):
            cell["source"] = bootstrap(address).splitlines(keepends=True)
    return json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
