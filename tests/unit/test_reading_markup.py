"""Test that the text of HTML, TEI, EPUB and tables is found, and nothing else is opened."""

import codecs
import random
import zipfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from data_prep.cleaning.clean import clean
from data_prep.reading.documents import LeftOut, ReadOptions
from data_prep.steps import RECIPES
from tests.reading import read_all, reasons_in, texts_of

RUSSIAN = "Старый рыбак медленно шёл к реке и вспоминал долгую жизнь. Дети играли во дворе."
CHINESE = "老船长把灯放在窗边，望着河面。他说，如果明天天气好，我们就一起去城里买一些书。"
CHINESE_TRADITIONAL = "老船長把燈放在窗邊，望著河面。孩子們在院子裡唱歌，母親正在廚房裡準備晚飯。"
FRENCH = "Le vieux pêcheur marchait près de la rivière où l'été s'achève. Ça suffit, répéta-t-elle."

PAGE = """<!DOCTYPE html>
<html><head><title>Title</title><style>p {}</style></head><body>
<h1>Chapter&nbsp;I</h1><!-- no -->
<p>One
   line, <i>with</i> <b>high</b>lights &amp; caf&eacute;.<script>no()</script> More.
<p>Verse<br>in two<br/>
<ul><li>first<li>second</ul>
<pre>kept
  lines
</pre><table><tr><td>a<td>b<tr><td>c</table>
tail</body></html>"""
LINES = [
    "Chapter\xa0I",
    "One line, with highlights & café. More.",
    *("Verse", "in two", "first", "second", "kept", "  lines", "a b", "c", "tail"),
]


@pytest.mark.parametrize("name", ["a.html", "a.htm", "a.xhtml", "a"])
def test_html_gives_a_paragraph_a_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(PAGE)
    (document,), _ = read_all(tmp_path / name)
    assert (document.name, document.form) == (name, "paragraphs")
    assert isinstance(document.content, str)
    assert document.content.split("\n") == LINES


def test_xhtml_is_read_as_xml(tmp_path: Path) -> None:
    page = (
        '<?xml version="1.0"?><!DOCTYPE html PUBLIC "x" "http://127.0.0.1:1/x.dtd">'
        '<html xmlns="http://www.w3.org/1999/xhtml"><head><title/><script src="a.js"/></head>'
        '<body><p>a&nbsp;b<a id="x"/> c</p>{}</body></html>'
    )
    (tmp_path / "a.xhtml").write_text(page.format(""))
    (tmp_path / "b.xhtml").write_text(page.format("<p>not XML<br></p>"))
    assert texts_of(tmp_path / "a.xhtml") == ["a\xa0b c"]
    assert texts_of(tmp_path / "b.xhtml") == ["a\xa0b c\nnot XML"]


@pytest.mark.parametrize(
    ("head", "encoding", "option"),
    [
        ("", "utf-8", None),
        ("", "utf-16", None),
        ('<meta charset="windows-1251">', "cp1251", None),
        ('<?xml version="1.0" encoding="koi8-r"?>', "koi8-r", None),
        ('<meta http-equiv="Content-Type" content="text/html; charset=big5">', "utf-8-sig", None),
        ("", "cp1251", "cp1251"),
    ],
)
def test_html_states_its_encoding(
    tmp_path: Path, head: str, encoding: str, option: str | None
) -> None:
    (tmp_path / "a.html").write_bytes(f"{head}<p>Старый рыбак".encode(encoding))
    assert texts_of(tmp_path / "a.html", options=ReadOptions(encoding=option)) == ["Старый рыбак"]


