"""English words: plurals, articles, lists, numbers."""

# Of the scenes' concepts, and of what people name in photographs.
IRREGULAR_PLURALS = {
    "bus": "buses", "fish": "fishes", "person": "people", "man": "men", "woman": "women", "child": "children",
    "mouse": "mice", "goose": "geese", "foot": "feet", "tooth": "teeth", "ox": "oxen", "sheep": "sheep", "deer": "deer",
    "scissors": "scissors", "knife": "knives", "wolf": "wolves", "leaf": "leaves", "loaf": "loaves", "calf": "calves",
    "shelf": "shelves", "scarf": "scarves", "potato": "potatoes", "tomato": "tomatoes",
}  # fmt: skip
NUMBERS = {1: "one", 2: "two", 3: "three"}


def plural(noun: str) -> str:
    """The plural of a concept name, of its last word if there are several ("wine glass")."""
    *first, last = noun.split(" ")
    if last in IRREGULAR_PLURALS:
        last = IRREGULAR_PLURALS[last]
    elif last.endswith("y") and last[-2:-1] not in tuple("aeiou"):
        last = last.removesuffix("y") + "ies"
    else:
        last += "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
    return " ".join([*first, last])


def article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def join(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
