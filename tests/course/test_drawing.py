"""The notebooks' drawings: they show what they are given, and every axis with numbers has a name."""

from __future__ import annotations

import base64
import io

import matplotlib.style
import numpy as np
import pytest
import torch
from figure_audit import unnamed
from IPython.core.formatters import PNGFormatter
from PIL import Image

from ppo_lib.course import drawing
from ppo_lib.plots import figure_png


def drawn(figure):
    """The figure, after it was really drawn."""
    figure.savefig(io.BytesIO(), format="png")
    return figure


@pytest.fixture
def done():
    """[6, 3]: two episodes end."""
    ends = np.zeros((6, 3), bool)
    ends[2, 1] = ends[4, 0] = True
    return ends


def test_strip_shows_every_image_under_its_title():
    """Seven images in rows of four: the eighth place stays empty."""
    images = np.arange(7 * 4 * 4 * 3, dtype=np.uint8).reshape(7, 4, 4, 3)
    figure = drawn(drawing.strip(images, [f"image {i}" for i in range(7)], columns=4, caption="seven images"))
    axes = figure.axes
    assert len(axes) == 8 and not axes[7].axison
    for i in range(7):
        assert axes[i].get_title() == f"image {i}"
        np.testing.assert_array_equal(axes[i].images[0].get_array(), images[i])
    assert figure.get_supxlabel() == "seven images"
    assert unnamed(figure) == []


def test_strip_frames_carry_the_colors():
    """A colour for each image's frame and title."""
    figure = drawing.strip(np.zeros((2, 4, 4), np.uint8), ["a", "b"], colors=["#0072B2", "#D55E00"])
    assert [axis.title.get_color() for axis in figure.axes] == ["#0072B2", "#D55E00"]


def test_rollout_runs_to_the_right_with_a_bar_at_each_end(done):
    """[T, N] is drawn N rows high and T columns wide."""
    values = np.arange(18.0).reshape(6, 3)
    figure, [axis] = drawing.canvas()
    drawing.rollout(axis, values, done, name="value (score)")
    drawn(figure)
    np.testing.assert_array_equal(axis.images[0].get_array(), values.T)
    bars = {(line.get_xdata()[0], line.get_ydata()[0] + 0.5) for line in axis.lines}
    assert bars == {(2.5, 1), (4.5, 0)}
    assert (axis.get_xlabel(), axis.get_ylabel()) == (drawing.TIME, drawing.ENVIRONMENT)
    assert figure.axes[1].get_ylabel() == "value (score)"
    assert unnamed(figure) == []


def test_groups_and_matrix_name_their_axes(done):
    """Both show arrays as they are."""
    figure, axes = drawing.canvas(1, 2)
    drawing.groups(axes[0], torch.arange(18).reshape(6, 3) % 4, done, name="minibatch")
    drawing.matrix(axes[1], np.eye(3), "input", "output", "weights")
    drawn(figure)
    assert axes[0].images[0].get_array().shape == (3, 6)
    np.testing.assert_array_equal(axes[1].images[0].get_array(), np.eye(3))
    assert unnamed(figure) == []


def test_finish_and_note_write_words():
    """Names of the axes, a legend where asked for, a text at a point."""
    figure, [axis] = drawing.canvas()
    axis.plot([1, 10], label="line")
    drawing.finish(axis, "time (s)", "score", title="a title", legend=True, yscale="log")
    drawing.note(axis, "here", 1, 10, up=3)
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("time (s)", "score", "a title")
    assert axis.get_yscale() == "log" and axis.texts[0].get_text() == "here"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["line"]
    assert unnamed(drawn(figure)) == []


def test_table_writes_markdown():
    """Numbers to the right, words to the left, thousands with separators."""
    rows = [["GRU", 394752, 0.386628], ["heads", np.int64(4112), 0.004]]
    lines = drawing.table(["part", "parameters", "share"], rows).data.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["part", "parameters", "share"] and cells[2:] == [
        ["GRU", "394,752", "0.3866"],
        ["heads", "4,112", "0.004"],
    ]
    assert [rule.endswith(":") for rule in cells[1]] == [False, True, True]


def test_a_notebook_shows_figures_at_half_their_pixels():
    """192 pixels per inch, shown at 96, as base64 of a PNG; IPython's own formatter takes it."""
    figure, [axis] = drawing.canvas(width=4, height=2)
    axis.plot([0, 1], [0, 1])
    drawing.finish(axis, "time (s)", "score")
    formatter = PNGFormatter()
    formatter.for_type(drawing.Figure, drawing.notebook_png)
    data, shown = formatter(figure)
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (
        image.format == "PNG" and abs(image.width - 4 * drawing.DPI) < 40 and abs(image.height - 2 * drawing.DPI) < 40
    )
    assert (shown["width"], shown["height"]) == (image.width // 2, image.height // 2)


def test_the_users_settings_change_nothing(done):
    """Of what the helpers draw."""

    def image() -> bytes:
        figure, axes = drawing.canvas(1, 2)
        drawing.rollout(axes[0], np.arange(18.0).reshape(6, 3), done, name="value (score)")
        axes[1].plot([0, 1], [0, 1], lw=1, label="line")
        drawing.finish(axes[1], "time (s)", "score", title="a title", legend=True)
        drawing.note(axes[1], "here", 0.5, 0.5)
        return figure_png(figure, dpi=40)

    expected = image()
    with matplotlib.style.context("dark_background"):
        assert image() == expected
