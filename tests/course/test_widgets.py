"""The notebooks' explorers, driven as a student would: each slider redraws its figure."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from ppo_lib.config import PPOConfig, UserError, field_types, preset
from ppo_lib.course import widgets
from ppo_lib.course.panel import live_curve
from ppo_lib.ppo import Coefficients, ppo_loss
from ppo_lib.storage import Batch


def pixels(png: bytes) -> np.ndarray:
    """The picture as an array, which also shows that it is one."""
    return imread(io.BytesIO(png))


def test_gallery_shows_other_levels_when_the_slider_moves():
    """First level and time both change the picture; the slider ends where a full row of training levels ends."""
    gallery = widgets.level_gallery(preset("quick"), columns=3)
    first, step = gallery.children
    assert (first.min, first.max) == (0, 47) and "seed" in first.description and "steps" in step.description
    shown = [gallery.png]
    first.value = 10
    shown.append(gallery.png)
    step.value = 60
    shown.append(gallery.png)
    assert len({pixels(png).tobytes() for png in shown}) == 3


@pytest.mark.parametrize(
    ("levels", "seeds", "first"),
    [(20, range(18, 20), (14, 14)), (50, range(18, 20), (18, 19)), (50, range(5, 6), (5, 5)), (6, range(3), (0, 0)),
     (50, range(30, 3, -3), (6, 30)), (0, range(10**6, 10**6 + 2), (10**6, 10**6 + 1))],
)  # fmt: skip
def test_gallery_takes_any_range_of_seeds(levels, seeds, first):
    """Also a single one, one in steps, and one at the end, where the row begins early enough to be full."""
    slider = widgets.level_gallery(preset("quick", num_levels=levels), seeds=seeds).children[0]
    assert (slider.min, slider.max) == first and slider.value == slider.min


@pytest.mark.parametrize(
    ("levels", "columns", "seeds", "message"),
    [(2, 6, None, "columns from 1 to 2"), (50, 0, None, "columns from 1 to 50"), (50, 6, range(-3, 5), "from 0 to 49"),
     (50, 6, range(48, 52), r"seeds from 0 to 49, not 6 and range\(48, 52\)"), (50, 6, range(5, 5), "seeds from 0")],
)  # fmt: skip
def test_gallery_refuses_levels_that_do_not_exist(levels, columns, seeds, message):
    with pytest.raises(UserError, match=message):
        widgets.level_gallery(preset("quick", num_levels=levels), columns, seeds)


def test_gae_explorer_draws_gae():
    """Gamma and lambda redraw the picture; lists, arrays and tensors are taken; wrong lengths are refused."""
    reward, value, done = [0.0, 1.0, 0.0, 1.0], np.full(4, 0.5), torch.tensor([False, True, False, False])
    explorer = widgets.gae_explorer(reward, value, done, 0.5)
    gamma, lam = explorer.children
    before = explorer.png
    gamma.value = 0.9
    middle = explorer.png
    lam.value = 0.0
    assert len({before, middle, explorer.png}) == 3
    with pytest.raises(ValueError, match="same shape"):
        widgets.gae_explorer(reward, value[:2], done)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_clip_explorer_draws_the_loss(advantage):
    """What is drawn is minus the policy loss of ppo_loss, ratio by ratio."""
    ratio = np.linspace(0.05, 1.9, 7)
    drawn = widgets.clipped_objective(ratio, advantage, 0.3)
    for r, objective in zip(ratio, drawn, strict=True):
        one, logits = torch.ones(1), torch.tensor([[0.3, -0.2]])
        log_prob = logits.log_softmax(-1)[0, :1]
        batch = Batch(obs=one, action=torch.zeros(1, dtype=torch.int64), log_prob=log_prob - np.log(r), value=one,
                      advantage=one * advantage, return_=one, episode_start=one, state=one)  # fmt: skip
        _, metrics = ppo_loss(logits, one, batch, Coefficients(clip_range=0.3))
        assert objective == pytest.approx(-metrics["policy_loss"].item(), abs=1e-5)
    explorer = widgets.clip_explorer()
    before = explorer.png
    explorer.children[0].value = 0.4
    assert explorer.png != before


def test_saved_notebooks_show_words_in_place_of_widgets():
    """The text output of a widget is a sentence, not a tree of objects."""
    assert repr(widgets.clip_explorer()) == "[A slider for epsilon: run this cell to use them]"


def test_pictures_are_replaced_through_the_display_handle():
    """A picture that is shown is updated in place."""
    updates = []
    controls = widgets.Controls([], "Nothing")
    controls._handle = type("Handle", (), {"update": lambda self, image: updates.append(image.data)})()
    controls.draw(live_curve("nowhere"))
    assert updates == [controls.png] and controls.png.startswith(b"\x89PNG")


def test_every_field_has_an_entry():
    """Any config field can be in a form, which holds its value."""
    config = PPOConfig()
    for name in field_types(PPOConfig):
        made = widgets.entry("a label", getattr(config, name))
        assert config.replace(**{name: widgets.entered(made)}) == config and made.description == "a label"
