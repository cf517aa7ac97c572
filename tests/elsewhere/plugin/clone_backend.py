"""An MLflow Projects backend that runs each step as on another machine, which has the project's git URI and an
environment, and nothing else.
"""

import os
import subprocess
import tempfile
from pathlib import Path

from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.submitted_run import LocalSubmittedRun
from mlflow.projects.utils import get_entry_point_command, get_or_create_run, get_run_env_vars, load_project

CROSSES = ("PATH", "OMP_NUM_THREADS", "SEGPIPE_DATA")


class CloneBackend(AbstractBackend):
    """Below the folder that the backend config names as `folder`, each step gets one of its own, with `project/` (a
    fresh clone of the project's present commit), an empty `home/`, and `log`, what the step wrote.
    """

    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: dict[str, str],
        version: str | None,
        backend_config: dict[str, str],
        tracking_uri: str,
        experiment_id: str,
    ) -> LocalSubmittedRun:
        place = Path(tempfile.mkdtemp(prefix=f"{entry_point} ", dir=backend_config["folder"]))
        clone, home = place / "project", place / "home"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", "--no-local", project_uri, clone], check=True)
        run_id = get_or_create_run(None, project_uri, experiment_id, clone, version, entry_point, params).info.run_id
        (command,) = get_entry_point_command(load_project(clone), entry_point, params, str(place))
        kept = {name: value for name, value in os.environ.items() if name in CROSSES or name.startswith("MLFLOW_")}
        own = {**get_run_env_vars(run_id, experiment_id), "MLFLOW_TRACKING_URI": tracking_uri, "HOME": str(home)}
        with (place / "log").open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", command], cwd=clone, env=kept | own, stdout=log, stderr=log, start_new_session=True
            )
        return LocalSubmittedRun(run_id, process)
