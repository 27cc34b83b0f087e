"""Options and help: the same as the keywords of the functions, readable, with examples that run."""

import inspect
import shlex
from pathlib import Path

import pytest
from typer.core import TyperOption

import ckptavg
from ckptavg.cli.options import GROUPS
from ckptavg.recipes import RECIPES, Parameter, all_parameters, recipe
from tests.helpers.command_line import known_commands, main

FUNCTIONS = {
    "merge": ckptavg.merge,
    "recipes": ckptavg.compare_recipes,
    "sweep": ckptavg.sweep,
    "soup": ckptavg.soup,
    "doctor": ckptavg.doctor,
    "update-bn": ckptavg.update_bn,
    "evaluate": ckptavg.evaluate,
    "inspect": ckptavg.inspect,
    "report": ckptavg.report,
    "verify": ckptavg.verify,
    "convert": ckptavg.convert,
}
PYTHON_ONLY = {"progress", "data_name"}
COMMAND_ONLY = {"json", "dry_run", "plot", "verbose"}
"""How a result is printed, or whether there is to be one; `plan_merge` is the dry run."""


def keywords(function) -> set[str]:
    named = dict(inspect.signature(function).parameters)
    if named.pop("parameters", None):
        named |= {p.name: p for p in all_parameters().values()}
    return named.keys() - PYTHON_ONLY


def test_every_command_has_its_function():
    assert {*FUNCTIONS, "demo"} == known_commands().keys()
    for name, function in FUNCTIONS.items():
        assert function.__name__ in (name.replace("-", "_"), "compare_recipes", "write_report")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_function_takes_its_command_takes(name):
    taken = {parameter.name for parameter in known_commands()[name].params}
    expected = keywords(FUNCTIONS[name])
    if name == "recipes":
        expected.remove("at_step")  # of averages that a run has tracked, which are not drawn
    assert taken - COMMAND_ONLY == expected


@pytest.mark.parametrize("name", FUNCTIONS)
def test_defaults_are_those_of_the_function(name):
    known = inspect.signature(FUNCTIONS[name]).parameters
    for parameter in known_commands()[name].params:
        default = getattr(known.get(parameter.name), "default", None)
        assert parameter.required == (default is inspect.Parameter.empty), parameter.name
        if isinstance(parameter, TyperOption) and not parameter.required:
            assert parameter.default == (default or parameter.default), parameter.name


def test_a_plan_takes_what_decides_it():
    planned = keywords(ckptavg.plan_merge) - {"live_model", "copy"}
    assert planned < keywords(ckptavg.merge)
    for name in planned - all_parameters().keys():
        one, two = (inspect.signature(f).parameters for f in (ckptavg.plan_merge, ckptavg.merge))
        assert one[name].default == two[name].default, name


@pytest.fixture
def triangle():
    """A recipe from outside, with a parameter of its own."""
    steep = Parameter("steepness", "How steep.", "S", example=1.0)

    @recipe("triangle", summary="rises linearly", parameters=[steep])
    def triangle(positions, steepness):
        weights = [(n + 1) ** steepness for n in range(len(positions))]
        return [weight / sum(weights) for weight in weights]

    yield "triangle"
    del RECIPES["triangle"]


def test_a_recipe_from_outside_appears_everywhere(triangle, folder):
    for command in ("merge", "sweep"):
        assert "triangle" in main(command, "--help")[1]
    assert "--steepness S" in main("merge", "--help")[1]
    assert "triangle: How steep." in main("recipes", "--help")[1]
    assert "triangle:1" in main("recipes", "run")[1]
    out = main("merge", "run", "-o", "o.weights.h5", "--recipe", triangle, "--steepness", 2)[1]
    assert "triangle:2" in out
    assert "triangle" in main("sweep", "--help")[1]
    plan = ckptavg.plan_merge("run", "p.weights.h5", recipe=triangle, steepness=2)
    assert plan.coefficients == pytest.approx([n / 30 for n in (1, 4, 9, 16)])


