"""A README as safe HTML: no scripts, no foreign hosts, links and images relative to the repository."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import quote, unquote, urlsplit

import nh3
from markdown_it import MarkdownIt

_ATTRIBUTES = {
    "*": {"align", "title"},
    "a": {"href"},
    "code": {"class"},
    "details": {"open"},
    "img": {"src", "alt", "width", "height"},
    "ol": {"start"},
    "td": {"colspan", "rowspan", "style"},
    "th": {"colspan", "rowspan", "style"},
    **{f"h{level}": {"id"} for level in range(1, 7)},
}
_TAGS = {
    *"a abbr b blockquote br center code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img ins kbd li".split(),
    *"mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th thead tr u ul var wbr".split(),
}
_ALIGN = re.compile(r"text-align: ?(left|right|center)")
_LANGUAGE = re.compile(r"language-[\w+.#-]{1,30}")
_SLUG = re.compile(r"[^\w\- ]+")


def render(text: str, *, files_url: str, pages_url: str, folder: str = "") -> str:
    """Return Markdown as HTML that may stand in a page.

    Args:
        text: Markdown, with HTML in it.
        files_url: Address below which the files of the repository are, for images.
        pages_url: Address below which the pages of its files are, for links.
        folder: Folder of the text in the repository; relative addresses start there.
    """
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(text)
    taken: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", _slug(tokens[index + 1].content, taken))
        for child in token.children or ():
            # The page may not fetch an image from another host; what it shows stays readable.
            if child.type == "image" and _inside(str(child.attrGet("src")), files_url, folder) is None:
                child.type, child.tag, child.nesting = "text", "", 0
                child.content = f"[image: {child.content}]"
    dirty = parser.renderer.render(tokens, parser.options, {})

    def address(tag: str, attribute: str, value: str) -> str | None:
        if tag == "img" and attribute == "src":
            return _inside(value, files_url, folder)
        if tag == "a" and attribute == "href":
            outside = urlsplit(value).scheme or value.startswith(("#", "//"))
            return value if outside else _inside(value, pages_url, folder)
        if attribute == "style":
            return value if _ALIGN.fullmatch(value.strip("; ")) else None
        if attribute == "class":
            return value if _LANGUAGE.fullmatch(value) else None
        return value

    return nh3.clean(
        dirty,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        attribute_filter=address,
        url_schemes={"http", "https", "mailto"},
        clean_content_tags={"script", "style", "template", "title"},
        link_rel="noopener noreferrer nofollow",
    )


def _inside(value: str, base: str, folder: str) -> str | None:
    """Return the address of a file of the repository, or None for any other address."""
    try:
        parts = urlsplit(value.strip())
    except ValueError:
        return None
    if parts.scheme or parts.netloc or value.lstrip().startswith(("//", "\\")):
        return None
    path = posixpath.normpath(posixpath.join("/", folder, unquote(parts.path)))
    fragment = f"#{quote(parts.fragment)}" if parts.fragment else ""
    return f"{base}/{quote(path.lstrip('/'))}{fragment}"


def _slug(title: str, taken: dict[str, int]) -> str:
    slug = _SLUG.sub("", title.lower()).strip().replace(" ", "-") or "section"
    count = taken.get(slug, 0)
    taken[slug] = count + 1
    return f"{slug}-{count}" if count else slug
