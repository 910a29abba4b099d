"""What the memories of external attention look at: heat maps over a picture, a cloud coloured by its attention."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jea.draw import style
from jea.draw.clouds import VIEWS, draw_cloud
from jea.metrics.attention import memory_use

SIDE, SMALL = 96, 44  # of a tile, and where a layer has more than COLUMNS heads
COLUMNS, MANY = 8, 16  # tiles in a line, likewise
_GAP, _LEFT, _LINE = 6, 120, 16
WIDTH = _LEFT + (COLUMNS + 1) * (SIDE + _GAP)
_HOT = [[250, 150, 60], [200, 45, 50], [96, 0, 60]]
_OVER_PICTURE = np.array([[255, 255, 255], [255, 226, 150], *_HOT], np.float64)
_OF_POINTS = np.array([[212, 215, 222], [246, 198, 120], *_HOT], np.float64)  # on white paper
_FOOT = ("Percent: of all attention. Difference of two maps, each scaled to sum 1: half the summed difference; 0: the "
         "same, 1: nothing in common.")


class OnPicture:
    """Heat maps over a picture, which fades to grey below them.

    Args:
        image: (H, W, 3) uint8.
        covered: shares of the grid's height and width that the picture takes, from the top left; the rest was padding.
        aligned: the grid's outermost positions lie on the picture's edges, else in the middle of the outermost cells.
    """

    ramp = _OVER_PICTURE

    def __init__(self, image: np.ndarray, *, covered: tuple[float, float] = (1.0, 1.0), aligned: bool = False):
        self.image, self.covered, self.aligned = image, covered, aligned

    def layer(self, title: str, found, number: int) -> Layer | None:
        """A jea.AttentionMap's sample of this number; None where its positions lie on no grid."""
        return None if found.grid is None else Layer(title, found.pictures[number], self)

    def plain(self, side: int) -> np.ndarray:
        """The picture alone, (h, w, 3) uint8 of a longer side `side`."""
        height, width = self.image.shape[:2]
        zoom = side / max(height, width)
        size = max(1, round(width * zoom)), max(1, round(height * zoom))
        return np.array(Image.fromarray(self.image).resize(size, Image.Resampling.LANCZOS))

    def tile(self, heat: np.ndarray, side: int) -> np.ndarray:
        """The picture under a heat map (h, w) of values from 0 to 1, likewise."""
        picture = self.plain(side)
        edge = 0.5 if self.aligned else 0.0
        (h, w), (down, along) = heat.shape, self.covered
        box = (edge, edge, edge + (w - 2 * edge) * along, edge + (h - 2 * edge) * down)
        size = picture.shape[1], picture.shape[0]
        if min(h, w) > 1 or not self.aligned:
            heat = np.array(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR, box=box))
        else:
            heat = np.full(size[::-1], heat.mean())
        grey = 0.45 * picture.mean(2, keepdims=True) + 0.55 * 255
        return np.rint(grey * colours(heat, self.ramp) / 255).astype(np.uint8)


class OnCloud:
    """A cloud coloured by attention: each point by that of the nearest point which is attended to.

    Args:
        points: (N, 3), all that is drawn. attended: (M, 3), where the positions of a map lie.
    """

    ramp = _OF_POINTS

    def __init__(self, points: np.ndarray, attended: np.ndarray | None = None):
        self.points, self.attended = points, points if attended is None else attended
        distances = (self.attended ** 2).sum(1) - 2 * self.points @ self.attended.T  # but for what all have in common
        self.nearest = distances.argmin(1)

    def layer(self, title: str, found, number: int) -> Layer | None:
        """A jea.AttentionMap's sample of this number; None where its positions are no points."""
        return None if found.points is None else Layer(title, found.values[number], OnCloud(self.points,
                                                                                            found.points[number]))

    def plain(self, side: int) -> np.ndarray:
        return self._draw(colours(np.zeros(len(self.points)), self.ramp), side)

    def tile(self, heat: np.ndarray, side: int) -> np.ndarray:
        return self._draw(colours(heat[self.nearest], self.ramp), side)

    def _draw(self, colour: np.ndarray, side: int) -> np.ndarray:
        azimuth, elevation = VIEWS[0]
        return draw_cloud(self.points, np.rint(colour).astype(np.uint8), azimuth=azimuth, elevation=elevation,
                          side=side)


def colours(heat: np.ndarray, ramp: np.ndarray = _OVER_PICTURE) -> np.ndarray:
    """Values from 0 to 1 as colours from pale over orange to a dark red, float64 (..., 3)."""
    places = np.linspace(0, 1, len(ramp))
    return np.stack([np.interp(heat, places, channel) for channel in ramp.T], axis=-1)


