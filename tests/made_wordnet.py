"""A WordNet of a few dozen nouns in the real format, wndb(5WN)."""

from pathlib import Path

from lorabench.zoo.gloss_texts import ROOTS

LICENCE = "  1 This software and database is being provided to you, the LICENSEE\n"


class Nouns:
    """Synsets that are written as WordNet writes them."""

    def __init__(self) -> None:
        self._synsets: list[tuple[str, list[str], list[tuple[str, str]], str]] = []

    def add(self, lemmas: list[str], gloss: str, *pointers: tuple[str, str]) -> str:
        """A synset with its pointers (symbol, key); its key."""
        key = f"{1000 + len(self._synsets):08d}"
        self._synsets.append((key, lemmas, list(pointers), gloss))
        return key

    def write(self, folder: Path) -> Path:
        """data.noun and index.noun."""
        data, index = [LICENCE], [LICENCE]
        for key, lemmas, pointers, gloss in self._synsets:
            words = " ".join(f"{lemma.replace(' ', '_')} 0" for lemma in lemmas)
            links = " ".join(f"{symbol} {target} n 0000" for symbol, target in pointers)
            data.append(f"{key} 05 n {len(lemmas):02x} {words} {len(pointers):03d} {links} | {gloss}  \n")
        for lemma in sorted({lemma for _, lemmas, _, _ in self._synsets for lemma in lemmas}, key=str.lower):
            keys = [key for key, lemmas, _, _ in self._synsets if lemma in lemmas]
            count = len(keys)
            index.append(f"{lemma.lower().replace(' ', '_')} n {count} 2 @ ~ {count} 1 {' '.join(keys)}  \n")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data.noun").write_text("".join(data))
        (folder / "index.noun").write_text("".join(index))
        return folder


def made_wordnet(folder: Path, leaves: int = 6) -> Path:
    """Ten roots with so many leaves each, and what a reader may stumble over.

    A leaf is below two roots; an instance is no kind; two birds share a lemma; a fish has ten lemmas; a root's word has
    a second sense that comes later; a gloss has examples; a lemma is a root's word and no more.
    """
    nouns = Nouns()
    thing = nouns.add(["entity"], "what there is")
    of_root = {root: nouns.add([root, f"{root} of old"], f"any {root} at all", ("@", thing)) for root in ROOTS}
    nouns.add(["bird"], "a cry", ("@", thing))
    for number, (root, key) in enumerate(of_root.items()):
        middle = nouns.add([f"sort{number}"], f"a sort of {root}", ("@", key)) if leaves else key
        for place in range(leaves):
            letters = "abcdefghij"[number] * 3 + "klmnopqrst"[place]
            gloss = f'small {root} of the {letters} sort; {root}s are {letters[::-1]}; "the {root} sang"'
            nouns.add([f"{letters} {root}"], gloss, ("@", middle if place % 2 else key), ("#p", thing))
    nouns.add(["crane", "wader"], "tall with a long neck", ("@", of_root["bird"]))
    nouns.add(["stork", "wader"], "tall and white", ("@", of_root["bird"]))
    nouns.add([f"name{number}" for number in range(10)], "with many names", ("@", of_root["fish"]))
    nouns.add(["tomato"], "red and round", ("@", of_root["fruit"]), ("@", of_root["vegetable"]))
    nouns.add(["Lassie"], "that of a film", ("@i", of_root["dog"]))
    nouns.add(["dogs"], "many", ("@", of_root["dog"]))
    for number in range(8):
        nouns.add([f"other{number}"], f"other thing {'uvwxyzpq'[number] * 3}", ("@", thing))
    return nouns.write(folder)
