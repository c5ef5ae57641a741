"""Test that bytes are read in the encoding that they are in, or left out."""

import codecs
import random

import pytest

from data_prep.cleaning.encodings import decode
from data_prep.steps import Steps
from tests.texts import SHARED, TEXTS, cleaned

CHINESE = "老船长把灯放在窗边，望着河面。他说，如果明天天气好，我们就一起去城里买一些书。"
TAIWAN = "老船長把燈放在窗邊，望著河面。孩子們在院子裡唱歌，母親正在廚房裡準備晚飯。"
JAPANESE = "昨日は雨が降っていたので、家で本を読みました。夜になると少し涼しくなります。"
KOREAN = "늙은 선장은 등불을 창가에 놓고 강을 바라보았다. 아이들은 마당에서 노래를 불렀다."
RUSSIAN = "Старый рыбак медленно шёл к реке и вспоминал долгую жизнь. Дети играли во дворе."
FRENCH = "Le vieux pêcheur marchait près de la rivière où l'été s'achève. Ça suffit, répéta-t-elle."
POLISH = "Stary rybak szedł powoli nad rzekę i wspominał długie życie. Dzieci śpiewały w ogródku."
ENGLISH = "“I don’t know,” said the old man, “whether it will rise.” It was a naïve café—he waited."
PLAIN = "An old man put the lamp in the window and waited.\n"

SAMPLES = [
    (CHINESE, ["gb18030", "utf-16", "utf-32", "utf-32-le", "utf-8"]),
    (CHINESE + "\n" + CHINESE, ["gb2312", "utf-16-le", "utf-16-be"]),
    (TAIWAN, ["big5"]),
    (JAPANESE, ["shift_jis", "euc_jp", "iso2022_jp"]),
    (KOREAN, ["euc_kr", "utf-16-be"]),
    (RUSSIAN, ["cp1251", "koi8-r", "cp866", "iso8859-5", "utf-16-le"]),
    (FRENCH, ["latin-1", "cp1252", "mac-roman", "cp850", "utf-16-le", "utf-16", "utf-32-be"]),
    (POLISH, ["iso8859-2", "cp1250"]),
    (ENGLISH, ["cp1252", "mac-roman", "utf-16-be", "utf-32-le"]),
    (PLAIN * 400 + ENGLISH, ["cp1252", "mac-roman", "utf-8-sig"]),
]
PAIRS = [(text, encoding) for text, encodings in SAMPLES for encoding in encodings]


@pytest.mark.parametrize(("text", "encoding"), PAIRS)
@pytest.mark.parametrize("repeat", [1, 200])
def test_text_is_read_in_its_encoding(text: str, encoding: str, repeat: int) -> None:
    decoded = decode(
        text.encode(encoding) * repeat if "-" in encoding else (text * repeat).encode(encoding)
    )
    assert decoded.text.replace("\ufeff", "") == text * repeat
    assert (decoded.fault, decoded.broken) == (None, 0)
    assert decoded.text.replace("\ufeff", "").encode(decoded.encoding) is not None


@pytest.mark.parametrize(
    ("name", "encodings", "begin"),
    [
        ("chinese-gbk.txt", {"gb18030", "gbk", "gb2312"}, "老船长把灯放在窗边，望着河面。"),
        ("french-latin1.txt", {"iso8859-1"}, "Le vieux pêcheur marchait près de la rivière"),
        ("russian-cp1251.txt", {"cp1251"}, "Старый рыбак медленно шёл к реке"),
    ],
)
def test_files_in_other_encodings(name: str, encodings: set[str], begin: str) -> None:
    for recipe in ("books", "plain"):
        result = cleaned(TEXTS / "encodings" / name, recipe=recipe, lowercase=False)
        assert result.encoding in encodings
        assert result.text.startswith(begin)


@pytest.mark.parametrize("text", [CHINESE, JAPANESE, RUSSIAN, FRENCH, ENGLISH, PLAIN * 30 + "é ü"])
def test_a_few_broken_bytes_leave_utf8_utf8(text: str) -> None:
    draw = random.Random(0)
    data = text.encode() * 20
    for _ in range(3):
        position = draw.randrange(len(data))
        data = data[:position] + b"\xff" + data[position:]
    decoded = decode(data)
    assert decoded.encoding == "utf-8"
    assert 1 <= decoded.broken <= 12
    assert decoded.text.count(text) >= 16


def test_a_broken_byte_among_ascii_is_read_as_windows_1252() -> None:
    result = cleaned("déjà vu\n\n".encode() + b"bad \xff byte, it\x92s")
    assert result.text == "déjà vu\nbad ÿ byte, it's"
    assert result.effects["encoding"] == 2


def test_the_encoding_can_be_said() -> None:
    data = RUSSIAN.encode("koi8-r")
    assert cleaned(data, encoding="koi8-r", recipe="plain").text == RUSSIAN
    wrong = cleaned(data, encoding="utf-8")
    assert (wrong.text, wrong.fault) == ("", "not text in utf-8")


@pytest.mark.parametrize("name", ["klingon", "base64"])
def test_an_unknown_encoding_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.* give one of Python's"):
        Steps(encoding=name)


def test_guesses_can_be_refused() -> None:
    refused = cleaned(RUSSIAN.encode("cp1251"), guess=False)
    assert (refused.text, refused.fault) == ("", "not UTF-8, seems to be cp1251")
    for data in (RUSSIAN.encode(), RUSSIAN.encode("utf-16"), RUSSIAN.encode("utf-8-sig")):
        assert cleaned(data, guess=False).fault is None


def test_a_byte_order_mark_is_no_text() -> None:
    for mark, encoding in ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF8, "utf-8")):
        assert decode(mark + FRENCH.encode(encoding)).text == FRENCH


def test_a_byte_order_mark_decides_against_a_stated_encoding() -> None:
    for mark, encoding in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le")):
        for stated in ("utf-8", "cp1251"):
            decoded = decode(mark + FRENCH.encode(encoding), stated)
            assert (decoded.text, decoded.broken, decoded.fault) == (FRENCH, 0, None)


def test_noise_is_left_out() -> None:
    noise = random.Random(0).randbytes(20_000)
    assert cleaned(noise).fault is not None
    assert cleaned(bytes(byte | 0x80 for byte in noise)).fault is not None


def test_lone_surrogates_of_rows_are_replaced() -> None:
    result = cleaned("a \ud800 b \U0001f600", "record")
    assert (result.text, result.effects) == ("a \ufffd b \U0001f600", {"encoding": 1})


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_thoreau_is_latin1() -> None:
    (file,) = (SHARED / "books").glob("Henry_David_Thoreau*")
    result = cleaned(file)
    assert result.encoding == "iso8859-1"
    assert "musketaquid" in result.text
    assert not any("\x7f" <= character <= "\x9f" for character in result.text)
    assert "ã" not in result.text
