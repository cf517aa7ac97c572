"""`python -m steps.worker JOB`: one of the processes of a training, started by `segpipe.orchestration.workers`."""

from segpipe.orchestration.workers import main

if __name__ == "__main__":
    main()
