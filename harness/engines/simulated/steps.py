"""How long a step takes, by what is in it, and how many drafted tokens come through it.

Knows nothing of who is served: a step is six numbers, a law is some twenty.
"""

from typing import NamedTuple

import numpy as np

from harness.engines.simulated.compiled import compiled
from harness.engines.simulated.paged import Int64s

# in a load: what one step computes. Sequences in it; tokens; tokens whose successor is wanted, drafted ones included;
# tokens that are looked back at; pairs of a prompt's tokens; sequences with drafted tokens
GIVEN, TOKENS, SAMPLED, CONTEXT, PAIRS, SPECULATING = range(6)

MODULUS_A, MODULUS_B = 2_147_483_563, 2_147_483_399
LARGEST_GRAPH_BY_8 = 256  # graphs of 1, 2, 4, then every 8, above this every 16: vLLM's `cudagraph_capture_sizes`


class StepLaw(NamedTuple):
    """Seconds that a step takes, by what is in it; `step_seconds` puts them together. All may be 0."""

    overhead_s: float  # every step
    sequence_s: float = 0.0  # every sequence that gets a token: sampling and streaming
    launch_s: float = 0.0  # the least that a step without a graph takes
    largest_graph: int = 0  # tokens; steps of more have no graph
    weights_s: float = 0.0  # reading the layers' weights
    token_s: float = 0.0  # the layers' arithmetic for one token
    head_weights_s: float = 0.0
    head_token_s: float = 0.0
    context_s: float = 0.0  # reading keys and values of one token
    pair_s: float = 0.0  # attention of one token of a prompt to one before it
    exchange_s: float = 0.0  # between devices, every step
    exchange_token_s: float = 0.0
    draft_s: float = 0.0  # one round of the draft model, at least
    draft_token_s: float = 0.0  # its arithmetic for one sequence
    acceptance: float = 0.0  # probability that a drafted token is accepted, alone on the machine
    acceptance_drop: float = 0.0  # share of it that is lost in an endless batch
    acceptance_half: float = 1.0  # batch at which half of that is lost


def generator(seed: int) -> Int64s:
    """The state of a random generator, (2,)."""
    mixed = np.random.SeedSequence(seed).generate_state(2)
    return np.array([1 + int(mixed[0]) % (MODULUS_A - 1), 1 + int(mixed[1]) % (MODULUS_B - 1)], np.int64)


@compiled
def acceptance(law: StepLaw, batch: int) -> float:
    return law.acceptance * (1.0 - law.acceptance_drop * batch / (batch + law.acceptance_half))


@compiled
def accepted(random: Int64s, guessed: int, chance: float) -> int:
    """Guessed tokens up to the first that is refused: geometric, cut off (Leviathan et al. 2023, equation 1)."""
    drawn = _uniform(random)
    n = 0
    reach = chance
    while n < guessed and drawn < reach:
        n += 1
        reach *= chance
    return n


@compiled
def _uniform(random: Int64s) -> float:
    """In (0, 1), period 2.3e18 (L'Ecuyer 1988, CACM 31(6), figure 3); whole numbers, so equal compiled or not."""
    random[0] = random[0] * 40014 % MODULUS_A
    random[1] = random[1] * 40692 % MODULUS_B
    mixed = (random[0] - random[1]) % (MODULUS_A - 1)
    return float(mixed + 1) / MODULUS_A


@compiled
def step_seconds(law: StepLaw, draft_tokens: int, load: Int64s) -> float:
    """The roofline of each part (Williams et al. 2009), one after the other; docs/simulated.md has the formula."""
    tokens = load[TOKENS]
    launch_s = law.launch_s
    if tokens <= law.largest_graph:
        tokens = graph_size(tokens)
        launch_s = 0.0
    work_s = max(law.weights_s, tokens * law.token_s)
    if load[SAMPLED] > 0:
        work_s += max(law.head_weights_s, load[SAMPLED] * law.head_token_s)
    work_s += load[CONTEXT] * law.context_s + load[PAIRS] * law.pair_s
    work_s += law.exchange_s + tokens * law.exchange_token_s
    if load[SPECULATING] > 0:
        work_s += draft_tokens * max(law.draft_s, load[SPECULATING] * law.draft_token_s)
    return float(law.overhead_s + load[GIVEN] * law.sequence_s + max(work_s, launch_s))


@compiled
def graph_size(tokens: int) -> int:
    """The captured size that ``tokens`` are padded to."""
    if tokens <= 2:
        return tokens
    if tokens <= 4:
        return 4
    if tokens <= LARGEST_GRAPH_BY_8:
        return (tokens + 7) // 8 * 8
    return (tokens + 15) // 16 * 16
