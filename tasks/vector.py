"""True next observations of gymnasium's autoresetting vector environments."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def final_observations(next_observations: np.ndarray, infos: Mapping[str, Any]) -> np.ndarray:
    """The observations that the last step really led to.

    Args:
        next_observations: `(n, ...)` as `step` returned them: reset ones where an episode ended.
        infos: Of the same step; `final_obs` may be a dense `(n, ...)` array or gymnasium's object
            array `(n,)` with None where no episode ended.

    Returns:
        `(n, ...)`, the argument itself where no episode ended, else a copy.
    """
    ended = infos.get("_final_obs")
    if ended is None or not np.any(ended):
        return next_observations
    ended = np.asarray(ended, dtype=bool)
    final = np.asarray(infos["final_obs"])[ended]
    if final.dtype == object:
        final = np.stack(list(final))
    true_next = next_observations.copy()
    true_next[ended] = final
    return true_next