def test_html_without_encoding_is_read_as_browsers_do(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes("<meta charset=latin1><p>“où”".encode("cp1252"))
    (document,), _ = read_all(tmp_path / "a.html")
    assert (document.content, document.encoding) == ("“où”", "cp1252")


@pytest.mark.parametrize(
    "head", ["", "<meta charset=utf-8>", "<meta charset=idna>", "<meta charset=hex>"]
)
@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        (RUSSIAN, "cp1251", "cp1251"),
        (RUSSIAN, "koi8-r", "koi8-r"),
        (CHINESE, "gbk", "gb18030"),
        (FRENCH, "cp1252", "iso8859-1"),
    ],
)
def test_html_in_an_undeclared_encoding_is_found_out_and_named(
    tmp_path: Path, head: str, text: str, encoding: str, name: str
) -> None:
    page = f"<html><head>{head}<title>{text}</title></head><body><div><p>{text}</p></div></body>"
    (tmp_path / "a.html").write_bytes(page.encode(encoding))
    (document,), _ = read_all(tmp_path / "a.html")
    name += " (declared utf-8)" if "utf-8" in head else ""
    assert (document.content, document.encoding) == (text, name)
    result = clean(document, RECIPES["plain"])
    assert (result.text, result.encoding) == (text, name)
    pages = {"a": f"<p>{text}</p>"}
    book, _ = read_all(write_epub(tmp_path / "a.epub", pages, ["a"], encoding))
    assert [(document.content, document.encoding) for document in book] == [
        (text, name.partition(" ")[0])
    ]
    documents, left_out = read_all(tmp_path, options=ReadOptions(guess=False))
    assert documents == []
    assert {item.reason for item in left_out} == {
        f"not UTF-8, seems to be {name.partition(' ')[0]}"
    }


