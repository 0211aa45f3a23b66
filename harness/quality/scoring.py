"""Whether an answer is right. Knows nothing of endpoints or statistics."""

import re

from harness.quality.tasks import Item

_DECORATION = " \t\r\n\"'`*“”‘’"


def is_correct(item: Item, answer: str) -> bool:
    """``exact``: the answer, without outer white space, is an accepted one.

    ``begins``: it begins with an accepted one as a whole word or number, outer quotes aside: "Paris, of
    course" is right and "Parisian" is not; 12 is not right where the answer goes on as 12.5 or 120.
    An accepted answer without capitals fits any case; one with capitals must be met as it is written.
    """
    return any(_fits(item.match == "exact", accepted.strip(), answer) for accepted in item.answers)


def _fits(exact: bool, accepted: str, answer: str) -> bool:
    flags = re.IGNORECASE if accepted == accepted.lower() else 0
    if exact:
        return re.fullmatch(re.escape(accepted), answer.strip(), flags) is not None
    whole = re.escape(accepted.strip(_DECORATION)) + r"(?!\w)(?![.,]\d)"
    return re.match(whole, answer.lstrip(_DECORATION), flags) is not None


def leading_agreement(reference: str, answer: str) -> float:
    """Share of the reference's words and signs that the answer repeats before it first departs from it."""
    wanted = re.findall(r"\w+|[^\w\s]", reference)
    got = re.findall(r"\w+|[^\w\s]", answer)
    if not wanted:
        return 1.0 if not got else 0.0
    same = 0
    for one, other in zip(wanted, got, strict=False):
        if one != other:
            break
        same += 1
    return same / len(wanted)