@pytest.mark.parametrize("name", [*FUNCTIONS, "demo"])
def test_help_fits_80_columns_and_says_what_is_needed(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = main(name, "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    # Explained on the line of its name, not below it, as Click does where one name is too wide.
    assert not [line for line in out.splitlines() if line.endswith("  ")]
    assert out.startswith(f"Usage: ckptavg {name} ")
    headings = [line[:-1] for line in out.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings[-1] == "Example"
    assert headings[:-1] == [group for group in GROUPS if group in headings]
    assert not {"TEXT", "INTEGER", "FLOAT", "BOOLEAN"} & set(out.split())
    required = [p for p in known_commands()[name].params if p.required]
    assert out.replace("\n", " ").count("[required]") == len(required)
    for parameter in required:
        assert (parameter.metavar or "") in out.splitlines()[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_required_is_asked_for(name):
    required = [p for p in known_commands()[name].params if p.required]
    for missing in required:
        words = []
        for parameter in required:
            if parameter is not missing:
                spelled = [parameter.opts[-1]] if isinstance(parameter, TyperOption) else []
                words += [*spelled, "x"]
        status, out, err = main(name, *words)
        assert (status, out) == (2, "")
        kind = "option" if isinstance(missing, TyperOption) else "argument"
        assert f"Missing {kind} '" in err


def test_each_option_of_merge_stands_in_a_group():
    groups = {p.name: p.rich_help_panel for p in known_commands()["merge"].params}
    assert groups["last"] == "Which checkpoints"
    assert groups["recipe"] == groups["decay"] == "Which average"
    assert groups["bn_mode"] == "BatchNorm pass"
    assert groups["output"] == "Output"
    assert groups["jobs"] == "Resources"


def test_the_help_is_the_same_on_a_terminal(monkeypatch, in_terminal):
    monkeypatch.setenv("COLUMNS", "80")
    assert in_terminal("ckptavg merge --help") == main("merge", "--help")[1]


def test_the_examples_of_all_commands_run(folder):
    train = Path("train.py").read_text()
    Path("train.py").write_text(train + "\ndef val_data(): return x[:48], y[:48]\n")
    for name, command in known_commands().items():
        _, called, *arguments = shlex.split(command.epilog.replace("\\\n", ""))
        assert called == name
        if name == "demo":  # runs for minutes; test_demo has it
            known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
            assert {word for word in arguments if word.startswith("-")} <= known
            continue
        status, _, err = main(name, *arguments)
        assert status == 0, f"{command.epilog}\n{err}"


def test_the_workflow_runs(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out, err = main()[1:]
    shown = out + err
    assert max(map(len, shown.splitlines())) <= 80
    lines = [line.strip() for line in shown.splitlines() if line.startswith("  ckptavg ")]
    assert len(lines) == 3
    for line in lines:
        status, _, err = main(*shlex.split(line)[1:])
        assert status == 0, err
    assert Path("swa-bn.weights.h5").is_file()


def test_commands_in_the_list_say_what_their_help_says():
    listed = main("--help")[1]
    assert all(f"  {name} " in listed for name in known_commands())


def test_a_mistyped_command_is_put_right():
    status, _, err = main("mrge")
    assert status == 2
    assert "No such command 'mrge'. Did you mean 'merge'?" in err
    assert "Did you mean" not in main("xyzzy")[2]


def test_wrong_values_are_wrong_usage(folder):
    for option, value, message in (
        ("--last", "few", "'few' is not an integer"),
        ("--decay", "high", "'high' is not a number"),
        ("--coefficients", "a,b", "is not a list of numbers"),
        ("--epochs", "9-3", "names no epochs"),
        ("--max-memory", "lots", "is not a size"),
    ):
        status, _, err = main("merge", "run", "-o", "o.weights.h5", option, value)
        assert status == 2
        assert message in err
        assert option in err
    assert main("recipes", "--count", "0")[0] == 2
