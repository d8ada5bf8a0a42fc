"""Pages of the site that are made of what stands elsewhere: the README, the specification, options of commands.

MkDocs calls `on_files` before it builds (https://www.mkdocs.org/user-guide/configuration/#hooks).
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from raymask.cli import COMMANDS
from raymask.cli.options import plain_type
from raymask.config import flag

ROOT = Path(__file__).parent.parent
PICTURES = {f"benchmarks/results/{name}": name for name in ("pipeline.svg", "scale.svg")}
# Texts at the top of the project, and where links to them lead on the site.
PAGES = {"README.md": "index.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changes.md"}
MOVED = {
    **PAGES,
    "schemas/": "format/",
    "docs/": "",
    **PICTURES,
}
# Without a page: named as what they are, files of the project.
NOT_HERE = ("CONTRIBUTING.md", "benchmarks/results", "LICENSE")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=as_page((ROOT / source).read_text())))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    for picture, name in PICTURES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / picture)))
    for file in sorted((ROOT / "schemas").iterdir()):
        if file.is_file():
            files.append(File.generated(config, f"format/{file.name}", abs_src_path=str(file)))
    return files


def as_page(text: str) -> str:
    """A text of the project's top folder with its links as the site has the pages."""
    for source, page in MOVED.items():
        text = text.replace(f"]({source}", f"]({page}")
    for name in NOT_HERE:
        text = text.replace(f"[{name}]({name})", f"`{name}`")
    return text


def commands_page() -> str:
    """Every command with what `--help` says."""
    lines = [
        "# Commands",
        "",
        "Every option is also a key of the job files in `jobs/` and a keyword of the Python function of the same name,",
        "with `_` for `-`. `raymask COMMAND --help` says the same. All take `--debug`, which shows a traceback where",
        "something goes wrong.",
    ]
    for name, (config_class, _) in COMMANDS.items():
        fields = dataclasses.fields(config_class)
        positional = " ".join(field.name.upper() for field in fields if field.metadata["positional"])
        lines += ["", f"## raymask {name}", "", f"    raymask {name} {positional} [options]".replace("  [", " ["), ""]
        lines += [" ".join(paragraph.split()) + "\n" for paragraph in (config_class.__doc__ or "").split("\n\n")]
        lines += ["| option | | default |", "| --- | --- | --- |"]
        lines += [option_row(field, typing.get_type_hints(config_class)[field.name]) for field in fields]
    return "\n".join(lines) + "\n"


def option_row(field: dataclasses.Field[Any], hint: Any) -> str:
    about = field.metadata
    kind = plain_type(hint)
    if typing.get_origin(kind) is typing.Literal:
        value = "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    else:
        value = "" if kind is bool else about["metavar"] or getattr(kind, "__name__", "").upper()
    name = field.name.upper() if about["positional"] else f"{flag(field.name)} {value}".strip()
    shown = "" if field.default in (dataclasses.MISSING, None, False) else field.default
    if isinstance(shown, tuple):
        shown = ",".join(map(str, shown))
    required = field.default is dataclasses.MISSING
    cells = [f"`{name}`", about["help"], "required" if required else f"`{shown}`" if shown != "" else ""]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"
