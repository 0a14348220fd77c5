"""Names in pictures are text: a dollar sign begins no formula, and no character lacks a glyph for acting."""

from pathlib import Path

from lowtax.common.figures import new_figure, save


def test_a_name_is_no_formula(tmp_path: Path):
    figure = new_figure(2, 2)
    axes = figure.add_subplot()
    axes.set_title("$\\frac{$ \x1b[2J")
    axes.plot([0, 1], [0, 1], label="$x^{")
    axes.legend()
    axes.set_yscale("log")
    axes.set_xticks([0, 1], labels=["$a_{", "b"])
    save(figure, tmp_path / "f.png")
    assert [label.get_parse_math() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())][:2] == [False] * 2
    assert all(label.get_parse_math() for label in axes.get_yticklabels())
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
