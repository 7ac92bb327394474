"""The options of every command, frozen: what the recipe can say does not become an option."""

import typer.main

from hybridize.cli.app import app

OPTIONS = {
    "new": ["--template", "--teacher", "--data"],
    "check": ["--resolved", "--set", "--flops-per-second"],
    "plan": ["--stage", "--tensors", "--json", "--set"],
    "ls": ["--json"],
    "run": ["--until", "--redo", "--dry-run", "--out", "--set", "--device", "--max-hours"],
    "status": ["--json", "--watch"],
    "importance": ["--method", "--teacher", "--out", "--recipe", "--set", "--device", "--json"],
    "align": ["--out", "--layers", "--recipe", "--set", "--device"],
    "convert": [
        "--out",
        "--layers",
        "--layout",
        "--shard-size",
        "--teacher",
        "--aligned",
        "--recipe",
        "--set",
    ],
    "distill": ["--tokens", "--out", "--teacher", "--recipe", "--set", "--device"],
    "sft": ["--tokens", "--out", "--recipe", "--set", "--device"],
    "merge": ["--out", "--weights", "--method"],
    "eval": [
        *("--suite", "--limit", "--batch", "--seed", "--lengths", "--text", "--stock"),
        *("--max-new-tokens",),
        *("--samples", "--temperature", "--top-p", "--endpoint", "--model-name", "--tokenizer"),
        *("--out", "--device", "--json"),
    ],
    "diagnose": ["--teacher", "--tokens", "--problems", "--text", "--out", "--device", "--json"],
    "export": ["--format", "--dtype", "--verify"],
    "quantize": ["--out", "--types", "--set", "--device", "--json"],
    "consolidate": [],
    "bench": [
        *("--prompt-tokens", "--output-tokens", "--batch"),
        *("--engine", "--loads", "--concurrency", "--repeats", "--dtype"),
        *("--shape", "--converted", "--mixer", "--out", "--device", "--json"),
    ],
    "report": ["--format", "--out", "--open"],
    "compare": ["--json"],
    "serve": [
        *("--engine", "--port", "--host", "--max-sequences", "--context-tokens", "--dtype"),
    ],
    "chat": ["--max-new-tokens", "--device"],
    "doctor": ["--json"],
}


def test_the_options_are_these():
    found = {
        name: [
            parameter.opts[0]
            for parameter in command.params
            if parameter.param_type_name == "option" and parameter.name != "help"
        ]
        for name, command in typer.main.get_command(app).commands.items()
    }
    assert found == OPTIONS


def test_every_command_ends_its_help_with_an_example(call):
    for name in OPTIONS:
        out, _ = call(name, "--help")
        assert "Example" in out, name
        assert f"hybridize {name}" in out, name
