"""Configurations as integers: nothing lost on the way, and distances that a kernel can use."""

import numpy as np
import pytest

from scenarios.space import Knob, SearchSpace
from tuners.lattice import LISTED, Lattice

SPACE = SearchSpace(
    "lattice",
    (
        Knob("size", (128, 256, 1024), 512, "batching", ""),
        Knob("kind", ("x", "y", "z"), "x", "compute", ""),
        Knob("depth", (2, 4, 8), 4, "speculation", "", when=("kind", ("y", "z"))),
        Knob("cache", (True, False), True, "memory", ""),
    ),
)
LARGE = SearchSpace("large", tuple(Knob(f"k{i}", tuple(range(8)), 0, "batching", "") for i in range(6)))
RNG = np.random.default_rng(0)


def test_every_configuration_is_listed_once_and_comes_back_whole():
    lattice = Lattice(SPACE)
    rows = lattice.candidates(RNG, lattice.codes([]))
    configs = [lattice.config(row) for row in rows]
    assert {c.digest for c in configs} == {c.digest for c in SPACE.enumerate()}
    assert len(configs) == len({c.digest for c in configs})
    assert (lattice.codes([dict(c.knobs) for c in configs]) == rows).all()


def test_distances_are_euclidean():
    """Minus half the doubly centred squares has no negative eigenvalue (Schoenberg 1935)."""
    for squared in Lattice(SPACE).squared:
        n = len(squared)
        centre = np.eye(n) - 1 / n
        assert np.linalg.eigvalsh(-0.5 * centre @ squared @ centre).min() > -1e-9


def test_numbers_lie_by_their_order_and_a_default_left_out_between_its_neighbours():
    size = Lattice(SPACE).squared[0]
    assert size[0, 2] == pytest.approx(1.0)
    assert size[0, 1] == pytest.approx(0.25)
    outside = 4
    assert size[outside, 1] == pytest.approx(((512 - 256) / (1024 - 256) / 2) ** 2)
    assert Lattice(SPACE).codes([{"size": 512}])[0, 0] == outside


def test_true_is_no_number():
    assert Lattice(SPACE).squared[3][0, 1] == 1.0


def test_around_is_everything_one_or_two_knobs_away():
    lattice = Lattice(SPACE)
    row = lattice.codes([dict(SPACE.default().with_knobs(size=128).knobs)])[0]
    around = {tuple(r) for r in lattice.around(row)}
    everything = lattice.candidates(RNG, lattice.codes([]))
    chosen = everything[(everything[:, [0, 1, 3]] != row[[0, 1, 3]]).sum(axis=1) <= 1]
    assert {tuple(r) for r in chosen if r[2] in (1, 3)} <= around, "one knob, its children at their default"
    assert around <= {tuple(r) for r in everything}


def test_of_a_large_space_a_sample_and_the_surroundings_are_looked_at():
    lattice = Lattice(LARGE)
    near = lattice.codes([{f"k{i}": 3 for i in range(6)}])
    rows = lattice.candidates(np.random.default_rng(1), near)
    assert len(rows) < LISTED
    closest = (rows != near[0]).sum(axis=1)
    assert (closest <= 2).sum() == 1 + 6 * 7 + 15 * 49
    again = lattice.candidates(np.random.default_rng(1), near)
    assert (rows == again).all()
