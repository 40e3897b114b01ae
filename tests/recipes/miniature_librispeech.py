"""A miniature of LibriSpeech in its official layout and naming.

eSpeak NG reads a few words; the generator is the one of SyntheticCommands.
"""

import importlib.util
import sys
from pathlib import Path

import soundfile

SCRIPT = "recipes/SyntheticCommands/espeak.py"
# Speaker and chapter of each part, and how many utterances.
PARTS = {
    "train-clean-100": (("103", "1240", 8), ("1034", "121119", 8)),
    "dev-clean": (("84", "121123", 4),),
    "test-clean": (("61", "70968", 4),),
    "test-other": (("367", "130732", 4),),
}
WORDS = ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX")


def make(folder):
    """Write `LibriSpeech` into a folder; gives the folder."""
    espeak = _generator()
    synthesizer = espeak.Synthesizer()
    number = 0
    for part, chapters in PARTS.items():
        for speaker, chapter, utterances in chapters:
            own = folder / "LibriSpeech" / part / speaker / chapter
            own.mkdir(parents=True)
            pitch = 30 + int(speaker) % 50
            voice = espeak.Speaker(speaker, "en-us", pitch, 260, 1.0)
            lines = []
            for index in range(utterances):
                number += 1
                words = [WORDS[number % 6], WORDS[number * number % 5]]
                clip = f"{speaker}-{chapter}-{index:04}"
                audio = synthesizer.say(" ".join(words).lower(), voice)
                soundfile.write(own / f"{clip}.flac", 0.5 * audio, 16000)
                lines.append(f"{clip} {' '.join(words)}\n")
            (own / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return folder


def _generator():
    path = Path(__file__).parents[2] / SCRIPT
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    # Its data classes look themselves up there.
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
