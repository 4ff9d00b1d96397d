"""Synthesised speech for the audio stage: many voices, with the exact time of every phoneme.

flite (its CMU voices) tells when each phoneme ends; espeak-ng adds voices and languages without
phonemes. Both are programs of the system; nothing of them is shipped.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.training.draws import derive_seed


def _words(text: str) -> list[str]:
    return text.split()


# CMU's phonemes as flite writes them; "ax" is its schwa, "pau" silence.
PHONEMES = _words(
    "pau aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th "
    "uh uw v w y z zh"
)
FLITE_VOICES = {"awb": 120, "kal16": 110, "rms": 100, "slt": 175}  # usual pitch in Hz
ESPEAK_LANGUAGES = _words(
    "en-us en-gb-scotland en-gb-x-rp de fr-fr es it pt-br nl sv pl cs ru fi tr hi id sw vi cmn"
)
ESPEAK_VARIANTS = _words("f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 klatt2 klatt4 belinda steph2")
SINGING_SHARE = 0.15  # of the flite utterances are as slow and high as a song

ADJECTIVES = _words(
    "big calm bright hollow purple narrow funny golden bashful smooth heavy cheap thirsty early "
    "loyal foggy brave wet usual rough young quiet huge warm joyful vague thick empty orange few"
)
NOUNS = _words(
    "boy mouth father garage watch moon window bubble paper fish valley teacher voice puzzle king "
    "mother judge village book thumb giraffe house yard treasure baby oyster wolf church feather "
    "shop mirror bathroom guitar pope family bishop measure coffee wheel apple piano"
)
VERBS = _words(
    "saw took loved changed pushed believed brought weighed opened moved helped avoided whispered "
    "thought paid followed chose enjoyed threw fixed warmed bought wished put vanished from"
)
PLACES = _words(
    "above by near before behind with without over for towards beyond among under of beneath"
)
ADVERBS = _words(
    "now soon always maybe usually slowly why how yes away today again very well outside "
    "one two three four five six seven eight nine zero eleven"
)


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """What one file of synthesised speech says, and how."""

    name: str
    program: str  # flite | espeak-ng
    voice: str
    text: str
    pitch: float  # share of the voice's usual one
    stretch: float  # of the usual duration


def utterance(seed: int, index: int) -> Utterance:
    """The `index`th utterance of a set: two thirds flite, one third espeak-ng."""
    rng = np.random.default_rng(derive_seed(seed, "utterance", index))
    text = sentence(rng)
    with_phonemes = index % 3 < 2
    sung = with_phonemes and rng.random() < SINGING_SHARE
    stretch = rng.uniform(1.8, 3.0) if sung else np.exp(rng.uniform(-0.3, 0.4))
    pitch = np.exp(rng.uniform(0.2, 0.7)) if sung else np.exp(rng.uniform(-0.3, 0.3))
    if with_phonemes:
        program, voice = "flite", str(rng.choice(list(FLITE_VOICES)))
    else:
        language, variant = rng.choice(ESPEAK_LANGUAGES), rng.choice(ESPEAK_VARIANTS)
        program, voice = "espeak-ng", f"{language}+{variant}"
    return Utterance(
        name=f"{index:05d}",
        program=program,
        voice=voice,
        text=text,
        pitch=float(pitch),
        stretch=float(stretch),
    )


def sentence(rng: np.random.Generator) -> str:
    """Words that follow one another in all the ways that a mouth has to manage."""
    parts = [
        rng.choice(["the", "a", "my", "your", "this", "what", "no", "each"]),
        rng.choice(ADJECTIVES),
        rng.choice(NOUNS),
        rng.choice(VERBS),
        rng.choice(["the", "her", "our", "those", "every", "such"]),
        rng.choice(NOUNS),
        rng.choice(PLACES),
        rng.choice(ADJECTIVES),
        rng.choice(NOUNS),
        rng.choice(ADVERBS),
    ]
    first = int(rng.integers(0, 4))
    words = [str(word) for word in parts[first : first + int(rng.integers(4, 8))]]
    if rng.random() < 0.3:
        words.insert(len(words) // 2, ",")  # a pause
    return " ".join(words).replace(" ,", ",")


def synthesise(folder: Path, count: int, seed: int) -> Iterator[Path]:
    """Write `count` utterances, NAME.wav and for flite NAME.phones; yields those newly written.

    A set is a pure function of its seed (and of the programs); running it again goes on.

    Raises: EmoError when flite or espeak-ng is missing, or fails.
    """
    for program in ("flite", "espeak-ng"):
        if shutil.which(program) is None:
            raise EmoError(
                f"{program} is not installed", "On Debian or Ubuntu: apt install flite espeak-ng"
            )
    for index in range(count):
        said = utterance(seed, index)
        # A folder for each program: `emo train audio` draws from sources, not from files.
        target = folder / said.program / f"{said.name}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _write(said, target)
            yield target


def _write(said: Utterance, target: Path) -> None:
    partial = target.with_suffix(".partial")
    if said.program == "flite":
        mean = FLITE_VOICES[said.voice] * said.pitch
        command = ["flite", "-voice", said.voice, "-psdur", "-t", said.text, "-o", str(partial)]
        command += ["--setf", f"duration_stretch={said.stretch:.3f}"]
        command += ["--setf", f"int_f0_target_mean={mean:.1f}"]
    else:
        rate, pitch = round(165 / said.stretch), round(50 * said.pitch)
        command = ["espeak-ng", "-v", said.voice, "-s", str(rate), "-p", str(pitch)]
        command += ["-w", str(partial), said.text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not partial.exists():
        raise EmoError(
            f"{said.program} failed with voice {said.voice}: {done.stderr.strip()}",
            "Try the same command by hand: " + " ".join(command),
        )
    if said.program == "flite":
        target.with_suffix(".phones").write_text(done.stdout.strip() + "\n", encoding="utf-8")
    partial.rename(target)


def phoneme_rows(path: Path, centres_s: np.ndarray, length_s: float) -> np.ndarray:
    """Which phoneme sounds at each time [T], as its place in `PHONEMES`, uint8.

    `path` holds "pau:0.16 hh:0.26 ...": each phoneme and when it ends, in seconds. flite's diphone
    voice speaks a few per cent faster than it says: times are scaled to the sound's length.

    Raises: ValueError when it does not.
    """
    entries = [entry.rpartition(":") for entry in path.read_text(encoding="utf-8").split()]
    ends = np.array([float(end) for _, _, end in entries])
    names = [name for name, _, _ in entries]
    if not names or any(b < a for a, b in itertools.pairwise(ends)):
        raise ValueError(f"{path} holds no phonemes in the order of their ends")
    if ends[-1] > length_s:
        ends *= length_s / ends[-1]
    known = np.array([PHONEMES.index(name) for name in names], dtype=np.uint8)
    return known[np.searchsorted(ends, centres_s).clip(0, len(known) - 1)]
