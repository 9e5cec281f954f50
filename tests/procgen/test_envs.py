"""The environment: what it promises to the trainer, to gymnasium and to a person who errs."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import golden
import gymnasium
import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_lib.config import GAMES, LEVEL_LIMIT, ConfigError, PPOConfig, UserError, derive_seed
from ppo_lib.envs import NUM_ACTIONS, ProcgenVectorEnv, make_env, procgen_build, register
from ppo_lib.procgen import library as libenv
from ppo_lib.procgen.options import EXPLORATION_LEVELS, default_threads

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
        for name in set(others) & {"starpilot-frames"}:  # only the big frames for films
            assert others[name]["stretches"] == reference[name]["stretches"]


@pytest.mark.parametrize("num_threads", [0, 2, 7])
def test_the_number_of_threads_changes_nothing(num_threads: int) -> None:
    assert golden.play("starpilot", num_threads)[0] == GOLDEN["courses"]["starpilot"]


def test_drawing_frames_changes_nothing() -> None:
    plain, drawn = (ProcgenVectorEnv(num_envs=3, seed=5, render_mode=mode) for mode in (None, "rgb_array"))
    assert same(plain.reset(), drawn.reset())
    assert all(same(plain.step(a), drawn.step(a)) for a in actions_for(plain, 120))


def test_two_environments_stepped_in_turn_play_as_if_alone() -> None:
    alone = [ProcgenVectorEnv(num_envs=4, seed=seed) for seed in (1, 2)]
    turns = [ProcgenVectorEnv(num_envs=4, seed=seed) for seed in (1, 2)]
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
        ("coinrun", {"center_agent": False}),
        ("starpilot", {"use_backgrounds": False}),
        ("coinrun", {"restrict_themes": True}),
        ("starpilot", {"use_generated_assets": True}),
        ("coinrun", {"use_monochrome_assets": True}),
        ("coinrun", {"paint_vel_info": True}),
        ("starpilot", {"distribution_mode": "extreme"}),
        ("maze", {"distribution_mode": "memory"}),
        ("maze", {"distribution_mode": "hard"}),
    ],
)
def test_every_option_reaches_the_game(game: str, option: dict[str, object]) -> None:
    plain, changed = ProcgenVectorEnv(game, 8, seed=1), ProcgenVectorEnv(game, 8, seed=1, **option)
    assert same(plain.reset()[1], changed.reset()[1]), "options must not change which levels are played"
    action = np.full(8, 7)
    assert not np.array_equal(plain.step(action)[0], changed.step(action)[0])


def test_exploration_plays_its_one_level_and_sequential_levels_go_on_by_997() -> None:
    explored = ProcgenVectorEnv("maze", 3, distribution_mode="exploration")
    assert (explored.reset()[1]["level_seed"] == EXPLORATION_LEVELS["maze"]).all()
    walk = ProcgenVectorEnv("maze", 8, num_levels=1, start_level=5, use_sequential_levels=True)
    walk.reset()
    seeds = {int(s) for a in actions_for(walk, 600) for s in walk.step(a)[4]["level_seed"]}
    assert 5 + 997 in seeds and {(s - 5) % 997 for s in seeds} == {0}


# --- shapes, ends and info --------------------------------------------------------------------------------------------


def test_arrays_have_the_promised_types_and_belong_to_the_caller() -> None:
    env = ProcgenVectorEnv(num_envs=5)
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
    env = ProcgenVectorEnv(num_envs=4, num_levels=10, seed=2)
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
            first = ProcgenVectorEnv(num_envs=1, num_levels=1, start_level=int(info["level_seed"][i]), num_threads=0)
            assert np.array_equal(first.reset()[0][0], obs[i])
            ends += 1
        levels = np.where(terminated, info["level_seed"], levels)
        assert (levels == info["level_seed"]).all(), "the level changes only at an end"
    assert ends >= 8


def test_a_completed_level_is_reported() -> None:
    env = ProcgenVectorEnv("maze", 8, num_levels=20)
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
        assert np.array_equal(first.reset()[0][0], obs[i]), "not the first picture of its level"
    lengths = np.zeros(6, int)
    for a in actions_for(env, 200, seed=1):
        lengths += 1
        _, _, terminated, _, info = env.step(a)
        if terminated.any():
            assert (info["episode"]["l"][terminated] == lengths[terminated]).all()
            lengths[terminated] = 0


def test_the_first_reset_skips_no_level_and_later_ones_draw_new_levels() -> None:
    env = ProcgenVectorEnv(num_envs=8, seed=1)
    current = env.observe()
    assert same(env.reset(), current)
    assert not (env.reset()[1]["level_seed"] == current[1]["level_seed"]).any()


def test_reset_with_a_seed_is_the_same_as_making_it_with_that_seed() -> None:
    made, again = ProcgenVectorEnv(num_envs=4, seed=11), ProcgenVectorEnv(num_envs=4, seed=99)
    again.reset()
    again.step_async(np.zeros(4, int))  # a step that is under way is dropped
    first = made.reset()
    assert same(first, again.reset(seed=11))
    assert all(same(made.step(a), again.step(a)) for a in actions_for(made, 60))
    assert same(first, again.reset(seed=11))
    assert not same(first, again.reset(seed=12))


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_levels", "start_level"), [(50, 0), (3, 100), (0, 0), (1, LEVEL_LIMIT - 3)])
def test_each_split_plays_its_own_levels(num_levels: int, start_level: int) -> None:
    config = PPOConfig(num_levels=num_levels, start_level=start_level)
    for split, (first, count) in {"train": config.train_levels, "unseen": config.unseen_levels}.items():
        env = make_env(config, split, num_envs=8)
        seen = env.reset()[1]["level_seed"].tolist()
        for a in actions_for(env, 120):
            seen += env.step(a)[4]["level_seed"].tolist()
        assert first <= min(seen) and max(seen) < first + count
        env.close()


@settings(deadline=None)
@given(st.integers(0, LEVEL_LIMIT - 2), st.data())
def test_train_and_unseen_levels_never_overlap(num_levels: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, LEVEL_LIMIT - 2 - num_levels)) if num_levels else 0
    try:
        config = PPOConfig(num_levels=num_levels, start_level=start)
    except ConfigError:
        return
    (first, count), (unseen_first, unseen_count) = config.train_levels, config.unseen_levels
    assert count >= 1 and unseen_count >= 1
    assert unseen_first == first + count and unseen_first + unseen_count <= LEVEL_LIMIT


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.integers(1, 200))
def test_overlapping_levels_are_refused_as_unseen_and_others_are_not(first: int, count: int) -> None:
    config = PPOConfig(num_levels=50, start_level=60)
    overlap = bool(set(range(first, first + count)) & set(range(60, 110)))
    try:
        env = make_env(config, "unseen", levels=(first, count), num_envs=1, num_threads=0)
    except UserError as error:
        assert overlap and "overlap" in str(error) and "110" in str(error)
    else:
        assert not overlap and first <= env.reset()[1]["level_seed"][0] < first + count
        env.close()


def test_make_env_follows_the_config_and_its_seed() -> None:
    config = PPOConfig(env_name="maze", num_levels=7, num_envs=3, seed=5)
    env = make_env(config)
    direct = ProcgenVectorEnv(
        "maze", 3, num_levels=7, use_backgrounds=False, restrict_themes=True, seed=derive_seed(5, "train")
    )
    assert same(env.reset(), direct.reset())
    assert not same(env.reset(seed=1), make_env(config, "unseen", seed=1).reset())
    with pytest.raises(UserError, match="split must be"):
        make_env(config, "test")
    for levels in ((-1, 5), (0, 0), (LEVEL_LIMIT, 1)):
        with pytest.raises(UserError, match="levels must be"):
            make_env(config, levels=levels)


# --- saved states -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game", GAMES)
def test_a_saved_state_replays_exactly_in_a_new_environment(game: str) -> None:
    config = PPOConfig(env_name=game)
    env = make_env(config, num_envs=3, num_threads=2)
    last = env.reset()[0]
    actions = actions_for(env, 240)
    for part in range(0, 240, 60):
        for a in actions[part : part + 30]:
            last = env.step(a)[0]
        state = pickle.loads(pickle.dumps(env.get_state()))
        other = make_env(config, num_envs=3, num_threads=0, seed=123)
        other.set_state(state)
        obs, info = other.observe()
        assert np.array_equal(obs, last), "the observation that was current is not restored"
        assert (info["level_seed"] == env.observe()[1]["level_seed"]).all()
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


def test_saved_states_of_other_games_or_damaged_ones_are_refused() -> None:
    env = ProcgenVectorEnv(num_envs=2)
    good = env.get_state()
    for other in (
        ProcgenVectorEnv("maze", 2),
        ProcgenVectorEnv(num_envs=3),
        ProcgenVectorEnv(num_envs=2, num_levels=5),
    ):
        with pytest.raises(UserError, match="make it with the same settings"):
            other.set_state(good)
    first, second = good["games"]
    for games in ([first], [first, second[:-9]], [first, b""], [first, b"x" + second], [first, "text"]):
        with pytest.raises(UserError, match="damaged"):
            env.set_state({**good, "games": games})
    env.set_state(good)


# --- frames -----------------------------------------------------------------------------------------------------------


def test_frames_are_large_pictures_of_the_current_step() -> None:
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
    with pytest.raises(UserError, match='render_mode="rgb_array"'):
        ProcgenVectorEnv().render()


# --- misuse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"env_name": "pong"}, "choose one of: bigfish"),
        ({"num_envs": 0}, "num_envs must be a whole number from 1"),
        ({"num_envs": 2.5}, "num_envs must be a whole number"),
        ({"num_levels": -1}, "num_levels must be"),
        ({"start_level": 2**31}, "start_level must be"),
        ({"num_levels": 2**31 - 1, "start_level": 1}, "start_level must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**31}, "seed must be"),
        ({"num_threads": -1}, "num_threads must be"),
        ({"render_mode": "human"}, "render_mode must be"),
        ({"distribution_mode": "brutal"}, "distribution_mode must be one of easy"),
        ({"distribution_mode": "memory"}, "starpilot has no memory mode; only caveflyer"),
        ({"env_name": "maze", "distribution_mode": "extreme"}, "maze has no extreme mode"),
        ({"distribution_mode": "exploration"}, "starpilot has no exploration mode"),
    ],
)
def test_wrong_options_are_explained(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ProcgenVectorEnv(**options)


def test_wrong_calls_are_explained_and_leave_the_games_as_they_were() -> None:
    env, twin = ProcgenVectorEnv(num_envs=3), ProcgenVectorEnv(num_envs=3)
    env.reset(), twin.reset()
    with pytest.raises(NoAsyncCallError, match="step_async"):
        env.step_wait()
    for actions in (np.zeros(2, int), np.zeros((3, 1), int), np.zeros(3), 0, np.zeros(3, bool)):
        with pytest.raises(UserError, match=r"shape \(3,\)"):
            env.step(actions)
    for actions in ([0, 0, 15], [-1, 0, 0]):
        with pytest.raises(UserError, match="from 0 to 14"):
            env.step(actions)
    with pytest.raises(UserError, match="stepped together"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(UserError, match="seed must be"):
        env.reset(seed=[1, 2, 3])
    actions = np.array([1, 2, 3])
    env.step_async(actions)
    for call in (lambda: env.step_async(actions), env.get_state, env.observe, lambda: env.set_state({})):
        with pytest.raises(AlreadyPendingCallError, match="step_wait"):
            call()
    assert same(env.step_wait(), twin.step(actions))
    env.close()
    env.close()
    for call in (env.reset, env.render, env.get_state, env.step_wait, lambda: env.step(actions)):
        with pytest.raises(ClosedEnvironmentError, match="closed"):
            call()


def test_a_missing_procgen_names_the_package_for_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libenv.importlib.util, "find_spec", lambda name: None)
    names = {(3, 10): "procgen", (3, 11): "procgen-mirror", (3, 12): "procgen-mirror", (3, 13): "procgen-gym"}
    for version, package in {**names, (3, 14): "procgen-gym"}.items():
        assert libenv.package_for_python(version) == package
    package = names.get(sys.version_info[:2], "procgen-gym")
    for call in (procgen_build, ProcgenVectorEnv, lambda: make_env(PPOConfig())):
        with pytest.raises(UserError, match=rf"`pip install --no-deps {package}`.*Python {sys.version_info[0]}\."):
            call()


def test_the_installed_build_is_named() -> None:
    build = procgen_build()
    assert build.package == libenv.package_for_python()
    assert build.module == ("procgen_gym" if build.package == "procgen-gym" else "procgen")
    assert build.version[0].isdigit()


# --- threads and the screen -------------------------------------------------------------------------------------------


def threads_now() -> int:
    """Threads of this process, as Linux counts them."""
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_close_reset_and_forgetting_free_the_game_threads() -> None:
    before = threads_now()
    env = ProcgenVectorEnv(num_envs=8, num_threads=5)
    env.reset()
    assert threads_now() == before + 5
    env.reset(seed=4)
    assert threads_now() == before + 5, "restarting from a seed leaves old threads behind"
    env.step_async(np.zeros(8, int))
    env.close()
    assert threads_now() == before
    forgotten = ProcgenVectorEnv(num_envs=8, num_threads=3)
    assert threads_now() == before + 3
    del forgotten
    assert threads_now() == before
    ProcgenVectorEnv(num_threads=0).reset()
    assert threads_now() == before


def test_default_threads_fit_the_machine_and_the_work() -> None:
    assert default_threads(1) == 1
    assert 1 <= default_threads(64) <= min(16, os.cpu_count() or 1)


def test_nothing_but_our_own_words_on_the_screen() -> None:
    code = """
