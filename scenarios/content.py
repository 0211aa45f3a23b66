"""What is said: conversations of one or more turns, with texts of exact length, from a seed.

A later turn's prompt is the whole history and something new; the answers in it are made up, of the length
that was asked. So the bytes depend on the seed alone. Knows nothing of when anything is sent.
"""

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.random import Generator, SeedSequence

from scenarios.errors import Problem, TraceError
from scenarios.lengths import draw_pause_s, mean_length, stream
from scenarios.replay import Replay, replay
from scenarios.traces import MOONCAKE_BLOCK_TOKENS, TraceTurn
from scenarios.traffic import Part, Pauses, SharedPrefix, Traffic
from scenarios.words import Words

PREFIX_SEED = 20240229  # of shared prefixes: the same system prompt whatever the seed of the schedule

# The children of a schedule's seed. The order is part of what a seed means.
ARRIVALS, PROMPTS, OUTPUTS, CONTENT, MARKS, SHARING, OWN_PREFIX, TURNS, PAUSES, ANSWERS = range(10)
CLASS, PAST, RECORDED, BLOCK, BEGIN = 1001, 1002, 1003, 1004, 1005

NO_PAUSE = Pauses(mean=0.0)


@dataclass(frozen=True, slots=True)
class Turn:
    """One request. ``messages``: question, answer, …, question; ``prompt_tokens``: of all of them together."""

    messages: tuple[str, ...]
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation, or a lone request. ``pauses_s``: before each turn, the first of them 0."""

    turns: tuple[Turn, ...]
    pauses_s: tuple[float, ...]


class Source(Protocol):
    """Conversations by number, and those that began before the schedule did."""

    mean_turns: float
    longest_s: float  # of a conversation, answers not counted
    in_sessions: bool

    def talk(self, number: int) -> Talk:
        """Asked for 0, 1, 2 and so on."""

    def earlier(self, number: int, outliving_s: float) -> Talk | None:
        """The last (1) that began before the schedule, or the one before it (2), and so on.

        None: its pauses together are not longer than ``outliving_s``.
        """


def source(part: Part, words: Words, seed: int) -> Source:
    """The conversations of one part of a workload. Raises TraceError."""
    if part.traffic.from_trace:
        return Recorded(part, words, seed)
    return Drawn(part, words, seed)


def generator(seed: int, *key: int) -> Generator:
    """A child of the seed, independent of every other."""
    return np.random.default_rng(SeedSequence(seed, spawn_key=key))


def class_key(name: str) -> tuple[int, ...]:
    """Each class draws from streams of its own: adding one changes no other. "" is the whole workload."""
    return (CLASS, zlib.crc32(name.encode())) if name else ()


class _Streams:
    """The independent streams of random numbers that conversations are drawn from."""

    def __init__(self, traffic: Traffic, seed: int, key: tuple[int, ...]) -> None:
        self._traffic = traffic
        self._seed = seed
        self._key = key

    def _child(self, stream_number: int) -> Generator:
        return generator(self._seed, *self._key, stream_number)

    @cached_property
    def turns(self) -> Iterator[int]:
        sessions = self._traffic.sessions
        assert sessions is not None
        assert sessions.turns is not None
        return stream(sessions.turns, self._child(TURNS))

    @cached_property
    def prompts(self) -> Iterator[int]:
        assert self._traffic.prompt_tokens is not None
        return stream(self._traffic.prompt_tokens, self._child(PROMPTS))

    @cached_property
    def outputs(self) -> Iterator[int]:
        assert self._traffic.output_tokens is not None
        return stream(self._traffic.output_tokens, self._child(OUTPUTS))

    @cached_property
    def content(self) -> Generator:
        return self._child(CONTENT)

    @cached_property
    def sharing(self) -> Generator:
        return self._child(SHARING)

    @cached_property
    def own_prefix(self) -> Generator:
        return self._child(OWN_PREFIX)

    @cached_property
    def pauses(self) -> Generator:
        return self._child(PAUSES)

    @cached_property
    def answers(self) -> Generator:
        return self._child(ANSWERS)


class Drawn:
    """Conversations with lengths from distributions."""

    def __init__(self, part: Part, words: Words, seed: int) -> None:
        self._traffic, self._words, self._seed = part.traffic, words, seed
        self._key = class_key(part.name)
        self._streams = _Streams(part.traffic, seed, self._key)
        self._next = 0
        self._prefixes = _prefixes(part.traffic.prefix, part.name, words)
        sessions = part.traffic.sessions
        self.in_sessions = sessions is not None
        self._pauses = (sessions and sessions.think_time_s) or NO_PAUSE
        turns = sessions.turns if sessions else None
        self.mean_turns = mean_length(turns) if turns else 1.0
        self.longest_s = (turns.longest - 1) * self._pauses.longest if turns else 0.0

    def talk(self, number: int) -> Talk:
        assert number == self._next, "conversations are drawn one after the other"
        self._next += 1
        pauses = self._pauses_of(self._streams)
        return Talk(self._turns_of(self._streams, len(pauses)), pauses)

    def earlier(self, number: int, outliving_s: float) -> Talk | None:
        streams = _Streams(self._traffic, self._seed, (*self._key, PAST, number))
        pauses = self._pauses_of(streams)
        return Talk(self._turns_of(streams, len(pauses)), pauses) if sum(pauses) > outliving_s else None

    def _pauses_of(self, streams: _Streams) -> tuple[float, ...]:
        if not self.in_sessions:
            return (0.0,)
        later = next(streams.turns) - 1
        return (0.0, *(draw_pause_s(self._pauses, streams.pauses) for _ in range(later)))

    def _turns_of(self, streams: _Streams, n: int) -> tuple[Turn, ...]:
        messages: list[str] = []
        total = 0
        turns = []
        for k in range(n):
            prompt, output = next(streams.prompts), next(streams.outputs)
            extra = self._words.turn_extra_tokens if k else self._words.first_extra_tokens
            new = max(1, prompt - extra)
            text = self._words.draw(streams.content, new)
            if k == 0 and self._traffic.prefix:
                text = self._prefix(streams, self._traffic.prefix) + text
                total += self._traffic.prefix.tokens
            messages.append(text)
            total += new + extra
            turns.append(Turn(tuple(messages), total, output))
            if k < n - 1:
                messages.append(self._words.draw(streams.answers, output))
                total += output
        return tuple(turns)

    def _prefix(self, streams: _Streams, shared: SharedPrefix) -> str:
        """One of the pool, or as many words that nobody shares. The same draws whatever ``reuse`` is."""
        if shared.pool == 1 and shared.reuse == 1:
            return self._prefixes[0]
        which, chance = int(streams.sharing.integers(shared.pool)), streams.sharing.random()
        own = self._words.draw(streams.own_prefix, shared.tokens)
        return self._prefixes[which] if chance < shared.reuse else own


def _prefixes(shared: SharedPrefix | None, name: str, words: Words) -> tuple[str, ...]:
    if shared is None:
        return ()
    first = [PREFIX_SEED, zlib.crc32(name.encode())] if name else [PREFIX_SEED]
    seeds = [first, *([*first, i] for i in range(1, shared.pool))]
    return tuple(words.draw(np.random.default_rng(s), shared.tokens) for s in seeds)


class Recorded:
    """Conversations of a trace. After the last comes the first again, as another lap with other words.

    Conversation i has the same text in every schedule of a seed, whatever else is sent.
    """

    def __init__(self, part: Part, words: Words, seed: int) -> None:
        assert part.traffic.trace is not None
        spec = part.traffic.trace
        assert spec.max_prompt_tokens is not None
        assert spec.max_output_tokens is not None
        self._most_in, self._most_out = spec.max_prompt_tokens, spec.max_output_tokens
        self.replay = replay(spec)
        self._words, self._seed, self._key = words, seed, class_key(part.name)
        sessions = part.traffic.sessions
        self._pauses = sessions.think_time_s if sessions else None
        self._sessions = self._fitting(self.replay)
        self.in_sessions = any(len(turns) > 1 for turns in self._sessions)
        self.mean_turns = sum(len(turns) for turns in self._sessions) / len(self._sessions)
        if self._pauses is not None:
            self.longest_s = (max(len(turns) for turns in self._sessions) - 1) * self._pauses.longest
        else:
            self.longest_s = max(sum(_recorded_pauses(turns)) for turns in self._sessions)
        self._first = int(generator(seed, *self._key, BEGIN).integers(len(self._sessions)))
        self._blocks: dict[tuple[int, int, int], str] = {}

    def talk(self, number: int) -> Talk:
        """Without the trace's times, each seed begins at a conversation of its own."""
        return self.at(self._first + number)

    def earlier(self, number: int, outliving_s: float) -> Talk | None:
        talk = self.at(self._first - number)
        return talk if sum(talk.pauses_s) > outliving_s else None

    def at(self, number: int) -> Talk:
        """``number``: lap x conversations of the replay + conversation."""
        lap, index = divmod(number, len(self._sessions))
        turns = self._sessions[index]
        rng = generator(self._seed, *self._key, RECORDED, lap % 2**32, index)
        pauses = _recorded_pauses(turns)
        if self._pauses is not None:
            pauses = (0.0, *(draw_pause_s(self._pauses, rng) for _ in turns[1:]))
        return Talk(self._quoted(turns) if turns[0].texts else self._made_up(turns, lap, rng), pauses)

    def _fitting(self, recorded: Replay) -> Sequence[tuple[TraceTurn, ...]]:
        """Real texts cannot be cut: a conversation ends before the turn that would be too long."""
        if recorded.spec.format != "sharegpt":
            return recorded.sessions
        fitting = [fit for turns in recorded.sessions if (fit := self._counted(turns))]
        if not fitting:
            message = f"has no conversation that begins with at most {self._most_in} tokens"
            raise TraceError([Problem(recorded.spec.file, None, "", message)])
        return fitting

    def _counted(self, turns: tuple[TraceTurn, ...]) -> tuple[TraceTurn, ...]:
        fit = []
        total = 0
        for k, turn in enumerate(turns):
            assert turn.texts is not None
            extra = self._words.turn_extra_tokens if k else self._words.first_extra_tokens
            total += self._words.tokens_of(turn.texts[0]) + extra
            if total > self._most_in:
                break
            answer = self._words.tokens_of(turn.texts[1])
            fit.append(TraceTurn(0.0, total, min(answer, self._most_out), texts=turn.texts))
            total += answer
        return tuple(fit)

    def _quoted(self, turns: tuple[TraceTurn, ...]) -> tuple[Turn, ...]:
        messages: list[str] = []
        said = []
        for turn in turns:
            assert turn.texts is not None
            question, answer = turn.texts
            messages.append(question)
            said.append(Turn(tuple(messages), turn.prompt_tokens, turn.output_tokens))
            messages.append(answer)
        return tuple(said)

    def _made_up(self, turns: tuple[TraceTurn, ...], lap: int, rng: Generator) -> tuple[Turn, ...]:
        """A prompt that is longer than all that was said before goes on from it; any other begins afresh."""
        said: list[Turn] = []
        for turn in turns:
            prompt, output = min(turn.prompt_tokens, self._most_in), min(turn.output_tokens, self._most_out)
            before = said[-1] if said else None
            more = prompt - (before.prompt_tokens + before.output_tokens) if before else 0
            if before is not None and more > self._words.turn_extra_tokens and not turn.blocks:
                answer = self._words.draw(rng, before.output_tokens)
                question = self._words.draw(rng, more - self._words.turn_extra_tokens)
                said.append(Turn((*before.messages, answer, question), prompt, output))
                continue
            n = max(1, prompt - self._words.first_extra_tokens)
            text = self._of_blocks(turn, n, lap) if turn.blocks else self._words.draw(rng, n)
            said.append(Turn((text,), n + self._words.first_extra_tokens, output))
        return tuple(said)

    def _of_blocks(self, turn: TraceTurn, n: int, lap: int) -> str:
        """The first ``n`` words of the blocks that the trace names: equal names, equal words."""
        size = MOONCAKE_BLOCK_TOKENS * self.replay.spec.length_scale
        ends = [round(size * (j + 1)) for j in range(len(turn.blocks))]
        blocks = zip(turn.blocks, [0, *ends], ends, strict=False)
        return _first_words("".join(self._block(b, end - start, lap) for b, start, end in blocks if start < n), n)

    def _block(self, block: int, size: int, lap: int) -> str:
        if (block, size, lap) not in self._blocks:
            rng = generator(self._seed, *self._key, BLOCK, lap % 2**32, block % 2**32, block >> 32)
            self._blocks[block, size, lap] = self._words.draw(rng, size)
        return self._blocks[block, size, lap]


def _first_words(text: str, n: int) -> str:
    """Every word has its space before it."""
    return "".join(f" {word}" for word in text.split(" ")[1 : n + 1])


def _recorded_pauses(turns: Sequence[TraceTurn]) -> tuple[float, ...]:
    """From the end of an answer to the next question; from its beginning where the trace does not say when it ended."""
    gaps = (later.at_s - earlier.at_s - (earlier.took_s or 0.0) for earlier, later in itertools.pairwise(turns))
    return (0.0, *(max(0.0, gap_s) for gap_s in gaps))
