"""Solve each kind of problem from its prompt alone, written apart from what makes them."""


def recall(words):
    text, asked = words[: words.index("?")], words[words.index("?") + 1 :]
    places = [place for place, word in enumerate(text) if word == "="]
    facts = {text[place - 1]: text[place + 1] for place in places}
    assert len(facts) == len(places), "a key has one value"
    return [facts[key] for key in asked]


def add(words):
    plus = words.index("+")
    top, bottom = "".join(words[:plus]), "".join(words[plus + 1 : words.index("?")])
    return list(str(int(top) + int(bottom)))


def chain(words):
    asked = words[-1]
    definitions = {}
    for line in " ".join(words[: words.index("?")]).split(" ; "):
        name, _, value = line.removesuffix(" ;").partition(" = ")
        assert name not in definitions, "a letter is defined once"
        definitions[name] = value.split()

    def value_of(name):
        match definitions[name]:
            case [digit]:
                return int(digit)
            case [other, "+", digit]:
                return (value_of(other) + int(digit)) % 10
            case [other, "-", digit]:
                return (value_of(other) - int(digit)) % 10

    return [str(value_of(asked))]


def sort(words):
    letters = words[: words.index("?")]
    assert len(set(letters)) == len(letters), "no letter comes twice"
    return sorted(letters)


def edit(words):
    start, *commands = " ".join(words).removesuffix(" ; ?").split(" ; ")
    items = start.split()
    for command in commands:
        match command.split():
            case ["flip"]:
                items = items[::-1]
            case ["drop", item]:
                items = [other for other in items if other != item]
            case ["swap", one, two]:
                other = {one: two, two: one}
                items = [other.get(item, item) for item in items]
            case ["put", new, "after", item]:
                place = items.index(item)
                items = [*items[: place + 1], new, *items[place + 1 :]]
            case unknown:
                raise AssertionError(unknown)
    assert len(set(items)) == len(items), "no letter comes twice"
    return items


SOLVERS = {"recall": recall, "add": add, "chain": chain, "sort": sort, "edit": edit}


def solve(problem):
    """Return the answer to a prompt, as words joined by spaces."""
    kind, colon, *words = problem.prompt.split()
    assert (kind, colon) == (problem.kind, ":")
    return " ".join(SOLVERS[kind](words))


def last_of_thinking(problem):
    """Return the answer that the last lines of the reasoning amount to."""
    lines = problem.thinking.removesuffix(" ;").split(" ; ")
    match problem.kind:
        case "recall":
            return " ".join(line.split(" = ")[1] for line in lines)
        case "add":
            carry = lines[-1].split()[-2]
            digits = [line.split()[-1] for line in reversed(lines)]
            return " ".join(([] if carry == "0" else [carry]) + digits)
        case "chain":
            return lines[-1].split(" = ")[-1]
        case "sort":
            return " ".join(sorted(" ".join(lines).replace(" | ", " ").split()))
        case "edit":
            return lines[-1].split(" > ")[-1]
