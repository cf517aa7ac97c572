"""The cases to segment with their files, found without opening an image."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from segpipe.config.sections import Config
from segpipe.data import codecs, raw, tables
from segpipe.data.manifest import FILE, Manifest
from segpipe.data.readers import READERS, all_cases, pairs, reader_of
from segpipe.errors import InputError
from segpipe.files.staging import staged
from segpipe.inference.spec import ModelSpec

IMAGES, MASKS = "images", "masks"
# What a column of a list is called, as in tables.COLUMNS; further ones are channels.
COLUMNS = {
    "case": ("case", "case_id", "caseid", "name"),
    "image": ("image", "image_path", "img", "file", "filename", "file_name", "path"),
    "mask": ("mask", "mask_path", "reference", "label", "annotation", "segmentation"),
}


class Item(NamedTuple):
    """A case: its name, one file per channel or one that holds all, its reference mask, its patient. `fault` says what
    is wrong before anything is read, if anything is.
    """

    case: str
    files: tuple[Path, ...]
    reference: Path | None = None
    patient: str = ""
    fault: str = ""


def _several_files(spec: ModelSpec) -> bool:
    """Whether a case of the model is a file for each channel."""
    return spec.kind == "volume" and len(spec.channels) > 1


def listed(paths: Sequence[Path], folder: Path) -> Path:
    """A list of several files, and of all images below several folders, as a file in a folder, which is made."""
    every = [file for path in paths for file in ([path] if path.is_file() else _files(path))]
    wanted = [file for file in every if file in paths or file.name.lower().endswith(codecs.SUFFIXES)]
    text = "".join(f"{file}\n" for file in dict.fromkeys(wanted))
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
    with staged(folder) as partial:
        (partial / name).write_text(text, encoding="utf-8")
    return folder / name


def find(source: Path, spec: ModelSpec, config: Config) -> list[Item]:
    """The cases of a folder, an image, a list, a manifest or the folder of a dataset, as the model takes them.

    Raises InputError where there is none, a list or manifest can't be read, or two cases have one name.
    """
    if source.is_dir():
        found = _manifest(source / FILE, config) if (source / FILE).is_file() else _folder(source, spec, config)
    elif source.suffix.lower() == ".json":
        found = _manifest(source, config)
    elif source.suffix.lower() in (".csv", ".tsv"):
        found = _table(source, spec)
    elif source.suffix.lower() == ".txt":
        found = _list(source, spec, config)
    elif source.name.lower().endswith(codecs.SUFFIXES):
        found = _cases_of([source], source.parent, spec, config)
    else:
        raise InputError(
            f"predict.input {source}: give a folder, an image, a list of files (.txt, .csv, .tsv) or a manifest.json"
        )
    if not found:
        wanted = f"*_{'.nii.gz, *_'.join(spec.channels)}.nii.gz" if _several_files(spec) else "images"
        raise InputError(f"predict.input {source}: nothing to segment; the model takes {wanted}")
    named = [_with_a_name(item) for item in found]
    _check_names(named, source)
    return named


def _with_a_name(item: Item) -> Item:
    """The case, or where the name of a file is not UTF-8 one that says so, by a name that can be written."""
    faults = [fault for path in item.files if (fault := raw.fault_of_name(path))]
    if not faults:
        return item
    return Item(os.fsencode(item.case).decode("utf-8", "backslashreplace"), (), fault=faults[0])


def _check_names(items: list[Item], source: Path) -> None:
    """Raise InputError where a name is taken twice or leads out of the output folder."""
    known: dict[str, Item] = {}
    for item in items:
        parts = PurePosixPath(item.case).parts
        if not parts or item.case.startswith("/") or any(part.startswith(".") or "\0" in part for part in parts):
            raise InputError(f"{source}: case '{item.case}' can't name a file; give it another name")
        if item.case in known:
            both = " and ".join(str(one.files[0]) for one in (known[item.case], item) if one.files)
            raise InputError(f"{source}: two cases '{item.case}' ({both}); rename one, or name them in a .csv")
        known[item.case] = item


def _files(root: Path) -> list[Path]:
    """Every file below a folder except hidden ones, sorted; links are followed."""
    found = []
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(found)


def suffix(path: Path) -> str:
    """A file's suffix, `.nii.gz` being one."""
    return next((path.name[-len(end) :] for end in codecs.VOLUMES if path.name.lower().endswith(end)), path.suffix)


def _stem(path: Path) -> str:
    return path.name.removesuffix(suffix(path))


def _case(path: Path, root: Path) -> str:
    """The name of a file's case: its path below `root` without the suffix."""
    return (path.parent.relative_to(root) / _stem(path)).as_posix()


def _folder(root: Path, spec: ModelSpec, config: Config) -> list[Item]:
    base = root / IMAGES if (root / IMAGES).is_dir() else root
    known = codecs.SUFFIXES if spec.kind == "picture" else (*codecs.VOLUMES, *codecs.STACKS)
    files = [path for path in _files(base) if path.name.lower().endswith(known)]
    masks = _files(root / MASKS)
    anywhere = files if base == root else [*files, *masks, *_files(root / "derivatives")]
    if grouped := _group_files(files, anywhere, base, spec, config):
        return grouped
    ends = tuple(f"_{config.data.mask_suffix}{end}" for end in codecs.VOLUMES)
    images = [p for p in files if MASKS not in p.relative_to(base).parts[:-1] and not p.name.endswith(ends)]
    references = _references({_case(path, base) for path in images}, masks, root / MASKS)
    return [Item(case, (path,), references.get(case)) for path in images if (case := _case(path, base))]