@dataclass
class Layer:
    """The attention of a layer in one picture.

    title: its name. attention: (heads, S, h, w) over a grid, or (heads, S, N). view: an OnPicture or an OnCloud.
    """
    title: str
    attention: np.ndarray
    view: OnPicture | OnCloud

    def __post_init__(self):
        self.uses = [memory_use(head.reshape(len(head), -1)) for head in self.attention]

    def numbers(self) -> dict:
        """MemoryUse.numbers, the mean over the heads."""
        found = [use.numbers() for use in self.uses]
        return {name: float(np.mean([numbers[name] for numbers in found])) for name in found[0]}

    def words(self) -> str:
        """What its drawing shows, for who cannot see it."""
        uses = self.uses
        if len(uses) > COLUMNS:  # each by name would be too much to listen to
            return f"{self.about()}; maps differ by " + ", ".join(self._differences())
        shown = [f"memory {k} {uses[0].mass[k]:.1%}" for k in uses[0].most] if len(uses) == 1 else \
            [f"head {h} memory {use.most[0]} {use.mass[use.most[0]]:.1%}" for h, use in enumerate(uses, 1)]
        return f"{self.title}: {', '.join(shown)}; maps differ by " + ", ".join(self._differences())

    def about(self) -> str:
        """Its name and sizes."""
        heads, memories, *places = self.attention.shape
        return (f"{self.title}: {heads} heads, " if heads > 1 else f"{self.title}: ") + \
            f"{memories} memories, {' x '.join(map(str, places))} positions"

    def _differences(self) -> list[str]:
        most, least, between = list(self.numbers().values())[2:]
        return [f"{most:.2f} (most used)", f"{least:.2f} (least used)", f"{between:.2f} (between)"]

    def lines(self) -> list:
        """[(words at the left, [(label, map), ...]), ...]: of one head its most and its least used memories, of several
        the most used memory of each."""
        uses, differences = self.uses, ["", "maps differ by", *self._differences()]
        if len(uses) == 1:
            tiles = [[(f"memory {k}  {uses[0].mass[k]:.1%}", self.attention[0][k]) for k in group]
                     for group in (uses[0].most, uses[0].least)]
            return [(["most used"], tiles[0]), (["least used", *differences], tiles[1])]
        label = "head {}: #{} {:.1%}" if len(uses) <= COLUMNS else "{}: #{}"
        tiles = [(label.format(h, use.most[0], use.mass[use.most[0]]), head[use.most[0]])
                 for h, (head, use) in enumerate(zip(self.attention, uses), 1)]
        each = COLUMNS if len(tiles) <= COLUMNS else MANY
        rows = [([], tiles[start:start + each]) for start in range(0, len(tiles), each)]
        rows[0] = (["most used", "memory (#) of each", *differences], rows[0][1])
        return rows


def attention_sheet(layers: Sequence[Layer]) -> np.ndarray:
    """The layers below each other: the picture, and heat maps from 0 to the largest share of each. (h, w, 3) uint8."""
    blocks = [_block(layer) for layer in layers]
    canvas = Image.new("RGB", (WIDTH, sum(block.height for block in blocks) + 2 * _LINE + 3 * _GAP), style.PAPER)
    top = 0
    for block in blocks:
        canvas.paste(block, (0, top))
        top += block.height
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    ramp = np.broadcast_to(colours(np.linspace(0, 1, 120), layers[0].view.ramp), (10, 120, 3))
    left = _GAP + 14
    canvas.paste(Image.fromarray(np.rint(ramp).astype(np.uint8)), (left, top + 9))
    draw.rectangle((left - 1, top + 8, left + 120, top + 19), outline=style.SOFT)
    draw.text((_GAP, top + 18), "0", style.INK, font, anchor="ls")
    draw.text((left + 128, top + 18), "the largest share of each map", style.INK, font, anchor="ls")
    draw.text((_GAP, top + 18 + _LINE + 2), _FOOT, style.SOFT, font, anchor="ls")
    return np.array(canvas)


def _block(layer: Layer) -> Image.Image:
    lines, first = layer.lines(), layer.view.plain(SIDE)
    side = SMALL if len(layer.attention) > COLUMNS else SIDE
    height = layer.view.plain(side).shape[0]
    step, top = height + _LINE + _GAP, _LINE + 2 * _GAP
    words = max(len(words) * _LINE + row * step for row, (words, _) in enumerate(lines))
    canvas = Image.new("RGB", (WIDTH, top + max(len(lines) * step, first.shape[0] + _GAP, words) + _GAP), style.PAPER)
    draw, font, small = ImageDraw.Draw(canvas), ImageFont.load_default(size=12), ImageFont.load_default(size=11)
    draw.text((_GAP, _LINE), layer.about(), style.INK, font, anchor="ls")
    canvas.paste(Image.fromarray(first), (_LEFT, top))
    for words, tiles in lines:
        for row, text in enumerate(words):
            draw.text((_GAP, top + 10 + row * _LINE), text, style.SOFT if row else style.INK, font, anchor="ls")
        for column, (label, heat) in enumerate(tiles):
            x = _LEFT + SIDE + _GAP + column * (side + _GAP)
            tile = layer.view.tile(heat / max(float(heat.max()), np.finfo(np.float32).tiny), side)
            canvas.paste(Image.fromarray(tile), (x, top))
            draw.text((x, top + height + 12), label, style.INK, small, anchor="ls")
        top += step
    draw.line((0, canvas.height - 1, canvas.width, canvas.height - 1), style.GRID)
    return canvas
