"""Convert a few layers of a teacher, distil, and compare: the public verbs, one after the other.

python examples/convert_and_distill.py              a few minutes on a laptop
python examples/convert_and_distill.py MODEL 100k   another teacher, another budget
"""

import sys

import hybridize as hz


def main(
    model: str = "shipped", tokens: str = "300k", problems: int = 20, sequence_length: int = 512
) -> hz.Layout:
    """Turn a third of the layers into Mamba-2, the least important ones."""
    teacher = hz.load_teacher(model)
    train = hz.make_tasks(teacher.tokenizer, sequence_length=sequence_length, seed=1)
    heldout = hz.make_tasks(
        teacher.tokenizer, sequence_length=sequence_length, seed=1, heldout=True
    )
    importance = hz.measure_importance(teacher, heldout, tokens=8 * sequence_length)
    print(importance)

    least = importance.least(teacher.layout.num_layers // 3)
    layout = teacher.layout.convert(least, to="mamba2")
    student = hz.convert(teacher, layout, calibrate_on=train)
    student = hz.distill(
        student,
        teacher,
        train,
        tokens=tokens,
        settings={"tokens_per_step": 8 * sequence_length, "optimizer": {"lr": 1e-3}},
        progress=hz.show_steps(student.name),
    )
    print(hz.evaluate([teacher, student], problems=problems))
    return student.layout


if __name__ == "__main__":
    main(*sys.argv[1:3])
