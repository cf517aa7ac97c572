"""The chain as a table, and the check and the plan that can come before it: each is declared here, in `MLproject` and
by its file in `steps/`.
"""

from dataclasses import dataclass

from segpipe.config.sections import Config


@dataclass(frozen=True)
class Step:
    """One row: its name is its entry point and its module in `steps/`.

    `sections` are the config that decides its result, or single knobs of it, `reads` what it reads beside, without
    effect on the result (where things are, on which device); `code` the modules that decide its result, with all they
    import but for `keys.WITHOUT_EFFECT_ON_RESULTS`; `output` the folder of artifacts that must be whole for its run to
    be reused, `page` the artifact that a person looks at first.
    """

    name: str
    sections: tuple[str, ...]
    reads: tuple[str, ...]
    inputs: tuple[str, ...]
    code: tuple[str, ...]
    output: str
    page: str

    def narrowed(self, config: Config) -> Config:
        """The config with nothing in it but what the step declares."""
        return config.narrowed((*(name.partition(".")[0] for name in self.sections), *self.reads))


PLAN = Step(
    "plan",
    sections=("data", "split", "seed", "train.minutes"),
    reads=tuple(Config.model_fields),  # what is given is kept in the recipe that is written for the user
    inputs=(),
    code=("segpipe.planning.rules", "segpipe.planning.fingerprint"),
    output="plan",
    page="plan/plan.yaml",
)
CHECK = Step(
    "check",
    sections=("data", "preprocess", "split", "check", "seed"),
    reads=("tracking",),
    inputs=(),
    code=("segpipe.data.checking.reading", "segpipe.data.readers"),
    output="check",
    page="check/data_report.html",
)
STEPS = {
    step.name: step
    for step in (
        Step(
            "preprocess",
            sections=("data", "preprocess", "split", "seed"),
            reads=("tracking", "check"),  # what a check refuses leaves nothing to reuse
            inputs=(),
            code=("segpipe.data.dataset_writer", "segpipe.data.readers"),
            output="dataset",
            page="dataset/samples.png",
        ),
        Step(
            "train",
            sections=("model", "loss", "augment", "train", "federate", "seed"),
            reads=tuple(Config.model_fields),  # all of it is recorded; `trainer.run` narrows what decides
            inputs=("preprocess",),
            code=("segpipe.training.trainer",),
            output="final_model",
            page="final_model/summary/summary.md",
        ),
        Step(
            "evaluate",
            sections=("evaluate", "seed"),
            reads=("registry", "card", "train", "tracking"),
            inputs=("preprocess", "train"),
            code=("segpipe.evaluation.choosing", "segpipe.evaluation.measuring", "segpipe.evaluation.kept"),
            output="evaluation",
            page="evaluation/report.html",
        ),
        Step(
            "register",
            sections=("gate", "registry", "evaluate", "seed"),
            reads=("train", "tracking"),
            inputs=("preprocess", "evaluate"),
            code=("segpipe.evaluation.gate", "segpipe.evaluation.measuring", "segpipe.evaluation.kept"),
            output="register",
            page="register/report.html",
        ),
    )
}
ROWS = {PLAN.name: PLAN, CHECK.name: CHECK, **STEPS}  # every row, whether it is part of each chain or not
