"""Pictures of acting: trails over a still, captions, films as GIF. Knows arrays of pixels only."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]

FAINTEST = 0.3
CAPTION, MARGIN = 30, 8  # pixels
PAPER, INK = (255, 255, 255), (0, 0, 0)
CELL = 16  # pixels
FLOOR, GOAL, AGENT = (30, 30, 36), (70, 190, 110), (235, 200, 70)
LEAST_WIDTH, MOST_WIDTH = 200, 400


def background(frames: Sequence[Picture]) -> Picture:
    """The scene without what moves in it: the median over the different pictures (H, W, 3).

    Every picture counts once however long it stood, so that a mover that rests somewhere does not
    become part of the scene.
    """
    different = {frame.tobytes(): frame for frame in frames}
    return np.median(np.stack(list(different.values())), axis=0).astype(np.uint8)


def trail(frames: Sequence[Picture], scene: Picture) -> Picture:
    """One picture (H, W, 3) of a film: what moved over the scene, the earlier the fainter."""
    picture = scene.astype(np.float64)
    for strength, frame in zip(np.linspace(FAINTEST, 1.0, len(frames)), frames, strict=True):
        moved = (frame != scene).any(-1)
        picture[moved] = (1 - strength) * scene[moved] + strength * frame[moved]
    return picture.round().astype(np.uint8)


def grid_pictures(
    path: NDArray[np.int64], shape: Sequence[int], goal: Sequence[int] | None
) -> list[Picture]:
    """A picture for each cell (x, y) of a path (T, 2) over a grid; x to the right, y upwards."""
    pictures = []
    for x, y in path.tolist():
        cells = np.empty((*shape, 3), dtype=np.uint8)
        cells[:] = FLOOR
        if goal is not None:
            cells[tuple(goal)] = GOAL
        cells[x, y] = AGENT
        image = cells.transpose(1, 0, 2)[::-1]
        pictures.append(image.repeat(CELL, axis=0).repeat(CELL, axis=1))
    return pictures


def smaller(picture: Picture) -> Picture:
    """A wide picture with whole rows and columns left out, until it is `MOST_WIDTH` at most."""
    every = -(-picture.shape[1] // MOST_WIDTH)
    return np.ascontiguousarray(picture[::every, ::every])


def captioned(panels: Sequence[tuple[str, Picture]], scale: int | None = None) -> Picture:
    """Panels side by side, each enlarged a whole number of times, under its caption."""
    width = panels[0][1].shape[1]
    scale = scale or max(1, -(-LEAST_WIDTH // width))
    font = ImageFont.load_default(size=13)
    pictures = []
    for caption, panel in panels:
        large = panel.repeat(scale, axis=0).repeat(scale, axis=1)
        size = (large.shape[1] + 2 * MARGIN, large.shape[0] + CAPTION + MARGIN)
        sheet = Image.new("RGB", size, PAPER)
        ImageDraw.Draw(sheet).text((MARGIN, 7), caption, fill=INK, font=font)
        sheet.paste(Image.fromarray(large), (MARGIN, CAPTION))
        pictures.append(np.asarray(sheet))
    return np.concatenate(pictures, axis=1)


def write_gif(path: Path, frames: Sequence[Picture], *, per_second: float = 8.0) -> None:
    """Write a film that repeats for ever; equal frames give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / per_second),
        loop=0,
        optimize=False,
    )