import sys
from ppo_lib.config import PPOConfig
from ppo_lib.envs import make_env, procgen_build, register
procgen_build(); register()
env = make_env(PPOConfig(), num_envs=2, render=True)
env.reset(); env.step([0, 1]); env.render(); env.close()
env = make_env(PPOConfig(), num_envs=2); env.step_async([0, 1])
assert not {"gym", "gym3", "procgen", "procgen_gym", "torch"} & set(sys.modules)
"""
    result = run_python(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# --- gymnasium --------------------------------------------------------------------------------------------------------


def test_every_game_has_a_gymnasium_id_for_make_and_make_vec() -> None:
    ids = register()
    assert register() == ids and len(ids) == 16 and "ppo_lib/StarPilot-v0" in ids
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ids:
            games = gymnasium.make_vec(name, num_envs=2, num_levels=3)
            assert isinstance(games, ProcgenVectorEnv) and f"ppo_lib/{games.env_name}-v0" == name.lower()
            games.close()
        env = gymnasium.make("ppo_lib/StarPilot-v0", render_mode="rgb_array", start_level=3, num_levels=1)
        obs, info = env.reset(seed=1)
        assert info == {"level_seed": 3} and env.observation_space.contains(obs)
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert terminated is truncated is False and env.render().shape == (512, 512, 3)
        env.close()


def test_gymnasiums_own_check_of_one_game_passes() -> None:
    from gymnasium.utils.env_checker import check_env

    register()
    env = gymnasium.make("ppo_lib/StarPilot-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_gymnasiums_sync_vector_of_single_games_plays_the_same_episodes() -> None:
    register()
    options = {"num_levels": 1, "start_level": 3}
    ours = gymnasium.make_vec("ppo_lib/StarPilot-v0", num_envs=1, **options)
    theirs = gymnasium.make_vec("ppo_lib/StarPilot-v0", num_envs=1, vectorization_mode="sync", **options)
    assert np.array_equal(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    for a in actions_for(ours, 200):
        left, right = ours.step(a), theirs.step(a)
        assert np.array_equal(left[0], right[0]) and left[1] == right[1] and left[2] == right[2]
        if left[2].any():  # theirs spends a step on its reset
            assert np.array_equal(theirs.step(a)[0], left[0])


def test_episode_statistics_are_right_and_gymnasiums_are_too_where_it_knows_same_step() -> None:
    from gymnasium.wrappers.vector import RecordEpisodeStatistics

    # Before 1.4 gymnasium's wrapper takes every environment for NEXT_STEP and counts a step too few.
    knows_same_step = tuple(map(int, gymnasium.__version__.split(".")[:2])) >= (1, 4)
    theirs = RecordEpisodeStatistics(ProcgenVectorEnv(num_envs=6, num_levels=50, seed=3))
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
