"""Golden traces: the observations and rewards of each game for fixed seeds and actions.

- The file holds the course of each game (levels, rewards, ends) once, since every build plays the same, and hashes of
  its observations as procgen-mirror draws them.
- Four games have a second set of hashes: the builds contain different versions of Qt, which round the edges of some
  sprites differently (under 1% of the pixels, in some frames). StarPilot's observations are the same everywhere.

`PYTHONPATH=. python tests/procgen/golden.py` rewrites the part of the installed build (procgen-mirror first, then the
others). Do that only if the games are meant to change.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from ppo_lib.config import GAMES, LEVEL_LIMIT, PPOConfig
from ppo_lib.envs import ProcgenVectorEnv, procgen_build

PATH = Path(__file__).parents[1] / "data" / "golden_traces.json"
REFERENCE = "procgen-mirror"
NUM_ENVS, STEPS, STRETCH = 4, 400, 50  # frames are hashed in stretches, so that a difference can be placed
SETTINGS: dict[str, dict[str, Any]] = {
    **{game: {"game": game, "levels": (100, 20)} for game in GAMES},
    "starpilot-course": {"levels": (0, 50), "use_backgrounds": False, "restrict_themes": True},
    "starpilot-hard": {"distribution_mode": "hard"},
    "starpilot-frames": {"levels": (0, 50), "render": True},
}


def make(
    game: str = "starpilot",
    num_envs: int = NUM_ENVS,
    *,
    levels: tuple[int, int] = (0, LEVEL_LIMIT),
    seed: int = 0,
    num_threads: int | None = None,
    render: bool = False,
    **fields: Any,
) -> ProcgenVectorEnv:
    """The environment with Procgen's own defaults: all levels, backgrounds and themes."""
    config = PPOConfig(**{"env_name": game, "use_backgrounds": True, "restrict_themes": False, **fields})
    return ProcgenVectorEnv(config, levels, num_envs, seed, num_threads, render)


def fixed_actions(steps: int, num_envs: int) -> np.ndarray:
    """Actions [steps, num_envs] from Python's own generator, whose random() never changes between versions."""
    generator = random.Random(0)
    return np.array([[int(generator.random() * 15) for _ in range(num_envs)] for _ in range(steps)])


def play(name: str, num_threads: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """Play a setting; returns its course (levels, rewards other than 0, ends) and the hashes of what it shows."""
    env = make(seed=7, num_threads=num_threads, **SETTINGS[name])
    obs, info = env.reset()
    course: dict[str, Any] = {"levels": info["level_seed"].tolist(), "rewards": [], "ends": []}
    pictures: dict[str, Any] = {"first": _hash(obs), "stretches": []}
    running = hashlib.sha256()
    for step, actions in enumerate(fixed_actions(STEPS, NUM_ENVS)):
        obs, reward, terminated, _, info = env.step(actions)
        running.update(obs.tobytes())
        course["rewards"] += [[step, int(i), round(float(reward[i]), 6)] for i in np.flatnonzero(reward)]
        for i in np.flatnonzero(terminated):
            ended, complete, level = info["final_level_seed"][i], info["level_complete"][i], info["level_seed"][i]
            course["ends"].append([step, int(i), int(ended), int(complete), int(level)])
        if (step + 1) % STRETCH == 0:
            pictures["stretches"].append(running.hexdigest()[:16])
    if env.render_mode:
        pictures["rendered"] = _hash(np.stack(env.render()))
    env.close()
    return course, pictures


def load() -> dict[str, Any]:
    """The file: {"courses": {setting: course}, "pictures": {package: {setting: hashes}}}."""
    return json.loads(PATH.read_text())


def expected_pictures(golden: dict[str, Any], package: str, name: str) -> dict[str, Any]:
    """The hashes of a setting for a build: its own, or else the reference's."""
    return golden["pictures"].get(package, {}).get(name, golden["pictures"][REFERENCE][name])


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def _write() -> None:
    package = procgen_build().package
    played = {name: play(name) for name in SETTINGS}
    golden = load() if PATH.exists() else {"courses": {}, "pictures": {}}
    pictures = {name: hashes for name, (_, hashes) in played.items()}
    if package == REFERENCE:
        golden["courses"] = {name: course for name, (course, _) in played.items()}
    else:
        pictures = {name: p for name, p in pictures.items() if p != golden["pictures"][REFERENCE][name]}
    golden["pictures"][package] = pictures
    courses = [f"{json.dumps(name)}:{_compact(course)}" for name, course in golden["courses"].items()]
    hashes = [f"{json.dumps(name)}:{_compact(sets)}" for name, sets in sorted(golden["pictures"].items())]
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text('{"courses":{\n' + ",\n".join(courses) + '\n},\n"pictures":{\n' + ",\n".join(hashes) + "\n}}\n")


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    _write()
