"""The demo model's text: Debian packages -> cleaned documents -> train, validation and test. Standard library only.

The stages are functions, in the order they run: fetch, read_all (one reader per kind of source), split; notices gives the
licence texts that have to travel with the model.
"""

import codecs
import gzip
import hashlib
import html
import re
import struct
import subprocess
import zlib
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Iterator

# The demo's prompts. The second is the first line of a chapter, which therefore has to be in the training split.
PROMPTS = ["And it came to pass", "It is a truth universally acknowledged, that"]

# Package, weight in the mix (prose above documentation), licence as its copyright file states it.
PACKAGES = {
    "r-cran-janeaustenr": (1.5, "six novels by Jane Austen, public domain (packaging: MIT)"),
    "sword-text-kjv": (1.0, "King James Version, public domain"),
    "sword-text-web": (1.0, "public domain; the text used is derived from the World English Bible"),
    "dict-jargon": (1.0, "Jargon File 4.4.7, public domain"),
    "dict-devil": (1.0, "Ambrose Bierce, The Devil's Dictionary, public domain"),
    "golang-github-andybalholm-brotli-dev": (1.0, "Isaac Newton, Opticks, public domain (packaging: MIT)"),
    "postgresql-doc-15": (0.7, "PostgreSQL License"),
    "python3.11-doc": (0.7, "Python Software Foundation License"),
}
FUNCTION_WORDS = set("""a an and are as at be been but by can for from had has have he her his if in into is it its may
my no not of on or our she so that the their them then there these they this to was we were when which who will with
would you your""".split())
# Paragraphs with a slur or an obscenity are dropped. ROT13, so that nobody has to read them here.
UNWANTED = re.compile(r"\b(" + codecs.decode("shpx|fuvg|phag|avttre|snttbg|snt|xvxr|fcvp|puvax|gjng|pbpxfhpxre", "rot13")
                      + r")(s|ed|er|ers|ing|ty)?\b", re.I)


@dataclass
class Doc:
    """A chapter, a page or a dictionary entry: the unit that is kept whole on one side of the split."""
    source: str
    unit: str
    paragraphs: list[str]


# ---- fetch: Debian packages, unpacked but not installed ----

