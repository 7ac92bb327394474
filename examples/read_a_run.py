"""Read what a run has found, finished or not: python examples/read_a_run.py runs/tiny."""

import sys

import hybridize as hz
from hybridize.report import verdict


def main(folder: str = "runs/tiny") -> None:
    """Print the verdict, the ranking of the layers, the stages and the scores."""
    run = hz.open_run(folder)
    print(run.name, "-", verdict(folder))

    for name, importance in run.importance.items():
        print(f"{name}: least important first {importance.least(len(importance.scores))}")

    for stage in run.stages:
        if stage.values is None:
            print(f"{stage.name}: {len(stage.metrics)} steps so far")
            continue
        print(f"{stage.name}: {hz.Layout.parse(stage.values['layout'])}")
        losses = [line["loss"] for line in stage.metrics]
        print(f"  loss {losses[0]:.3f} -> {losses[-1]:.3f} over {len(losses)} steps")

    for model, found in run.evaluations.items():
        overall = found["overall"]
        print(f"{model:<8} {overall['accuracy']:.3f} ± {overall['standard_error']:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
