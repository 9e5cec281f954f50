"""Videos: real H.264 that browsers play, the right length and size, and images that tell the truth."""

from __future__ import annotations

import base64
import errno
import io
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ppo_lib import video
from ppo_lib.config import PPOConfig, UserError
from ppo_lib.envs import make_env


class Biased(nn.Module):
    """A tiny policy that fires with probability 0.9 and estimates each value as the steps since the episode's start."""

    def __init__(self) -> None:
        super().__init__()
        logits = torch.zeros(15)
        logits[9] = float(np.log(0.9 / 0.1 * 14))
        self.logits = nn.Parameter(logits)
        self.starts: list[bool] = []

    def initial_state(self, n: int) -> Tensor:
        return torch.zeros(n, 1)

    def forward(self, obs: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.starts.append(bool(episode_start[0]))
        state = torch.where(episode_start[:, None], 0.0, state) + 1
        return self.logits.expand(len(obs), 15), state[:, 0], state


def noise(frames: int, height: int = 64, width: int = 96) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for _ in range(frames):
        yield rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def moment(step: int = 0, done: bool = False, probabilities: np.ndarray | None = None, action: int = 3) -> video.Moment:
    """A black frame of a game in which each step is rewarded with 1."""
    played = SimpleNamespace(level_seed=[2**31 - 2], action=[action], reward=[1.0], done=[done])
    probabilities = np.full(15, 1 / 15) if probabilities is None else probabilities
    return video.Moment(np.zeros((512, 512, 3), np.uint8), played, probabilities, float(step), [1.0] * (step + 1))


def test_write_video_is_h264_for_browsers(tmp_path: Path) -> None:
    path = video.write_video(noise(30), tmp_path / "new" / "a.mp4")
    facts = iio.immeta(path, plugin="FFMPEG")
    assert facts["codec"] == "h264" and facts["pix_fmt"].startswith("yuv420p")
    assert facts["size"] == (96, 64) and facts["fps"] == 15 and facts["duration"] == 2.0
    assert imageio_ffmpeg.count_frames_and_secs(str(path)) == (30, pytest.approx(2.0, abs=0.01))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # faststart: plays before it is loaded
    assert list(path.parent.iterdir()) == [path]


def test_write_video_fits_its_limit(tmp_path: Path) -> None:
    free = video.write_video(noise(30), tmp_path / "free.mp4").stat().st_size
    limit = free // 4
    tight = video.write_video(noise(30), tmp_path / "tight.mp4", max_bytes=limit)
    assert tight.stat().st_size <= limit and imageio_ffmpeg.count_frames_and_secs(str(tight))[0] == 30
    with pytest.raises(UserError, match="shorter"):
        video.write_video(noise(30), tmp_path / "impossible.mp4", max_bytes=500)
    assert not (tmp_path / "impossible.mp4").exists()


def test_frames_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Also those of a second size, which were once dropped in silence."""
    with pytest.raises(ValueError, match="same size"):
        video.write_video([*noise(2), *noise(2, 32, 48)], tmp_path / "a.mp4")
    with pytest.raises(UserError, match="at least one frame"):
        video.write_video(iter(()), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []
    assert iio.immeta(video.write_video(noise(2, 63), tmp_path / "a.mp4"), plugin="FFMPEG")["size"] == (96, 64)


def test_errors_name_their_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"a\.mp4"):
        video.write_video(noise(2), tmp_path / "a.avi")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"File exists: .*/file") as error:
        video.write_video(noise(2), tmp_path / "file" / "a.mp4")
    assert "--results" not in str(error.value)  # a flag of the command line, which the caller may not use
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("text.mp4", "absent.mp4"):
        with pytest.raises(UserError, match="make it with"):
            video.video_tag(tmp_path / name)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"absent can't write.*pip install"):
        video.write_video(noise(2), tmp_path / "a.mp4")
    with pytest.raises(UserError, match="can't be read"):
        video.video_tag(tmp_path / "text.mp4")
    script = tmp_path / "broken"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    with pytest.raises(UserError, match="broken can't write"):
        video.write_video(noise(2), tmp_path / "a.mp4")


def test_no_ffmpeg_at_all_gets_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", absent)
    monkeypatch.setattr("imageio_ffmpeg._io.get_ffmpeg_exe", absent)
    with pytest.raises(UserError, match=r"a\.mp4 could not be written: No ffmpeg"):
        video.write_video(noise(2), tmp_path / "a.mp4")


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ffmpeg stops where files may grow no larger, and says no more than that; the sentence gives the true cause."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            video.write_video(noise(60), tmp_path / "a.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        video.write_video(noise(2), tmp_path / "a.mp4")


def test_tag_holds_video_and_still(tmp_path: Path) -> None:
    path = video.write_video(noise(30), tmp_path / "a.mp4")
    tag = video.video_tag(path)
    embedded = re.search(r'<source src="data:video/mp4;base64,([^"]+)" type="video/mp4">', tag)
    assert base64.b64decode(embedded[1]) == path.read_bytes()
    poster, image = re.findall(r'(?:poster|<img src)="data:image/webp;base64,([^"]+)"', tag)
    still = Image.open(io.BytesIO(base64.b64decode(poster)))
    assert poster == image and still.size == (96, 64) and "http" not in tag


def test_video_of_the_real_game(tmp_path: Path) -> None:
    path = video.record_video(Biased(), PPOConfig(), tmp_path / "run.mp4", levels=2, max_seconds=1)
    facts = iio.immeta(path, plugin="FFMPEG")
    assert facts["codec"] == "h264" and facts["size"] == (1480, 552)
    assert imageio_ffmpeg.count_frames_and_secs(str(path))[0] == 15
    assert path.stat().st_size < 1_000_000
    for wrong in ({"levels": 3}, {"max_seconds": 0}, {"shots": [("test", None)]}, {"shots": [("unseen", 3)]}):
        with pytest.raises(UserError):
            video.record_video(Biased(), PPOConfig(), tmp_path / "run.mp4", **wrong)


def test_video_of_several_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column each, with the same levels in it, which lie beyond the training levels of all."""
    played, moments_of = [], video.moments_of
    monkeypatch.setattr(
        video, "moments_of", lambda *a, **k: played.append((a[1].num_levels, a[2:])) or moments_of(*a, **k)
    )
    configs = [PPOConfig(num_levels=10), PPOConfig(num_levels=0)]
    players = [(f"agent {i}", Biased(), config) for i, config in enumerate(configs)]
    path = video.record_comparison(players, tmp_path / "beside.mp4", rows=2, max_seconds=1)
    assert iio.immeta(path, plugin="FFMPEG")["size"] == (1480, 1072)
    assert [count for count, _ in played] == [10, 10, 0, 0]
    shots = [shot for _, shot in played]
    assert shots[:2] == shots[2:] and len(set(shots)) == 2
    first, count = configs[1].unseen_levels  # the narrower choice
    assert all(split == "unseen" and first <= level < first + count for split, level in shots)
    with pytest.raises(UserError, match="different games"):
        video.record_comparison([*players, ("c", Biased(), PPOConfig(env_name="coinrun"))], tmp_path / "no.mp4")


def test_recorded_episode_is_one_whole_episode() -> None:
    policy = Biased()
    episode = video.record_episode(policy, PPOConfig(), split="unseen", level=777, size=64)
    steps = len(episode.reward)
    assert episode.level_seed == 777
    assert episode.done.tolist() == [False] * (steps - 1) + [True]
    assert episode.frames.shape == (steps, 64, 64, 3)
    assert np.allclose(episode.probabilities.sum(1), 1) and np.allclose(episode.probabilities[:, 9], 0.9)
    assert episode.value.tolist() == list(range(1, steps + 1))  # the state is carried, and starts at zero
    assert policy.starts == [True] + [False] * (steps - 1)
    again = video.record_episode(Biased(), PPOConfig(), split="unseen", level=777, size=64)
    assert np.array_equal(episode.action, again.action) and np.array_equal(episode.frames, again.frames)
    greedy = video.record_episode(Biased(), PPOConfig(), greedy=True, size=64, max_steps=20)
    assert set(greedy.action.tolist()) == {9} and len(greedy.reward) <= 20


def test_frame_and_panel_belong_to_one_step() -> None:
    """A moment's frame, observation, score and values are of one step; the next episode begins anew."""
    moments, score, played = video.moments_of(Biased(), PPOConfig(), "train", 3), 0.0, []
    for now in moments:
        if played and played[-1].played.done[0]:
            break
        assert now.score == score and len(now.values) == len(played) + 1
        score += float(now.played.reward[0])
        played.append(now)
    assert now.score == 0 and now.values == [1.0]
    moments.close()
    frames = [np.asarray(Image.fromarray(m.frame).resize((64, 64))).ravel() for m in played]
    likeness = np.corrcoef(frames, [m.played.obs[0].ravel() for m in played])[len(played) :, : len(played)]
    assert likeness.trace() > max(likeness.trace(1), likeness.trace(-1)) + 1


@pytest.mark.parametrize("once", [False, True])
def test_ended_episode_stands_still(once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a second, before the next begins; or, with once, until the game that lasts longest has ended."""
    long = [moment(step, done=step == 24) for step in range(25)]
    short = [moment(0), moment(1, done=True)] * 5
    games = iter([long + long, short])
    monkeypatch.setattr(video, "moments_of", lambda *_, **__: iter(next(games)))
    written: list[np.ndarray] = []
    monkeypatch.setattr(video, "write_video", lambda frames, path: written.extend(frames))
    shots = [("train", None), ("unseen", None)]
    video.record_video(Biased(), PPOConfig(), "a.mp4", shots=shots, once=once, max_seconds=3)
    left, right = np.split(np.stack(written)[:, 40:], [736 + 4], axis=2)
    changes = [int(t) for t in range(1, len(right)) if not np.array_equal(right[t], right[t - 1])]
    assert changes == ([1, 2] if once else [1, 2, 17, 18, 19, 34, 35, 36])
    assert len(written) == (25 + video.FPS if once else 45)
    assert np.array_equal(left[25], left[39]) and not np.array_equal(left[24], left[25])


def test_tiles_light_the_action_taken() -> None:
    tiles = [video.draw_tile(moment(probabilities=p), "unseen", "starpilot") for p in (np.eye(15)[3], None)]
    certain, uniform = (np.asarray(tile) for tile in tiles)
    assert certain.shape == (512, 736, 3) and certain.dtype == np.uint8
    bar = np.s_[218 + 3 * 19 + 8, 512 + 200]
    assert tuple(certain[bar]) == (0xE6, 0x9F, 0x00) and tuple(uniform[bar]) != (0xE6, 0x9F, 0x00)


def test_labels_say_what_the_keys_do_in_starpilot() -> None:
    """From one state, D, W, S, Q and E lead to the same image, A to another one, standing still to a third."""
    assert len(video.ACTION_NAMES) == 15
    assert video.action_labels("starpilot")[9:11] == ("D fire", "A fire back")
    assert video.action_labels("maze") == video.ACTION_NAMES
    env = make_env(PPOConfig(), num_envs=1)
    try:
        env.reset(seed=0)
        for _ in range(10):  # away from the wall, so that a shot to the back can be seen
            env.step(np.array([7]))
        start = env.get_state()
        seen = {}
        for action in (4, *range(9, 15)):
            env.set_state(start)
            env.step(np.array([action]))
            seen[video.ACTION_NAMES[action]] = env.step(np.array([4]))[0].tobytes()
    finally:
        env.close()
    assert len({seen[key] for key in "DWSQE"}) == 1
    assert len({seen["D"], seen["A"], seen["noop"]}) == 3
