"""Pictures that are the same, or look the same."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from segpipe.data.checking.facts import Facts

ROWS = 16  # pictures that are compared with all others at a time


def same(facts: Sequence[Facts]) -> list[list[int]]:
    """Groups of cases, as indices, whose images have the same values, however they are stored."""
    return _groups(one.content for one in facts)


def alike(facts: Sequence[Facts], distance: int) -> list[list[int]]:
    """Groups of pictures, as indices, that look alike: chains of pairs whose looks differ in so many bits at most.

    Those whose values are the same count once, as the first of them.
    """
    first = {one.content: index for index, one in reversed(list(enumerate(facts)))}
    indices = [index for index in sorted(first.values()) if facts[index].look is not None]
    words = [np.frombuffer(bytes.fromhex(facts[index].look or ""), dtype=np.uint64) for index in indices]
    if not words:
        return []
    looks = np.stack(words)
    rows, columns = [], []
    for start in range(0, len(looks), ROWS):
        apart = np.bitwise_count(looks[start : start + ROWS, None] ^ looks).sum(axis=-1)
        row, column = np.nonzero(apart <= distance)
        rows.append(row + start)
        columns.append(column)
    links = np.concatenate(rows), np.concatenate(columns)
    shape = (len(looks), len(looks))
    _, labels = connected_components(coo_array((np.ones(len(links[0]), dtype=bool), links), shape=shape))
    return [[indices[place] for place in group] for group in _groups(labels.tolist())]


def _groups(keys: Iterable[Hashable]) -> list[list[int]]:
    found: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        found[key].append(index)
    return [group for group in found.values() if len(group) > 1]