def _references(cases: set[str], masks: list[Path], folder: Path) -> dict[str, Path]:
    """The masks of a folder by their cases: as they are named or, where none fits so, without what all end with.

    Raises InputError where there are masks, and none is named like a case.
    """
    named = {_case(path, folder): path for path in masks}
    if named and not cases & named.keys():
        named = pairs.without(named, pairs.common_end(named))
        if not cases & named.keys():
            raise InputError(
                f"{folder}: no mask is named like an image; rename them, list both in a .csv, or predict {IMAGES}/"
            )
    return named


def _group_files(files: list[Path], masks: list[Path], root: Path, spec: ModelSpec, config: Config) -> list[Item]:
    """Cases whose files are named `STEM_CHANNEL.nii.gz`, with their masks `STEM_MASKSUFFIX.nii.gz` from anywhere; none
    for a model of pictures.

    Files of one stem belong together across folders, unless a channel is there twice: then only within a folder.
    """
    if spec.kind == "picture":
        return []
    references = _by_stem(masks, (config.data.mask_suffix,))
    items = []
    for stem, members in _by_stem(files, spec.channels).items():
        groups: dict[Path, list[tuple[str, Path]]] = defaultdict(list)
        apart = len({channel for channel, _ in members}) < len(members)
        for channel, path in members:
            groups[path.parent if apart else root].append((channel, path))
        own = [mask for _, mask in references[stem]]
        items += [_item(stem, group, own, root, spec.channels) for group in groups.values()]
    return sorted(items)


def _by_stem(files: list[Path], ends: tuple[str, ...]) -> dict[str, list[tuple[str, Path]]]:
    """The volumes that are named `STEM_END`, each with its end, by their stem."""
    found: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for path in files:
        stem, _, end = _stem(path).rpartition("_")
        if stem and end in ends and path.name.lower().endswith(codecs.VOLUMES):
            found[stem].append((end, path))
    return found


def _item(stem: str, members: list[tuple[str, Path]], masks: list[Path], root: Path, channels: tuple[str, ...]) -> Item:
    """The case of the files of one stem. One that is named in the BIDS manner names its patient."""
    by_channel = dict(members)
    files = tuple(by_channel[channel] for channel in channels if channel in by_channel)
    case = (files[0].parent.relative_to(root) / stem).as_posix()
    if len(by_channel) < len(members):
        return Item(case, files, fault=f"{files[0].parent}: a channel of '{stem}' is there twice, as .nii and .nii.gz")
    missing = [channel for channel in channels if channel not in by_channel]
    if missing:
        return Item(case, files, fault=f"{files[0]}: no file {stem}_{missing[0]}.nii.gz with it")
    beside = [mask for mask in masks if mask.parent == files[0].parent] or masks
    if len(beside) > 1:
        return Item(case, files, fault=f"{beside[0]}: {len(beside)} masks of the case's name; one is expected")
    patient = stem.partition("_")[0] if stem.startswith("sub-") else ""
    return Item(case, files, beside[0] if beside else None, patient)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def _common(files: list[Path], folder: Path) -> Path:
    """The list's own folder if all files lie below it, otherwise their deepest common folder."""
    inside = all(path.is_relative_to(folder) for path in files)
    return folder if inside or not files else Path(os.path.commonpath([path.parent for path in files]))


def _list(source: Path, spec: ModelSpec, config: Config) -> list[Item]:
    files = [_absolute(source.parent, line.strip()) for line in _lines(source) if line.strip()]
    return _cases_of(files, _common(files, source.parent), spec, config)


def _cases_of(files: list[Path], root: Path, spec: ModelSpec, config: Config) -> list[Item]:
    single = [Item(_case(path, root), (path,)) for path in files]
    return _group_files(files, files, root, spec, config) or single


def _absolute(folder: Path, name: str) -> Path:
    """An absolute path without `..`, so that two spellings are one file."""
    return Path(os.path.normpath(folder / Path(name).expanduser()))


def _table(source: Path, spec: ModelSpec) -> list[Item]:
    header, lines = tables.cut(source)
    names = tables.means(source, header, COLUMNS)
    columns = spec.channels if _several_files(spec) and "image" not in names else ("image",)
    missing = [name for name in columns if name not in names]
    if missing:
        raise InputError(f"{source}: no column '{missing[0]}'; there are {', '.join(filter(None, header)) or 'none'}")
    rows = [{k: tables.tidy(v) for k, v in zip_longest(names, cells) if k} for _, cells in lines]
    rows = [row for row in rows if any(row.values())]
    groups = [tuple(_absolute(source.parent, row[name]) for name in columns if row[name]) for row in rows]
    root = _common([path for files in groups for path in files], source.parent)
    items = []
    for number, (row, files) in enumerate(zip(rows, groups, strict=True), start=1):
        case = row.get("case") or (_case(files[0], root) if files else f"row{number}")
        empty = [name for name in columns if not row[name]]
        fault = f"{source}: row {number} has no '{empty[0]}'" if empty else ""
        reference = _absolute(source.parent, row["mask"]) if row.get("mask") else None
        items.append(Item(case, files, reference, fault=fault))
    return items


def _manifest(path: Path, config: Config) -> list[Item]:
    """The manifest's cases by their raw files, with the masks that its reader finds; a phantom stays in place."""
    manifest = Manifest.read(path)
    simulated = READERS[manifest.reader].simulated
    root = raw.check_root(manifest.root if simulated else config.data.root or manifest.root)
    data = {"format": manifest.reader, "channels": manifest.channels}
    reader = reader_of(config.data.model_copy(update=data), root)
    found = {case.name: case for case in all_cases(reader)}
    items = []
    for record in manifest.cases:
        files = tuple(reader.root / name for name in record.files)
        case = found.get(record.case)
        fault = "" if case else f"{files[0]}: no longer a case of {reader.root}"
        items.append(Item(record.case, files, case.mask if case else None, record.patient, fault))
    return items
