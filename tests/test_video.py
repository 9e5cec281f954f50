"""Films: real H.264 that browsers play, the right length and size, and pictures that tell the truth."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ppo_lib import encode, video
from ppo_lib import video_panel as panel
from ppo_lib.config import PPOConfig, UserError
from ppo_lib.envs import make_env


class Biased(nn.Module):
    """A tiny policy that fires with probability 0.9 and says that every state is worth 3."""

    def __init__(self) -> None:
        super().__init__()
        logits = torch.zeros(15)
        logits[9] = float(np.log(0.9 / 0.1 * 14))
        self.logits = nn.Parameter(logits)
        self.resets: list[bool] = []

    def initial_state(self, n: int) -> Tensor:
        return torch.zeros(n, 1)

    def forward(self, obs: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.resets.append(bool(reset[0]))
        state = torch.where(reset[:, None], 0.0, state) + 1
        return self.logits.expand(len(obs), 15), state[:, 0], state


def noise(frames: int, height: int = 64, width: int = 96) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for _ in range(frames):
        yield rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_write_video_is_h264_for_browsers(tmp_path: Path) -> None:
    path = encode.write_video(noise(30), tmp_path / "new" / "a.mp4")
    facts = encode.film_facts(path)
    assert facts["codec"] == "h264" and facts["pix_fmt"] == "yuv420p"
    assert facts["size"] == (96, 64) and facts["fps"] == 15 and facts["duration"] == 2.0
    assert imageio_ffmpeg.count_frames_and_secs(str(path)) == (30, pytest.approx(2.0, abs=0.01))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # faststart: plays before it is loaded
    assert list(path.parent.iterdir()) == [path]


def test_write_video_fits_its_limit(tmp_path: Path) -> None:
    free = encode.write_video(noise(30), tmp_path / "free.mp4").stat().st_size
    limit = free // 4
    assert encode.write_video(noise(30), tmp_path / "tight.mp4", max_bytes=limit).stat().st_size <= limit
    with pytest.raises(UserError, match="shorter"):
        encode.write_video(noise(30), tmp_path / "impossible.mp4", max_bytes=500)
    assert not (tmp_path / "impossible.mp4").exists()


def test_write_video_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="even"):
        encode.write_video(noise(2, 63), tmp_path / "a.mp4")
    with pytest.raises(UserError, match="at least one frame"):
        encode.write_video(iter(()), tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"a\.mp4"):
        encode.write_video(noise(2), tmp_path / "a.avi")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="another folder"):
        encode.write_video(noise(2), tmp_path / "file" / "a.mp4")
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(UserError, match="make it again"):
        encode.film_facts(tmp_path / "text.mp4")
    with pytest.raises(UserError, match="no film"):
        encode.video_tag(tmp_path / "absent.mp4")


def test_tag_holds_film_and_still(tmp_path: Path) -> None:
    film = encode.write_video(noise(30), tmp_path / "a.mp4")
    tag = encode.video_tag(film)
    embedded = re.search(r'<source src="data:video/mp4;base64,([^"]+)" type="video/mp4">', tag)
    assert base64.b64decode(embedded[1]) == film.read_bytes()
    poster, image = re.findall(r'(?:poster|<img src)="data:image/webp;base64,([^"]+)"', tag)
    still = Image.open(io.BytesIO(base64.b64decode(poster)))
    assert poster == image and still.size == encode.film_facts(film)["size"] and "http" not in tag


def test_film_of_the_real_game(tmp_path: Path) -> None:
    path = video.film(Biased(), PPOConfig(), tmp_path / "run.mp4", levels=2, max_seconds=1)
    facts = encode.film_facts(path)
    assert facts["codec"] == "h264" and tuple(facts["size"]) == (1480, 552)
    assert imageio_ffmpeg.count_frames_and_secs(str(path))[0] == 15
    assert path.stat().st_size < 1_000_000
    for wrong in ({"levels": 3}, {"max_seconds": 0}, {"shots": [("test", None)]}, {"shots": [("unseen", 3)]}):
        with pytest.raises(UserError):
            video.film(Biased(), PPOConfig(), tmp_path / "run.mp4", **wrong)


def test_film_of_several_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column each, with the same levels in it, which lie beyond the training levels of all."""
    played, moments_of = [], video.moments_of
    monkeypatch.setattr(
        video, "moments_of", lambda *a, **k: played.append((a[1].num_levels, a[2])) or moments_of(*a, **k)
    )
    configs = [PPOConfig(num_levels=10), PPOConfig(num_levels=0)]
    players = [(f"agent {i}", Biased(), config) for i, config in enumerate(configs)]
    path = video.film_beside(players, tmp_path / "beside.mp4", rows=2, max_seconds=1)
    assert tuple(encode.film_facts(path)["size"]) == (1480, 1072)
    assert [count for count, _ in played] == [10, 10, 0, 0]
    shots = [shot for _, shot in played]
    assert shots[:2] == shots[2:] and len(set(shots)) == 2
    first, count = configs[1].unseen_levels  # the narrower choice
    assert all(split == "unseen" and first <= level < first + count for split, level in shots)
    with pytest.raises(UserError, match="different games"):
        video.film_beside([*players, ("c", Biased(), PPOConfig(env_name="coinrun"))], tmp_path / "no.mp4")


