"""Of several processes only the first writes, in a whole run of a recipe."""

import os
import sys

import pytest
from processes import run_processes
from test_recipes import ONE_OF_BOTH, flags_of, load_script, yaml_of

PATHS = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")


def record(rank, folder, task, corpus):
    """Files of its folder that a recipe writes, removes or renames."""
    own = os.path.join(folder, "out")
    touched = set()

    def watch(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            paths = [path] if writing or set(mode or "r") & set("wax+") else []
        else:
            paths = arguments[:2] if event in PATHS else []
        if event == "os.mkdir" and os.path.isdir(paths[0]):
            return  # to be sure that it is there
        touched.update(path for path in map(str, paths) if own in path)

    sys.addaudithook(watch)
    flags = flags_of(task, corpus, own, "--distributed_backend=gloo")
    load_script(task).main([str(yaml_of(task)), *flags])
    return sorted(touched)


@pytest.mark.slow
@ONE_OF_BOTH
def test_only_the_first_process_writes(task, tones, tmp_path):
    first, other = run_processes(record, 2, tmp_path, task, tones, join=False)
    written = {path.rpartition("/")[2] for path in first}
    assert {"metrics.jsonl", "settings.json", "config.json"} <= written
    assert other == []
