"""Speech with labels by construction: real prompts placed into silence, then noise over everything."""

from __future__ import annotations

import gzip
import re
from functools import cache
from itertools import cycle
from pathlib import Path

import numpy as np

from tests.zoo.cache import debian_package
from tests.zoo.model import Array, stream

RATE = 16_000
FRAME = 512
_AMBIGUOUS = re.compile(r"\d|[\[\]()#*]|\b(zero|one|two|three|four|five|six|seven|eight|nine|ten|pound|star)\b")


def noisy_speech(seed: int, seconds: int) -> tuple[Array, Array]:
    """A recording and its labels.

    Returns:
        samples, float32 [seconds * RATE] in -1 to 1, and for each frame of FRAME samples whether the clean speech in
        it is within 40 dB of the loudest frames, bool [frames].
    """
    rng = stream(4, seed)
    clean = np.zeros(seconds * RATE, np.float32)
    at = int(rng.uniform(0.2, 2) * RATE)
    while at < len(clean) - RATE:
        prompt = _prompt(int(rng.integers(len(_prompts()))))[: len(clean) - at]
        clean[at : at + len(prompt)] = prompt * rng.uniform(0.3, 1.2)
        at += len(prompt) + int(rng.uniform(0.3, 2.5) * RATE)
    frames = clean[: len(clean) // FRAME * FRAME].reshape(-1, FRAME)
    loudness = 10 * np.log10(np.square(frames).mean(1) + 1e-10)
    return (clean + _noise(rng, clean)).clip(-1, 1), loudness > np.percentile(loudness, 99) - 40


def _noise(rng: np.random.Generator, clean: Array) -> Array:
    noise: Array = rng.standard_normal(len(clean)).astype(np.float32)
    if rng.random() < 0.6:
        noise = np.convolve(noise, np.ones(8, np.float32) / 8, "same")
    if rng.random() < 0.3:
        noise += np.sin(2 * np.pi * rng.uniform(60, 400) * np.arange(len(clean)) / RATE).astype(np.float32)
    decibels = rng.uniform(0, 25)
    gain: float = np.sqrt(np.square(clean).mean() / np.square(noise).mean() * 10 ** (-decibels / 10))
    return noise * gain


@cache
def _prompts() -> list[Path]:
    folder = debian_package("asterisk-core-sounds-en-wav") / "usr/share/asterisk/sounds/en_US_f_Allison"
    no_speech = ("tone", "beep", "monkeys", "silence")
    return sorted(f for f in folder.glob("*.wav") if not any(word in f.name for word in no_speech))


@cache
def _prompt(number: int) -> Array:
    import soundfile
    from scipy.signal import resample_poly

    samples, rate = soundfile.read(_prompts()[number], dtype="float32")
    resampled: Array = resample_poly(samples, RATE, rate).astype(np.float32)
    return resampled


def spoken_sentences(seed: int, count: int) -> list[tuple[str, Array]]:
    """`count` recordings of about 20 s with their text: prompts of 4 to 25 words, half a second between them.

    Recordings of even and of odd seeds share no prompt.
    """
    texts, pause = _prompt_texts(), np.zeros(RATE // 2, np.float32)
    names = cycle(stream(6, seed).permutation(sorted(texts)[seed % 2 :: 2]).tolist())
    recordings = []
    for _ in range(count):
        said: list[str] = []
        parts: list[Array] = [pause]
        while sum(map(len, parts)) < 18 * RATE:
            name = next(names)
            said.append(texts[name])
            parts += [_prompt(_prompt_numbers()[name]), pause]
        recordings.append((" ".join(said), np.concatenate(parts)))
    return recordings


@cache
def _prompt_numbers() -> dict[str, int]:
    return {file.stem: number for number, file in enumerate(_prompts())}


@cache
def _prompt_texts() -> dict[str, str]:
    """What the prompts of 4 to 25 words say, those with numbers apart: they can be written in two ways."""
    package = debian_package("asterisk-core-sounds-en")
    [file] = package.rglob("core-sounds-en.txt.gz")
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()
    pairs = (line.split(": ", 1) for line in lines if ": " in line and not line.startswith(";"))
    return {
        name: text
        for name, text in pairs
        if name in _prompt_numbers() and 4 <= len(text.split()) <= 25 and not _AMBIGUOUS.search(text.lower())
    }
