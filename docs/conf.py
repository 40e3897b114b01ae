"""Settings of Sphinx: `make docs` builds the pages and the API reference.

The source folder is the repository, so that the links of pages to recipes and
experiments lead on. The sidebar has the links of ``docs/index.md``. The pages
of the API are written anew at each build, into ``docs/api``.
"""

import inspect
import re
from pathlib import Path

import ssast_lobes

project = "ssast_lobes"
version = release = ssast_lobes.__version__
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"{project} {version}"
include_patterns = [
    "*.md",
    "benchmarks/**.md",
    "docs/**",
    "experiments/*.md",
    "experiments/*/README.md",
    "experiments/transfer/results.md",
    "recipes/*/README.md",
]
exclude_patterns = [".*", "build", "dist", "results", "recipes/*/*/results"]
# Left by the tutorial, which GitHub shows and the site only links to.
exclude_patterns += ["docs/results"]
# Anchors as GitHub makes them.
myst_heading_anchors = 4
# `name` in a docstring links to the reference, where it has the name.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
toc_object_entries_show_parents = "hide"

# The pages of the API, and the modules that each one shows: what they define,
# and all that `ssast_lobes` makes public of what lies below them.
API = {
    "Lobes": "lobes checkpoints.bundled",
    "Encoder, features and heads": "models models.encoder models.transformer",
    "Objectives": "objectives",
    "Maskers and tokenizers": "objectives.maskers objectives.block_maskers "
    "objectives.tokenizers",
    "Augmentation": "augment",
    "Data": "dataio dataio.tables dataio.splits dataio.partition "
    "dataio.held_out dataio.dataset dataio.samplers dataio.waveforms "
    "dataio.event_tables dataio.event_dataset dataio.audio dataio.scan "
    "dataio.class_folders dataio.download dataio.archives "
    "dataio.corpus_checks",
    "Checkpoints": "checkpoints checkpoints.loading checkpoints.folder "
    "checkpoints.linear_heads checkpoints.frame_heads checkpoints.averaging "
    "checkpoints.convert checkpoints.official checkpoints.push "
    "checkpoints.model_card checkpoints.format",
    "Inference": "inference inference.streaming inference.audio "
    "inference.speechbrain",
    "Evaluation": "evaluation evaluation.probing "
    "evaluation.probing.comparison evaluation.event_metrics "
    "evaluation.event_tuning evaluation.harness evaluation.harness.hear "
    "evaluation.harness.xares evaluation.harness.s3prl",
    "Training": "training utils.schedules cli.recipe_run cli.recipe_files",
    "Utilities": "utils utils.files utils.random utils.lengths utils.presets "
    "utils.checks utils.metrics utils.plots",
}
API = {title: modules.split() for title, modules in API.items()}
SHOWN = [module for modules in API.values() for module in modules]


def public_names():
    """Return {module of `API`: names that the root makes public of it}."""
    found = {module: [] for module in SHOWN}
    for name in ssast_lobes.__all__:
        value = getattr(ssast_lobes, name)
        if not inspect.ismodule(value):
            place = value.__module__.removeprefix("ssast_lobes.")
            above = [m for m in SHOWN if f"{place}.".startswith(f"{m}.")]
            found[max(above, key=len)].append(name)
    return found


def write_api(app):
    """Write a page of directives for each title of `API`."""
    public = public_names()
    folder = Path(app.srcdir, "docs", "api")
    folder.mkdir(exist_ok=True)
    for title, modules in API.items():
        lines = [title, "=" * len(title)]
        for module in modules:
            names = public[module]
            if len(modules) > 1:
                lines += ["", module, "-" * len(module)]
            lines += ["", f".. automodule:: ssast_lobes.{module}"]
            if names:
                lines.append(f"   :exclude-members: {','.join(names)}")
            lines += ["", ".. currentmodule:: ssast_lobes"]
            for name in names:
                kind = inspect.isclass(getattr(ssast_lobes, name))
                kind = "class" if kind else "function"
                lines += ["", f".. auto{kind}:: {name}"]
        path = folder / f"{page_of(title)}.rst"
        path.write_text("\n".join([*lines, ""]), "utf-8")


def page_of(title):
    """Return the file name of a page of the API, without its end."""
    return title.split(",")[0].split()[0].lower()


def skip_field(app, what, name, value, skip, options):
    """Leave out the fields of named tuples: the class describes them."""
    return True if type(value).__name__ == "_tuplegetter" else None


def prepare(app, docname, source):
    """Add to a page what GitHub does by itself, or would not understand."""
    # Pages may be linked to by others alone, such as tables of benchmarks.
    app.env.metadata[docname]["orphan"] = True
    folder = Path(app.srcdir, docname).parent

    def to_file(link):
        text, target = link.groups()
        if not (folder / target).is_dir():
            return link[0]
        for name in ("README.md", "train.py"):
            if (folder / target / name).is_file():
                return f"[{text}]({target.rstrip('/')}/{name})"
        return text

    source[0] = re.sub(r"\[([^][]+)\]\(([^)#:\s]+)\)", to_file, source[0])
    if docname == root_doc:
        parts = source[0].split("\n## ")[1:]
        for part in parts:
            pages = re.findall(r"\]\(([^)#:]+\.md)\)", part)
            source[0] += toctree(part.partition("\n")[0], pages)
        pages = [f"api/{page_of(title)}" for title in API]
        source[0] += toctree("API", pages)


def toctree(caption, pages):
    """Return a part of the sidebar."""
    lines = ["", "```{toctree}", ":hidden:", f":caption: {caption}", ""]
    return "\n".join([*lines, *pages, "```", ""])


def setup(app):
    """Connect the functions above."""
    app.connect("builder-inited", write_api)
    app.connect("autodoc-skip-member", skip_field)
    app.connect("source-read", prepare)
