"""The environment: its promises to the trainer, to gymnasium's wrappers and to a user who makes a mistake."""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import golden
import gymnasium
import numpy as np
import pytest
from golden import make
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError

from ppo_lib.config import GAMES, LEVEL_LIMIT, PPOConfig, UserError
from ppo_lib.envs import NUM_ACTIONS, make_env, procgen_build
from ppo_lib.procgen import env as env_module
from ppo_lib.procgen import library

ROOT = Path(__file__).parents[2]
GOLDEN = golden.load()


def same(left: object, right: object) -> bool:
    """Whether two results of step or reset are equal in every array, info included."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(same, left, right))
    return np.array_equal(left, right)


def actions_for(env: gymnasium.vector.VectorEnv, steps: int, seed: int = 0) -> np.ndarray:
    """Random actions [steps, N]."""
    return np.random.default_rng(seed).integers(0, NUM_ACTIONS, (steps, env.num_envs))


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh Python process from the repository's root."""
    command = [sys.executable, "-W", "default", "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


# --- the games themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden.SETTINGS)
def test_every_build_plays_the_golden_traces(name: str) -> None:
    course, pictures = golden.play(name)
    assert course == GOLDEN["courses"][name], "another course of the game: levels, rewards or ends differ"
    assert pictures == golden.expected_pictures(GOLDEN, procgen_build().package, name), "the pictures differ"


def test_builds_draw_only_four_games_differently_and_never_starpilots_observations() -> None:
    reference = GOLDEN["pictures"][golden.REFERENCE]
    for package in ("procgen", "procgen-gym"):
        others = GOLDEN["pictures"][package]
        assert set(others) - {"starpilot-frames"} <= {"caveflyer", "coinrun", "jumper", "ninja"}
        for name in set(others) & {"starpilot-frames"}:  # only the large frames for videos
            assert others[name]["stretches"] == reference[name]["stretches"]


@pytest.mark.parametrize("num_threads", [0, 2, 7])
def test_the_number_of_threads_changes_nothing(num_threads: int) -> None:
    assert golden.play("starpilot", num_threads)[0] == GOLDEN["courses"]["starpilot"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
@pytest.mark.parametrize(("limit", "count"), [("1", 1), ("2", 2), ("", 4), ("many", 4), ("99", 4)])
def test_the_threads_flag_limits_the_games_too(monkeypatch, limit: str, count: int) -> None:
    """--threads sets OMP_THREAD_LIMIT; the threads that Procgen starts are counted by the system."""
    monkeypatch.setenv("OMP_THREAD_LIMIT", limit)
    monkeypatch.setattr("ppo_lib.procgen.env.usable_cores", lambda: 4)
    before = len(list(Path("/proc/self/task").iterdir()))
    with closing(make(num_envs=8, seed=1)):
        assert len(list(Path("/proc/self/task").iterdir())) - before == count


def test_drawing_frames_changes_nothing() -> None:
    plain, drawn = (make(num_envs=3, seed=5, render=render) for render in (False, True))
    assert same(plain.reset(), drawn.reset())
    assert all(same(plain.step(a), drawn.step(a)) for a in actions_for(plain, 120))


def test_two_environments_stepped_in_turn_play_as_if_alone() -> None:
    alone = [make(num_envs=4, seed=seed) for seed in (1, 2)]
    turns = [make(num_envs=4, seed=seed) for seed in (1, 2)]
    for env in (*alone, *turns):
        env.reset()
    actions = actions_for(alone[0], 100)
    expected = [[env.step(a) for a in actions] for env in alone]
    for env in turns:
        env.step_async(actions[0])
    for t in range(1, 101):
        for i, env in enumerate(turns):
            assert same(env.step_wait(), expected[i][t - 1])
            if t < 100:
                env.step_async(actions[t])


@pytest.mark.parametrize(
    ("game", "option"),
    [
        ("starpilot", {"use_backgrounds": False}),
        ("coinrun", {"restrict_themes": True}),
        ("starpilot", {"distribution_mode": "extreme"}),
        ("maze", {"distribution_mode": "memory"}),
        ("maze", {"distribution_mode": "hard"}),
    ],
)
def test_every_option_reaches_the_game(game: str, option: dict[str, object]) -> None:
    plain, changed = make(game, 8, seed=1), make(game, 8, seed=1, **option)
    assert same(plain.reset()[1], changed.reset()[1]), "options must not change which levels are played"
    action = np.full(8, 7)
    assert not np.array_equal(plain.step(action)[0], changed.step(action)[0])


# --- shapes, ends and info --------------------------------------------------------------------------------------------


def test_arrays_have_the_promised_types_and_belong_to_the_caller() -> None:
    env = make(num_envs=5)
    handed = [env.reset()]
    handed += [env.step(a) for a in actions_for(env, 60)]
    copies = pickle.loads(pickle.dumps(handed))
    for a in actions_for(env, 60, seed=1):
        env.step(a)
    env.reset(seed=3)
    env.close()
    assert all(map(same, handed, copies)), "an array that was handed out has changed"
    for obs, reward, terminated, truncated, info in handed[1:]:
        assert obs.dtype == np.uint8 and obs.shape == (5, 64, 64, 3) and env.observation_space.contains(obs)
        assert reward.dtype == np.float32 and reward.shape == (5,)
        assert terminated.dtype == truncated.dtype == np.bool_ and not truncated.any()
        assert info["level_seed"].dtype == np.int64 and info["_level_seed"].all()


def test_at_an_end_the_observation_and_level_are_the_new_episodes() -> None:
    env = make(levels=(0, 10), seed=2)
    levels = env.reset()[1]["level_seed"]
    ends = 0
    for a in actions_for(env, 250):
        obs, _, terminated, _, info = env.step(a)
        assert ("final_level_seed" in info) == terminated.any()
        if terminated.any():
            assert (info["_final_level_seed"] == terminated).all() and (info["_level_complete"] == terminated).all()
            assert (info["final_level_seed"] == np.where(terminated, levels, 0)).all()
            assert not info["level_complete"][~terminated].any()
        for i in np.flatnonzero(terminated):
            first = make(num_envs=1, levels=(int(info["level_seed"][i]), 1), num_threads=0)
            assert np.array_equal(first.reset()[0][0], obs[i])
            ends += 1
        levels = np.where(terminated, info["level_seed"], levels)
        assert (levels == info["level_seed"]).all(), "the level changes only at an end"
    assert ends >= 8


def test_a_completed_level_is_reported() -> None:
    env = make("maze", 8, levels=(0, 20))
    env.reset()
    completed = 0
    for a in actions_for(env, 300):
        _, reward, _, _, info = env.step(a)
        complete = info.get("level_complete", np.zeros(8, np.bool_))
        assert (reward[complete] == 10).all(), "a maze pays 10 for its cheese, and to the old episode"
        completed += complete.sum()
    assert completed >= 3


# --- reset and seeds --------------------------------------------------------------------------------------------------


def test_reset_in_mid_episode_gives_fresh_episodes_and_forgets_the_old_ones() -> None:
    env = make_env(PPOConfig(num_levels=1000), num_envs=6)
    env.reset()
    for a in actions_for(env, 30):
        env.step(a)
    obs, info = env.reset()
    for i, level in enumerate(info["level_seed"]):
        first = make_env(PPOConfig(), levels=(int(level), 1), num_envs=1)
        assert np.array_equal(first.reset()[0][0], obs[i]), "not the first observation of its level"
    lengths = np.zeros(6, int)
    for a in actions_for(env, 200, seed=1):
        lengths += 1
        _, _, terminated, _, info = env.step(a)
        if terminated.any():
            assert (info["episode"]["l"][terminated] == lengths[terminated]).all()
            lengths[terminated] = 0


def test_later_resets_draw_new_levels() -> None:
    env = make(num_envs=8, seed=1)  # the golden traces hold the levels of the first
    first = env.reset()[1]["level_seed"]
    assert not (env.reset()[1]["level_seed"] == first).any()


def test_reset_with_a_seed_is_the_same_as_making_it_with_that_seed() -> None:
    made, again = make(num_envs=4, seed=11), make(num_envs=4, seed=99)
    again.reset()
    again.step_async(np.zeros(4, int))  # a step that is under way is dropped
    first = made.reset()
    assert same(first, again.reset(seed=11))
    assert all(same(made.step(a), again.step(a)) for a in actions_for(made, 60))
    assert same(first, again.reset(seed=11))
    assert not same(first, again.reset(seed=12))


# --- saved states -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game", GAMES)
def test_a_saved_state_replays_exactly_in_a_new_environment(game: str) -> None:
    config = PPOConfig(env_name=game)
    env = make_env(config, num_envs=3, num_threads=2)
    env.reset()
    actions = actions_for(env, 240)
    for part in range(0, 240, 60):
        for a in actions[part : part + 30]:
            env.step(a)
        state = pickle.loads(pickle.dumps(env.get_state()))
        other = make_env(config, num_envs=3, num_threads=0, seed=123)
        other.set_state(state)
        assert all(same(env.step(a), other.step(a)) for a in actions[part + 30 : part + 60])
        assert same(env.reset(), other.reset())
        other.close()


def test_a_saved_state_replays_exactly_in_a_fresh_process(tmp_path: Path) -> None:
    env = make_env(PPOConfig(), num_envs=4)
    env.reset()
    for a in actions_for(env, 100):
        env.step(a)
    (tmp_path / "state").write_bytes(pickle.dumps(env.get_state()))
    digest, episodes = hashlib.sha256(), []
    for a in actions_for(env, 150, seed=1):
        obs, reward, terminated, _, info = env.step(a)
        digest.update(obs.tobytes() + reward.tobytes() + terminated.tobytes() + info["level_seed"].tobytes())
        if "episode" in info:
            episodes += info["episode"]["r"].tolist() + info["episode"]["l"].tolist()
    code = """
import hashlib, pathlib, pickle, sys
import numpy as np
from ppo_lib.config import PPOConfig
from ppo_lib.envs import make_env
env = make_env(PPOConfig(), num_envs=4, seed=77)
env.set_state(pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()))
digest, episodes = hashlib.sha256(), []
for a in np.random.default_rng(1).integers(0, 15, (150, 4)):
    obs, reward, terminated, _, info = env.step(a)
    digest.update(obs.tobytes() + reward.tobytes() + terminated.tobytes() + info["level_seed"].tobytes())
    if "episode" in info:
        episodes += info["episode"]["r"].tolist() + info["episode"]["l"].tolist()
print(digest.hexdigest(), episodes)
"""
    result = run_python(code, str(tmp_path / "state"))
    assert result.stdout.strip() == f"{digest.hexdigest()} {episodes}", result.stderr
    assert episodes


def test_a_saved_state_survives_torchs_safe_loader(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = make_env(PPOConfig(), num_envs=2).get_state()
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state


def test_a_saved_state_drops_a_pending_step() -> None:
    """Trainer restores the last boundary after Ctrl-C in the middle of a rollout, when the games are playing."""
    env, twin = (make_env(PPOConfig(), num_envs=3) for _ in range(2))
    env.reset(), twin.reset()
    actions = actions_for(env, 40)
    state = env.get_state()
    for a in actions:
        env.step(a)
    env.step_async(actions[0])
    with pytest.raises(UserError, match="damaged"):  # refused: the step is still pending
        env.set_state({**state, "env": {**state["env"], "games": []}})
    env.step_wait()
    env.step_async(actions[0])
    env.set_state(state)
    assert all(same(env.step(a), twin.step(a)) for a in actions)


def test_saved_states_of_other_games_or_damaged_ones_are_refused() -> None:
    env = make(num_envs=2)
    good = env.get_state()
    for other, words in ((make("maze", 2), "'maze'"), (make(num_envs=3), "3"), (make(num_envs=2, levels=(0, 5)), "5")):
        with pytest.raises(UserError, match=f"do not have .*{words}.*the same settings"):
            other.set_state(good)
    first, second = good["games"]
    for games in ([first], [first, second[:-9]], [first, b""], [first, b"x" + second], [first, "text"]):
        with pytest.raises(UserError, match="damaged"):
            env.set_state({**good, "games": games})
    env.set_state({**good, "options": {**good["options"], "paint_vel_info": False}})  # older checkpoints have more


# --- frames -----------------------------------------------------------------------------------------------------------


def test_frames_are_large_images_of_the_current_step() -> None:
    env = make_env(PPOConfig(), num_envs=2, render=True)
    env.reset()
    for a in actions_for(env, 20):
        obs = env.step(a)[0]
    frames = env.render()
    assert len(frames) == 2 and all(f.shape == (512, 512, 3) and f.dtype == np.uint8 for f in frames)
    small = np.stack(frames).reshape(2, 64, 8, 64, 8, 3).mean((2, 4))
    assert np.abs(small - obs).mean() < 8, "the frame doesn't show what the observation shows"
    state = env.get_state()
    env.step(np.array([7, 7]))
    assert not same(env.render(), frames)
    env.set_state(state)
    assert same(env.render(), frames)
    with pytest.raises(UserError, match="render=True"):
        make().render()


# --- misuse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_envs": 0}, "num_envs must be a whole number from 1"),
        ({"num_envs": 2.5}, "num_envs must be a whole number"),
        ({"levels": (0, 0)}, "the number of levels must be a whole number from 1"),
        ({"levels": (-1, 5)}, "the first level must be a whole number from 0"),
        ({"levels": (LEVEL_LIMIT, 1)}, "the first level must be"),
        ({"levels": (1, LEVEL_LIMIT)}, "the first level must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**31}, "seed must be"),
        ({"num_threads": -1}, "num_threads must be"),
        ({"distribution_mode": "memory"}, "starpilot has no memory mode"),
        ({"game": "maze", "distribution_mode": "extreme"}, "maze has no extreme mode"),
    ],
)
def test_wrong_options_are_explained(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(**options)


def test_wrong_calls_are_explained_and_leave_the_games_as_they_were() -> None:
    env, twin = make(num_envs=3), make(num_envs=3)
    env.reset(), twin.reset()
    with pytest.raises(NoAsyncCallError, match="step_async"):
        env.step_wait()
    for actions in (np.zeros(2, int), np.zeros((3, 1), int), np.zeros(3), 0, np.zeros(3, bool), [0, 0, 15], [-1, 0, 0]):
        with pytest.raises(UserError, match="3 integers from 0 to 14, not "):
            env.step(actions)
    with pytest.raises(UserError, match="seed must be"):
        env.reset(seed=[1, 2, 3])
    actions = np.array([1, 2, 3])
    env.step_async(actions)
    for call in (lambda: env.step_async(actions), env.get_state):
        with pytest.raises(AlreadyPendingCallError, match="step_wait"):
            call()
    assert same(env.step_wait(), twin.step(actions))
    env.close()
    env.close()
    for call in (env.reset, env.render, env.get_state, env.step_wait, lambda: env.step(actions)):
        with pytest.raises(ClosedEnvironmentError, match="closed"):
            call()


@pytest.mark.parametrize("minor, package", [(10, "procgen"), (11, "procgen-mirror"), (12, "procgen-mirror"),
                                            (13, "procgen-gym"), (14, "envpool")])  # fmt: skip
def test_a_missing_procgen_names_the_package_for_this_python(
    monkeypatch: pytest.MonkeyPatch, minor: int, package: str
) -> None:
    monkeypatch.setattr(library.importlib.metadata, "distributions", lambda name: [])
    monkeypatch.setattr(library.sys, "version_info", (3, minor))
    for call in (procgen_build, lambda: make_env(PPOConfig())):
        with pytest.raises(UserError, match=f"`pip install (--no-deps )?{package}`"):
            call()


def test_the_installed_build_is_named() -> None:
    build = procgen_build()
    assert build.package in library.PACKAGES and build.version[0].isdigit() and build.library.is_file()


# --- threads and the screen -------------------------------------------------------------------------------------------


def threads_now() -> int:
    """Threads of this process, as Linux counts them, without those of environments that earlier tests forgot."""
    gc.collect()
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_close_reset_and_forgetting_free_the_game_threads() -> None:
    before = threads_now()
    env = make(num_envs=8, num_threads=5)
    env.reset()
    assert threads_now() == before + 5
    env.reset(seed=4)
    assert threads_now() == before + 5, "restarting from a seed leaves old threads behind"
    env.step_async(np.zeros(8, int))
    env.close()
    assert threads_now() == before
    forgotten = make(num_envs=8, num_threads=3)
    assert threads_now() == before + 3
    del forgotten
    assert threads_now() == before
    make(num_threads=0).reset()
    assert threads_now() == before


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("cores", "num_envs", "threads"), [(3, 8, 3), (8, 2, 2), (64, 20, 16)])
def test_by_default_there_is_a_thread_per_core_up_to_16_and_the_number_of_games(
    monkeypatch: pytest.MonkeyPatch, cores: int, num_envs: int, threads: int
) -> None:
    before = threads_now()
    monkeypatch.setattr(env_module, "usable_cores", lambda: cores)
    env = make_env(PPOConfig(), num_envs=num_envs)
    assert threads_now() == before + threads
    env.close()


def test_nothing_but_our_own_words_on_the_screen() -> None:
    code = """
import sys
from ppo_lib.config import PPOConfig
from ppo_lib.envs import make_env, procgen_build
procgen_build()
env = make_env(PPOConfig(), num_envs=2, render=True)
env.reset(); env.step([0, 1]); env.render(); env.close()
env = make_env(PPOConfig(), num_envs=2); env.step_async([0, 1])
assert not {"gym", "gym3", "procgen", "procgen_gym", "torch"} & set(sys.modules)
"""
    result = run_python(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


MALLOC = r"""  // a malloc that never frees, and whose memory glibc's free() refuses
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
static char *arena;
static size_t used;
void *memalign(size_t alignment, size_t size) {
    if (!arena) arena = mmap(0, 1L << 34, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (alignment < 16) alignment = 16;
    size_t start = __atomic_fetch_add(&used, size + 2 * alignment + 16, __ATOMIC_RELAXED);
    char *block = (char *)(((uintptr_t)arena + start + 15 + alignment) & -alignment);
    ((size_t *)block)[-1] = size;
    return block;
}
void *malloc(size_t size) { return memalign(16, size); }
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
void *calloc(size_t count, size_t size) { return memalign(16, count * size); }
int posix_memalign(void **block, size_t alignment, size_t size) { return !(*block = memalign(alignment, size)); }
size_t malloc_usable_size(void *block) { return block ? ((size_t *)block)[-1] : 0; }
void *realloc(void *block, size_t size) {
    size_t old = malloc_usable_size(block);
    return memcpy(malloc(size), block ? block : "", old < size ? old : size);
}
void free(void *block) {}
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux's LD_PRELOAD and cc")
def test_the_games_run_with_a_replaced_malloc_and_before_torch(tmp_path: Path) -> None:
    """As tcmalloc and jemalloc replace it. (In all other tests torch, with a C++ runtime of its own, comes first.)"""
    (tmp_path / "malloc.c").write_text(MALLOC)
    library, source = tmp_path / "malloc.so", tmp_path / "malloc.c"
    subprocess.run(["cc", "-O1", "-fno-builtin", "-shared", "-fPIC", "-o", library, source], check=True)
    code = """
import golden
env = golden.make(); env.reset(); env.step([0, 1, 2, 3])
import torch
assert torch.nn.Conv2d(3, 4, 3)(torch.ones(1, 3, 8, 8)).sum().isfinite()
print(golden.play("starpilot")[0] == golden.load()["courses"]["starpilot"])
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(golden.__file__).parent), "LD_PRELOAD": str(library)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr


# --- gymnasium --------------------------------------------------------------------------------------------------------


def test_episode_statistics_are_right_and_gymnasiums_are_too_where_it_knows_same_step() -> None:
    from gymnasium.wrappers.vector import RecordEpisodeStatistics

    # Before 1.4 gymnasium's wrapper takes every environment for NEXT_STEP and counts a step too few.
    knows_same_step = tuple(map(int, gymnasium.__version__.split(".")[:2])) >= (1, 4)
    theirs = RecordEpisodeStatistics(make(num_envs=6, levels=(0, 50), seed=3))
    ours = make_env(PPOConfig(use_backgrounds=True, restrict_themes=False), num_envs=6, seed=3)
    theirs.reset(), ours.reset()
    returns, lengths, ended = np.zeros(6), np.zeros(6, int), 0
    for a in actions_for(ours, 300):
        _, reward, done, _, mine = ours.step(a)
        gymnasiums = theirs.step(a)[4]
        returns, lengths = returns + reward, lengths + 1
        if done.any():
            for info in (mine, gymnasiums) if knows_same_step else (mine,):
                assert (info["_episode"] == done).all()
                assert np.allclose(info["episode"]["r"], np.where(done, returns, 0))
                assert (info["episode"]["l"] == np.where(done, lengths, 0)).all()
            ended += done.sum()
            returns[done], lengths[done] = 0, 0
    assert ended >= 12


def test_gymnasiums_info_list_wrapper_understands_the_info() -> None:
    from gymnasium.wrappers.vector import DictInfoToList

    env = DictInfoToList(make_env(PPOConfig(), num_envs=4))
    env.reset()
    for a in actions_for(env, 100):
        _, _, done, _, infos = env.step(a)
        for ended, info in zip(done, infos, strict=True):
            assert ("final_level_seed" in info) == ("episode" in info) == ended and "level_seed" in info
