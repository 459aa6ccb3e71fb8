"""Pictures of small worlds, for environments that draw with nothing but Pillow and numpy."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

FLOOR, GOAL, AGENT, ARM = (30, 30, 36), (70, 190, 110), (235, 200, 70), (150, 150, 165)
CELL = 16  # pixels
WIDTH, FINER = 192, 3  # pixels of a plane, drawn larger and then made small


def room_picture(size: int, position: Sequence[int], goals: Sequence[Sequence[int]]) -> np.ndarray:
    """Cells of a room, `(16 size, 16 size, 3)` uint8; x to the right, y upwards."""
    image = np.empty((size, size, 3), dtype=np.uint8)
    image[:] = FLOOR
    for goal in goals:
        image[tuple(goal)] = GOAL
    image[tuple(position)] = AGENT
    image = image.transpose(1, 0, 2)[::-1]
    return image.repeat(CELL, axis=0).repeat(CELL, axis=1)


def plane_picture(
    extent: float,
    agent: Sequence[float],
    goal: Sequence[float],
    *,
    goal_radius: float = 0.0,
    arm: Sequence[Sequence[float]] = (),
) -> np.ndarray:
    """A square plane around the origin, `(192, 192, 3)` uint8; x to the right, y upwards.

    Args:
        extent: Half of its side.
        agent: Where a dot is.
        goal: Where another is.
        goal_radius: Of the goal, the dot's own if that is larger.
        arm: Points joined by a line.
    """
    side = WIDTH * FINER
    image = Image.new("RGB", (side, side), FLOOR)
    draw = ImageDraw.Draw(image)

    def pixel(point: Sequence[float]) -> tuple[float, float]:
        x, y = (float(value) / extent for value in point)
        return (1 + x) * side / 2, (1 - y) * side / 2

    def dot(point: Sequence[float], radius: float, colour: tuple[int, int, int]) -> None:
        x, y = pixel(point)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    least = side / 40
    dot(goal, max(least, goal_radius / extent * side / 2), GOAL)
    if arm:
        draw.line([pixel(point) for point in arm], fill=ARM, width=side // 50)
    dot(agent, least, AGENT)
    return np.asarray(image.resize((WIDTH, WIDTH), Image.Resampling.BOX))
