"""`python -m steps.register`"""

from segpipe.config import Config
from steps import cli


@cli.step("register", inputs=("preprocess", "evaluate"))
def main(config: Config, preprocess: str, evaluate: str) -> str:
    """Register the evaluated model and promote it if it passes the gate."""
    from segpipe import artifacts, evaluation, registry, tracking

    name = config.registry.model_name
    cases = evaluation.read(artifacts.local(f"runs:/{evaluate}/evaluation/cases.csv"))
    tags, model_id = tracking.version_tags(preprocess, evaluate), tracking.tag_of(evaluate, tracking.MODEL)
    version, champion = registry.version_of(name, model_id, tags), registry.holder(name)

    if champion is not None and champion.version == version.version:
        decision = registry.Decision(False, (f"version {version.version} is the champion already",))
    else:
        rival = registry.cases_of(champion, preprocess, config.train, cli.progress("champion")) if champion else None
        decision = registry.decide(cases, rival, config.gate)

    with artifacts.folder("register") as folder:
        content = decision.to_json(
            version=registry.describe(version), champion=champion and registry.describe(champion)
        )
        (folder / "decision.json").write_text(content, encoding="utf-8")
        registry.apply(name, str(version.version), decision)
    holder = registry.holder(name)
    tracking.tag(champion=str(holder.version) if holder else "")
    return f"{'promoted' if decision.promote else 'kept'}: {'; '.join(decision.reasons)}"


if __name__ == "__main__":
    main()
