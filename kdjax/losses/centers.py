"""Objects as points: heatmaps with a peak at the centre of each, and what is regressed there.

Maps are [batch, height, width, channels]; a position is (x, y) in cells, x along the width. The
cell of a centre is given as one index, y * width + x. Values in float32 (float64 for float64).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.checks import Scalar

Maps = Float[Array | ndarray, "batch height width channels"]
Indices = Int[Array | ndarray, "batch objects"]
Objects = Bool[Array | ndarray, "batch objects"]
Cells = Float[Array | ndarray, "..."]


class Centres(NamedTuple):
    """The k best peaks of each image, best first.

    Attributes:
      scores: floats [batch, k]; -inf where the heatmaps have fewer peaks.
      classes: int32 [batch, k].
      positions: floats [batch, k, 2], (x, y) in cells.
    """

    scores: Float[Array, "batch k"]
    classes: Int[Array, "batch k"]
    positions: Float[Array, "batch k 2"]


def centernet_focal(
    logits: Cells,
    targets: Cells,
    *,
    alpha: Scalar = 2.0,
    beta: Scalar = 4.0,
    epsilon: Scalar = 1e-4,
    where: Bool[Array | ndarray, "..."] | None = None,
) -> Float[Array, "..."]:
    """CenterNet's focal loss of a heatmap: cells near a centre are punished less.

        L = -(1 - p)^alpha log p                       where the target is 1: a centre
        L = -(1 - target)^beta p^alpha log(1 - p)      elsewhere
        p = sigmoid(logits), kept in [epsilon, 1 - epsilon]

    Beyond these bounds there is no gradient; `epsilon=0.0` has no bounds, and is finite too. The
    published loss is the sum of all cells over the number of centres (over 1 if there is none).

    Args:
      logits: floats [...]. Differentiated.
      targets: floats [...] in [0, 1], see `draw_gaussian`. Stopped.
      alpha: scalar >= 0, may be traced.
      beta: scalar >= 0, may be traced.
      epsilon: scalar in [0, 1], may be traced.
      where: booleans [...]; False cells are 0.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, a number out of range. TypeError: logits or targets that are
        not floats, where that is not boolean.

    Source: Law and Deng 2018 (CornerNet), arXiv:1808.01244; Zhou et al. 2019, arXiv:1904.07850.

    >>> import jax.numpy as jnp
    >>> loss = centernet_focal(jnp.zeros(3), jnp.array([1.0, 0.5, 0.0]))  # log 2 / 4, / 64, / 4
    >>> print(" ".join(f"{x:.4f}" for x in loss))
    0.1733 0.0108 0.1733
    """
    where, logits, targets = _cells(logits, targets, where)
    checks.not_negative(alpha=alpha, beta=beta)
    checks.fraction(epsilon=epsilon)
    bound = jnp.log1p(-jnp.asarray(epsilon, logits.dtype)) - jnp.log(epsilon)
    logits = jnp.clip(logits, -bound, bound)
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    at_centre = -jnp.exp(alpha * log_not_p) * log_p
    elsewhere = -((1 - targets) ** beta) * jnp.exp(alpha * log_p) * log_not_p
    return jnp.where(where, jnp.where(targets == 1, at_centre, elsewhere), 0.0)


def binary_focal(
    logits: Cells,
    targets: Bool[Array | ndarray, "..."],
    *,
    alpha: Scalar = 0.25,
    gamma: Scalar = 2.0,
    where: Bool[Array | ndarray, "..."] | None = None,
) -> Float[Array, "..."]:
    """The focal loss: cross-entropy of yes-or-no questions that makes little of the easy ones.

        L = -alpha (1 - p)^gamma log p              where the target is True
        L = -(1 - alpha) p^gamma log(1 - p)         where it is False,      p = sigmoid(logits)

    The published loss is the sum over the number of True targets (over 1 if there is none).

    Args:
      logits: floats [...]. Differentiated.
      targets: booleans [...].
      alpha: scalar in [0, 1], may be traced.
      gamma: scalar >= 0, may be traced.
      where: booleans [...]; False cells are 0.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, alpha or gamma out of range. TypeError: logits that are not
        floats, targets or where that are not boolean.

    Source: Lin et al. 2017, arXiv:1708.02002.

    >>> import jax.numpy as jnp
    >>> loss = binary_focal(jnp.zeros(2), jnp.array([True, False]))  # log 2 / 16, 3 log 2 / 16
    >>> print(" ".join(f"{x:.4f}" for x in loss))
    0.0433 0.1300
    """
    where, logits, _ = _cells(logits, logits, where)
    targets = checks.boolean("targets", targets, logits.shape, "the logits")
    checks.fraction(alpha=alpha)
    checks.not_negative(gamma=gamma)
    signed = jnp.where(targets, logits, -logits)
    hardness = jnp.exp(gamma * jax.nn.log_sigmoid(-signed))
    weight = jnp.where(targets, alpha, 1 - alpha)
    return jnp.where(where, -weight * hardness * jax.nn.log_sigmoid(signed), 0.0)


def gaussian_radius(
    width: Cells, height: Cells, *, min_overlap: Scalar = 0.7
) -> Float[Array, "..."]:
    """How far a centre may be off such that the box still overlaps enough: the heatmap's radius.

        r1 = [ (h + w) + sqrt( (h + w)^2 - 4 w h (1 - o) / (1 + o) ) ] / 2
        r2 = [ 2 (h + w) + sqrt( 4 (h + w)^2 - 16 (1 - o) w h ) ] / 2
        r3 = [ -2 o (h + w) + sqrt( 4 o^2 (h + w)^2 + 16 o (1 - o) w h ) ] / 2
        radius = min(r1, r2, r3),   o = min_overlap

    As in CornerNet's code the denominators are 2, not twice the leading coefficient of the
    quadratic equations: the overlap is not what the name says. Drawn is max(0, floor(radius)).

    Args:
      width: floats [...], of the box, in cells, >= 0. Not differentiable.
      height: floats [...]. Not differentiable.
      min_overlap: scalar in [0, 1], may be traced.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, min_overlap outside [0, 1]. TypeError: sizes that are not
        floats.

    Source: Law and Deng 2018 (CornerNet), arXiv:1808.01244.

    >>> import jax.numpy as jnp
    >>> print(f"{gaussian_radius(jnp.array(4.0), jnp.array(6.0)):.4f}")
    1.3162
    """
    width, height = checks.shaped({"width": "...", "height": "..."}, width=width, height=height)
    checks.fraction(min_overlap=min_overlap)
    overlap = jnp.asarray(min_overlap, width.dtype)
    total, area = (jax.lax.stop_gradient(x) for x in (width + height, width * height))
    first = (total + jnp.sqrt(total**2 - 4 * area * (1 - overlap) / (1 + overlap))) / 2
    second = total + jnp.sqrt(total**2 - 4 * (1 - overlap) * area)
    # -b + sqrt(b^2 + c) as c / (b + sqrt(b^2 + c)): nothing cancels.
    c = 16 * overlap * (1 - overlap) * area
    b = 2 * overlap * total
    divisor = b + jnp.sqrt(b**2 + c)
    third = jnp.where(divisor > 0, c / jnp.where(divisor > 0, divisor, 1.0), 0.0) / 2
    return jnp.minimum(jnp.minimum(first, second), third)


def draw_gaussian(
    centres: Int[Array | ndarray, "objects 2"],
    radii: Int[Array | ndarray, " objects"],
    *,
    height: int,
    width: int,
    where: Bool[Array | ndarray, " objects"] | None = None,
) -> Float[Array, "height width"]:
    """A heatmap with a Gaussian at each centre, of which the larger counts where they overlap.

        exp( -(dx^2 + dy^2) / (2 sigma^2) ),   sigma = (2 r + 1) / 6,   |dx| <= r, |dy| <= r

    1 at the centres. What falls out of the map is cut off.

    Args:
      centres: integers [objects, 2], cells (x, y).
      radii: integers [objects], >= 0, in cells.
      height: integer >= 1.
      width: integer >= 1.
      where: booleans [objects]; False objects (padding) are not drawn.

    Returns:
      float32 [height, width], in [0, 1].

    Raises:
      ValueError: shapes that do not fit, height or width < 1. TypeError: centres or radii that are
        not integers, where that is not boolean.

    Source: Law and Deng 2018 (CornerNet), arXiv:1808.01244.

    >>> import jax.numpy as jnp
    >>> heatmap = draw_gaussian(jnp.array([[1, 0]]), jnp.array([1]), height=2, width=4)
    >>> print(jnp.array_str(heatmap, precision=4, suppress_small=True))
    [[0.1353 1.     0.1353 0.    ]
     [0.0183 0.1353 0.0183 0.    ]]
    """
    checks.count(1, height=height, width=width)
    centres = checks.integers("centres", centres, None, "")
    if centres.ndim != 2 or centres.shape[1] != 2:
        raise ValueError(f"centres must be shaped [objects, 2], got shape {centres.shape}")
    radii = checks.integers("radii", radii, centres.shape[:1], "the objects")
    where = jnp.ones(radii.shape, bool) if where is None else where
    where = checks.boolean("where", where, radii.shape, "the objects")
    columns = jnp.arange(width) - centres[:, :1]
    rows = jnp.arange(height) - centres[:, 1:]
    reach = radii[:, None]
    inside = (jnp.abs(rows) <= reach)[:, :, None] & (jnp.abs(columns) <= reach)[:, None, :]
    inside &= where[:, None, None]
    squared = (rows**2)[:, :, None] + (columns**2)[:, None, :]
    sigma = ((2 * radii + 1) / 6).astype(jnp.float32)[:, None, None]
    values = jnp.exp(-squared.astype(jnp.float32) / (2 * sigma**2))
    return jnp.max(jnp.where(inside, values, 0.0), axis=0, initial=0.0)


def gather_at_centres(
    maps: Maps, indices: Indices, *, where: Objects | None = None
) -> Float[Array, "batch objects channels"]:
    """The channels of the maps at the cells of the objects.

    Args:
      maps: floats [batch, height, width, channels]. Differentiated, at these cells.
      indices: integers [batch, objects], y * width + x. Outside the map: 0, gradient 0.
      where: booleans [batch, objects]; False objects (padding) are 0.

    Returns:
      Floats [batch, objects, channels].

    Raises:
      ValueError: shapes that do not fit. TypeError: maps that are not floats, indices that are not
        integers, where that is not boolean.

    Source: Zhou et al. 2019 (CenterNet), arXiv:1904.07850.

    >>> import jax.numpy as jnp
    >>> gather_at_centres(jnp.arange(6.0).reshape(1, 2, 3, 1), jnp.array([[4, 0]])).tolist()
    [[[4.0], [0.0]]]
    """
    (maps,) = checks.shaped({"maps": "batch height width channels"}, maps=maps)
    flat = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    indices = checks.integers("indices", indices, None, "")
    checks.axis_shapes("indices", indices, "batch objects", {"batch": (len(maps), "maps")})
    where = jnp.ones(indices.shape, bool) if where is None else where
    where = checks.boolean("where", where, indices.shape, "the objects")
    where &= (indices >= 0) & (indices < flat.shape[1])
    found = jnp.take_along_axis(flat, jnp.where(where, indices, 0)[..., None], axis=1)
    return jnp.where(where[..., None], found, 0.0)


def center_regression_l1(
    maps: Maps,
    indices: Indices,
    targets: Float[Array | ndarray, "batch objects channels"],
    *,
    where: Objects | None = None,
) -> Float[Array, "batch objects channels"]:
    """Absolute error of what is regressed at the centres: offsets, sizes, rotations.

        L = | maps at the centre - target |

    The published loss of a channel is the sum over batch and objects over the number of objects
    that take part, plus 1e-4; the channels are then weighed and added.

    Args:
      maps: floats [batch, height, width, channels]. Differentiated, at the centres.
      indices: integers [batch, objects], y * width + x. Outside the map: loss 0, gradient 0.
      targets: floats [batch, objects, channels]. Stopped.
      where: booleans [batch, objects]; False objects (padding) are 0.

    Returns:
      [batch, objects, channels], >= 0.

    Raises:
      ValueError: shapes that do not fit. TypeError: maps or targets that are not floats, indices
        that are not integers, where that is not boolean.

    Source: Zhou et al. 2019 (CenterNet), arXiv:1904.07850.

    >>> import jax.numpy as jnp
    >>> maps, targets = jnp.arange(6.0).reshape(1, 2, 3, 1), jnp.array([[[1.0]]])
    >>> center_regression_l1(maps, jnp.array([[4]]), targets).tolist()
    [[[3.0]]]
    """
    maps, targets = checks.shaped(
        {"maps": "batch height width channels", "targets": "batch objects channels"},
        maps=maps,
        targets=targets,
    )
    indices = checks.integers("indices", indices, targets.shape[:2], "the targets' objects")
    where = jnp.ones(indices.shape, bool) if where is None else where
    where = checks.boolean("where", where, indices.shape, "the objects")
    where &= (indices >= 0) & (indices < maps.shape[1] * maps.shape[2])
    gap = gather_at_centres(maps, indices, where=where) - jax.lax.stop_gradient(targets)
    return jnp.where(where[..., None], jnp.abs(jnp.where(where[..., None], gap, 1.0)), 0.0)


def decode_centres(
    heatmaps: Maps,
    offsets: Float[Array | ndarray, "batch height width 2"] | None = None,
    *,
    k: int,
) -> Centres:
    """The k best peaks over all classes: cells that no neighbour of their class exceeds.

    The neighbours are the 3 x 3 cells around (the equality with their maximum is the non-maximum
    suppression: all cells of a plateau are peaks).

    Args:
      heatmaps: floats [batch, height, width, classes], scores or logits. Differentiated, at the
        peaks.
      offsets: floats [batch, height, width, 2], (x, y) in cells, added to the cell. Differentiated,
        at the peaks. None: the cells themselves.
      k: integer from 1 to height * width * classes.

    Returns:
      `Centres`.

    Raises:
      ValueError: shapes that do not fit, k out of range. TypeError: maps that are not floats.

    Source: Zhou et al. 2019 (CenterNet), arXiv:1904.07850.

    >>> import jax.numpy as jnp
    >>> heatmaps = jnp.zeros((1, 3, 5, 1)).at[0, 1, 1, 0].set(0.9).at[0, 1, 2, 0].set(0.8)
    >>> centres = decode_centres(heatmaps.at[0, 0, 4, 0].set(0.7), k=2)
    >>> centres.positions.tolist()  # 0.8 is a neighbour of 0.9
    [[[1.0, 1.0], [4.0, 0.0]]]
    """
    (heatmaps,) = checks.shaped({"heatmaps": "batch height width classes"}, heatmaps=heatmaps)
    batch, height, width, num_classes = heatmaps.shape
    checks.count(1, height * width * num_classes, k=k)
    highest = jax.lax.reduce_window(
        jax.lax.stop_gradient(heatmaps), -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"
    )
    peaks = jnp.where(heatmaps == highest, heatmaps, -jnp.inf).reshape(batch, -1)
    scores, best = jax.lax.top_k(peaks, k)
    cells, classes = best // num_classes, (best % num_classes).astype(jnp.int32)
    positions = jnp.stack([cells % width, cells // width], axis=-1).astype(heatmaps.dtype)
    if offsets is not None:
        heatmaps, offsets = checks.shaped(
            {"heatmaps": "batch height width classes", "offsets": "batch height width xy"},
            heatmaps=heatmaps,
            offsets=offsets,
        )
        if offsets.shape[-1] != 2:
            raise ValueError(f"offsets must have 2 channels, x and y, got {offsets.shape[-1]}")
        positions = positions + gather_at_centres(offsets, cells)
    return Centres(scores, classes, positions)


def _cells(
    logits: Cells, targets: Cells, where: Bool[Array | ndarray, "..."] | None
) -> tuple[Array, Array, Array]:
    """The mask, and logits and constant targets with 0 where it is False."""
    logits, targets = checks.shaped(
        {"logits": "...", "targets": "..."}, logits=logits, targets=targets
    )
    where = jnp.ones(logits.shape, bool) if where is None else where
    where = checks.boolean("where", where, logits.shape, "the logits")
    targets = jax.lax.stop_gradient(targets)
    return where, jnp.where(where, logits, 0.0), jnp.where(where, targets, 0.0)
