"""Dynamic programming over states: equal to trying everything, never worse than deciding greedily."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.search.layout import Network

COSTS = st.integers(0, 9).map(float) | st.sampled_from([0.0, float("inf")])


@st.composite
def networks(draw: st.DrawFn, tree: bool, limit: int = 1 << 14) -> tuple[Network, list[int], list[tuple[int, int]]]:
    """Random nodes of one to three states; a random tree, or a random graph."""
    net = Network(limit)
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=7))
    for size in sizes:
        net.node(draw(st.lists(st.integers(0, 9).map(float), min_size=size, max_size=size)))
    pairs = [(draw(st.integers(0, b - 1)), b) for b in range(1, len(sizes))]
    if not tree:
        everything = [(a, b) for b in range(len(sizes)) for a in range(b)]
        pairs += draw(st.lists(st.sampled_from(everything), max_size=8)) if everything else []
    for a, b in pairs:
        table = draw(st.lists(COSTS, min_size=sizes[a] * sizes[b], max_size=sizes[a] * sizes[b]))
        swapped = draw(st.booleans())
        costs = np.array(table).reshape(sizes[a], sizes[b])
        net.edge(*((b, a, costs.T) if swapped else (a, b, costs)))
    return net, sizes, pairs


def best_of_all(net: Network, sizes: list[int]) -> float:
    return min(net.cost(states) for states in product(*(range(s) for s in sizes)))


def greedy(net: Network, sizes: list[int]) -> float:
    """Each node in turn takes its best state given those before it."""
    states = [0] * len(sizes)
    for k, size in enumerate(sizes):
        costs = []
        for s in range(size):
            states[k] = s
            own = float(net._costs[k][s])
            costs.append(own + sum(float(t[states[a], s]) for (a, b), t in net._edges.items() if b == k))
        states[k] = int(np.argmin(costs))
    return net.cost(states)


@settings(max_examples=200, deadline=None)
@given(networks(tree=True))
def test_exact_on_trees(made: tuple[Network, list[int], list[tuple[int, int]]]) -> None:
    net, sizes, _ = made
    assert net.cost(net.solve()) == best_of_all(net, sizes)
    assert net.exact


@settings(max_examples=200, deadline=None)
@given(networks(tree=False))
def test_exact_on_small_graphs_and_never_worse_than_greedy(
    made: tuple[Network, list[int], list[tuple[int, int]]],
) -> None:
    net, sizes, _ = made
    cost = net.cost(net.solve())
    assert cost == best_of_all(net, sizes)
    assert cost <= greedy(net, sizes)


@settings(max_examples=100, deadline=None)
@given(networks(tree=False, limit=8))
def test_a_tight_limit_gives_a_solution_that_no_single_move_improves(
    made: tuple[Network, list[int], list[tuple[int, int]]],
) -> None:
    net, sizes, _ = made
    states = net.solve()
    cost = net.cost(states)
    assert cost >= best_of_all(net, sizes)
    if net.exact:
        assert cost == best_of_all(net, sizes)
    for k, size in enumerate(sizes):
        for s in range(size):
            assert net.cost([*states[:k], s, *states[k + 1 :]]) >= cost


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_shared_conversion_is_paid_once(data: st.DataObject) -> None:
    """A value with several readers costs its producer's choice and each form that anybody reads, once."""
    states = 2
    convert = [[0.0, data.draw(st.integers(1, 9))], [data.draw(st.integers(1, 9)), 0.0]]
    wants = data.draw(st.lists(st.permutations([0, 1]), min_size=1, max_size=4))
    own = [[float(data.draw(st.integers(0, 9))) for _ in range(states)] for _ in range(len(wants) + 1)]
    net = Network()
    nodes = [net.node(c) for c in own]
    inf = float("inf")
    users = [
        (nodes[k + 1], [[0.0 if w[s] == form else inf for s in range(states)] for form in range(2)])
        for k, w in enumerate(wants)
    ]
    net.value(nodes[0], [0, 1], users, convert)
    best = inf
    for chosen in product(range(states), repeat=len(nodes)):
        forms = {w[chosen[k + 1]] for k, w in enumerate(wants)} - {chosen[0]}
        paid = sum(convert[chosen[0]][f] for f in forms)
        best = min(best, paid + sum(c[s] for c, s in zip(own, chosen, strict=True)))
    assert net.cost(net.solve()) == best


def test_long_chains_are_quick_and_exact() -> None:
    net = Network()
    rng = np.random.default_rng(0)
    nodes = [net.node(rng.random(2).tolist()) for _ in range(3000)]
    for a, b in pairwise(nodes):
        net.edge(a, b, rng.random((2, 2)))
    states = net.solve()
    best = np.zeros(2)
    for k in nodes:
        step = net._edges[k - 1, k] if k else np.zeros((2, 2))
        best = (best[:, None] + step).min(axis=0) + net._costs[k]
    assert net.exact
    assert abs(net.cost(states) - best.min()) < 1e-9
