"""Format text and numbers for people."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return `did you mean 'x'?` or the list of choices."""
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choices: {', '.join(known)}"


def printable(text: object) -> str:
    """Return one line without control characters, which could move the cursor, fake lines or reverse the text."""
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def printable_lines(text: object) -> str:
    """Return lines without other control characters than line breaks and tabs."""
    text = str(text)
    if text.isprintable():
        return text
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in lines)


def markdown(text: object) -> str:
    """Escape a text for Markdown, in a table too: no markup, no HTML, no new cell or line."""
    return re.sub(r"[\\`*{}\[\]<>|~&]|(?<!\w)_|_(?!\w)|^[#+-]", r"\\\g<0>", printable(text))


def spreadsheet_cell(text: str) -> str:
    """Return one line that no spreadsheet takes for a formula; numbers are left as they are."""
    text = printable(text)
    if text.lstrip()[:1] in _FORMULA and not all(map(_is_number, re.split(r"[\s/]+", text.strip()))):
        return f"'{text}"
    return text


_FORMULA = tuple("=+-@＝＋－＠")


def _is_number(word: str) -> bool:
    return bool(re.fullmatch(r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|inf|nan)", word, re.IGNORECASE))


def size(num_bytes: float) -> str:
    """Format a size in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def rounded_count(number: float) -> str:
    """Format a large number with three digits: 950, 14.2 k, 2.5 M."""
    for unit in ("", " k", " M", " G", " T"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} P"


def duration(seconds: float) -> str:
    """Format a time on the clock: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if 0 < seconds < 0.5:
        return "<1 s"
    seconds = round(seconds)
    if seconds < 90:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def step_time(seconds: float) -> str:
    """Format the time of a step: 3.62 ms, 250 ms, 1.24 s."""
    if seconds < 0.9995:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"


def compute_time(hours: float) -> str:
    """Format the hours that devices work: 13 s, 40 min, 3.1 h, 1,240 h; never days, since hours are what is paid."""
    return "{} {}".format(*_in_its_unit(hours, ("s", "min", "h")))


def device_time(hours: float, device: str = "device") -> str:
    """Format the hours that devices work in words: 13 GPU seconds, 40 device minutes, 3.1 GPU hours."""
    number, unit = _in_its_unit(hours, ("second", "minute", "hour"))
    return f"{number} {device} {unit}" + ("s" if number != "1" else "")


def _in_its_unit(hours: float, units: tuple[str, str, str]) -> tuple[str, str]:
    """Return a time as a number of two digits or more, and its unit."""
    seconds = 3600 * hours
    if 0 < seconds < 0.1:
        return "<0.1", units[0]
    if seconds < 89.5:
        amount, unit = seconds, units[0]
    elif seconds < 59.5 * 60:
        amount, unit = seconds / 60, units[1]
    else:
        amount, unit = hours, units[2]
    return f"{amount:.2g}" if amount < 9.95 else f"{amount:,.0f}", unit


def shell_word(text: object) -> str:
    """Return a path or name as one word of a command that a user may paste into a shell."""
    return shlex.quote(str(text))


def harness_command(verb: str, *words: object, runs_folder: Path | None = None, sets: Sequence[str] = ()) -> str:
    """Return a command of ours that a user may paste into a shell: `harness submit study.yaml --set train.steps=9`.

    Args:
        words: its arguments and options.
        runs_folder: that it is about; said where it is not the one that the command takes by itself.
        sets: the `--set` options that the study was given.
    """
    options = [part for value in sets for part in ("--set", value)]
    if runs_folder is not None and runs_folder != Path(os.environ.get("HARNESS_RUNS") or "runs"):
        options += ["--runs", str(runs_folder)]
    return " ".join(["harness", verb, *map(shell_word, [*words, *options])])


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
