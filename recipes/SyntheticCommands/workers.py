"""Make the shards of a corpus in fresh processes, one for each.

This file is also what each process runs: its argument says which shard.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from espeak import Synthesizer, draw_speaker, say_word, voice_folder
from plan import Settings, generator, plan_corpus
from sounds import make_clip, write_flac
from tqdm import tqdm

SCRIPT = os.path.abspath(__file__)
WORKSHOP = ".unfinished-"

# Speech behind the speech; none of the ten words, so that a clip has one
# right answer.
BABBLE = (
    "The children were playing beside the river all afternoon.",
    "Please remember to water the plants while we are travelling.",
    "My sister bought seven oranges and a loaf of bread.",
    "Heavy rain is expected across the northern hills this evening.",
    "He carefully opened the letter and began reading it aloud.",
    "Our train leaves at quarter past nine from another platform.",
    "She has always wanted a small house near the sea.",
    "Nobody believed that the old engine could be repaired.",
)


def make_shards(shards, settings, output_folder):
    """Make the shards, one fresh process each, on all processors.

    What eSpeak NG says depends a little on all it has said before in the
    same process (phases, flutter, echo). A process for every shard makes
    the bytes independent of who worked on what. A subprocess, unlike
    multiprocessing, does not import the caller's main script again.

    Arguments
    ---------
    shards : list of Shard
        Those that are missing.
    settings : Settings
        Of the corpus; each process plans it anew.
    output_folder : Path
        Of the corpus.

    Raises
    ------
    RuntimeError
        If the synthesis fails; says why.
    """
    total = sum(len(shard.clips) for shard in shards)
    lock = threading.Lock()
    progress = tqdm(total=total, desc="Synthesizing", unit="clip")

    def make(shard, workshop):
        job = {
            "settings": asdict(settings),
            "shard": shard.folder,
            "folder": tempfile.mkdtemp(dir=workshop),
        }
        process = subprocess.Popen(
            [sys.executable, SCRIPT, json.dumps(job)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # The voices are found by a short relative path from here.
            cwd=voice_folder().parents[2],
        )
        with process:
            for _ in process.stdout:
                with lock:
                    progress.update()
            errors = process.stderr.read()
        if process.returncode != 0:
            raise RuntimeError(
                f"Making {output_folder / shard.folder} failed: "
                f"{errors.strip()[-2000:]}"
            )
        _put_in_place(Path(job["folder"]), shard, output_folder)

    _clear_leftovers(output_folder)
    with (
        tempfile.TemporaryDirectory(
            dir=output_folder, prefix=WORKSHOP
        ) as workshop,
        progress,
        ThreadPoolExecutor(n_processors()) as pool,
    ):
        for _ in pool.map(make, shards, [workshop] * len(shards)):
            pass


def _clear_leftovers(output_folder):
    """Remove what killed runs left behind, and no running one's work."""
    an_hour_ago = time.time() - 3600
    for path in output_folder.glob(f"{WORKSHOP}*"):
        if path.stat().st_mtime < an_hour_ago:
            shutil.rmtree(path, ignore_errors=True)


def _put_in_place(folder, shard, output_folder):
    """Move a finished shard where it belongs, in one step."""
    os.chmod(folder, 0o755)
    target = output_folder / shard.folder
    target.parent.mkdir(exist_ok=True)
    if not shard.is_whole(output_folder):
        shutil.rmtree(target, ignore_errors=True)
    try:
        os.replace(folder, target)
    except OSError:
        # Another run on the same folder was faster, with the same bytes.
        if not shard.is_whole(output_folder):
            raise


def n_processors():
    """Return how many processors (int) this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_shard(shard, settings, folder):
    """Synthesize the clips of a shard into a folder.

    Arguments
    ---------
    shard : Shard
        What to say, and who says it.
    settings : Settings
        The seed is taken from here.
    folder : Path
        Where the FLAC files go.
    """
    synthesizer = Synthesizer()
    rng = generator(settings, shard.folder)
    babble = [
        synthesizer.say(sentence, draw_speaker("", voice, rng))
        for sentence in BABBLE
        for voice in rng.choice(shard.voices, 2)
    ]
    for clip in shard.clips:
        rng = generator(settings, shard.split, clip.number)
        word = say_word(synthesizer, clip, rng)
        audio = make_clip(word, babble, rng)
        write_flac(folder / Path(shard.path(clip)).name, audio)
        print(flush=True)


def main():
    """Make the shard of a job; print a line for every clip."""
    job = json.loads(sys.argv[1])
    settings = Settings(**job["settings"])
    shards = {shard.folder: shard for shard in plan_corpus(settings)}
    make_shard(shards[job["shard"]], settings, Path(job["folder"]))


if __name__ == "__main__":
    main()