def test_recorded_episode_is_one_whole_episode() -> None:
    policy = Biased()
    episode = video.record_episode(policy, PPOConfig(), split="unseen", level=777, size=64)
    steps = len(episode.reward)
    assert episode.level_seed == 777
    assert episode.done.tolist() == [False] * (steps - 1) + [True]
    assert episode.frames.shape == (steps, 64, 64, 3) and episode.obs.shape == (steps, 64, 64, 3)
    assert np.allclose(episode.probabilities.sum(1), 1) and np.allclose(episode.probabilities[:, 9], 0.9)
    assert episode.value.tolist() == list(range(1, steps + 1))  # the state is carried, and starts at zero
    assert policy.resets == [True] + [False] * (steps - 1)
    assert episode.return_ == episode.reward.sum()
    again = video.record_episode(Biased(), PPOConfig(), split="unseen", level=777, size=64)
    assert np.array_equal(episode.action, again.action) and np.array_equal(episode.frames, again.frames)
    greedy = video.record_episode(Biased(), PPOConfig(), greedy=True, size=64, max_steps=20)
    assert set(greedy.action.tolist()) == {9} and len(greedy.reward) <= 20


def test_ended_episode_stands_still_then_the_next_begins() -> None:
    moments = iter(
        [
            video.Moment(np.zeros((512, 512, 3), np.uint8), np.zeros((64, 64, 3), np.uint8),
                         panel.View("train", 5, step, 2.0, (1.0,), np.full(15, 1 / 15), 0), 1.0, step == 1)
            for step in (0, 1, 0)
        ]
    )  # fmt: skip
    game = video._Game(moments, once=False)
    labels = panel.action_labels("starpilot")
    game.picture(labels)
    last = game.picture(labels)
    standing = [game.picture(labels) for _ in range(video.FPS)]
    assert all(np.array_equal(standing[0], picture) for picture in standing)
    assert not np.array_equal(standing[0], last)
    game.picture(labels)
    assert game.last.view.step == 0 and next(moments, None) is None


def test_tile_and_sheet_sizes() -> None:
    frame = np.zeros((512, 512, 3), np.uint8)
    labels = panel.action_labels("starpilot")
    view = panel.View("unseen", 2**31 - 2, 580, 64.0, (0.0,), np.eye(15)[3], 3)
    tile = panel.draw_tile(frame, view, labels)
    assert tile.shape == (512, 736, 3) and tile.dtype == np.uint8
    sheet = panel.draw_sheet([[tile, tile], [tile, tile]], [("train", "a"), ("unseen", "b")])
    assert sheet.shape == (1072, 1480, 3)
    certain, uniform = (
        tile,
        panel.draw_tile(frame, panel.View("unseen", 1, 0, 0.0, (0.0,), np.full(15, 1 / 15), 3), labels),
    )
    bar = np.s_[panel._BAR_TOP + 3 * panel._BAR_STEP + 8, 512 + 200]
    assert tuple(certain[bar]) == (0xE6, 0x9F, 0x00) and tuple(uniform[bar]) != (0xE6, 0x9F, 0x00)


def test_labels_say_what_the_keys_do_in_starpilot() -> None:
    """From one state, D, W, S, Q and E lead to the same picture, A to another one, standing still to a third."""
    assert len(panel.ACTION_NAMES) == 15
    assert panel.action_labels("starpilot")[9:11] == ("D fire", "A fire back")
    assert panel.action_labels("maze") == panel.ACTION_NAMES
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
            seen[panel.ACTION_NAMES[action]] = env.step(np.array([4]))[0].tobytes()
    finally:
        env.close()
    assert len({seen[key] for key in "DWSQE"}) == 1
    assert len({seen["D"], seen["A"], seen["noop"]}) == 3
