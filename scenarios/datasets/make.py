"""Writes the project's own evaluation items: `python -m scenarios.datasets.make`. Same code, same files.

Knows nothing of models: what is right is a matter of fact, arithmetic or copying. Items are ordered so that
any first N hold every category in proportion: a screen on the first N asks the same mixture as the full set.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scenarios.datasets.facts import CATEGORIES

SEED = 20_260_101
FOLDER = Path(__file__).parent
_WORDS = (
    "apple river stone cloud green table music paper light house water chair bread horse night ocean sugar "
    "train plant smile storm tiger snow lemon grape piano salt moon star leaf rain fish bird book lamp road "
    "ship king milk door wind fire gold hand foot rose wolf bear cake corn"
)
_NAMES = "Anna Ben Carla David Emma Frank Grace Henry Irene Jack Kate Leo Maria Nina Oscar Paul Rosa Sam Tom Vera"
_CITIES = "Rome Paris London Berlin Madrid Tokyo Cairo Lima Oslo Athens Dublin Vienna"
WORDS, NAMES, CITIES = _WORDS.split(), _NAMES.split(), _CITIES.split()


@dataclass(frozen=True, slots=True)
class Draft:
    """An item before it has its place and its id."""

    category: str
    prompt: str
    answers: tuple[str, ...]
    max_tokens: int
    match: str = "begins"
    stop: tuple[str, ...] = ("\n",)


def cloze() -> list[Draft]:
    """Facts that everybody agrees on, one statement each, to be finished."""
    drafts = []
    for category, (pattern, facts) in CATEGORIES.items():
        known = [(key.strip(), answers.split("|")) for key, answers in (fact.split("=") for fact in facts.split(";"))]
        shots = "".join(f"{pattern.format(key)} {answers[0]}.\n" for key, answers in known[:2])
        for key, answers in known[2:]:
            drafts.append(Draft(category, shots + pattern.format(key), tuple(answers), 6, stop=("\n", ".", ",")))
    return drafts


def arithmetic(rng: random.Random) -> list[Draft]:
    """Small sums, differences, products, successors and sequences, each after the same examples of its kind."""
    kinds: dict[str, tuple[str, list[tuple[str, int]]]] = {
        "sum": (
            "7 + 2 = 9\n25 + 4 = 29\n12 + 8 = 20\n16 + 3 = 19\n",
            [(f"{a} + {b} =", a + b) for a in range(1, 31) for b in range(1, 13)],
        ),
        "difference": (
            "9 - 4 = 5\n8 - 6 = 2\n12 - 9 = 3\n10 - 2 = 8\n",
            [(f"{a} - {b} =", a - b) for a in range(2, 14) for b in range(1, a)],
        ),
        "product": (
            "3 * 4 = 12\n10 * 2 = 20\n5 * 6 = 30\n7 * 1 = 7\n",
            [(f"{a} * {b} =", a * b) for a in range(2, 13) for b in range(2, 13)],
        ),
        "successor": (
            "7 -> 8\n23 -> 24\n49 -> 50\n115 -> 116\n",
            [(f"{a} ->", a + 1) for a in range(1, 200)],
        ),
        "sequence": (
            "5, 10, 15, 20, 25, 30\n2, 4, 6, 8, 10, 12\n",
            [
                (", ".join(str(start + step * k) for k in range(5)) + ",", start + step * 5)
                for start in range(1, 30)
                for step in (1, 2, 3, 5, 10)
            ],
        ),
    }
    counts = {"sum": 110, "difference": 50, "product": 90, "successor": 60, "sequence": 90}
    return [
        Draft(kind, shots + question, (str(answer),), 4)
        for kind, (shots, questions) in kinds.items()
        for question, answer in rng.sample([q for q in questions if q[0] not in shots], counts[kind])
    ]


def copy(rng: random.Random) -> list[Draft]:
    """Doing with a text exactly what the examples show: repeat, swap, capitals, JSON, pick the last, add a mark."""
    drafts = []
    four = ("red dog hill cup", "one map pen sky", "pan key rug fan", "bag oil net sea")
    for words in (rng.sample(WORDS, 4) for _ in range(80)):
        text = " ".join(words)
        drafts.append(Draft("repeat", _shots(four, four) + f"{text} =>", (text,), 10, "exact"))
    for words in (rng.sample(WORDS, 4) for _ in range(60)):
        shots = _shots(four, tuple(text.split()[-1] for text in four))
        drafts.append(Draft("last", shots + f"{' '.join(words)} =>", (words[-1],), 4, "exact"))
    for one, two in (rng.sample(WORDS, 2) for _ in range(60)):
        two_words = ("red dog", "hill cup", "map pen", "one sky", "pan key", "oil rug")
        shots = _shots(two_words, tuple(" ".join(reversed(text.split())) for text in two_words))
        drafts.append(Draft("swap", shots + f"{one} {two} =>", (f"{two} {one}",), 6, "exact"))
    one_word = ("dog", "tree", "cup", "sky", "pen", "map")
    for word in WORDS:
        shots = _shots(one_word, tuple(w.upper() for w in one_word))
        drafts.append(Draft("capitals", shots + f"{word} =>", (word.upper(),), 6, "exact"))
        shots = _shots(one_word, tuple(f"[{w}]" for w in one_word))
        drafts.append(Draft("brackets", shots + f"{word} =>", (f"[{word}]",), 6, "exact"))
    lives = (("Lisa", "Milan"), ("Karl", "Bonn"), ("Ruth", "Prague"))
    for name, city in ((rng.choice(NAMES), rng.choice(CITIES)) for _ in range(100)):
        shots = _shots(tuple(f"{n} lives in {c}" for n, c in lives), tuple(_person(n, c) for n, c in lives))
        drafts.append(Draft("json", shots + f"{name} lives in {city} =>", (_person(name, city),), 14, "exact"))
    return drafts


def _shots(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> str:
    return "".join(f"{given} => {wanted}\n" for given, wanted in zip(inputs, outputs, strict=True))


def _person(name: str, city: str) -> str:
    return json.dumps({"name": name, "city": city})


def ordered(drafts: list[Draft], rng: random.Random) -> Iterator[dict[str, object]]:
    """As JSON objects, categories spread evenly. Items that were drawn twice are kept once."""
    by_category: dict[str, list[Draft]] = {}
    for draft in dict.fromkeys(drafts):
        by_category.setdefault(draft.category, []).append(draft)
    places: list[tuple[float, str, Draft]] = []
    for category, members in by_category.items():
        rng.shuffle(members)
        places += [((rank + 0.5) / len(members), category, draft) for rank, draft in enumerate(members)]
    counts = dict.fromkeys(by_category, 0)
    for _, category, draft in sorted(places, key=lambda place: place[:2]):
        counts[category] += 1
        yield {
            "id": f"{category}-{counts[category]:03}",
            "prompt": draft.prompt,
            "answers": list(draft.answers),
            "max_tokens": draft.max_tokens,
            "stop": list(draft.stop),
            "match": draft.match,
        }


def texts() -> dict[str, str]:
    """File name -> content."""
    tasks = {
        "cloze": cloze(),
        "arithmetic": arithmetic(random.Random(SEED)),
        "copy": copy(random.Random(SEED + 1)),
    }
    return {
        f"{name}.jsonl": "".join(
            json.dumps(item, ensure_ascii=False) + "\n" for item in ordered(drafts, random.Random(SEED + 2))
        )
        for name, drafts in tasks.items()
    }


if __name__ == "__main__":
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"{name}: {text.count(chr(10))} items")
