"""Shares of rows do not depend on the number of workers, nor on what is stored."""

import pytest

from lowtax.study.units.base import Group, cut, number_of_shares, sampling_size, share_ids


def test_every_item_is_in_one_share_and_shares_are_equal():
    items = [f"row {i}" for i in range(10_001)]
    shares = cut(items, 256, str)
    assert sorted(item for share in shares for item in share) == sorted(items)
    assert {len(share) for share in shares} == {250, 251}
    assert all(share == sorted(share, key=items.index) for share in shares)
    kinds = [sum(items.index(item) < 5000 for item in share) for share in shares]
    assert all(75 < kind < 175 for kind in kinds)  # six standard deviations around half of 250


def test_no_share_is_empty_whatever_the_ids_are():
    assert all(map(all, (cut([f"{n} {i}" for i in range(8)], 7, str) for n in range(500))))


def test_the_share_of_an_item_depends_on_the_items_alone():
    items = [f"row {i}" for i in range(1000)]
    places = {item: n for n, share in enumerate(cut(items, 100, str)) for item in share}
    assert places == {item: n for n, share in enumerate(cut(items[::-1], 100, str)) for item in share}


@pytest.mark.parametrize(("items", "shares"), [(0, 0), (1, 1), (256, 1), (257, 2)])
def test_numbers_of_shares(items: int, shares: int):
    assert number_of_shares(items, 256) == shares
    assert len(cut(range(items), 256, str)) == shares


def test_names():
    assert share_ids("sample/base", 12)[:2] == ["sample/base/01-of-12", "sample/base/02-of-12"]
    assert [Group("base", 0).name, Group("r1", 2).name] == ["base", "r1/seed-2"]
    assert Group("full", 0, "checkpoint-4").name == "full/seed-0/checkpoint-4"
    assert sampling_size("vllm", 16) > sampling_size("hf", 16)
    assert sampling_size("hf", 1000) >= 2000


def test_some_items_are_in_the_first_share():
    items = [f"row {i}" for i in range(100)]
    first, *others = cut(items, 10, str, {"row 3", "row 50", "row 99"})
    assert {"row 3", "row 50", "row 99"} <= set(first)
    assert sum(map(len, others)) + len(first) == 100
