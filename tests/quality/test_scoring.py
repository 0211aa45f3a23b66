import pytest

from harness.quality.scoring import is_correct, leading_agreement
from harness.quality.tasks import Item


def item(*answers, match="begins"):
    return Item(id="x", prompt="p", answers=answers, max_tokens=4, match=match)


@pytest.mark.parametrize(
    ("accepted", "answer", "right"),
    [
        ("Paris", " Paris, which is", True),
        ("Paris", " Parisian", False),
        ("Paris", ' "Paris"', True),
        ("Paris", " in Paris", False),
        ("puppy", " Puppy", True),
        ("Au", " au", False),
        ("12", " 12.", True),
        ("12", " 120", False),
        ("12", " 12.5", False),
        ("1", " 1,000", False),
        ("Bogotá", " Bogotá.", True),
        ("C", " C++", True),
        ("the Sun", "", False),
    ],
)
def test_an_answer_begins_with_an_accepted_one(accepted, answer, right):
    assert is_correct(item(accepted), answer) is right


@pytest.mark.parametrize(
    ("accepted", "answer", "right"),
    [
        ("TREE", " TREE\n", True),
        ("TREE", " tree", False),
        ("TREE", " TREE TREE", False),
        ('{"name": "Ann"}', ' {"name": "Ann"}', True),
        ("[tree]", " tree", False),
    ],
)
def test_an_exact_answer_is_nothing_more_and_nothing_less(accepted, answer, right):
    assert is_correct(item(accepted, match="exact"), answer) is right


def test_any_accepted_answer_will_do():
    assert is_correct(item("kit", "kitten", "bunny"), " bunny")


@pytest.mark.parametrize(
    ("reference", "answer", "share"),
    [
        ("one two, three", "one two, three", 1.0),
        ("one two, three", "one two. three", 0.5),
        ("one two, three", "other words entirely", 0.0),
        ("one two, three", "", 0.0),
        ("", "", 1.0),
    ],
)
def test_agreement_counts_up_to_the_first_departure(reference, answer, share):
    assert leading_agreement(reference, answer) == share
