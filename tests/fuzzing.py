"""Seeded damage to files, and what may come of reading a damaged one: a result, or an error of ours."""

import json
import re
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import dcal_hf
from dcal_hf.data import UnreadableImageError
from dcal_hf.models.loading_dcal import UnknownEncoderError


# An error of ours is raised by code below these folders; transformers reads the JSON of a configuration before ours.
OWN_CODE = (Path(dcal_hf.__file__).parent, Path(__file__).parents[1] / "recipes")
EXPECTED_ERRORS = (
    ValueError, UnreadableImageError, UnknownEncoderError, OSError, FileNotFoundError, FileExistsError,
)
FOREIGN_SENTENCES = (
    "It looks like the config file at '.*' is not a valid JSON file.",
    "Unrecognized model in .*. Should have a `model_type` key in its config.json.",
)
# What Pillow says of metadata that it leaves out; the pixels are read. Filters of warnings belong to the process, so
# `open_image` leaves them alone.
OF_METADATA = "Corrupt EXIF|Truncated File Read|Image appears to be a malformed|Palette images with|Metadata Warning"
MAX_SENTENCE = 1_000
# Of one case: processor time, because a busy machine is no hang; time in all, because waiting takes no processor.
MAX_CPU_SECONDS, MAX_SECONDS = 10, 120
MAX_BYTES = 1 << 30

ODD_VALUES = (
    None, True, False, 0, -1, 1, 3, 7, 2**31, 2**63, 10**30, 0.0, -0.5, 1e308, float("nan"), float("inf"), "", " ",
    "0", "../..", "/etc/passwd", "a\nb", "\x00", "é" * 300, "x" * 200_000, [], [None], [[1]], [1, 2, 3], {}, {"a": {}},
)
ODD_BYTES = (b"\x00", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\n", b"\t", b'"', b",", b"{", b"]", b"\xc3\x28", b"0" * 40)


class TooLong(BaseException):
    """A case took too much time. Not an `Exception`, which the code under test might convert."""


def change_bytes(content: bytes, rng: Random) -> bytes:
    """Damages a file in one to three places, mostly near its beginning or end, where headers and indices are."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data) + 1)
        if rng.random() < 0.5:
            start = min(int(rng.expovariate(1 / 24)), len(data))
            start = start if rng.random() < 0.6 else len(data) - start
        stop = min(start + int(rng.expovariate(1 / 12)) + 1, len(data))
        kind = rng.randrange(7)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[start:stop] = rng.randbytes(stop - start)
        elif kind == 2:
            del data[start:stop]
        elif kind == 3:
            del data[start:]
        elif kind == 4:
            data[start:start] = data[start:stop] * rng.randint(1, 4)
        elif kind == 5:
            odd = rng.choice(ODD_BYTES)
            data[start:start + len(odd)] = odd
        else:
            data[start:start] = rng.choice(ODD_BYTES)
    return bytes(data)


def change_value(value: Any, rng: Random) -> Any:
    """Replaces, removes, adds or renames something in a tree of dictionaries and lists."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return rng.choice(ODD_VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, changed = rng.choice(keys), value.copy()
    kind = rng.random()
    if kind < 0.12:
        del changed[key]
    elif kind < 0.2:
        odd = rng.choice(ODD_VALUES)
        if isinstance(changed, dict):
            changed[rng.choice((str(key) + "_", "base", str(odd)))] = changed.pop(key)
        else:
            changed.insert(key, odd)
    else:
        changed[key] = change_value(value[key], rng)
    return changed


def change_json(content: bytes, rng: Random) -> bytes:
    """Damages JSON in its values, or in its bytes."""
    if rng.random() < 0.3:
        return change_bytes(content, rng)
    value = json.loads(content)
    for _ in range(rng.randint(1, 2)):
        value = change_value(value, rng)
    return json.dumps(value, indent=rng.choice((None, 2, "\t"))).encode()


def change_lines(content: bytes, rng: Random, odd: tuple[str, ...]) -> bytes:
    """Damages text by whole lines, of which some are odd in its language, or by bytes."""
    if rng.random() < 0.3:
        return change_bytes(content, rng)
    lines = content.decode().split("\n")
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(lines))
        kind = rng.randrange(4)
        if kind == 0:
            lines[place] = rng.choice(odd)
        elif kind == 1:
            lines.insert(place, rng.choice((*odd, *lines)))
        elif kind == 2 and len(lines) > 1:
            del lines[place]
        else:
            lines[place] = change_bytes(lines[place].encode(), rng).decode(errors="replace")
    return "\n".join(lines).encode()


@dataclass(frozen=True)
class Case:
    """One case of the fuzzer, made again by its seed, kind and number."""

    kind: str
    seed: int
    number: int

    @property
    def rng(self) -> Random:
        return Random(f"{self.seed} {self.kind} {self.number}")


def run_case(case: Case, read: Callable[[], Any], names: tuple[str, ...]) -> tuple[bool, str | None]:
    """Reads a damaged file.

    Args:
        names: What an error must name one of: the file or its folder.

    Returns:
        Whether there was a result, and what was wrong, if anything was.
    """
    before = peak_bytes()
    try:
        with limits(), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            read()
        texts = {f"{w.category.__name__}: {w.message}" for w in told if not re.match(OF_METADATA, str(w.message))}
        wrong = "; ".join(sorted(texts)) or None
        has_result = True
    except (Exception, SystemExit, TooLong) as error:
        has_result, wrong = False, flaw_of(error, names)
    if wrong is None and peak_bytes() - before > MAX_BYTES:
        wrong = f"it took {(peak_bytes() - before) >> 20:,} MiB"
    return has_result, wrong and f"{case}: {wrong}"


def flaw_of(error: BaseException, names: tuple[str, ...]) -> str | None:
    """Why an error is none of ours: of one sentence, that names the file, raised by our code for the user."""
    sentence, code = str(error), traceback.extract_tb(error.__traceback__)
    what = f"{type(error).__name__}: {sentence[:300]!r}"
    is_own = any(Path(code[-1].filename).is_relative_to(folder) for folder in OWN_CODE)
    if type(error) not in EXPECTED_ERRORS:
        return f"raw {what}\n{''.join(traceback.format_list(code[-6:]))}"
    if not is_own and not any(re.fullmatch(foreign, sentence) for foreign in FOREIGN_SENTENCES):
        return f"raised elsewhere: {what}\n{''.join(traceback.format_list(code[-6:]))}"
    if "\n" in sentence or len(sentence) > MAX_SENTENCE:
        return f"no single sentence: {what}"
    if not any(name in sentence for name in names):
        return f"names no file: {what}"
    return None


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def limits() -> Iterator[None]:
    """Ends a case that takes too long, and lets it fail where it asks for too much memory."""

    def end(*_):
        raise TooLong(f"more than {MAX_CPU_SECONDS} s of the processor, or {MAX_SECONDS} s in all")

    timers = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    previous = {number: signal.signal(number, end) for number in timers}
    now, most = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MAX_BYTES, most))
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        yield
    finally:
        for number, timer in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, previous[number])
        resource.setrlimit(resource.RLIMIT_AS, (now, most))
