"""Words against tokenizers of known law."""

import numpy as np

from scenarios.words import WORDS_FILE, Words, candidates


class Tokenizer:
    """Words of up to six letters are one token; longer ones are one for every four letters begun."""

    def __init__(self, added: int = 0) -> None:
        self.added = added
        self.calls = 0

    def __call__(self, text: str) -> int:
        self.calls += 1
        return self.added + sum(1 if len(word) <= 6 else -(-len(word) // 4) for word in text.split())


def test_only_single_tokens_are_kept_in_order_and_the_count_is_then_exact():
    words = Words.build(candidates(), Tokenizer())
    assert words.words == tuple(w for w in candidates() if len(w) <= 6)
    assert words.exact


def test_a_tokenizer_that_likes_every_word_is_asked_seldom():
    short = [w for w in candidates() if len(w) <= 6]
    tokenizer = Tokenizer()
    assert len(Words.build(short, tokenizer).words) == len(short)
    assert tokenizer.calls < len(short) / 20


def test_without_a_tokenizer_all_are_taken_and_it_says_so():
    words = Words.build(["one", "two", "one"], None)
    assert words == Words(("one", "two"), exact=False)


def test_a_tokenizer_that_splits_everything_leaves_all_words_inexactly():
    """Such as one that adds a token to every text, or was made for another language."""
    words = Words.build(candidates(), Tokenizer(added=1))
    assert words == Words(candidates(), exact=False)


def test_too_few_single_tokens_to_vary_prompts_are_not_used_alone():
    few = [*(f"w{i}" for i in range(40)), *(f"longword{i}" for i in range(40))]
    assert Words.build(few, Tokenizer()) == Words(tuple(few), exact=False)


def test_a_count_that_is_off_for_long_prompts_is_not_called_exact():
    """A tokenizer that merges the first two words of prompts longer than 100."""
    tokenizer = Tokenizer()
    words = Words.build(candidates(), lambda text: tokenizer(text) - (len(text.split()) > 100))
    assert not words.exact
    assert len(words.words) >= 50


def test_words_survive_a_ledger():
    words = Words.build(candidates(), Tokenizer())
    assert Words.from_dict(words.to_dict()) == words


def test_a_draw_has_a_space_before_every_word():
    text = Words(("a", "b"), exact=True).draw(np.random.default_rng(0), 5)
    assert len(text) == 10
    assert text[::2] == " " * 5


def test_the_word_list_is_clean():
    lines = WORDS_FILE.read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 600
    assert lines == sorted(set(lines))
    assert all(word.isascii() and word.isalpha() and word.islower() for word in lines)
