"""Images of Pathfinder (Kim et al., 1906.01558) at 32 x 32, as the Long Range Arena has them in its
hard form: two long dashed curves among many short ones, and two markers, which are the ends of one
curve or of both.

The rules are those of the original generator (drewlinsley/pathfinder) with the values that the
Arena's builder states. Angles are in radians, coordinates are (row, column). A *dash* is a line of
two pixels. Where something may not be drawn any more is kept as a mask of 0 to 1, in which a dash
occupies its surroundings too.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from xlstm_jax.typing import Array, Float, Int

SIZE = 32  # of the image
PADDING = 1  # at its border
LENGTH, THICKNESS, MARGIN = 2, 0.5, 1  # of a dash, and the space around it
SCALE = 2  # lines are drawn so much larger and reduced
DASHES, DISTRACTOR_DASHES, DISTRACTORS = 14, 4, 5  # 14 // 3, 20 // 4
SEEDS_APART = 7  # distance of the two curves' beginnings
CONTINUITY = 1.0  # factor on turns
MARKER_RADIUS = 1.5
# contrasts of snakes (2) and of their dashes (0.75): the short curves have the first alone
CONTRAST, DISTRACTOR_CONTRAST = 2 * 0.75, 2.0
CURVE_TRIALS, DASH_TRIALS = 5, 3
LEAST_ROOM = 0.01  # share of free pixels below which no dash is begun
# that would fill an image, less those of the curves
SINGLE_DASHES = int(150 * 123.5 / (7.5 + 13 * MARGIN + 4 * MARGIN**2)) - (
    2 * DASHES + DISTRACTORS * DISTRACTOR_DASHES
)
REACH = LENGTH + math.ceil(THICKNESS) + MARGIN  # of a dash's small image, from its beginning
OCCUPIED = 0.3  # of a mask's value; what is below it is free
CROSSING = 1.8  # of two masks' sum

Picture = Float[np.ndarray, "S S"]
Place = tuple[int, int]


class Failed(Exception):
    """A curve found no place to go on."""


class Dash(NamedTuple):
    """A dash from the middle of a small picture on, and what it occupies."""

    line: Float[np.ndarray, "M M"]
    mask: Float[np.ndarray, "M M"]


class Tip(NamedTuple):
    """Where a curve goes on: the pivot that its last dash turned around, that dash's angle and mask
    (which is not part of the common mask until there is a next dash).
    """

    pivot: Place
    angle: float
    mask: Picture


def image(
    rng: np.random.Generator, single_dashes: bool = False
) -> tuple[Int[np.ndarray, "S S"], int]:
    """(grey values 0 to 255, label) of an image; 1 where the markers are the ends of one curve.

    Args:
        single_dashes: fill the rest of the image with dashes. The original can do so, and its
            script, with whose other values the Arena's images were made, does not.
    """
    label = int(rng.integers(2))
    while True:
        try:
            curves, mask, beginnings, ends = _two_curves(rng)
            break
        except Failed:
            continue
    picture = np.maximum(*curves)
    for _ in range(DISTRACTORS):
        picture, mask = _distractor(rng, picture, mask, DISTRACTOR_DASHES, CURVE_TRIALS)
    for _ in range(SINGLE_DASHES if single_dashes else 0):
        if np.mean(mask <= OCCUPIED) < LEAST_ROOM:
            break  # so would be all that follow
        picture, mask = _distractor(rng, picture, mask, 1, DASH_TRIALS)
    first = int(rng.integers(2))
    last = first if label else 1 - first
    for place in (beginnings[first], ends[last]):
        picture = np.maximum(picture, _marker(place))
    low, high = picture.min(), picture.max()
    return np.rint((picture - low) * 255 / (high - low)).astype(np.uint8), label


def _two_curves(
    rng: np.random.Generator,
) -> tuple[list[Picture], Picture, list[Place], list[Place]]:
    """(their pictures, the common mask, beginnings, ends); raises `Failed` at a dead end."""
    mask = np.zeros((SIZE, SIZE))
    mask[:PADDING] = mask[-PADDING:] = mask[:, :PADDING] = mask[:, -PADDING:] = 1
    clear = mask.copy()
    border = 2 * SEEDS_APART
    clear[:border] = clear[SIZE - border :] = clear[:, :border] = clear[:, SIZE - border :] = 1
    first, place = _begin(rng, clear)
    for _ in range(DASH_TRIALS):
        angle, direction = _angle(rng), rng.integers(360) * np.pi / 180
        other = (
            round(place[0] + SEEDS_APART * math.sin(direction)),
            round(place[1] + SEEDS_APART * math.cos(direction)),
        )
        if (second := _tip(other, angle)) is not None:
            break
    else:
        raise Failed
    places, tips = [place, other], [first, second]
    pictures = [
        _placed(_dash(tip.angle).line, start) * CONTRAST
        for tip, start in zip(tips, places, strict=True)
    ]
    ends = list(places)
    for _ in range(DASHES - 1):
        for number in (0, 1):
            line, mask, tips[number], ends[number] = _extended(rng, mask, tips[number])
            pictures[number] = np.maximum(pictures[number], line * CONTRAST)
    return pictures, np.maximum(mask, tips[1].mask), places, ends


def _distractor(
    rng: np.random.Generator, picture: Picture, mask: Picture, dashes: int, trials: int
) -> tuple[Picture, Picture]:
    """Picture and mask with a short curve more, or as they are where there is no room for it."""
    for _ in range(trials):
        try:
            lined = mask.copy()
            lined[0] = lined[-1] = lined[:, 0] = lined[:, -1] = 1
            if np.mean(mask <= OCCUPIED) < LEAST_ROOM:
                return picture, mask
            tip, place = _begin(rng, lined)
            lines, occupied = _placed(_dash(tip.angle).line, place), mask
            for _ in range(dashes - 1):
                line, occupied, tip, _ = _extended(rng, occupied, tip)
                lines = np.maximum(lines, line)
            return (
                np.maximum(picture, lines * DISTRACTOR_CONTRAST),
                np.maximum(occupied, tip.mask),
            )
        except Failed:
            continue
    return picture, mask


def _begin(rng: np.random.Generator, mask: Picture) -> tuple[Tip, Place]:
    """The first dash of a curve and where it begins, anywhere that the mask leaves room for it."""
    for _ in range(DASH_TRIALS):
        angle = _angle(rng)
        rows, columns = np.nonzero(_dilated(mask, _footprint(angle)) <= OCCUPIED)
        if not len(rows):
            raise Failed
        number = rng.integers(len(rows))
        place = (int(rows[number]), int(columns[number]))
        if (tip := _tip(place, angle)) is not None:
            return tip, place
    raise Failed


def _tip(place: Place, angle: float) -> Tip | None:
    """Of a first dash; None where it leaves the image."""
    head = _moved(place, angle, LENGTH)
    pivot = _moved(head, _turned_round(angle), LENGTH + MARGIN)
    if not all(0 <= x < SIZE for x in (*head, *pivot)):
        return None
    return Tip(pivot, angle, _placed(_dash(angle).mask, place))


def _extended(
    rng: np.random.Generator, mask: Picture, tip: Tip
) -> tuple[Picture, Picture, Tip, Place]:
    """(the line of a dash more, the mask with the dash before it, the new tip, the new end)."""
    pivot = _moved(tip.pivot, tip.angle, LENGTH + 2 * MARGIN)
    places, angles = _around(pivot)
    if not len(places):
        raise Failed
    turns = np.abs(angles - tip.angle)
    turns = np.minimum(np.minimum(turns, 2 * np.pi - turns) * CONTINUITY, np.pi / 2)
    free = 1 - _largest_near(mask, places)
    weights = free * np.maximum(np.cos(turns), 0) ** 2
    if weights.sum() < 1e-4:
        raise Failed
    sums = np.cumsum(weights / weights.sum())
    for _ in range(DASH_TRIALS):
        chosen = int(np.argmax(sums > rng.random()))
        angle, head = float(angles[chosen]), (int(places[chosen, 0]), int(places[chosen, 1]))
        dash = _dash(_turned_round(angle))  # drawn from its head back
        own = _placed(dash.mask, head)
        if np.max(mask + own) < CROSSING:
            line = _placed(dash.line, head)
            return line, np.maximum(mask, tip.mask), Tip(pivot, angle, own), head
    raise Failed


@functools.lru_cache(maxsize=4096)
def _around(pivot: Place) -> tuple[Int[np.ndarray, "N 2"], Float[np.ndarray, " N"]]:
    """The pixels on the circle around a pivot that a dash can reach, and its angle there."""
    radius = LENGTH + MARGIN
    angles = np.arange(0, 360, 360 / (2 * radius * np.pi)) * np.pi / 180
    points = np.stack([pivot[0] + radius * np.sin(angles), pivot[1] + radius * np.cos(angles)], 1)
    points = points[((points >= 0) & (points < SIZE)).all(axis=1)].astype(int)
    if not len(points):
        return points, np.zeros(0)
    places = np.unique(points, axis=0)
    steps = places - np.array(pivot)
    return places, np.arctan2(steps[:, 0], steps[:, 1])


@functools.lru_cache(maxsize=4096)
def _dash(angle: float) -> Dash:
    """A dash in this direction, drawn larger and reduced."""
    middle = REACH * SCALE
    size, small = 2 * middle + 1, 2 * REACH + 1
    row, column = _moved((middle, middle), angle, LENGTH * SCALE)
    drawn = Image.new("L", (size, size))
    width = round(THICKNESS * SCALE)
    ImageDraw.Draw(drawn).line([(middle, middle), (column, row)], fill=255, width=width)
    wide = _dilated(np.asarray(drawn, float), LARGE_DISC).astype(np.uint8)
    return Dash(*(_reduced(x, small) for x in (np.asarray(drawn), wide)))


@functools.lru_cache(maxsize=4096)
def _footprint(angle: float) -> tuple[Place, ...]:
    """What a dash fully occupies, as steps from its beginning; where the mask of one of them is
    set, it may not begin.
    """
    # the original's structuring element lies a pixel off its middle
    half = LENGTH + MARGIN
    element = _placed(_dash(angle).mask, (half + 1, half + 1), 2 * half + 1)
    rows, columns = np.nonzero(element >= 1)
    return tuple(
        (int(row) - half, int(column) - half) for row, column in zip(rows, columns, strict=True)
    )


def _dilated(mask: Float[Array, "R C"], steps: tuple[Place, ...]) -> Float[Array, "R C"]:
    """The largest value among a pixel's neighbours that are these steps away."""
    reach = max(max(map(abs, step)) for step in steps) if steps else 0
    wide, (rows, columns) = _widened(mask, reach), mask.shape
    found = np.zeros_like(mask)
    for row, column in steps:
        part = wide[reach + row : reach + row + rows, reach + column : reach + column + columns]
        np.maximum(found, part, out=found)
    return found


