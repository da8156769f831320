"""A page as a browser takes it apart."""

from html.parser import HTMLParser

APART = ("td", "th", "tr", "p", "br", "div", "li", "pre")  # what begins on a line or in a cell of its own


class PageReader(HTMLParser):
    """Every tag with its attributes, and all text but that of styles; `words` has one blank between words."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._last = "", ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.text += " " if tag in APART else ""
        self._last = tag

    def handle_data(self, data):
        if self._last != "style":
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    @property
    def sections(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "h2"]

    @property
    def images(self) -> list[str]:
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]
