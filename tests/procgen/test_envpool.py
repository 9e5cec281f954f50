"""The build envpool: its protocol, on a small stand-in, and its games, where envpool is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import struct
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import golden
import numpy as np
import pytest
import torch
from golden import make

from ppo_lib import runs
from ppo_lib.__main__ import main
from ppo_lib.checkpoint import load_policy
from ppo_lib.config import GAMES, LEVEL_LIMIT, UserError
from ppo_lib.evaluate import evaluate
from ppo_lib.procgen import library
from ppo_lib.procgen.library import STATE_END, procgen_build
from ppo_lib.train import Trainer
from ppo_lib.video import record_video

GOLDEN = golden.load()
REAL = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="needs envpool: `pip install envpool` in Python 3.12 to 3.14"
)


def has_procgen() -> bool:
    """Whether another build is installed, too."""
    try:
        return bool(procgen_build("procgen"))
    except UserError:
        return False


def install(monkeypatch: pytest.MonkeyPatch, versions: Callable[[str], Iterable[Any]]) -> None:
    """Make library.py, and no one else, see these packages."""
    monkeypatch.setattr(library, "importlib", SimpleNamespace(metadata=SimpleNamespace(distributions=versions)))


class FakePool:
    """Games as envpool plays them: the last observation of an episode is returned, the next one begins with a reset.

    A level's episode has 3 + level % 5 steps; step t pays 100 * level + t and shows t in every pixel. Results come in
    another order than that of the games.
    """

    def __init__(self, task: str, num_envs: int, seed: list[int], num_levels: int, start_level: int, **options: Any):
        self.task, self.options, self.calls, self.num_envs = task, options, [], num_envs
        self.level, self.time, self.over = np.zeros(num_envs, int), np.zeros(num_envs, int), np.ones(num_envs, bool)
        self.random = [np.random.default_rng(one) for one in seed]
        self.levels = start_level, start_level + num_levels

    def _result(self, games: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        games = games[::-1]
        obs = np.broadcast_to(self.time[games, None, None, None], (len(games), 64, 64, 3)).astype(np.uint8)
        complete = (self.over & (self.level % 2 == 0))[games].astype(np.int32)
        info = {"env_id": games, "level_seed": self.level[games].astype(np.int32), "prev_level_complete": complete}
        return obs, games, info

    def reset(self, games: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        self.calls.append("reset")
        for i in games:
            self.level[i], self.time[i], self.over[i] = self.random[i].integers(*self.levels), 0, False
        obs, _, info = self._result(games)
        return obs, info

    def send(self, actions: np.ndarray, games: np.ndarray) -> None:
        assert not self.over.any(), "a game that has ended must be reset before it is stepped"
        self.calls.append("send")
        self.time[games] += 1
        self.over = self.time >= 3 + self.level % 5

    def recv(self) -> tuple[np.ndarray, ...]:
        self.calls.append("recv")
        obs, games, info = self._result(np.arange(self.num_envs))
        reward = (100 * self.level + self.time)[games].astype(np.float32)
        return obs, reward, self.over[games].copy(), np.zeros(len(games), bool), info

    def render(self, games: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.time[games, None, None, None], (len(games), 512, 512, 3)).astype(np.uint8)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[FakePool]:
    """The stand-in as the only installed build; the list holds the pools that were made."""
    made: list[FakePool] = []

    def make_pool(task: str, env_type: str, **options: Any) -> FakePool:
        assert env_type == "gymnasium"
        made.append(FakePool(task, **options))
        return made[-1]

    def versions(name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(version="1.2.7", locate_file=lambda path: __file__)] if name == "envpool" else []

    monkeypatch.setitem(sys.modules, "envpool", SimpleNamespace(make=make_pool))
    install(monkeypatch, versions)
    return made


# --- the protocol -----------------------------------------------------------------------------------------------------


def test_no_step_and_no_reward_is_lost_at_an_end(pools: list[FakePool]) -> None:
    env = make(num_envs=5, levels=(40, 10), seed=3, render=True)
    obs, info = env.reset()
    levels, time, ended = info["level_seed"], np.zeros(5, int), 0
    assert not obs.any() and set(levels) <= set(range(40, 50))
    for _ in range(40):
        obs, reward, done, truncated, info = env.step(np.zeros(5, int))
        time += 1
        assert (reward == 100 * levels + time).all() and (done == (time == 3 + levels % 5)).all()
        assert not truncated.any() and ("final_level_seed" in info) == done.any()
        if done.any():
            ended += done.sum()
            assert (info["final_level_seed"] == np.where(done, levels, 0)).all()
            assert (info["level_complete"] == (done & (levels % 2 == 0))).all()
        time[done] = 0
        assert (obs == time[:, None, None, None]).all(), "the observation is the new episode's"
        assert (np.stack(env.render()) == time[:, None, None, None]).all()
        assert (info["level_seed"] == np.where(done, info["level_seed"], levels)).all()
        levels = info["level_seed"]
    assert ended > 20


def test_a_step_is_sent_at_once_and_collected_later(pools: list[FakePool]) -> None:
    env = make(num_envs=2)
    env.reset()
    calls = pools[-1].calls
    del calls[:]
    env.step_async(np.zeros(2, int))
    assert calls == ["send"]
    env.step_wait()
    assert calls == ["send", "recv"]


def test_resets_and_seeds(pools: list[FakePool]) -> None:
    env = make(num_envs=4, levels=(0, 1000), seed=5)
    first = env.reset()[1]["level_seed"]
    for _ in range(2):
        env.step(np.zeros(4, int))
    obs, info = env.reset()
    assert not obs.any() and not (info["level_seed"] == first).any()
    env.step_async(np.zeros(4, int))  # dropped
    assert (env.reset(seed=5)[1]["level_seed"] == first).all()
    assert len({*first}) == 4 and not (env.reset(seed=6)[1]["level_seed"] == first).any()


def test_settings_reach_envpool(pools: list[FakePool]) -> None:
    make("maze", 3, distribution_mode="memory", restrict_themes=True, num_threads=0)
    assert pools[-1].task == "MazeMemory-v0" and pools[-1].options["num_threads"] == 1
    assert pools[-1].options["restrict_themes"] and pools[-1].options["use_backgrounds"]
    assert pools[-1].options["center_agent"] and not pools[-1].options["channel_first"]


def test_games_cant_be_saved(pools: list[FakePool]) -> None:
    env = make(num_envs=2)
    game = struct.pack("<ii", 0, 9) + b"starpilot" + STATE_END  # framed as another build saves it
    for call in (env.get_state, lambda: env.set_state({"options": env._identity, "games": [game] * 2})):
        with pytest.raises(UserError, match=r"^envpool can't save its games: [^.]+\.$"):
            call()


def test_a_run_resumes_with_new_episodes_and_says_so(
    pools: list[FakePool], tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(tiny(total_steps=64), tmp_path / "run")
    assert trainer.train()
    trainer.close()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["build"] == "envpool"
    assert load_policy(tmp_path / "run")[1].build == "envpool"
    capsys.readouterr()
    trainer = Trainer(tiny(), tmp_path / "run", resume=True)
    sentence = "envpool can't save its games: the run resumes with new episodes.\n"
    assert sentence in "".join(capsys.readouterr())
    assert all(group.episode_start.all() and not group.obs.any() for group in trainer.collector.groups)
    assert not trainer.collector.normalizer.returns.any() and trainer.collector.normalizer.count > 1
    assert trainer.train() and trainer.steps == 128
    trainer.close()


# --- which build ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not has_procgen(), reason="only envpool is installed")
def test_the_other_builds_come_first_and_a_run_stays_on_its_own(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert procgen_build().kind == "procgen"
    trainer = Trainer(tiny(), tmp_path / "results" / "run")
    trainer.save()
    trainer.close()
    config = json.loads((tmp_path / "results" / "run" / "config.json").read_text())
    assert config["build"] == "procgen"
    with pytest.raises(UserError, match=r"another config .*build procgen -> envpool"):
        Trainer(tiny(build="envpool"), tmp_path / "results" / "run", resume=True)
    install(monkeypatch, lambda name: importlib.metadata.distributions(name=name) if name != "envpool" else [])
    with pytest.raises(UserError, match="games of envpool are not installed: run `pip install envpool`"):
        Trainer(tiny(build="envpool"), tmp_path / "other")
    with pytest.warns(UserWarning, match=r"envpool is not installed: procgen.* plays, which draws differently"):
        make(build="envpool").close()  # the policy of another machine's run can be watched all the same
    trainer = Trainer(tiny(total_steps=64), tmp_path / "results" / "run", resume=True)
    trainer.config = trainer.config.replace(build="envpool")  # as a run that came from a Mac
    trainer.save()
    trainer.close()
    assert main(["evaluate", "run", "--results", str(tmp_path / "results")]) == 2
    assert "games of envpool are not installed" in capsys.readouterr().err


def test_comparing_runs_of_different_builds_warns(tiny: Any, tmp_path: Path) -> None:
    for name, build in (("a", "procgen"), ("b", "procgen"), ("c", "envpool")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(tiny(build=build, seed=ord(name)).to_json())
    with pytest.warns(UserWarning, match="envpool and procgen, which draw the games differently"):
        runs.load_runs([tmp_path / "a", tmp_path / "c"])
    with pytest.raises(UserError, match="differ in build"), pytest.warns(UserWarning, match="draw"):
        runs.one_experiment([tmp_path / "a", tmp_path / "c"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs.one_experiment([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    ("system", "machine", "minor", "package"),
    [
        ("darwin", "arm64", 13, "envpool"),
        ("win32", "AMD64", 12, "envpool"),
        ("win32", "AMD64", 13, "procgen-gym"),
        ("linux", "aarch64", 13, "envpool"),
        ("linux", "aarch64", 10, "envpool"),
        ("linux", "x86_64", 14, "envpool"),
        ("darwin", "x86_64", 10, "procgen"),
    ],
)
def test_a_missing_build_names_what_this_platform_needs(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, minor: int, package: str
) -> None:
    install(monkeypatch, lambda name: [])
    monkeypatch.setattr(library, "sys", SimpleNamespace(platform=system, version_info=(3, minor)))
    monkeypatch.setattr(library.platform, "machine", lambda: machine)
    remedy = "`pip install envpool` in Python 3.12 to 3.14" if package == "envpool" else f"--no-deps {package}`"
    with pytest.raises(UserError, match=remedy):
        procgen_build()
    if package == "envpool":
        with pytest.raises(UserError, match="procgen does not exist for this machine and Python, only envpool"):
            procgen_build("procgen")


# --- the real games ---------------------------------------------------------------------------------------------------


@REAL
@pytest.mark.parametrize("name", [name for name in golden.SETTINGS if name != "starpilot-frames"])
def test_first_episodes_are_those_of_the_golden_traces(name: str) -> None:
    """Levels, actions, rewards and ends, up to the first end of each game. (What follows is another level here.)"""
    course, actions = GOLDEN["courses"][name], golden.fixed_actions(golden.STEPS, golden.NUM_ENVS)
    for i, level in enumerate(course["levels"]):
        end = next(([step, done] for step, game, _, done, _ in course["ends"] if game == i), [golden.STEPS, None])
        expected = [[step, reward] for step, game, reward in course["rewards"] if game == i and step <= end[0]]
        settings = {**golden.SETTINGS[name], "levels": (level, 1), "build": "envpool"}
        env, rewards = make(num_envs=1, num_threads=1, **settings), []
        assert env.reset()[1]["level_seed"] == level
        for step in range(min(end[0] + 1, golden.STEPS)):
            _, reward, done, _, info = env.step(actions[step, i : i + 1])
            rewards += [[step, round(float(reward[0]), 6)]] if reward[0] else []
            assert done[0] == (step == end[0])
        assert rewards == expected
        assert end[1] is None or info["level_complete"][0] == end[1]
        env.close()


@REAL
@pytest.mark.skipif(not has_procgen(), reason="needs another build beside envpool to compare with")
@pytest.mark.parametrize("game", GAMES)
def test_first_frames_without_backgrounds(game: str) -> None:
    """StarPilot's are equal; elsewhere the edges of sprites differ."""
    frames = [
        make(game, 1, levels=(3, 1), use_backgrounds=False, build=build).reset()[0].astype(int)
        for build in ("procgen", "envpool")
    ]
    difference = np.abs(frames[0] - frames[1])
    assert difference.max() == 0 if game == "starpilot" else difference.mean() < 8