def _largest_near(mask: Picture, places: Int[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
    """`_dilated` by a disc, at some places alone."""
    near = places[:, None] + NEAR + MARGIN
    return _widened(mask, MARGIN)[near[..., 0], near[..., 1]].max(axis=1)


def _widened(mask: Float[Array, "R C"], reach: int) -> Float[np.ndarray, "P Q"]:
    """With zeros around it; np.pad does the same in five times the time."""
    rows, columns = mask.shape
    wide = np.zeros((rows + 2 * reach, columns + 2 * reach))
    wide[reach : reach + rows, reach : reach + columns] = mask
    return wide


def _disc(radius: int) -> tuple[Place, ...]:
    steps = range(-radius, radius + 1)
    return tuple((r, c) for r in steps for c in steps if r * r + c * c <= radius * radius)


NEAR, LARGE_DISC = np.array(_disc(MARGIN)), _disc(MARGIN * SCALE)


def _placed(small: Float[Array, "M M"], place: Place, size: int = SIZE) -> Picture:
    """A small picture in a large one, its middle at the place; what lies outside is cut off."""
    reach = len(small) // 2
    large = np.zeros((size + 2 * reach, size + 2 * reach))
    row, column = place
    if 0 <= row < size and 0 <= column < size:
        large[row : row + len(small), column : column + len(small)] = small
    return large[reach : reach + size, reach : reach + size]


def _marker(place: Place) -> Picture:
    """A filled circle."""
    rows, columns = np.ogrid[: SIZE * SCALE, : SIZE * SCALE]
    distance = (rows - place[0] * SCALE) ** 2 + (columns - place[1] * SCALE) ** 2
    drawn = np.where(distance <= (MARKER_RADIUS * SCALE) ** 2, 255, 0).astype(np.uint8)
    return _reduced(drawn, SIZE)


def _reduced(drawn: Int[Array, "R R"], size: int) -> Float[Array, "M M"]:
    resized = Image.fromarray(drawn).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(resized, float) / 255


def _moved(place: Place, angle: float, distance: float) -> Place:
    return (
        math.ceil(place[0] + distance * math.sin(angle)),
        math.ceil(place[1] + distance * math.cos(angle)),
    )


def _angle(rng: np.random.Generator) -> float:
    return float(rng.integers(-180, 180) * np.pi / 180)


def _turned_round(angle: float) -> float:
    return angle + np.pi if angle < 0 else angle - np.pi