def test_a_given_encoding_is_used_for_html_that_declares_another_in_vain(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes("<meta charset=utf-8><p>мы".encode("cp866"))
    (document,), _ = read_all(tmp_path / "a.html", options=ReadOptions(encoding="cp866"))
    assert (document.content, document.encoding) == ("мы", "cp866 (declared utf-8)")


def test_html_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(20_000)
    (tmp_path / "a.html").write_bytes(b"<meta charset=utf-8><p>" + noise.replace(b"<", b""))
    (tmp_path / "b.html").write_bytes(codecs.BOM_UTF16_LE + noise)
    (tmp_path / "c.html").write_bytes(noise)
    assert list(reasons_in(tmp_path).values()) == [
        "not text in a known encoding",
        "not text in utf-16",
        "not text in a known encoding",
    ]


def test_broken_characters_of_html_are_counted(tmp_path: Path) -> None:
    page = f"<meta charset=big5><p>{CHINESE_TRADITIONAL * 9}".encode("big5")
    (tmp_path / "a.html").write_bytes(page + b" \xff.")
    (document,), _ = read_all(tmp_path / "a.html")
    result = clean(document, RECIPES["plain"])
    assert (result.encoding, result.effects) == ("big5", {"encoding": 1})
    assert result.text == CHINESE_TRADITIONAL * 9 + " \ufffd."


TEI = """<?xml version="1.0" encoding="utf-8"?>
<TEI{}><teiHeader><titleStmt><title>No</title></titleStmt></teiHeader><text>
<front><p>No</p></front>
<body><div type="chapter"><head>I</head><pb n="1"/>
<p>Words <hi rend="i">that</hi> follow,<note>A <q>note</q>.</note><lb/>on <choice><sic>zhe</sic>
<corr>the</corr></choice> page &amp; after.</p><lg><l>One verse</l><l>Another</l></lg>
<floatingText><body><p>A letter.</p></body></floatingText></div></body>
<back><p>No</p></back></text></TEI>"""


@pytest.mark.parametrize(
    ("declared", "encoding", "text", "name"),
    [
        ("utf-8", "cp1252", FRENCH, "iso8859-1 (declared utf-8)"),
        ("utf-8", "cp1251", RUSSIAN, "cp1251 (declared utf-8)"),
        ("iso-8859-1", "utf-8", FRENCH, "utf-8 (declared iso8859-1)"),
        ("utf-16", "utf-8", FRENCH, "utf-8 (declared utf-16)"),
        ("klingon", "utf-8", FRENCH, "utf-8"),
        ("koi8-r", "koi8-r", RUSSIAN, "koi8-r"),
        ("iso-8859-1", "cp1252", FRENCH, "cp1252"),
        ("utf-16", "utf-16", FRENCH, "utf-16"),
    ],
)
@pytest.mark.parametrize("suffix", ["xml", "html"])
def test_markup_that_declares_another_encoding_is_read_and_named(
    tmp_path: Path, suffix: str, declared: str, encoding: str, text: str, name: str
) -> None:
    head = f'<?xml version="1.0" encoding="{declared}"?>'
    page = f"<TEI><text><body><p>{text}</p></body></text></TEI>"
    if suffix == "html":
        page = f'<html xmlns="http://www.w3.org/1999/xhtml"><body><p>{text}</p></body></html>'
    (tmp_path / f"a.{suffix}").write_bytes((head + page).encode(encoding))
    (document,), _ = read_all(tmp_path / f"a.{suffix}")
    assert (document.content, document.encoding) == (text, name)


def test_xml_is_read_in_a_stated_encoding(tmp_path: Path) -> None:
    page = f"<TEI><text><body><p>{RUSSIAN}</p></body></text></TEI>"
    (tmp_path / "a.xml").write_bytes(page.encode("cp1251"))
    (document,), _ = read_all(tmp_path / "a.xml", options=ReadOptions(encoding="cp1251"))
    assert (document.content, document.encoding) == (RUSSIAN, "cp1251")
    reason = "not UTF-8, seems to be cp1251"
    assert read_all(tmp_path, options=ReadOptions(guess=False))[1][0].reason == reason


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.html", "a.txt", "a.jsonl", "a.epub"])
def test_a_stated_utf16_is_not_believed_blindly(tmp_path: Path, name: str, encoding: str) -> None:
    options = ReadOptions(encoding=encoding)
    for text, real in ((FRENCH, "cp1252"), (RUSSIAN, "cp1251"), (PAGE, "ascii")):
        if name == "a.epub":
            write_epub(tmp_path / name, {"a": text}, ["a"], real)
        else:
            (tmp_path / name).write_bytes(text.encode(real, "ignore"))
        left_out = [LeftOut(name, f"not text in {encoding} (no byte-order mark)")]
        assert read_all(tmp_path / name, options=options) == ([], left_out)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("text", [RUSSIAN, CHINESE, FRENCH, "слово", "老船长", "a"])
def test_utf16_without_mark_is_read_if_it_is_stated(
    tmp_path: Path, encoding: str, text: str
) -> None:
    for name in ("a.html", "a.txt"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        found = texts_of(tmp_path / name, options=ReadOptions(encoding=encoding))
        assert found == [text]


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://www.tei-c.org/ns/1.0"'])
def test_tei_gives_the_body_of_the_text(tmp_path: Path, namespace: str) -> None:
    (tmp_path / "a.xml").write_text(TEI.format(namespace))
    (document,), _ = read_all(tmp_path / "a.xml")
    assert (document.name, document.form) == ("a.xml", "paragraphs")
    assert str(document.content).split("\n") == [
        "I",
        "Words that follow, on the page & after.",
        "One verse",
        "Another",
        "A letter.",
        "A note.",
    ]


def test_each_text_of_a_tei_corpus_is_a_document(tmp_path: Path) -> None:
    tei = "<TEI.2><text><group><text><body><p>{}</p></body></text></group></text></TEI.2>"
    (tmp_path / "a.xml").write_text(f"<corpus>{tei.format('one')}{tei.format('two')}</corpus>")
    assert texts_of(tmp_path / "a.xml") == ["one", "two"]


ENTITIES = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 30}">' for n in range(9))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<root><p>words</p></root>", "XML that is not TEI"),
        ("<TEI><text><body><p>cut", "XML that does not parse"),
        (
            f'<!DOCTYPE TEI [<!ENTITY e0 "aaaaaaaaaa">{ENTITIES}]>'
            "<TEI><text><body><p>&e9;</p></body></text></TEI>",
            "XML that does not parse",
        ),
        ("<TEI>" + "<a>" * 500_001, "markup of more than 16 MiB or 500000 tags"),
        ("<TEI>" + " " * (16 << 20), "markup of more than 16 MiB or 500000 tags"),
    ],
)
def test_other_xml_is_left_out(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "a.xml").write_text(content)
    assert reasons_in(tmp_path / "a.xml") == {"a.xml": reason}


@pytest.mark.parametrize("kind", ["xml", "xhtml"])
def test_markup_opens_no_other_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    root = "TEI" if kind == "xml" else "html xmlns='http://www.w3.org/1999/xhtml'"
    text = "<text><body><p>a&x;b</p></body></text>"
    (tmp_path / f"a.{kind}").write_text(
        f"<!DOCTYPE r [<!ENTITY x SYSTEM 'file://{tmp_path}/secret.txt'>]>"
        f"<{root}>{text}</{root.split()[0]}>"
    )
    assert not any("secret" in text for text in texts_of(tmp_path / f"a.{kind}"))