def fetch(work: Path) -> dict[str, dict[str, str]]:
    """Downloads and unpacks every package; answers version and sha256 of each, for the model card."""
    debs = work / "debs"
    for folder in (debs, work / "x"):
        folder.mkdir(parents=True, exist_ok=True)
    facts = {}
    for name in PACKAGES:
        if not list(debs.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", name], cwd=debs, check=True)
        deb = max(debs.glob(f"{name}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", deb, work / "x" / name], check=True)
        facts[name] = {"version": subprocess.check_output(["dpkg-deb", "-f", deb, "Version"], text=True).strip(),
                       "sha256": hashlib.sha256(deb.read_bytes()).hexdigest()}
    return facts


# ---- readers: one generator per kind of source ----

def clean(text: str) -> str:
    """One paragraph on one line, in plain typography, so that a small vocabulary is not spent on quotation marks."""
    for old, new in (("\u00ad", ""), ("\u2018", "'"), ("\u2019", "'"), ("\u201c", '"'), ("\u201d", '"'),
                     ("\u2014", "--"), ("\u2013", "-"), ("\u2026", "..."), ("\u00b6", "")):
        text = text.replace(old, new)
    return " ".join(text.split())


def is_prose(p: str) -> bool:
    """Whether a paragraph reads as English sentences rather than code, a table row, a heading or a list of names."""
    words = p.lower().split()
    plain = sum(c.isalpha() or c in " .,;:'\"!?-()" for c in p)
    return (len(p) >= 80 and len(words) >= 12 and plain >= 0.92 * len(p) and p[-1] in ".!?:\"')"
            and sum(w.strip(".,;:'\"!?()") in FUNCTION_WORDS for w in words) >= 0.18 * len(words))


def read_austen(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Rdata.rdb is a row of [big-endian size][zlib stream]; each stream is R's XDR form of a vector of lines."""
    data = next(root.rglob("data/Rdata.rdb")).read_bytes()
    while data:
        inflate = zlib.decompressobj()
        blob = inflate.decompress(data[4:])
        data = inflate.unused_data
        at = blob.index(b"\x00\x00\x00\x10") + 8  # type STRSXP, then the count, then flags + size + bytes of each
        lines = []
        while at + 8 <= len(blob):
            size = struct.unpack_from(">i", blob, at + 4)[0]
            lines.append(blob[at + 8:at + 8 + max(size, 0)].decode())
            at += 8 + max(size, 0)
        book, *chapters = re.split(r"(?im)^chapter [ivxl\d]+\.?.*$", "\n".join(lines).replace("_", ""))
        title = book.strip().split("\n")[0].title()
        for number, chapter in enumerate(chapters, 1):
            paragraphs = [clean(p) for p in re.split(r"\n\s*\n", chapter)]
            yield f"{title}/{number}", [p for p in paragraphs if not p.isupper() and re.search(r"[a-z].*[a-z]", p)
                                        and not re.match(r"(?i)(the end|finis|end of)\b|.*\bvolume [ivx]+$", p)]


def read_sword(root: Path) -> Iterator[tuple[str, list[str]]]:
    """zText: .bzs holds (offset, length, inflated length) of one zlib block per book in .bzz; the text is OSIS XML."""
    for index in sorted(root.rglob("*.bzs"), reverse=True):
        blocks = index.with_suffix(".bzz").read_bytes()
        for offset, length, _ in struct.iter_unpack("<III", index.read_bytes()):
            if not length:
                continue
            xml = zlib.decompress(blocks[offset:offset + length]).decode()
            parts = re.split(r'<chapter [^>]*sID="([^"]+)"[^>]*/>', xml)
            for unit, text in zip(parts[1::2], parts[2::2]):
                # A space for the note: without one, the words on its two sides grow together.
                text = re.sub(r"(?s)<note.*?</note>|<title.*?</title>", " ", text)
                # The older translation marks its paragraphs by pilcrows and sets each verse on a line of its own.
                breaks = "\u00b6" if "kjv" in root.name else r'<div [^>]*sID[^>]*type="x-p"[^>]*>|<lg [^>]*>'
                text = re.sub(r"<[^>]*>", "", re.sub(breaks, "\n\n", text))
                yield unit, [p for p in map(clean, re.split(r"\n\n", text)) if len(p) > 20]


def read_jargon(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Headwords at the margin, bodies indented by four."""
    text = gzip.decompress(next(root.rglob("*.dict.dz")).read_bytes()).decode("utf-8", "replace")
    for entry in re.split(r"\n(?=\S)", text):
        head, _, body = entry.partition("\n")
        paragraphs = [clean(p.replace("{", "").replace("}", "")) for p in re.split(r"\n\s*\n", body)]
        paragraphs = [p for p in paragraphs if is_prose(p) and not UNWANTED.search(p)]
        if paragraphs and not head.startswith("00-database"):
            paragraphs[0] = f"{clean(head)}: {paragraphs[0]}"
            yield head, paragraphs


def read_devil(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Entries start at the margin with the word in capitals; verse is indented, and dropped."""
    text = gzip.decompress(next(root.rglob("*.dict.dz")).read_bytes()).decode("utf-8", "replace")
    unit, paragraphs = "", []
    for block in re.split(r"\n\s*\n", text):
        head = re.match(r"\n*([A-Z][A-Z' -]+), ", block)
        if head:
            if paragraphs and unit:
                yield unit, paragraphs
            unit, paragraphs = head[1], []
        if not block.lstrip("\n").startswith(" ") and is_prose(clean(block)) and not UNWANTED.search(block):
            paragraphs.append(clean(block))


def read_opticks(root: Path) -> Iterator[tuple[str, list[str]]]:
    """One book without usable chapter marks, so its unit is a run of twenty paragraphs."""
    text = next(root.rglob("*Opticks.txt")).read_text().replace("_", "")
    paragraphs = [p for p in map(clean, re.split(r"\n\s*\n", text)) if is_prose(p) and "pgdp.net" not in p]
    for i in range(0, len(paragraphs), 20):
        yield str(i // 20), paragraphs[i:i + 20]


class Paragraphs(HTMLParser):
    """Collects the text of <p>, outside tables, code blocks and navigation."""
    SKIP = {"pre", "table", "nav", "script", "style", "head"}

    def __init__(self) -> None:
        super().__init__()
        self.skipping, self.inside, self.text, self.found = 0, False, "", []

    def handle_starttag(self, tag, attrs):
        self.skipping += tag in self.SKIP
        if tag == "p":
            self.inside, self.text = True, ""

    def handle_endtag(self, tag):
        self.skipping -= tag in self.SKIP
        if tag == "p" and self.inside:
            self.inside = False
            self.found.append(clean(self.text))

    def handle_data(self, data):
        if self.inside and not self.skipping:
            self.text += data


def read_html(root: Path) -> Iterator[tuple[str, list[str]]]:
    base = next(root.rglob("html"))
    for page in sorted(base.rglob("*.html")):
        if page.name.startswith(("genindex", "py-modindex", "search", "license", "bookindex", "changelog")):
            continue
        parser = Paragraphs()
        parser.feed(page.read_text("utf-8", "replace"))
        yield str(page.relative_to(base)), [p for p in parser.found if is_prose(p) and not UNWANTED.search(p)]


READERS = {
    "r-cran-janeaustenr": read_austen, "sword-text-kjv": read_sword, "sword-text-web": read_sword,
    "dict-jargon": read_jargon, "dict-devil": read_devil, "golang-github-andybalholm-brotli-dev": read_opticks,
    "postgresql-doc-15": read_html, "python3.11-doc": read_html,
}


def read_all(work: Path) -> list[Doc]:
    """Every document, with long paragraphs that occur twice kept once."""
    docs, seen = [], set()
    for source, reader in READERS.items():
        for unit, paragraphs in reader(work / "x" / source):
            fresh = [p for p in paragraphs if len(p) < 80 or p not in seen]
            seen.update(fresh)
            if fresh:
                docs.append(Doc(source, unit, fresh))
    return docs


# ---- split ----

def unit_hash(doc: Doc) -> int:
    # The two translations share a unit: parallel chapters must not straddle the split.
    source = "bible" if doc.source.startswith("sword-text") else doc.source
    return int(hashlib.sha256(f"{source}/{doc.unit}".encode()).hexdigest(), 16)


def split(docs: list[Doc], span: int = 50) -> tuple[list[Doc], list[Doc], list[Doc]]:
    """By hash of the unit: 2 % test, 2 % validation, the rest train; the unit of the second prompt stays in train.

    A test paragraph that shares `span` bytes with the training text is dropped: formulas would flatter the figures.
    """
    parts: tuple[list[Doc], list[Doc], list[Doc]] = ([], [], [])
    for doc in docs:
        bucket = unit_hash(doc) % 100
        forced = any(p.startswith(PROMPTS[1]) for p in doc.paragraphs)
        parts[0 if forced or bucket >= 4 else 2 if bucket < 2 else 1].append(doc)
    train, valid, test = parts
    owners: dict[bytes, set[str]] = {}
    for paragraph in (p for doc in test for p in doc.paragraphs):
        raw = paragraph.encode()
        for i in range(len(raw) - span + 1):
            owners.setdefault(raw[i:i + span], set()).add(paragraph)
    shared: set[str] = set()
    for raw in (p.encode() for doc in train for p in doc.paragraphs):
        for i in range(len(raw) - span + 1):
            if (hit := owners.get(raw[i:i + span])) is not None:
                shared |= hit
    test = [Doc(d.source, d.unit, [p for p in d.paragraphs if p not in shared]) for d in test]
    return train, valid, [d for d in test if d.paragraphs]


# ---- licences ----

def notices(work: Path) -> str:
    """The licence texts that travel with what is made from the documentation, out of the packages themselves."""
    def page(path: str) -> list[str]:  # the text of an HTML page, its lines without indentation or blanks
        raw = re.sub(r"<[^>]*>", "", (work / "x" / path).read_text())
        return [line.strip() for line in html.unescape(raw).split("\n") if line.strip()]

    postgres = page("postgresql-doc-15/usr/share/doc/postgresql-doc-15/html/legalnotice.html")
    python = (work / "x/python3.11-doc/usr/share/doc/python3.11-doc/copyright").read_text()
    python = python[python.index("A. HISTORY OF THE SOFTWARE"):python.index("Licenses and Acknowledgements")]
    holders = re.findall(r"Copyright \u00a9 .*? reserved\.",
                         " ".join(page("python3.11-doc/usr/share/doc/python3.11/html/copyright.html")))
    austen = (work / "x/r-cran-janeaustenr/usr/share/doc/r-cran-janeaustenr/copyright").read_text()
    mit = re.sub(r"(?m)^ \.?", "", austen[austen.index("License: MIT\n Permission"):].partition("\n")[2])
    years = re.search(r"Copyright: (.*)", austen)[1]
    return f"\n\n{'=' * 78}\n".join([
        "The weights, the tokenizer, calibration.txt and heldout.txt in this directory are derived from the works\n"
        "below and from works in the public domain; README.md lists the packages. Changes: text was extracted from\n"
        "the packages' files, cleaned, cut into passages and used to train a statistical model.",
        "PostgreSQL documentation\n\n" + "\n".join(postgres[1:]),  # the first line is the page's title
        "Python documentation\n\n" + "\n".join(holders) + "\n\n" + python.strip(),
        f"Packaging of the novels (r-cran-janeaustenr)\n\nCopyright (c) {years}\n\n{mit.strip()}\n",
    ])
