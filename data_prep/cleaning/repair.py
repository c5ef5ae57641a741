"""Repair mojibake, HTML entities, terminal codes and ligatures with ftfy."""

import re

import ftfy
from ftfy.badness import is_bad
from ftfy.chardata import LIGATURES

from data_prep.cleaning.characters import unusual

# Full-width characters, quotes and composition are text, or steps of their own.
_CONFIG = ftfy.TextFixerConfig(
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    remove_control_chars=False,
    normalization=None,
    explain=False,
)
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
# Mojibake never consists of typographic marks alone, or of one letter between ASCII characters
# (except Â and Ã, which may have lost a no-break space after them), or of scripts that no
# single-byte encoding of ftfy has.
_MARKS = "“”‘’—–…"
_LETTERS = "ÀÁÄ-ÖØ-öø-ÿ"
_OTHER_SCRIPTS = "\u0530-\u1dff\u2e80-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_SUSPICIOUS = re.compile(f"[^\t\n -~{_MARKS}{_OTHER_SCRIPTS}\u200b-\u200f\ufeff]+")
# ftfy changes no line without these characters that does not look like mojibake.
_CHANGED = re.compile(f"[&\x1b\x80-\x9f\ud800-\udfff{''.join(map(chr, LIGATURES))}]")
_LETTER = re.compile(f"[{_LETTERS}]")


def repair(text: str) -> tuple[str, int]:
    """Run ftfy on the lines that it could change.

    Returns:
        The text, and the number of lines that changed.
    """
    if text.isascii() and "\x1b" not in text and "&" not in text:
        return text, 0
    pieces: list[str] = []
    done = changed = 0
    for position in _suspicions(text):
        if position < done:
            continue
        begin = text.rfind("\n", done, position) + 1 or done
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        line = text[begin:end]
        changes = _CHANGED.search(line) or is_bad(line)
        fixed = ftfy.fix_text(line, _CONFIG) if changes else line
        if fixed != line:
            pieces += text[done:begin], fixed
            changed += 1
        else:
            pieces.append(text[done:end])
        done = end
    return "".join(pieces) + text[done:] if changed else text, changed


def _suspicions(text: str) -> list[int]:
    """Return the positions of what ftfy could change, in order."""
    found = [match.start() for match in _ENTITY.finditer(text)] if "&" in text else []
    others = unusual(text)
    if _SUSPICIOUS.search(others):
        has_controls = bool(_SUSPICIOUS.search(others.encode("ascii", "ignore").decode()))
        begin = 0
        for line in text.split("\n"):
            if has_controls or not line.isascii():
                runs = _SUSPICIOUS.finditer(line)
                found += (begin + run.start() for run in runs if not _is_accent(run))
            begin += len(line) + 1
    return sorted(found)


def _is_accent(run: re.Match[str]) -> bool:
    """Tell whether a run is one letter between ASCII characters."""
    begin, end = run.span()
    neighbours = run.string[max(0, begin - 1) : begin] + run.string[end : end + 1]
    return bool(_LETTER.fullmatch(run[0])) and neighbours.isascii()
