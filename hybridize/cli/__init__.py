"""The command `hybridize`: thin, one file a group of commands, no torch before it is needed.

    $ hybridize new mine --template tiny && hybridize run mine.yaml

Order of reading: app (errors and exit codes), options, recipes, street, stages, measure, report.
"""


def main() -> None:
    """Run the command line; exit with 0 done, 1 bug, 2 user, 3 machine, 130 or 143 interrupted."""
    from hybridize.cli.app import app

    app(prog_name="hybridize")