def test_html_that_is_too_deep_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>begin" + "<i>" * 1500 + "end")
    (tmp_path / "b.html").write_text("<p>begin" + "<i>" * 5000 + "end")
    assert texts_of(tmp_path / "a.html") == ["beginend"]
    assert reasons_in(tmp_path / "b.html") == {"b.html": "markup that is too deep"}


def write_epub(
    path: Path, pages: dict[str, str], spine: list[str], encoding: str = "utf-8"
) -> Path:
    container = '<container><rootfiles><rootfile full-path="OPS/a.opf"/></rootfiles></container>'
    items = "".join(
        f'<item id="{name}" href="{name}%20page.xhtml" properties="{name}" '
        'media-type="application/xhtml+xml"/>'
        for name in pages
    )
    references = "".join(f'<itemref idref="{name}"/>' for name in spine)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", container)
        archive.writestr(
            "OPS/a.opf",
            '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="cover" '
            f'href="c.png" media-type="image/png"/>{items}</manifest>'
            f'<spine><itemref idref="cover"/>{references}</spine></package>',
        )
        for name, text in pages.items():
            page = f"<html><body>{text}</body></html>"
            archive.writestr(f"OPS/{name} page.xhtml", page.encode(encoding))
    return path


def test_epub_is_read_in_the_order_of_its_spine(tmp_path: Path) -> None:
    pages = {"nav": "<p>contents</p>", "b": "<p>last</p>", "a": "<h1>I</h1><p>first</p>"}
    file = write_epub(tmp_path / "a.epub", pages, ["nav", "a", "b"])
    (document,), _ = read_all(file)
    assert (document.name, document.content, document.form) == (
        "a.epub",
        "I\nfirst\nlast",
        "paragraphs",
    )
    with zipfile.ZipFile(tmp_path / "books.zip", "w") as archive:
        archive.write(file, "deep/a.epub")
        archive.write(file, "no suffix")
    assert texts_of(tmp_path / "books.zip") == ["I\nfirst\nlast"] * 2


def test_epub_without_pages_is_left_out(tmp_path: Path) -> None:
    write_epub(tmp_path / "a.epub", {}, ["missing"])
    with zipfile.ZipFile(tmp_path / "b.epub", "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
    write_epub(tmp_path / "c.epub", {"a": "<i>" * 5000}, ["a"])
    write_epub(tmp_path / "d.epub", {"a": ""}, ["a"])
    assert reasons_in(tmp_path) == {
        f"{tmp_path.name}/{name}": reason
        for name, reason in {
            "a.epub": "epub without readable pages",
            "b.epub": "epub without readable pages",
            "c.epub": "markup that is too deep",
            "d.epub": "empty",
        }.items()
    }


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
@pytest.mark.parametrize("dictionary", [True, False])
def test_parquet_gives_its_text_column(
    tmp_path: Path, kind: pyarrow.DataType, dictionary: bool
) -> None:
    texts = ["one", "two\nlines", None, "", *map(str, range(100)), "one"]
    column = pyarrow.array(texts, kind)
    table = pyarrow.table(
        {
            "nested": [{"text": "no"}] * len(texts),
            "text": column.dictionary_encode() if dictionary else column,
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=40)
    documents, left_out = read_all(tmp_path / "a.parquet")
    assert [document.content for document in documents] == [text for text in texts if text]
    assert documents[1].name == "a.parquet:2"
    assert {document.form for document in documents} == {"record"}
    assert [(item.name, item.reason) for item in left_out] == [
        ("a.parquet:3", "null text"),
        ("a.parquet:4", "empty"),
    ]


def test_parquet_without_text_is_left_out(tmp_path: Path) -> None:
    table = pyarrow.table({"number": [1], "body": ["words"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert reasons_in(tmp_path / "a.parquet") == {
        "a.parquet": 'no field "text" (choose with --text-field)'
    }
    field = {"options": ReadOptions(text_field="body")}
    assert texts_of(tmp_path / "a.parquet", **field) == ["words"]
    _, left_out = read_all(tmp_path / "a.parquet", options=ReadOptions(text_field="number"))
    assert [item.reason for item in left_out] == ['"number" is no text']
