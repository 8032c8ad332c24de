"""A sample's preview as one picture: its crops with their numbers, what unpadding removes, and the prompt."""

from dataclasses import dataclass
from itertools import chain

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from llava.picture_text import Word, in_ascii, set_text
from llava.prepare_data.preview import NEWLINE_MARK, Preview, PreviewedImage, PreviewedVideo, Span, marked

WIDTH, MARGIN, GAP = 1200, 24, 6
CONTENT = WIDTH - 2 * MARGIN
MAX_PANEL_HEIGHT = 900
LINE, FONT_SIZE, LABEL_SIZE = 22, 15, 12
PAPER, INK, BORDER, BADGE = (255, 255, 255), (30, 30, 30), (60, 60, 60), (20, 20, 20)
REMOVED, REMOVED_SHARE = (225, 40, 90), 0.55  # colour over removed padding, which is black, and its share
PLAIN, SUPERVISED, VISUAL, FAINT = "plain", "supervised", "visual", "faint"
_COLORS = {  # of the text and behind it
    PLAIN: (INK, None),
    SUPERVISED: ((0, 60, 20), (176, 232, 184)),
    VISUAL: ((20, 60, 140), (214, 228, 250)),
    FAINT: ((110, 110, 110), None),
}
LEGEND = (
    f"green: supervised, newlines there written {NEWLINE_MARK}; red: padding that is removed; on a crop: its number "
    "and patches kept (pooled in a video). Characters outside ASCII, which Pillow's own font lacks, are escaped."
)


@dataclass(frozen=True)
class Cell:
    """A crop in the picture: its pixels, the label on it, and its place in its panel."""

    crop: Image.Image
    label: str
    column: int = 0
    row: int = 0


@dataclass(frozen=True)
class Panel:
    """Crops that are drawn together: an image's first crop and, right of it, its grid; or one frame."""

    cells: tuple[Cell, ...]
    columns: int = 1
    rows: int = 1


def draw_preview(preview: Preview) -> Image.Image:
    """An RGB picture 1,200 pixels wide. Crops are never enlarged; they shrink so that each image fits on it."""
    font = ImageFont.load_default(size=FONT_SIZE)
    top, y = _set_text([(f"{line}\n", PLAIN) for line in preview.heading], font, MARGIN)
    panels = [_image_panel(image) for image in preview.images]
    for number, video in enumerate(preview.videos, start=1):
        panels += _frame_panels(video, number)
    tile = _tile_size(panels)
    placed, y = _place(panels, tile, y + GAP)
    prompt = [(marked(span), _style(span)) for span in preview.spans]
    bottom, y = _set_text([*prompt, (f"\n{preview.totals}\n", PLAIN), (LEGEND, FAINT)], font, y + GAP)

    picture = Image.new("RGB", (WIDTH, y + MARGIN), PAPER)
    for panel, left, upper in placed:
        _draw_panel(picture, panel, tile, left, upper)
    draw = ImageDraw.Draw(picture)
    for word in chain(top, bottom):
        ink, behind = _COLORS[word.style]
        if behind:
            draw.rectangle((word.x, word.y, word.x + word.width - 1, word.y + LINE - 3), fill=behind)
        draw.text((word.x, word.y), word.text, fill=ink, font=font)
    return picture


def _style(span: Span) -> str:
    return VISUAL if span.visual else SUPERVISED if span.supervised else PLAIN


def _image_panel(image: PreviewedImage) -> Panel:
    first, *tiles = map(Image.fromarray, image.crops)
    cells = [Cell(first, f"{image.first_crop}: {image.layout.base_tokens}")]
    wide, high = image.layout.grid
    for index, (tile, kept) in enumerate(zip(tiles, chain(*image.kept_patches))):
        column, row = index % wide, index // wide
        shaded = _shade_removed(tile, image, column, row)
        cells.append(Cell(shaded, f"{image.first_crop + 1 + index}: {kept}", column + 1, row))
    return Panel(tuple(cells), 1 + wide, max(high, 1))


def _frame_panels(video: PreviewedVideo, number: int) -> list[Panel]:
    tokens = video.layout.pooled_side**2
    return [
        Panel((Cell(Image.fromarray(pixels), f"v{number}.{frame}: {tokens}"),))
        for frame, pixels in enumerate(video.frames)
    ]


def _tile_size(panels: list[Panel]) -> int:
    """Pixels per side of every crop in the picture."""
    sizes = [panel.cells[0].crop.width for panel in panels]
    for panel in panels:
        sizes += [CONTENT // panel.columns - GAP, MAX_PANEL_HEIGHT // panel.rows - GAP]
    if len(panels) > 1:
        sizes.append(CONTENT // (4 if len(panels) <= 8 else 8) - GAP)
    return max(min(sizes, default=0), 1)


def _place(panels: list[Panel], tile: int, y: int) -> tuple[list[tuple[Panel, int, int]], int]:
    """[(panel, left, top)] in reading order, and the y below them."""
    placed, x, row_height = [], MARGIN, 0
    for panel in panels:
        width = panel.columns * (tile + GAP)
        if x > MARGIN and x + width > MARGIN + CONTENT + GAP:
            x, y, row_height = MARGIN, y + row_height, 0
        placed.append((panel, x, y))
        x += width
        row_height = max(row_height, panel.rows * (tile + GAP))
    return placed, y + row_height


def _draw_panel(picture: Image.Image, panel: Panel, tile: int, left: int, top: int) -> None:
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=LABEL_SIZE)
    for cell in panel.cells:
        x, y = left + cell.column * (tile + GAP), top + cell.row * (tile + GAP)
        crop = cell.crop if cell.crop.width == tile else cell.crop.resize((tile, tile), Image.Resampling.LANCZOS)
        picture.paste(crop, (x, y))
        draw.rectangle((x - 1, y - 1, x + tile, y + tile), outline=BORDER)
        draw.rectangle((x, y, x + round(font.getlength(cell.label)) + 5, y + LABEL_SIZE + 3), fill=BADGE)
        draw.text((x + 3, y), cell.label, fill=PAPER, font=font)


def _shade_removed(crop: Image.Image, image: PreviewedImage, column: int, row: int) -> Image.Image:
    """The tile at (column, row) of the grid, coloured where unpadding removes it."""
    row0, column0, rows, columns = image.layout.window
    left, right = (_edge(column0 + extent, column, image.side, crop.width) for extent in (0, columns))
    upper, lower = (_edge(row0 + extent, row, image.side, crop.height) for extent in (0, rows))
    shaded = Image.blend(crop, Image.new("RGB", crop.size, REMOVED), REMOVED_SHARE)
    if right > left and lower > upper:
        shaded.paste(crop.crop((left, upper, right, lower)), (left, upper))
    return shaded


def _edge(patch: int, tile: int, side: int, size: int) -> int:
    """The pixel in tile number `tile`, along one axis, at which patch `patch` of the joined map begins."""
    inside = min(max(patch - tile * side, 0), side)
    return size if inside == side else inside * (size // side)


def _set_text(pieces: list[tuple[str, str]], font: FreeTypeFont, y: int) -> tuple[list[Word], int]:
    ascii_pieces = [(in_ascii(text), style) for text, style in pieces]
    return set_text(ascii_pieces, font, MARGIN, y, CONTENT, LINE)
