"""A recipe for a folder, without a store: what was found there, and the knobs that follow from it."""

from collections.abc import Collection
from pathlib import Path

from segpipe.config.sections import Config
from segpipe.files.staging import staged
from segpipe.orchestration import planning
from segpipe.orchestration.screen import Screen
from segpipe.planning import fingerprint, rules
from segpipe.planning.rules import Setting


def write(screen: Screen, config: Config, root: str, given: Collection[str], target: Path) -> str:
    """Measure a data set and write the recipe that follows, with the `given` knobs as they are and `root` as it was
    typed; what was written. Raises InputError as the reader does.
    """
    found = fingerprint.measure(config, screen.progress("init"))
    planned = rules.plan(found, config.train.minutes or planning.MINUTES)
    place = [
        Setting("data.format", config.data.format, "what the folder looks like"),
        Setting("data.root", root, "as given; a path from the folder that segpipe is started in"),
        Setting("registry.model_name", config.registry.model_name, "its name in the registry"),
    ]
    apart = {setting.knob for setting in place}
    settings = [*place, *planned]
    text = rules.recipe(planning.completed(settings, config, [knob for knob in given if knob not in apart]), found)
    with staged(target.parent) as folder:
        (folder / target.name).write_text(text, encoding="utf-8")
    return text