@REAL
def test_the_same_seed_plays_the_same_whatever_the_threads() -> None:
    played = []
    for threads in (1, 3):
        env, seen = make(num_envs=6, levels=(10, 5), seed=2**31 - 2, num_threads=threads, build="envpool"), []
        seen.append(env.reset()[1]["level_seed"])
        for actions in golden.fixed_actions(150, 6):
            obs, reward, done, _, info = env.step(actions)
            seen += [obs, reward, done, info["level_seed"]]
        played.append(seen)
        levels = np.concatenate(seen[0:1] + seen[4::4])
        assert set(levels) == set(range(10, 15))
    assert all(np.array_equal(one, other) for one, other in zip(*played, strict=True))


@REAL
def test_all_games_options_and_resets() -> None:
    for game, options in (
        ("starpilot", {"distribution_mode": "extreme"}),
        ("starpilot", {"use_backgrounds": False}),
        ("coinrun", {"restrict_themes": True}),
        ("maze", {"distribution_mode": "memory"}),
    ):
        plain, changed = (make(game, 8, seed=1, build="envpool", **o) for o in ({}, options))
        assert (plain.reset()[1]["level_seed"] == changed.reset()[1]["level_seed"]).all()
        assert not np.array_equal(plain.step(np.full(8, 7))[0], changed.step(np.full(8, 7))[0])
    env = make(num_envs=3, levels=(0, LEVEL_LIMIT), seed=1, build="envpool", render=True)
    levels = env.reset()[1]["level_seed"]
    env.step(np.full(3, 7))
    obs, info = env.reset()
    assert not (info["level_seed"] == levels).any()
    first = make(num_envs=1, levels=(int(info["level_seed"][2]), 1), build="envpool").reset()[0][0]
    assert np.array_equal(first, obs[2])
    small = np.stack(env.render()).reshape(3, 64, 8, 64, 8, 3).mean((2, 4))
    assert np.abs(small - obs).mean() < 8
    assert (env.reset(seed=1)[1]["level_seed"] == levels).all()


@REAL
def test_train_resume_evaluate_and_record(tiny: Any, tmp_path: Path) -> None:
    """Two runs of one seed are equal; what comes after the training plays on envpool, too."""
    weights = []
    for name in ("one", "two"):
        trainer = Trainer(tiny(build="envpool", total_steps=64), tmp_path / name, progress=False)
        assert trainer.train()
        trainer.close()
        weights.append(load_policy(tmp_path / name)[0].state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    longer = Trainer(tiny(build="envpool", total_steps=128), tmp_path / "one", resume=True, progress=False)
    assert longer.train() and longer.steps == 128
    longer.close()
    policy, config, _ = load_policy(tmp_path / "one")
    assert config.build == "envpool" and len(evaluate(policy, config, "unseen", 2)) == 2
    assert record_video(policy, config, tmp_path / "video.mp4", levels=2, max_seconds=1).stat().st_size > 1000
