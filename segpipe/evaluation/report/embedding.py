"""Cases as points of a plane: what the encoder finds alike lies close together."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST, MOST = 5, 1000  # cases for t-SNE: fewer have no neighbourhoods, more take minutes
COMPONENTS = 50
Values = NDArray[np.float64]
Planes = tuple[Values, Values]


def planes(embeddings: NDArray[np.floating[Any]], seed: int = 0) -> Planes | None:
    """PCA and t-SNE of N,E features, N,2 each; None where there are fewer than five cases, any feature is not finite,
    or all cases are alike. Of more than a thousand cases, t-SNE shows a thousand evenly chosen ones, NaN for the rest.
    """
    values = np.asarray(embeddings, dtype=np.float64)
    if values.ndim != 2 or len(values) < FEWEST or not np.isfinite(values).all():
        return None
    left, sizes, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    if sizes.size < 2 or sizes[0] <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return None
    points = left * sizes
    points *= np.where(points[np.abs(points).argmax(axis=0), np.arange(len(sizes))] < 0, -1, 1)
    chosen = np.unique(np.linspace(0, len(points) - 1, min(MOST, len(points))).round().astype(int))
    neighbours = np.full((len(points), 2), np.nan)
    neighbours[chosen] = _tsne(points[chosen, :COMPONENTS], seed)
    return points[:, :2], neighbours


def _tsne(points: Values, seed: int) -> Values:
    """Van der Maaten and Hinton 2008, begun at the first two principal components."""
    from sklearn.manifold import TSNE

    start = 1e-4 * points[:, :2] / points[:, 0].std()
    model = TSNE(perplexity=min(30.0, (len(points) - 1) / 3), init=start, random_state=seed)
    return np.asarray(model.fit_transform(points), dtype=np.float64)
