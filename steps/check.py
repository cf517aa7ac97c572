"""`python -m steps.check --data.root FOLDER`"""

import steps

if __name__ == "__main__":
    steps.start_quietly()

from segpipe.config.sections import Config
from segpipe.errors import FaultsError
from segpipe.orchestration import checking
from segpipe.orchestration.session import Session
from segpipe.orchestration.step_table import CHECK
from steps import command


@command.step("check")
def main(session: Session, config: Config) -> str:
    """Read a data set once, and list all that is wrong with its files and with the set; a page shows it."""
    from segpipe.tracking import artifacts, runs

    with artifacts.folder(CHECK.output) as folder:
        check = checking.run(session.screen, config, folder)
    try:
        check.refuse()
    except FaultsError as error:
        error.add_note(f"see {artifacts.place(runs.active(), CHECK.page)}")
        raise
    told = f"{len(check.findings)} warnings and notes" if check.findings else "nothing is wrong"
    return f"{len(check.cases)} cases: {told}"


if __name__ == "__main__":
    main()
