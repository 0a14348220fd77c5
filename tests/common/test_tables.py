import pytest

from lowtax.common.tables import markdown_table, rate, shown


def test_a_rate_has_its_interval_and_n():
    cell = rate([("a", 1.0), ("a", 1.0), ("b", 0.0), ("c", 1.0)])
    assert (cell["value"], cell["n"]) == (0.75, 4)
    assert 0 <= cell["low"] < 0.75 < cell["high"] <= 1
    assert shown(cell) == f"0.75 [{cell['low']:.2f}, {cell['high']:.2f}]"


def test_nothing_is_no_rate():
    assert rate([]) == {"value": None, "low": None, "high": None, "n": 0}
    assert shown(rate([])) == shown(None) == "-"


ROWS = [["name", "n", "of"], ["one", 1, 20_000], ["a longer one", 22, 3]]


@pytest.mark.parametrize(
    ("left", "padded", "lines"),
    [
        (1, False, ["| name | n | of |", "| --- | ---: | ---: |", "| one | 1 | 20000 |", "| a longer one | 22 | 3 |"]),
        (3, False, ["| name | n | of |", "| --- | --- | --- |", "| one | 1 | 20000 |", "| a longer one | 22 | 3 |"]),
        (
            1,
            True,
            [
                "| name         |    n |    of |",
                "| ------------ | ---: | ----: |",
                "| one          |    1 | 20000 |",
                "| a longer one |   22 |     3 |",
            ],
        ),
    ],
)
def test_a_table_in_markdown(left: int, padded: bool, lines: list[str]):
    assert markdown_table(ROWS, left, padded) == "\n".join(lines)


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        markdown_table([["a", "b"], ["c"]], padded=True)
