"""Parts of the page as HTML: pictures with their tiles, managers' weights as bars, a sentence. All text is escaped."""

from collections.abc import Sequence
from html import escape

from llava.chat.media import Medium
from llava.chat.page.visit import Seat, Visit
from llava.chat.weights_chart import ManagerWeights
from llava.data.tile_lines import Cuts, count_tiles, jpeg_uri, lined

NOTHING_YET = "Pictures appear here as the models see them, with the edges of their tiles as white lines."


def pictures_html(visit: Visit) -> str:
    """All pictures of the conversation, each once for every way in which the models cut it."""
    media = visit.pictures
    if not media:
        return f'<p class="faint">{NOTHING_YET}</p>'
    return "".join(_figures(number, medium, visit.seats, len(media)) for number, medium in enumerate(media, start=1))


def _figures(number: int, medium: Medium, seats: Sequence[Seat], count: int) -> str:
    models_of: dict[Cuts, list[str]] = {}
    for seat in seats:
        models_of.setdefault(seat.cuts(medium.content.size, count > 1), []).append(seat.model.name)
    figures = []
    for places, models in models_of.items():
        tiles = count_tiles(places)
        cut = f"{tiles} tiles and the whole" if tiles > 1 else "one crop"
        whose = f" ({', '.join(models)})" if len(models_of) > 1 else ""
        caption = escape(f"{number}. {medium}: {cut}{whose}")
        picture = jpeg_uri(lined(medium.content, places))
        figures.append(f'<figure><img src="{picture}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    return "".join(figures)


def weights_html(weights: list[ManagerWeights] | None) -> str:
    """A small chart for each manager, a bar for each vision layer; all bars have one scale."""
    if weights is None:
        return '<p class="faint">Managers\' weights appear here with the first answer.</p>'
    if not weights:
        return '<p class="faint">This model has no managers.</p>'
    largest = max((size for manager in weights for size in manager.sizes or ()), default=0.0)
    charts = "".join(_chart(manager, largest) for manager in weights)
    return f'<p class="faint">Managers: mean |W| by vision layer</p><div class="managers">{charts}</div>'


def _chart(manager: ManagerWeights, largest: float) -> str:
    title = f"<caption>layer {manager.layer}, {escape(manager.kind)}</caption>"
    if manager.sizes is None:
        return f"<table>{title}<tr><td>decides when it sees a picture</td></tr></table>"
    rows = "".join(
        f'<tr><th>V{layer}</th><td class="bar"><i style="width:{100 * size / largest if largest else 0:.1f}%"></i></td>'
        f"<td>{size:.3f}</td></tr>"
        for layer, size in zip(manager.vision_layers, manager.sizes, strict=True)
    )
    return f"<table>{title}{rows}</table>"


def notice_html(sentence: str) -> str:
    """A sentence that is to be seen; nothing of an empty one."""
    return f'<div class="notice" role="alert">{escape(sentence)}</div>' if sentence else ""
